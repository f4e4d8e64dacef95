"""What a stage before a rehearsal left: it is not made a second time while it is there and whole."""

import hashlib
import json
from pathlib import Path

from recipes.experiment.runs import Run
from recipes.experiment.stage import Stage, values_of_recipe
from scripts.checkpoints import look
from scripts.run.files import write_json
from scripts.run.problems import JobError
from scripts.run.provenance import versions
from scripts.tiny.model import default_cache_root

_KIND = "checkpoint_megatron"


def kept(stage: Stage) -> Path | None:
    """The Megatron checkpoint that an equal stage of these packages left, if nothing is wrong with it."""
    try:
        said = json.loads(_note(stage).read_text())
        path = Path(said["path"])
        found = look(path)
    except (OSError, ValueError, TypeError, KeyError, JobError):
        return None
    return path if found.kind == _KIND and not found.problems else None


def keep(stage: Stage, run: Run) -> None:
    """Note where the checkpoint of a stage that succeeded is."""
    for output in run.record.get("outputs", []):
        if output["type"] == _KIND and run.state == "succeeded":
            write_json(_note(stage), {"path": output["path"]})


def _note(stage: Stage) -> Path:
    said = [stage.partial.recipe, values_of_recipe(stage.partial), versions()]
    digest = hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()
    return default_cache_root().with_name("rehearsal") / f"{digest[:16]}.json"
