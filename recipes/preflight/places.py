"""Whether a job's paths are there where it runs: inside a container only what is mounted is."""

import posixpath
from collections.abc import Iterator

from executors.base import Mount, is_below, mount_of
from recipes.experiment.job import Job
from recipes.preflight.paths import Named, inputs_of, path_here, written_beside
from scripts.run.problems import Problem
from scripts.run.registry import check

#: What an image brings itself, and where the code that travels with a job is put.
_OF_IMAGE = ("/opt", "/workspace", "/usr", "/nemo_run")


def _in_container(job: Job) -> bool:
    return job.place.mounts(job.run_dir) is not None


@check("path_not_mounted", applies=_in_container, can_force=True)
def not_mounted(job: Job) -> Iterator[Problem]:
    mounts = job.place.mounts(job.run_dir) or ()
    for named in inputs_of(job):
        if mount_of(named.path, mounts) is None:
            yield _unseen(named, mounts, job, of_image=_in_image(named.path))
    script = job.script.path
    if script and posixpath.isabs(script) and not _in_image(script) and mount_of(script, mounts) is None:
        yield _unseen(Named(key="script.path", field="path", path=script), mounts, job, of_image=False)
    for named in _outputs(job):
        if mount_of(named.path, mounts) is None:
            cause = f"the container has no mount there, and what is written vanishes with it{_there_are(mounts, job)}"
            yield Problem(
                key=named.key,
                value=named.path,
                cause=cause,
                remedy=job.place.mount_remedy(named.path),
            )


def _unseen(named: Named, mounts: tuple[Mount, ...], job: Job, *, of_image: bool) -> Problem:
    if of_image:
        cause = "no mount brings it into the container: the image must hold it"
    else:
        cause = f"the container has no mount there{_there_are(mounts, job)}"
    return Problem(
        key=named.key,
        value=named.path,
        cause=cause,
        remedy=job.place.mount_remedy(named.path),
        severity="warning" if of_image else "error",
    )


def _there_are(mounts: tuple[Mount, ...], job: Job) -> str:
    targets = sorted({mount.target for mount in mounts if not is_below(mount.target, str(job.run_dir.parent))})
    return f"; it sees {', '.join(targets[:4])}{' ...' if len(targets) > 4 else ''}" if targets else ""


@check("output_on_readonly_mount", applies=_in_container)
def read_only(job: Job) -> Iterator[Problem]:
    mounts = job.place.mounts(job.run_dir) or ()
    for named in _outputs(job):
        mount = mount_of(named.path, mounts)
        if mount is not None and mount.read_only:
            cause, remedy = (
                f"{mount.target} is mounted to be read only",
                "Leave :ro out of that mount, or write elsewhere.",
            )
            if mount.source == str(job.run_dir.parent):
                cause = f"{mount.target} holds all runs, and a job may write in its own directory there only"
                remedy = "Write elsewhere, or mount that folder in executor.mounts."
            yield Problem(key=named.key, value=named.path, cause=cause, remedy=remedy)


@check("missing_input")
def missing_where_mounted(job: Job) -> Iterator[Problem]:
    for named in inputs_of(job):
        if named.field in job.promised or (job.here and not named.must_exist):
            continue
        found = path_here(job, named.path)
        if found is not None and not _is_there(str(found)):
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


def _is_there(path: str) -> bool:
    return posixpath.exists(path) or all(posixpath.exists(path + ending) for ending in (".bin", ".idx"))


def _outputs(job: Job) -> Iterator[Named]:
    for key, kind, path in job.outputs:
        if path.is_absolute():
            yield Named(key=key, field=key.removeprefix("args."), path=str(path), consumes=kind)
    yield from written_beside(job)


def _in_image(path: str) -> bool:
    return any(is_below(path, folder) for folder in _OF_IMAGE)
