"""Submission: record what was checked, and hand it to the place where it runs."""

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from executors.packaging.code import Code, package
from recipes.experiment.delivery import disk_failures, partial_of, write_partial
from recipes.experiment.examine import Stage, Submission, prepare, prepare_all
from recipes.experiment.job import outputs_of
from recipes.experiment.launching import Watcher, cancelled_where_stopped, carry_out, hand_over
from recipes.experiment.runs import reopen_run
from recipes.experiment.standing import Run, look, recorded
from recipes.experiment.store import Handle, RunFolder, launch_values, scheduler_of
from recipes.experiment.supervisor import spawn
from scripts.run.identity import identity
from scripts.run.provenance import git_state, versions
from scripts.run.record import Record

if TYPE_CHECKING:
    import nemo_run as run


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
    prepared = prepare(partial, executor, profile, after=after, force=frozenset(force))
    (run,) = start([prepared], detach=detach, watch=watch)
    return run


def submit_all(
    stages: Sequence[Stage], executor: str = "local", *, detach: bool = False, watch: Watcher | None = None
) -> list[Run]:
    """Run several stages, each after those it names in `after`; see `submit`."""
    return start(prepare_all(stages, executor), detach=detach, watch=watch)


@disk_failures()
def start(submissions: Sequence[Submission], *, detach: bool = False, watch: Watcher | None = None) -> list[Run]:
    """Record prepared submissions and run them. Raises JobError when they could not be submitted."""
    from recipes.experiment.following import follow

    supervised = needs_supervisor(submissions)
    folders = record_all(submissions)
    if not supervised:
        hand_over(folders)
        if detach:
            return [recorded(folder.dir) for folder in folders]
        follow(folders, watch)
    elif detach:
        spawn(folders)
    else:
        with cancelled_where_stopped(folders):
            here = identity()
            for folder in folders:
                folder.update_handle(supervisor=here)
            carry_out(folders, watch)
        follow(folders, watch)
    return look([folder.dir for folder in folders])


def needs_supervisor(submissions: Sequence[Submission]) -> bool:
    """Whether a process of ours must look after the jobs, or wait until they may begin."""
    hosts = {submission.id: scheduler_of(vars(submission.place.profile)) for submission in submissions}
    for submission in submissions:
        if submission.place.capabilities.detach == "supervisor":
            return True
        if submission.place.capabilities.dependencies == "native":
            parents = {run_id: hosts.get(run_id) or _scheduler_of_run(run_id) for run_id in submission.after}
            if all(scheduler == hosts[submission.id] for scheduler in parents.values()):
                continue
        if submission.after:
            return True
    return False


def _scheduler_of_run(run_id: str) -> tuple[Any, ...] | None:
    handle = RunFolder.of(run_id).handle()
    return scheduler_of(handle.profile) if handle else None


def record_all(submissions: Sequence[Submission]) -> list[RunFolder]:
    """Make the folders of checked submissions: code, record, recipe, and how to ask about them."""
    facts = {"versions": versions(), "git": git_state(Path.cwd()), "cwd": str(Path.cwd())}
    codes: dict[str, Code | None] = {}
    folders = []
    try:
        for submission in submissions:
            place, profile = submission.place, submission.place.profile
            key = repr((place.runs_here, profile.packager, profile.include))
            if key not in codes:
                codes[key] = package_for(submission, submission.folder.archive)
            folders.append(_record(submission, codes[key], facts))
    except BaseException:
        for submission in submissions:  # nothing was submitted, and nothing is left
            shutil.rmtree(submission.folder.dir, ignore_errors=True)
        raise
    return folders


def package_for(submission: Submission, into: Path) -> Code | None:
    """Pack the code that travels with the job; None for a local one, which runs in the environment that submits."""
    profile = submission.place.profile
    if submission.place.runs_here:
        return None
    return package(Path.cwd(), into, packager=profile.packager, include=profile.include)


def _record(submission: Submission, code: Code | None, facts: Mapping[str, Any]) -> RunFolder:
    folder, profile = submission.folder, submission.place.profile
    Record.submit(
        folder.dir,
        id=submission.id,
        recipe=submission.partial.recipe,
        algorithm=submission.job.algorithm,
        executor={"name": submission.executor, **dataclasses.asdict(profile)},
        values=values_of(submission.partial),
        code=code.as_record() if code else None,
        after=list(submission.after),
        expects=outputs_of(submission.job),
        warnings=[problem.as_data() for problem in submission.warnings],
        run_dir=str(submission.run_dir),
        **facts,
    )
    write_partial(folder, submission.partial)
    folder.write_handle(
        Handle(
            executor=submission.executor,
            profile=dataclasses.asdict(profile),
            launch=launch_values(submission.launch(code.archive if code else None)),
            after=list(submission.after),
        )
    )
    return folder


def values_of(partial: "run.Partial[Any]") -> dict[str, Any]:
    """A recipe's values as plain data, section by section, as a YAML file would hold them."""
    from fiddle import build

    sections = {name: dataclasses.asdict(build(getattr(partial, name))) for name in ("script", "args", "torchrun")}
    return {"engine": partial.engine, **sections, "extra_args": list(partial.extra_args)}


@disk_failures()
def take_up(folders: Sequence[RunFolder]) -> list[Run]:
    """Start runs that ended badly over, detached. Raises ProblemsError when one did not end badly, JobError."""
    for folder in folders:
        partial_of(folder)  # before anything is changed
    for folder in folders:
        reopen_run(folder)
    handles = [handle for folder in folders if (handle := folder.handle())]
    if any(handle.place().capabilities.detach == "supervisor" or handle.after for handle in handles):
        spawn(folders)
    else:
        hand_over(folders)
    return look([folder.dir for folder in folders])
