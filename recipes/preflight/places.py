"""Whether a job's paths are there where it runs, and free for what it is going to write.

Inside a container only what is mounted is there. An output goes over nothing that is there, in no input, in no other
run's output, and has room.
"""

import os
import posixpath
import shutil
import tempfile
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path

from executors.base import Mount, is_below, mount_of
from recipes.experiment.job import Job
from recipes.planner.disk import hidden_states_bytes, outputs_bytes
from recipes.preflight.history import unfinished_runs
from recipes.preflight.paths import inputs_of, overlap, path_here
from scripts.args.meaning import MEGATRON, values_of
from scripts.run.files import is_there
from scripts.run.problems import Problem
from scripts.run.registry import check

#: What an image brings itself, and where the code that travels with a job is put.
_OF_IMAGE = ("/opt", "/workspace", "/usr", "/nemo_run")
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


@check("path_not_mounted", applies=attrgetter("in_container"), can_force=True)
def not_mounted(job: Job) -> Iterator[Problem]:
    mounts = job.place.mounts(job.run_dir) or ()
    for named in inputs_of(job):
        if mount_of(named.path, mounts) is None:
            yield _unseen(named.key, named.path, mounts, job, of_image=_in_image(named.path))
    script = job.script.path
    if script and posixpath.isabs(script) and not _in_image(script) and mount_of(script, mounts) is None:
        yield _unseen("script.path", script, mounts, job, of_image=False)
    for key, path in _written(job):
        if mount_of(path, mounts) is None:
            cause = f"the container has no mount there, and what is written vanishes with it{_there_are(mounts, job)}"
            yield Problem(key=key, value=path, cause=cause, remedy=job.place.mount_remedy(path))


def _in_image(path: str) -> bool:
    return any(is_below(path, folder) for folder in _OF_IMAGE)


def _unseen(key: str, path: str, mounts: tuple[Mount, ...], job: Job, *, of_image: bool) -> Problem:
    return Problem(
        key=key,
        value=path,
        cause="no mount brings it into the container: the image must hold it"
        if of_image
        else f"the container has no mount there{_there_are(mounts, job)}",
        remedy=job.place.mount_remedy(path),
        severity="warning" if of_image else "error",
    )


def _there_are(mounts: tuple[Mount, ...], job: Job) -> str:
    targets = sorted({mount.target for mount in mounts if not is_below(mount.target, str(job.run_dir.parent))})
    return f"; it sees {', '.join(targets[:4])}{' ...' if len(targets) > 4 else ''}" if targets else ""


def _written(job: Job) -> Iterator[tuple[str, str]]:
    """What the job writes: its outputs, and what is no artifact."""
    yield from ((key, str(path)) for key, _, path in job.outputs if path.is_absolute())
    for field, value, meaning in values_of(job.resolved):
        if meaning.path == "write" and isinstance(value, str) and posixpath.isabs(value):
            yield f"args.{field}", value


@check("mount_missing", can_force=True)
def mount_sources(job: Job) -> Iterator[Problem]:
    """Folders that the engine would not find when it makes the container."""
    for source in job.place.missing_sources():
        cause, remedy = "it is to be mounted, and is not there", "Make it, or correct executor.mounts."
        yield Problem(key="executor.mounts", value=source, cause=cause, remedy=remedy)


@check("output_on_readonly_mount", applies=attrgetter("in_container"))
def read_only(job: Job) -> Iterator[Problem]:
    mounts = job.place.mounts(job.run_dir) or ()
    for key, path in _written(job):
        mount = mount_of(path, mounts)
        if mount is not None and mount.read_only:
            cause = f"{mount.target} is mounted to be read only"
            remedy = "Leave :ro out of that mount, or write elsewhere."
            if mount.source == str(job.run_dir.parent):
                cause = f"{mount.target} holds all runs, and a job may write in its own directory there only"
                remedy = "Write elsewhere, or mount that folder in executor.mounts."
            yield Problem(key=key, value=path, cause=cause, remedy=remedy)


@check("missing_input")
def missing_where_mounted(job: Job) -> Iterator[Problem]:
    for named in inputs_of(job):
        if named.field in job.promised or (job.here and not named.must_exist):
            continue
        found = path_here(job, named.path)
        if found is None or is_there(found):
            continue
        if not all(is_there(f"{found}{ending}") for ending in (".bin", ".idx")):
            cause = "there is nothing here" if job.here else f"there is no {found}, which is mounted there"
            if named.consumes == "binidx":
                cause += ", no folder of prepared data and no .bin and .idx of that name"
            yield Problem(
                key=named.key,
                value=named.path,
                cause=cause,
                remedy="Name what is there, or make it first.",
                can_force=job.place.has_own_disks,
            )


@check("output_exists", "output_not_writable", "output_overlaps_input", *_OVERLAPS.values())
def outputs(job: Job) -> Iterator[Problem]:
    """Outputs where something is already, that cannot be written, or that lie in an input or in each other."""
    paths = {key: path for key, _, path in job.outputs}
    sources = [(named.key, named.path) for named in inputs_of(job)]
    root, anchor = job.run_dir.parent, _existing_parent(job.run_dir.parent)
    if job.capabilities.reads_run_dir and not _is_elsewhere(job, anchor) and (trouble := _cannot_write(anchor)):
        key = "NEMORUN_HOME" if job.profile.run_folders is None else "executor.output_root"
        yield Problem(name="output_not_writable", key=key, value=root, cause=trouble, remedy="Name another folder.")
    for key, path in paths.items():
        found = path_here(job, path)
        if found is not None and _holds_something(str(found)):
            cause = "it already holds something, and nothing is overwritten"
            read = any(overlap(path, other) for _, other in sources)  # what is an input is not to be removed
            remedy = "Name another folder." if read else "Name another folder, or remove it."
            yield Problem(name="output_exists", key=key, value=path, cause=cause, remedy=remedy)
        anchor = _existing_parent(path)
        own = is_below(str(path), str(root))  # that is said once
        trouble = _cannot_write(anchor) if job.here and not own and not _is_elsewhere(job, anchor) else None
        if trouble:
            yield Problem(name="output_not_writable", key=key, value=path, cause=trouble)
        others = [(name, other, _OVERLAPS.get(job.algorithm)) for name, other in sources]
        others += [(name, str(other), None) for name, other in paths.items() if name < key]
        for other_key, other, called in others:
            if overlap(path, other):
                cause = f"it overlaps {other_key}={other}"
                name = called or "output_overlaps_input"
                yield Problem(name=name, key=key, value=path, cause=cause, remedy="Name a folder of its own.")


@check("no_output", engines=MEGATRON, can_force=True)
def something_left(job: Job) -> Iterator[Problem]:
    """A job that could write something is told to."""
    keys = [
        f"args.{name}"
        for name, _, meaning in values_of(job.resolved)
        if meaning.produces and meaning.used_by(job.engine)
    ]
    required = any(meaning.produces and meaning.required for _, _, meaning in values_of(job.resolved))
    if keys and not job.outputs and not required and job.algorithm != "prune":  # which has a name for that of its own
        cause = "it is null, and the job leaves nothing but its log"
        yield Problem(key=keys[0], value=None, cause=cause, remedy=f"Set {' or '.join(keys)} to a folder.")


@check("not_enough_disk", engines=(*MEGATRON, "hf"), can_force=True)
def disk(job: Job) -> Iterator[Problem]:
    """Too little room where the outputs go, those on one disk counted together, and what lies there until the end."""
    sizes = outputs_bytes(job)
    if passing := hidden_states_bytes(job):
        sizes["args.memory"] = passing
    needed: dict[int, int] = {}
    for key, path in (("args.memory", job.run_dir), *((key, path) for key, _, path in job.outputs)):
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
            written, left = f"about {needed[disk] / 1e9:.1f} GB will be written there", f"{free / 1e9:.1f} GB free"
            cause = f"{written}, and {anchor} has {left}"
            yield Problem(key=key, value=path, cause=cause, remedy="Write elsewhere, or make room.")
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
                cause = f"{origin.name}, which is {origin.state} as far as is recorded, leaves something in {taken}"
                remedy = f"Name another folder, or wait: nemo experiment status {origin.name}"
                yield Problem(key=key, value=path, cause=cause, remedy=remedy)


def _holds_something(path: str) -> bool:
    try:
        with os.scandir(path) as entries:
            return next(entries, None) is not None
    except NotADirectoryError:
        return is_there(path)
    except (OSError, ValueError):
        return False


def _existing_parent(path: Path) -> Path:
    for parent in (path.absolute(), *path.absolute().parents):
        if is_there(parent):
            return parent
    return Path("/")


def _cannot_write(folder: Path) -> str | None:
    """Why nothing can be made in `folder`; None when it can. Tried with a file that has no name."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return f"nothing can be made in {folder} ({error.strerror})"
