"""Jobs, made as `prepare` makes them whatever is wrong with them, and files for checks to look at."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from executors import place_of
from executors.base import AnyJob, Profile
from recipes import Stage, find
from recipes.experiment.examine import examine
from recipes.experiment.job import Job
from recipes.experiment.runs import Run
from recipes.experiment.stage import Options
from recipes.experiment.store import RunFolder
from scripts.args.meaning import ScriptSpec, Torchrun
from scripts.run.problems import Problem
from scripts.run.record import read_record
from scripts.run.registry import Check, carry_out


def job_of(recipe: str, executor: str = "local", profiles: Path | None = None, **values: Any) -> Job:
    """The spec of a recipe; `args__x`, `script__x` and `torchrun__x` set values, and so do names without `__`."""
    partial = find(recipe).build()
    for key, value in values.items():
        section, _, name = key.partition("__")
        setattr(getattr(partial, section) if name else partial, name or section, value)
    options = Options(profiles=profiles, online=False)
    (job,) = examine([Stage(name=recipe, partial=partial)], executor, options).jobs
    return job


@dataclass(frozen=True, kw_only=True)
class PlainJob(AnyJob):
    """As little of a job as a place asks for."""

    recipe: str = "probe"
    place: Any = None  # of an experiment that is opened for it


def submitted(
    folder: RunFolder,
    profile: Profile,
    executor: str = "x",
    recipe: str = "probe",
    run_dir: Path | None = None,
    processes: int = 1,
    **run: Any,
) -> Run:
    """Write job.json beside a run.json, as the submission of a job would have."""
    job = Job(
        id=folder.id,
        name="probe",
        recipe="probe",
        algorithm="probe",
        executor=executor,
        place=place_of(profile),
        args=None,
        resolved=None,
        script=ScriptSpec(),
        torchrun=Torchrun(),
        extra_args=[],
        engine=None,
        nodes=1,
        processes=processes,
        ranked=processes > 1,
        run_dir=run_dir or folder.dir,
        models={},
        gpu=None,
    )
    written = Run(folder=folder, record=read_record(folder.dir), job=job, **run)
    written.write()
    return written


def script_specs(folder: Path, profiles: str) -> Callable[..., Job]:
    """`make(recipe, executor="slurm", **values)`: specs of the script engine, on profiles written to `folder`."""
    file = folder / "executors.yaml"
    file.write_text(profiles)

    def make(recipe: str, executor: str = "slurm", **values: Any) -> Job:
        return job_of(recipe, executor, file, **{"engine": "script", **values})

    return make


def found(checks: Sequence[Check], spec: Job, name: str) -> list[Problem]:
    """The Problems of that name that the checks report."""
    return [problem for problem in carry_out(checks, spec).problems if problem.name == name]


def write_sparse_weights(path: Path, elements: int) -> None:
    """A safetensors file of one matrix in BF16 with so many elements, which takes next to no room on the disk."""
    shape = [elements // 1024, 1024]
    header = {"model.layers.0.mlp.up_proj.weight": {"dtype": "BF16", "shape": shape, "data_offsets": [0, elements * 2]}}
    text = json.dumps(header).encode()
    with path.open("wb") as handle:
        handle.write(len(text).to_bytes(8, "little") + text)
        handle.truncate(8 + len(text) + elements * 2)
