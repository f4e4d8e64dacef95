"""Sweeps: one recipe with many values; on a scheduler that has job arrays, one job."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.experiment.examine import prepare_all
from recipes.experiment.job import Job
from recipes.experiment.logs import follow
from recipes.experiment.runs import Run, Watcher
from recipes.experiment.stage import Options, Stage
from recipes.experiment.submit import disk_failures, needs_supervisor, record_all, start
from recipes.experiment.supervisor import submit_elements
from recipes.values import set_value
from scripts.run.problems import Problem, ProblemsError
from scripts.run.session import run_element

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
def start_sweep(jobs: Sequence[Job], *, detach: bool = False, watch: Watcher | None = None) -> list[Run]:
    """Run the jobs of one recipe: as a job array where there are such, else one after another."""
    if not is_array(jobs):
        return start(jobs, detach=detach, watch=watch)
    array, elements = array_of(jobs)
    runs = record_all(elements)
    submit_elements(runs, array.noting(archive=runs[0].job.archive if runs[0].job else None))
    return runs if detach else follow([run.folder for run in runs], watch)


def is_array(jobs: Sequence[Job]) -> bool:
    """Whether they are submitted as the elements of one job."""
    return len(jobs) > 1 and jobs[0].capabilities.arrays and not needs_supervisor(jobs)


def array_of(jobs: Sequence[Job]) -> tuple[Job, list[Job]]:
    """The one job that runs all of `jobs`, under a run id that no run has, and they as its elements."""
    import nemo_run as run

    first = jobs[0]
    array = f"{first.recipe}_{first.id.rpartition('_')[2]}-array"
    secrets = first.place.secrets_path(array)
    # As text: NeMo-Run compares a Partial with its copy node by node, each with each.
    partial = run.Partial(run_element, run_dirs=[str(job.run_dir) for job in jobs], jobs=[job.text for job in jobs])
    run_dir = Path(first.place.run_root())  # each element names its own below it
    one = replace(first, id=array, run_dir=run_dir, secrets=secrets, array=len(jobs), partial=partial)
    return one, [job.noting(secrets=f"{secrets}.{index}" if secrets else None) for index, job in enumerate(jobs)]
