"""What a job reads, as run.json has it: with the run that made it, where that can be told from where it lies."""

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from scripts.args.meaning import values_of
from scripts.checkpoints.hub_cache import commit_of, is_of_hub
from scripts.run.record import DamagedRecordError, read_record
from scripts.stores.fetch import origin_of

#: So many folders above a path a run directory is looked for.
_ABOVE = 8


def inputs_of(args: Any, engine: str = "script") -> list[dict[str, Any]]:
    """Each path that is here, and each name for what is fetched on the way, of resolved arguments."""
    rows = []
    for _, value, meaning in values_of(args):
        if meaning.consumes and meaning.used_by(engine) and value is not None:
            listed = value if isinstance(value, (list, tuple)) else [str(value)]
            named = [item for item in listed if isinstance(item, str)]
            rows += [{"type": meaning.consumes, "name": item, **made_by(Path(item))} for item in named]
    return rows


def with_commits(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Inputs with the commit of each that came from the hub, as its cache here has it now."""
    named = [(row, commit_of(row["name"]) if is_of_hub(row["name"]) else None) for row in rows]
    return [row | ({"revision": commit} if commit else {}) for row, commit in named]


def of_model(name: str, folder: Path, facts: dict[str, Any], digest: str, text: str) -> list[dict[str, Any]]:
    """The model in `folder`, which is of this content, and what it is calibrated on."""
    model = {"type": "checkpoint_hf", "name": name, "path": str(folder), **facts, **made_by(folder, digest)}
    return with_commits([model, {"type": "calibration_text", "name": text}])


def made_by(path: Path, digest: str | None = None) -> dict[str, str]:
    """The run in whose directory an output lies that `path` is, or is in, and the digest that it wrote down.

    What was fetched from a store has its URL for a name. With `digest`, which was measured now: nothing where that run
    left something else there.
    """
    if fetched := origin_of(path):
        return fetched
    found = maker_of(path)
    if found is None:
        return {}
    _, record, output = found
    same = digest in (None, output.get("digest"))
    return {"run": record["id"], "digest": digest or output.get("digest", "")} if same else {}


def maker_of(path: Path) -> tuple[Path, dict[str, Any], dict[str, Any]] | None:
    """The run directory in which an output lies that `path` is, or is in, with its record and the output's entry."""
    if not path.is_absolute():
        return None
    real = Path(os.path.realpath(path))
    for folder in list(real.parents)[:_ABOVE]:
        with suppress(DamagedRecordError):
            record = read_record(folder)
            for output in record.get("outputs", []):
                if real.is_relative_to(os.path.realpath(output["path"])) and "id" in record:
                    return folder, record, output
    return None
