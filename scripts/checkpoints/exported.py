"""What an exported Hugging Face checkpoint says about its quantization, in the exporter's own words."""

import json
from pathlib import Path
from typing import Any

from scripts.run.problems import JobError


def exported_algorithm(folder: Path) -> str | None:
    """The `quant_algo` of a ModelOpt export, in capitals; None for a checkpoint that is none.

    Raises JobError `unreadable_checkpoint` where the file that should say it cannot be read.
    """
    sidecar = _object(folder / "hf_quant_config.json")
    config = _object(folder / "config.json").get("quantization_config") or {}
    if sidecar:
        algorithm = sidecar.get("quantization", {}).get("quant_algo")
    else:
        algorithm = config.get("quant_algo") if str(config.get("quant_method", "")).startswith("modelopt") else None
    return str(algorithm).upper() if algorithm else None


def _object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise JobError("unreadable_checkpoint", f"{path}: {error}.", "Copy it again, or export again.") from error
    if not isinstance(value, dict):
        raise JobError("unreadable_checkpoint", f"{path} is no JSON object.", "Copy it again, or export again.")
    return value
