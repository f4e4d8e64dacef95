"""What a job reads, as run.json has it: with the run that made it, where that can be told from where it lies."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from scripts.args.meaning import values_of
from scripts.run.record import DamagedRecordError, read_record

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


def made_by(path: Path, digest: str | None = None) -> dict[str, str]:
    """The run in whose directory an output lies that `path` is, or is in, and the digest that it wrote down.

    With `digest`, which was measured now: nothing where that run left something else there.
    """
    if not path.is_absolute():
        return {}
    real = Path(os.path.realpath(path))
    for folder in list(real.parents)[:_ABOVE]:
        with suppress(DamagedRecordError):
            record = read_record(folder)
            for output in record.get("outputs", []):
                place = Path(os.path.realpath(output["path"]))
                if real.is_relative_to(place) and "id" in record:
                    same = digest in (None, output.get("digest"))
                    return {"run": record["id"], "digest": digest or output.get("digest", "")} if same else {}
    return {}
