"""Submission: record jobs and hand them to the place where they run, or show what would be handed over.

A sweep is one recipe with many values; on a scheduler that has job arrays, it is one job.
"""

import io
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, redirect_stdout, suppress
from dataclasses import asdict, replace
from glob import escape
from graphlib import TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from executors.base import SubmitError, nemorun_home
from executors.packaging.code import Code, package
from recipes.experiment.experiment import opened_experiment, partial_of, without_main, without_stdin
from recipes.experiment.intervene import refuse_unless_ended_badly, reopen_run
from recipes.experiment.job import Job, serialized
from recipes.experiment.logs import follow
from recipes.experiment.prepare import checked, prepare, prepare_all
from recipes.experiment.room import needs_of
from recipes.experiment.run_ids import runs_of_pipeline
from recipes.experiment.runs import Run, Watcher, look
from recipes.experiment.stage import Options, Stage, stages_of
from recipes.experiment.store import RunFolder, folders_there, recorded_together
from recipes.experiment.supervisor import (
    cancelled_where_stopped,
    carry_out,
    hand_over,
    native_id,
    spawn,
    submit_elements,
)
from scripts.args.meaning import values_of
from scripts.run.files import locked, write_text
from scripts.run.identity import identity
from scripts.run.problems import JobError, Problem, ProblemsError
from scripts.run.provenance import git_state, versions
from scripts.run.record import DamagedRecordError, Record
from scripts.run.session import run_element

if TYPE_CHECKING:
    import nemo_run as run

#: Who looks for stages that stand may have to read their inputs whole.
_TURN_SECONDS = 600.0


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
    """Run several stages, each after those it names in `after`; see `submit`.

    Of a stage of a pipeline that stands already, or is under way, it is the run that stands for it.
    """
    known = folders_there()
    examined = checked(stages, executor)
    with turn_of_pipelines() if any(stage.pipeline for stage in stages) else nullcontext():
        if folders_there() != known:  # somebody may have submitted the same meanwhile
            examined = checked(stages, executor)
        recorded = record_all(examined.jobs)
    begun = begin(recorded, detach=detach, watch=watch) if recorded else []
    stood = list(examined.reused.values())
    return [*(stood if detach else follow([run.folder for run in stood], watch)), *begun]


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
def start(jobs: Sequence[Job], *, detach: bool = False, watch: Watcher | None = None) -> list[Run]:
    """Record jobs and run them. Raises JobError when they could not be submitted."""
    return begin(record_all(jobs), detach=detach, watch=watch)


@contextmanager
def turn_of_pipelines() -> Iterator[None]:
    """Who submits a pipeline looks for stages that stand already, and records its own, before another one does.

    Raises JobError where somebody takes too long for it.
    """
    path = Path(nemorun_home()) / "pipelines.lock"
    with disk_failures():
        path.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            try:
                stack.enter_context(locked(path, seconds=_TURN_SECONDS))
            except TimeoutError as error:
                raise JobError("launch_failed", f"{error}.", "Somebody else submits a pipeline; try again.") from error
            yield


@disk_failures()
def begin(runs: Sequence[Run], *, detach: bool = False, watch: Watcher | None = None) -> list[Run]:
    """Run what was recorded. Raises JobError when it could not be submitted."""
    folders = [run.folder for run in runs]
    if not needs_supervisor([run.job for run in runs if run.job]):
        hand_over(runs)
        return list(runs) if detach else follow(folders, watch)
    if detach:
        spawn(runs)
        return look(folders)
    with cancelled_where_stopped(runs):
        here = identity()
        carry_out([run.update(supervisor=here) for run in runs], watch)
    return follow(folders, watch)


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


def needs_supervisor(jobs: Sequence[Job]) -> bool:
    """Whether a process of ours must look after the jobs, or wait until they may begin."""
    schedulers = {job.id: job.place.scheduler for job in jobs}
    for job in jobs:
        if job.capabilities.detach == "supervisor":
            return True
        for run_id in job.after:
            if job.capabilities.dependencies != "native":
                return True
            if run_id not in schedulers and (parent := Run.read(RunFolder.of(run_id)).job):
                schedulers[run_id] = parent.place.scheduler
            if schedulers.get(run_id) != schedulers[job.id]:
                return True
    return False


def record_all(jobs: Sequence[Job]) -> list[Run]:
    """Make the folders of jobs: code, record, recipe, and how to ask about them; all of them, or none.

    Raises ProblemsError for the code.
    """
    facts = {"versions": versions(), "git": git_state(Path.cwd()), "cwd": str(Path.cwd())}
    codes: dict[str, Code | None] = {}
    with recorded_together() as aside:
        runs = []
        for job in jobs:
            folder = RunFolder(dir=aside / job.id)
            folder.dir.mkdir()
            key = repr((job.place.runs_here, job.code, job.profile.packager, job.profile.include))
            if key not in codes:
                codes[key] = package_for(job, folder.archive)
                _refuse_code(job, codes[key])
            runs.append(_record(job, folder, codes[key], facts))
    return runs


def package_for(job: Job, into: Path) -> Code | None:
    """Pack the code that travels with the job; None for a local one, which runs in the environment that submits."""
    if job.place.runs_here:
        return None
    if job.code is not None:  # what travelled before, each file by its name: nobody chooses again
        files = sorted(file.relative_to(job.code).as_posix() for file in job.code.rglob("*") if file.is_file())
        return package(job.code, into, packager="pattern", include=[escape(file) for file in files])
    return package(Path.cwd(), into, packager=job.profile.packager, include=job.profile.include)


def _refuse_code(job: Job, code: Code | None) -> None:
    archive = code.archive if code is not None else None
    if archive is not None and (error := job.place.refused_code(archive.read_bytes())) is not None:
        raise ProblemsError([error.as_problem("executor.packager", job.profile.packager)])


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
    archive = RunFolder.of(code.archive.parent.name).archive if code and code.archive else None
    needs = needs_of(job) if job.capabilities.detach == "supervisor" else None
    run = Run(folder=folder, record=record.values, job=job.noting(archive=archive, needs=needs))
    run.write()
    return replace(run, folder=RunFolder.of(job.id))


@disk_failures()
def take_up(folders: Sequence[RunFolder]) -> list[Run]:
    """Start runs that ended badly over, detached. Raises ProblemsError when one did not end badly, JobError."""
    folders = _with_their_pipelines(list({folder.id: folder for folder in folders}.values()))
    for folder in folders:  # before anything is changed
        refuse_unless_ended_badly(folder)
        partial_of(folder)
    runs: list[Run] = []
    moved: dict[str, str] = {}  # run directories of attempts before, and those of the next, where that is another
    for folder in folders:
        before = Run.read(folder).job
        run = reopen_run(folder)
        if moved and run.job and run.job.after:
            run = _on_what_moved(run, moved)
        if before and run.job and run.job.run_dir != before.run_dir:
            moved[str(before.run_dir)] = str(run.job.run_dir)
        runs.append(run)
    if any(run.job and (run.job.capabilities.detach == "supervisor" or run.job.after) for run in runs):
        spawn(runs)
    else:
        hand_over(runs)
    return look(folders)


def _with_their_pipelines(folders: Sequence[RunFolder]) -> list[RunFolder]:
    """For a stage of a pipeline: all of its stages that ended badly, parents first. What succeeded is kept.

    Raises ProblemsError where nothing of a pipeline ended badly.
    """
    found: dict[str, RunFolder] = {}
    for folder in folders:
        with suppress(DamagedRecordError):
            job = Run.read(folder).job
            if job is not None and job.pipeline is not None:
                runs = {run.id: run for run in look(runs_of_pipeline(job.pipeline))}
                graph = {run.id: [one for one in run.job.after if one in runs] for run in runs.values() if run.job}
                ordered = [runs[one] for one in TopologicalSorter(graph).static_order()]
                bad = [run for run in ordered if run.state in ("failed", "cancelled", "lost")]
                found |= {run.id: run.folder for run in bad or [look([folder])[0]]}
                continue
        found[folder.id] = folder
    return list(found.values())


def _on_what_moved(run: Run, moved: Mapping[str, str]) -> Run:
    """A reopened run whose inputs are in run directories that its parents' next attempts have elsewhere."""
    from fiddle import copy_with

    def there(value: Any) -> Any:
        if isinstance(value, list):
            return [there(item) for item in value]
        for before, now in moved.items():
            if isinstance(value, str) and (value == before or value.startswith(f"{before}/")):
                return f"{now}{value.removeprefix(before)}"
        return value

    assert run.job is not None
    partial = partial_of(run.folder)
    names = [name for name, _, _ in values_of(run.job.args)] if run.job.args else []
    partial = copy_with(
        partial, args=copy_with(partial.args, **{name: there(getattr(partial.args, name)) for name in names})
    )
    write_text(run.folder.partial, serialized(partial))
    typed = {
        part: replace(values, **{name: there(getattr(values, name)) for name in names})
        for part, values in (("args", run.job.args), ("resolved", run.job.resolved))
        if values is not None
    }
    return run.update(job=replace(run.job, partial=None, **typed))


def would_send(job: Job) -> dict[str, Any]:
    """The script or request that this job would send, and the code that would travel with it.

    NeMo-Run writes while it makes one; it does so in a folder that does not stay. `problem` is why the place would
    refuse it all the same. Raises ProblemsError for code that cannot be packaged.
    """
    from nemo_run.config import get_nemorun_home

    with tempfile.TemporaryDirectory() as folder:
        code = package_for(job, Path(folder) / "code.tar.gz")
        job = job.noting(archive=code.archive if code else None, waits_for=_waits_for(job))
        with (
            without_stdin(),
            redirect_stdout(io.StringIO()),  # NeMo-Run reports some of its steps there
            without_main(),
            opened_experiment(job, job.partial, base_dir=folder) as experiment,
        ):
            experiment.dryrun(log=False, delete_exp_dir=False)
            text, problem = _text_of(experiment, job)
    submits = text.replace(folder, get_nemorun_home())
    return {"code": code.as_record() if code else None, "submits": submits} | ({"problem": problem} if problem else {})


def _text_of(experiment: Any, job: Job) -> tuple[str, Problem | None]:
    try:
        return job.place.text(experiment, job), None
    except SubmitError as error:
        if not error.text:
            raise
        return error.text, error.as_problem("executor.packager", job.profile.packager)


def _waits_for(job: Job) -> tuple[str, ...]:
    """The jobs of earlier runs that its scheduler would wait for, as far as is written down here."""
    folders = [RunFolder.of(run_id) for run_id in job.after]
    parents = [Run.read(folder) for folder in folders if folder.dir.is_dir()]
    return tuple(job_id for parent in parents if not parent.ended and (job_id := native_id(parent, job.place)))
