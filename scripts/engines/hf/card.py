"""The model card of an export: README.md, as a hub shows it. What it says is the same for the same run."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from scripts.args.typed import dump_yaml
from scripts.engines.hf.report import format_name, scored_rows, title_of
from scripts.run.files import write_text

FILE = "README.md"
#: org/name, as a hub has it; anything else is of this machine, and its path nobody else's business.
_OF_HUB = re.compile(r"[\w.-]+/[\w.-]+")


def write_card(folder: Path, report: Mapping[str, Any], args: Any, source: Mapping[str, Any], versions: Any) -> None:
    """Write it into the folder of an export; `source` is the model's entry in run.json, `report` without sizes yet."""
    write_text(folder / FILE, card_of(report, args, source, versions))


def card_of(report: Mapping[str, Any], args: Any, source: Mapping[str, Any], versions: Mapping[str, Any]) -> str:
    """Front matter for the hub, the figures, and what it was made of and with."""
    model, given = str(report["model"]), str(args.export_quant_cfg)
    fmt = PurePath(given).stem if given.endswith((".yaml", ".yml")) else given
    of_hub = _OF_HUB.fullmatch(model) and not Path(model).exists()
    facts: dict[str, Any] = {"library_name": "transformers", "tags": ["modelopt", fmt]}
    if of_hub:
        facts |= {"base_model": model, "base_model_relation": "quantized"}
    calibration = report["calibration"]
    made = {
        "model": model if of_hub else PurePath(model).name,
        "its content": source.get("digest"),
        "left by": source.get("run"),
        "format": format_name(args).replace(given, fmt),
        "calibrated on": f"{calibration['samples']} samples, {calibration['tokens']} tokens of "
        f"{_nameable(str(calibration['source']))}",
        "with": ", ".join(f"{name} {version}" for name, version in versions.items() if version),
    }
    scored = report["evaluation"]
    parts = [
        f"---\n{dump_yaml(facts).rstrip()}\n---",
        f"# {_cell(title_of(report).replace(given, fmt))}",
        "Quantized with [NVIDIA Model Optimizer](https://github.com/NVIDIA/Model-Optimizer), reopened and checked.",
        _table(("", "before", "after", "change"), scored_rows(report)),
        f"On {scored['tokens']} tokens of {_nameable(str(scored['source']))} that it was not calibrated on."
        if scored
        else "",
        _table(("made", "of"), [(key, str(value)) for key, value in made.items() if value]),
        *(f"> {_cell(str(warning))}" for warning in report["warnings"]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _nameable(source: str) -> str:
    """Data as others know it: of a file of this machine its name."""
    return PurePath(source).name if source.startswith(("/", "~", ".")) else source


def _table(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    if not rows:
        return ""
    lines = [columns, tuple("---" for _ in columns), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(text: str) -> str:
    """On one line, and no mark-up."""
    return re.sub(r"([\\`*_{}<>|\[\]])", r"\\\1", " ".join(text.split()))
