"""The one figure of a run that says most."""

from collections.abc import Mapping
from typing import Any


def key_figure(record: Mapping[str, Any], report: Mapping[str, Any]) -> str:
    """What quantization did to the perplexity, a score, a size; or how it failed. Empty where nothing says much.

    Raises TypeError, ValueError, ... where a damaged report has something else in its place.
    """
    if record["state"] != "succeeded":
        error = record.get("error") or {}
        phase = record.get("phase") if record["state"] == "running" else ""
        name = str(error.get("name") or phase or "")
        return "" if name == record["state"] else name
    scores, size, rows = (report.get(key) for key in ("evaluation", "size", "scores"))
    if isinstance(scores, dict) and scores.get("perplexity_base") and scores.get("perplexity_quantized"):
        return f"ppl {(scores['perplexity_quantized'] / scores['perplexity_base'] - 1) * 100:+.2f}%"
    score = rows[0].get("score") if isinstance(rows, list) and rows and isinstance(rows[0], dict) else None
    if isinstance(score, dict) and isinstance(score.get("value"), float):
        return f"{score.get('task', '')} {score['value']:.3f}"
    if isinstance(size, dict) and size.get("base_bytes") and size.get("export_bytes"):
        return f"{(size['export_bytes'] / size['base_bytes'] - 1) * 100:+.0f}% size"
    return ""
