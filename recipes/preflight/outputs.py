"""What a job is going to write: over nothing that is there, in no input, in no other run's output, with room for it."""

import os
import posixpath
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from recipes.experiment.job import Job
from recipes.planner.disk import outputs_bytes
from recipes.preflight.origins import Origin, unfinished_runs
from recipes.preflight.paths import inputs_of, overlap, path_here
from scripts.run.problems import Problem
from scripts.run.registry import check

#: Logs, reports and what a file system keeps for itself, as a multiple of the checkpoints.
_SPARE = 1.05
#: What algorithms call an output that lies in an input.
_OVERLAPS = {
    "quantize": "source_checkpoint_overwritten",
    "convert": "source_checkpoint_overwritten",
    "prune": "output_path_overlaps_input",
    "distill": "output_dir_overlaps_checkpoint_roots",
    "qat": "output_dir_overlaps_checkpoint_roots",
}


@check("output_exists", "output_not_writable", "output_overlaps_input", *_OVERLAPS.values())
def outputs(job: Job) -> Iterator[Problem]:
    """Outputs where something is already, that cannot be written, or that lie in an input or in each other."""
    paths = {key: path for key, _, path in job.outputs}
    sources = [(named.key, named.path) for named in inputs_of(job)]
    for key, path in paths.items():
        found = path_here(job, path)
        if found is not None and _holds_something(str(found)):
            cause = "it already holds something, and nothing is overwritten"
            remedy = "Name another folder, or remove it."
            yield Problem(name="output_exists", key=key, value=path, cause=cause, remedy=remedy)
        anchor = _existing_parent(path)
        trouble = _cannot_write(anchor) if job.here and not _is_elsewhere(job, anchor) else None
        if trouble:
            yield Problem(name="output_not_writable", key=key, value=path, cause=trouble)
        others = [(name, other, _OVERLAPS.get(job.algorithm)) for name, other in sources]
        others += [(name, str(other), None) for name, other in paths.items() if name < key]
        for other_key, other, own in others:
            if overlap(path, other):
                cause = f"it overlaps {other_key}={other}"
                name = own or "output_overlaps_input"
                yield Problem(name=name, key=key, value=path, cause=cause, remedy="Name a folder of its own.")


@check("not_enough_disk", engines=("script", "hf"), can_force=True)
def disk(job: Job) -> Iterator[Problem]:
    """Too little room where the outputs go, those on one disk counted together."""
    sizes = outputs_bytes(job)
    needed: dict[int, int] = {}
    for key, _, path in job.outputs:
        found = path_here(job, path)
        if found is None or key not in sizes:
            continue
        anchor = _existing_parent(found)
        if _is_elsewhere(job, anchor):
            continue
        disk = anchor.stat().st_dev
        needed[disk] = needed.get(disk, 0) + int(sizes[key] * _SPARE)
        free = shutil.disk_usage(anchor).free
        if free < needed[disk]:
            cause = (
                f"about {needed[disk] / 1e9:.1f} GB will be written there, and {anchor} has {free / 1e9:.1f} GB free"
            )
            remedy = "Write elsewhere, or make room."
            yield Problem(key=key, value=path, cause=cause, remedy=remedy)
            return


def _is_elsewhere(job: Job, anchor: Path) -> bool:
    """Whether a path whose first folder is not here is on a cluster's storage that this login node does not mount."""
    return job.place.has_own_disks and anchor == Path("/")


@check("output_of_a_running_run", can_force=True)
def outputs_of_running_runs(job: Job) -> Iterator[Problem]:
    """Outputs that a run which has not ended is going to write as well."""
    paths = [(key, str(path)) for key, _, path in job.outputs if not path.is_relative_to(job.run_dir)]
    if not paths:
        return
    for origin in unfinished_runs():
        if origin.storage != job.place.storage:
            continue
        for key, path in paths:
            taken = next((other for other in origin.outputs if overlap(path, other)), None)
            if taken is not None:
                yield _taken(key, path, taken, origin)


def _taken(key: str, path: str, other: str, origin: Origin) -> Problem:
    cause = f"{origin.name}, which is {origin.state} as far as is recorded, leaves something in {other}"
    remedy = f"Name another folder, or wait: nemo experiment status {origin.name}"
    return Problem(key=key, value=path, cause=cause, remedy=remedy)


def _holds_something(path: str) -> bool:
    try:
        with os.scandir(path) as entries:
            return next(entries, None) is not None
    except NotADirectoryError:
        return posixpath.exists(path)
    except (OSError, ValueError):
        return False


def _existing_parent(path: Path) -> Path:
    for parent in (path.absolute(), *path.absolute().parents):
        if posixpath.exists(parent):
            return parent
    return Path("/")


def _cannot_write(folder: Path) -> str | None:
    """Why nothing can be made in `folder`; None when it can. Tried with a file that has no name."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return f"nothing can be made in {folder} ({error.strerror})"
