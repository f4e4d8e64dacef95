"""The runs of a pipeline: in the order of their submission, with those of earlier ones that stood for stages of it."""

from collections.abc import Sequence

from recipes.experiment.runs import Run, look
from recipes.experiment.store import RunFolder
from scripts.run import schema


def with_those_that_stood(runs: Sequence[Run]) -> tuple[list[Run], list[Run]]:
    """The earlier runs that a pipeline took as they were, and its own; of both, parents come first."""
    ids = {run_id for run in runs if run.job for run_id in run.job.stands.values() if schema.run_id(run_id)}
    earlier = [RunFolder.of(run_id) for run_id in sorted(ids - {run.id for run in runs})]
    return _in_order(look(folder for folder in earlier if folder.dir.is_dir())), _in_order(runs)


def _in_order(runs: Sequence[Run]) -> list[Run]:
    return sorted(runs, key=lambda run: (str(run.record.get("submitted_at", "")), run.id))
