"""The model card of a Hugging Face checkpoint: README.md, as a hub shows it, whichever engine left it.

What it says is the same for the same run: no time, and no path of a machine.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from scripts.args.meaning import value_of, values_of
from scripts.args.typed import dump_yaml, parse_yaml
from scripts.checkpoints.hub_cache import commit_of, folder_of, is_of_hub
from scripts.engines.hf.report import scored_rows, title_of
from scripts.engines.inputs import maker_of
from scripts.run.files import read_limited, write_text
from scripts.run.record import read_json
from scripts.run.schema import listed, mapping, number

FILE = "README.md"
#: What servers and Transformers take.
_SERVED = "checkpoint_hf"
_MOST_BYTES = 1 << 20
#: Of the card of the model that it was made of, what holds for it too.
_INHERITED = ("license", "license_name", "license_link")


def _interval(value: Any) -> bool:
    """two numbers"""
    return isinstance(value, list) and len(value) == 2 and None not in map(number, value)


#: report.json of another run, as far as a card tells of it.
_REPORT = {
    **{
        "model": str,
        "format": str,
        "warnings": [str],
        "size": {"base_bytes": (int, None), "export_bytes": (int, None)},
    },
    "calibration": {"samples": int, "tokens": int, "source": str},
    "evaluation": (
        dict.fromkeys(("perplexity_base", "perplexity_quantized", "kl_divergence", "top1_agreement"), float)
        | {"tokens": int, "source": str, "intervals?": ({"perplexity_increase?": _interval}, None)},
        None,
    ),
}
_FRONT = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)


def write_card(folder: Path, args: Any, record: Mapping[str, Any], report: Any = None, **facts: Any) -> None:
    """Write it into a checkpoint's folder that has none; the parameters are those of `card_of`."""
    if not (folder / FILE).exists():
        write_text(folder / FILE, card_of(args, record, report, **facts))


def measured(run_dir: Path) -> dict[str, Any] | None:
    """What a run measured, as far as a card tells of it; None where nothing is, or something else."""
    return read_json(run_dir / "report" / "report.json", _REPORT)


def card_of(
    args: Any,
    record: Mapping[str, Any],
    report: Mapping[str, Any] | None = None,
    *,
    fmt: str | None = None,
    kind: str = _SERVED,
) -> str:
    """Front matter for the hub, the figures, what it was made of and with, and how to serve it.

    `record` is run.json. `report` is what the run measured; without one that of the run that left what it read. `fmt`:
    the format that it is quantized in, where no report names it. `args`: what was asked for, where that is known.
    `kind`: the type of the checkpoint.
    """
    rows = [row for row in map(mapping, listed(record.get("inputs"))) if row.get("name")]
    report = _report(rows) if report is None else report
    if report:  # a recipe of the user's own is a file
        given = str(report["format"]).partition(", ")[0]
        fmt = PurePath(given).stem if given.endswith((".yaml", ".yml")) else given
        report = {**report, "format": str(report["format"]).replace(given, fmt)}
    read = next((row for row in rows if row["type"] == "checkpoint_hf"), {})
    model = str((report or {}).get("model") or (args and value_of(args, "model")) or read.get("name") or "")
    commit = commit_of(model) if is_of_hub(model) else None
    source = folder_of(model) / "snapshots" / commit if commit else Path(model)
    facts = _front(model, fmt, record, kind) | _license(source / FILE)
    parts = [
        f"---\n{dump_yaml(facts).rstrip()}\n---",
        f"# {_cell(title_of(report) if report else _title(model, fmt, record))}",
        f"{'Quantized' if fmt else 'Made'} with {_MAKER}, reopened and checked.",
        *_figures(report),
        _table(("made", "of"), [(key, str(value)) for key, value in _made(args, record, report, rows, model, commit)]),
        f"Serve it with `vllm serve FOLDER`, or see whether it still answers: `{_SERVE}`." if kind == _SERVED else "",
        *(f"> {_cell(str(warning))}" for warning in listed((report or {}).get("warnings"))),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


_MAKER = "[NVIDIA Model Optimizer](https://github.com/NVIDIA/Model-Optimizer)"
_SERVE = "nemo experiment run serve args.checkpoint=FOLDER"


def _report(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """What was measured of the Megatron checkpoint that was read, when it was quantized."""
    read = (str(row.get("path") or row["name"]) for row in rows if row["type"] == "checkpoint_megatron")
    for made in filter(None, map(maker_of, map(Path, read))):
        if report := measured(made[0]):
            return report
    return None


def _front(model: str, fmt: str | None, record: Mapping[str, Any], kind: str) -> dict[str, Any]:
    facts: dict[str, Any] = {"library_name": "transformers"} if kind == _SERVED else {}
    facts["tags"] = ["modelopt", fmt] if fmt else ["modelopt", str(record.get("algorithm") or "checkpoint")]
    if is_of_hub(model):
        facts |= {"base_model": model} | ({"base_model_relation": "quantized"} if fmt else {})
    return facts


def _title(model: str, fmt: str | None, record: Mapping[str, Any]) -> str:
    return title_of({"model": model or "A model", "format": fmt or f"the form that {record.get('recipe')} leaves"})


def _figures(report: Mapping[str, Any] | None) -> list[str]:
    scored = report and report.get("evaluation")
    if not report or not scored:
        return []
    said = f"On {scored['tokens']} tokens of {_nameable(str(scored['source']))} that it was not calibrated on."
    return [_table(("", "before", "after", "change"), scored_rows(report)), said]


def _made(
    args: Any,
    record: Mapping[str, Any],
    report: Mapping[str, Any] | None,
    rows: Sequence[Mapping[str, Any]],
    model: str,
    commit: str | None,
) -> list[tuple[str, Any]]:
    calibration = mapping((report or {}).get("calibration"))
    data = f"{calibration.get('samples')} samples, {calibration.get('tokens')} tokens of "
    made = [
        ("model", model if is_of_hub(model) else PurePath(model).name),
        ("its commit on the hub", commit),
    ]
    for row in rows:
        if row["name"] != model and row["type"] != "calibration_text":
            made.append((str(row["type"]), _nameable(str(row["name"]))))
        made.append(("its content", row.get("digest")))
    versions = mapping(record.get("versions"))
    made += [
        ("format", (report or {}).get("format")),
        ("calibrated on", data + _nameable(str(calibration.get("source"))) if calibration else None),
        ("recipe", record.get("recipe")),
        ("values", _values(args)),
        ("with", ", ".join(f"{name} {version}" for name, version in versions.items() if version)),
    ]
    return [(key, value) for key, value in made if value]


def _values(args: Any) -> str:
    """What was asked for, without what names a place or a machine's share: that is another one each time."""
    named = values_of(args) if args else ()
    told = ((name, value) for name, value, meaning in named if not meaning.names and meaning.role != "processes")
    plain = ((name, value) for name, value in told if isinstance(value, (str, int, float)) and value not in ("", False))
    plain = ((name, value) for name, value in plain if "${" not in str(value))  # true on the node alone
    return ", ".join(f"{name}={_nameable(str(value))}" for name, value in plain)


def _license(card: Path) -> dict[str, str]:
    """What the card of the model says of its license; nothing where it has none that can be read."""
    import yaml

    try:
        front = _FRONT.match(read_limited(card, _MOST_BYTES).decode())
        said = mapping(parse_yaml(front[1])) if front else {}
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return {key: said[key] for key in _INHERITED if isinstance(said.get(key), str)}


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
