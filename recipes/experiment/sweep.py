"""Sweeps: one recipe with many values; on a scheduler that has job arrays, one job."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from executors.base import Launch
from recipes.experiment.delivery import deliver, disk_failures, named_failures, opened_experiment, serialized
from recipes.experiment.examine import Options, Stage, Submission, prepare_all
from recipes.experiment.following import follow
from recipes.experiment.launching import Watcher, close, parents_ready
from recipes.experiment.standing import Run, look, recorded
from recipes.experiment.store import RunFolder, handle_of
from recipes.experiment.submit import needs_supervisor, record_all, start
from recipes.values import set_value
from scripts.run.problems import JobError, Problem, ProblemsError
from scripts.run.record import read_record

if TYPE_CHECKING:
    import nemo_run as run


def stages_of(partial: "run.Partial[Any]", grid: Mapping[str, Sequence[str]]) -> list[Stage]:
    """One stage for every combination of `grid`: dotted keys, and texts as a command line would give them.

    Raises ProblemsError for a key or a value that does not fit.
    """
    problems: list[Problem] = []
    stages = []
    for values in itertools.product(*grid.values()):
        chosen = dict(zip(grid, values, strict=True))
        clone = partial.clone()
        for key, value in chosen.items():
            problems += [problem for problem in set_value(clone, key, value) if problem not in problems]
        stages.append(Stage(name=",".join(f"{key}={value}" for key, value in chosen.items()), partial=clone))
    if problems:
        raise ProblemsError(problems)
    return stages


def sweep(
    partial: "run.Partial[Any]",
    grid: Mapping[str, Sequence[str]],
    executor: str = "local",
    *,
    detach: bool = False,
    watch: Watcher | None = None,
) -> list[Run]:
    """Run `partial` with every combination of `grid`: `sweep(quantize_fp8(), {"args.calib_size": ["64", "256"]})`."""
    return start_sweep(prepare_all(stages_of(partial, grid), executor, Options()), detach=detach, watch=watch)


@disk_failures()
def start_sweep(submissions: Sequence[Submission], *, detach: bool = False, watch: Watcher | None = None) -> list[Run]:
    """Run prepared submissions of one recipe: as a job array where there are such, else one after another."""
    if not is_array(submissions):
        return start(submissions, detach=detach, watch=watch)
    elements = as_elements(submissions)
    folders = record_all(elements)
    _submit_array(elements, folders)
    if detach:
        return [recorded(folder.dir) for folder in folders]
    follow(folders, watch)
    return look([folder.dir for folder in folders])


def is_array(submissions: Sequence[Submission]) -> bool:
    """Whether they are submitted as the elements of one job."""
    return len(submissions) > 1 and submissions[0].place.capabilities.arrays and not needs_supervisor(submissions)


def as_elements(submissions: Sequence[Submission]) -> list[Submission]:
    """The same submissions as the elements of one job array, whose run id no run has."""
    first = submissions[0]
    array = f"{first.job.recipe}_{first.id.rpartition('_')[2]}-array"
    return [replace(submission, element=(array, index)) for index, submission in enumerate(submissions)]


def array_job(elements: Sequence[Submission], archive: Path | None) -> "tuple[Launch, run.Partial[Any]]":
    """The one job that runs all of `elements`."""
    import nemo_run as run

    from scripts.run.session import run_element

    first = elements[0]
    assert first.element is not None
    array, _ = first.element
    launch = replace(
        first.launch(archive),
        run_id=array,
        run_dir=first.place.run_root(),  # each element names its own below it
        secrets=first.place.secrets_path(array),
        array=len(elements),
    )
    run_dirs = [str(element.run_dir) for element in elements]
    # As text: NeMo-Run compares a Partial with its copy node by node, each with each.
    return launch, run.Partial(run_element, run_dirs=run_dirs, jobs=[serialized(each.partial) for each in elements])


def _submit_array(elements: Sequence[Submission], folders: Sequence[RunFolder]) -> None:
    """Submit all of them as the elements of one job. Raises JobError with every record closed."""
    place = elements[0].place
    handle = handle_of(folders[0])
    launch, partial = array_job(elements, handle.as_launch().archive)
    try:
        native = parents_ready(folders[0], handle, None)
        if native is None:
            raise JobError("dependency_failed", str(read_record(folders[0].dir)["error"]["message"]))
        launch = replace(launch, after=tuple(native))
        with named_failures(), opened_experiment(launch, partial, place) as experiment:
            deliver(folders, place, launch, experiment)
    except (JobError, KeyboardInterrupt) as error:
        cause = error if isinstance(error, JobError) else JobError("cancelled", "stopped while submitting.")
        for folder in folders:
            close(folder, cause)
        raise cause from error
