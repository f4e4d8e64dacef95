"""Submission: record a job and hand it to the place where it runs, or show what would be handed over."""

import io
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from executors.packaging.code import Code, package
from recipes.experiment.examine import prepare, prepare_all
from recipes.experiment.job import Job
from recipes.experiment.logs import follow
from recipes.experiment.runs import Run, Watcher, look, reopen_run
from recipes.experiment.stage import Stage
from recipes.experiment.store import RunFolder
from recipes.experiment.supervisor import (
    cancelled_where_stopped,
    carry_out,
    hand_over,
    native_id,
    opened_experiment,
    partial_of,
    spawn,
    without_stdin,
)
from scripts.run.files import write_text
from scripts.run.identity import identity
from scripts.run.problems import JobError
from scripts.run.provenance import git_state, versions
from scripts.run.record import Record

if TYPE_CHECKING:
    import nemo_run as run


@contextmanager
def disk_failures() -> Iterator[None]:
    """What cannot be written on this machine has a name too."""
    try:
        yield
    except OSError as error:
        raise JobError.of_os_error(error) from error


def submit(
    partial: "run.Partial[Any]",
    executor: str = "local",
    profile: Mapping[str, str] | None = None,
    *,
    detach: bool = False,
    watch: Watcher | None = None,
    after: Sequence[str] = (),
    force: Sequence[str] = (),
) -> Run:
    """Run `partial` on `executor` and return when it has ended, or at once with `detach`.

    Raises ProblemsError before anything is written, and JobError when it could not be submitted. A
    job that fails later does not raise: look at `.state` and `.record["error"]`. `watch` is called
    with the run as the job goes on; `after` names runs that must succeed first, `force` the Problems
    that do not stop it.
    """
    job = prepare(partial, executor, profile, after=after, force=frozenset(force))
    (run,) = start([job], detach=detach, watch=watch)
    return run


def submit_all(
    stages: Sequence[Stage], executor: str = "local", *, detach: bool = False, watch: Watcher | None = None
) -> list[Run]:
    """Run several stages, each after those it names in `after`; see `submit`."""
    return start(prepare_all(stages, executor), detach=detach, watch=watch)


@disk_failures()
def start(jobs: Sequence[Job], *, detach: bool = False, watch: Watcher | None = None) -> list[Run]:
    """Record jobs and run them. Raises JobError when they could not be submitted."""
    supervised = needs_supervisor(jobs)
    runs = record_all(jobs)
    folders = [run.folder for run in runs]
    if not supervised:
        hand_over(runs)
        return runs if detach else follow(folders, watch)
    if detach:
        spawn(runs)
        return look(folders)
    with cancelled_where_stopped(runs):
        here = identity()
        carry_out([run.update(supervisor=here) for run in runs], watch)
    return follow(folders, watch)


def needs_supervisor(jobs: Sequence[Job]) -> bool:
    """Whether a process of ours must look after the jobs, or wait until they may begin."""
    hosts = {job.id: job.place.scheduler for job in jobs}
    for job in jobs:
        if job.capabilities.detach == "supervisor":
            return True
        if job.capabilities.dependencies == "native":
            parents = {run_id: hosts.get(run_id) or _scheduler_of_run(run_id) for run_id in job.after}
            if all(scheduler == hosts[job.id] for scheduler in parents.values()):
                continue
        if job.after:
            return True
    return False


def _scheduler_of_run(run_id: str) -> tuple[Any, ...] | None:
    job = Run.read(RunFolder.of(run_id)).job
    return job.place.scheduler if job else None


def record_all(jobs: Sequence[Job]) -> list[Run]:
    """Make the folders of jobs: code, record, recipe, and how to ask about them."""
    facts = {"versions": versions(), "git": git_state(Path.cwd()), "cwd": str(Path.cwd())}
    codes: dict[str, Code | None] = {}
    runs = []
    try:
        for job in jobs:
            folder = RunFolder.of(job.id)
            key = repr((job.place.runs_here, job.profile.packager, job.profile.include))
            if key not in codes:
                codes[key] = package_for(job, folder.archive)
            runs.append(_record(job, folder, codes[key], facts))
    except BaseException:
        for job in jobs:  # nothing was submitted, and nothing is left
            shutil.rmtree(RunFolder.of(job.id).dir, ignore_errors=True)
        raise
    return runs


def package_for(job: Job, into: Path) -> Code | None:
    """Pack the code that travels with the job; None for a local one, which runs in the environment that submits."""
    if job.place.runs_here:
        return None
    return package(Path.cwd(), into, packager=job.profile.packager, include=job.profile.include)


def _record(job: Job, folder: RunFolder, code: Code | None, facts: Mapping[str, Any]) -> Run:
    record = Record.submit(
        folder.dir,
        id=job.id,
        recipe=job.recipe,
        algorithm=job.algorithm,
        executor={"name": job.executor, **asdict(job.profile)},
        values=job.values,
        code=code.as_record() if code else None,
        after=list(job.after),
        expects=job.expects,
        warnings=[problem.as_data() for problem in job.warnings],
        run_dir=str(job.run_dir),
        **facts,
    )
    write_text(folder.partial, job.text)
    run = Run(folder=folder, record=record.values, job=job.noting(archive=code.archive if code else None))
    run.write()
    return run


@disk_failures()
def take_up(folders: Sequence[RunFolder]) -> list[Run]:
    """Start runs that ended badly over, detached. Raises ProblemsError when one did not end badly, JobError."""
    for folder in folders:
        partial_of(folder)  # before anything is changed
    runs = [reopen_run(folder) for folder in folders]
    if any(run.job and (run.job.capabilities.detach == "supervisor" or run.job.after) for run in runs):
        spawn(runs)
    else:
        hand_over(runs)
    return look(folders)


def rehearse(job: Job) -> dict[str, Any]:
    """The script or request that this job would send, and the code that would travel with it.

    NeMo-Run writes while it makes one; it does so in a folder that does not stay. Raises
    ProblemsError for code that cannot be packaged.
    """
    from nemo_run.config import get_nemorun_home

    with tempfile.TemporaryDirectory() as folder:
        code = package_for(job, Path(folder) / "code.tar.gz")
        job = job.noting(archive=code.archive if code else None, waits_for=_waits_for(job))
        with (
            without_stdin(),
            redirect_stdout(io.StringIO()),  # NeMo-Run reports some of its steps there
            opened_experiment(job, job.partial, base_dir=folder) as experiment,
        ):
            experiment.dryrun(log=False, delete_exp_dir=False)
            text = job.place.text(experiment, job).replace(folder, get_nemorun_home())
    return {"code": code.as_record() if code else None, "submits": text}


def _waits_for(job: Job) -> tuple[str, ...]:
    """The jobs of earlier runs that its scheduler would wait for, as far as is written down here."""
    folders = [RunFolder.of(run_id) for run_id in job.after]
    parents = [Run.read(folder) for folder in folders if folder.dir.is_dir()]
    return tuple(job_id for parent in parents if not parent.ended and (job_id := native_id(parent, job.place)))
