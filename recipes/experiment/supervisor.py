"""From a recorded run to a job: hand it to its scheduler through NeMo-Run, see it to its end, or leave it there."""

import base64
import json
import os
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from types import FrameType, ModuleType
from typing import TYPE_CHECKING, Any

from executors.base import Place, SchedulerJob, SubmitError, UnreachableError
from recipes.experiment.job import Job
from recipes.experiment.runs import Run, Watcher, look
from recipes.experiment.store import RunFolder
from scripts.entrypoints import current
from scripts.run.diagnosis import diagnose_unbegun
from scripts.run.files import read_limited, regular
from scripts.run.identity import identity
from scripts.run.problems import JobError, error_data
from scripts.run.record import FINAL_STATES, Record, read_record
from scripts.run.schema import MAX_BYTES
from scripts.run.secrets import pack_secrets

if TYPE_CHECKING:
    import nemo_run as run

_POLL_SECONDS = 0.3
_PARENT_POLL_SECONDS = 1.0
_STOP_SECONDS = 30.0


class Stopped(KeyboardInterrupt):
    """SIGTERM arrived at the process that looks after jobs; taken like Ctrl-C."""


def spawn(runs: Sequence[Run]) -> None:
    """Hand recorded runs to a process of its own session, which outlives the terminal."""
    log_file = runs[0].folder.supervisor_log
    log_file.parent.mkdir(exist_ok=True)
    with open(log_file, "ab", opener=regular) as log:
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", "recipes.experiment", *(run.id for run in runs)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    who = identity(child.pid)
    for run in runs:
        run.update(supervisor=who)
    # It waits for a word, so that nobody finds a run without its supervisor's name. Where we are killed there is none.
    assert child.stdin is not None
    with suppress(BrokenPipeError):  # then it has ended, and `look` finds the runs lost
        child.stdin.write(b"begin")
        child.stdin.close()


def carry_out(runs: Sequence[Run], watch: Watcher | None = None) -> None:
    """Bring recorded runs to their places, one after another, each after those it waits for.

    A job that nobody else looks after is seen to its end here. Whatever happens, every record ends
    in a final state, or its job is with its scheduler. Ctrl-C and SIGTERM cancel. Raises JobError
    where that cannot be written down: the disk is full.
    """
    with _sigterm_stops(), cancelled_where_stopped(runs):
        for run in runs:
            try:
                _submit(run, watch)
            except JobError as error:
                if not close(run, error):
                    raise


@contextmanager
def cancelled_where_stopped(runs: Sequence[Run]) -> Iterator[None]:
    """Ctrl-C ends the block, and recorded runs that have no job yet are recorded as cancelled."""
    try:
        yield
    except KeyboardInterrupt:
        for run in runs:
            if run.again().scheduled is None:  # else `look` knows better
                finish(run, "cancelled", "cancelled", "stopped before it began")


def hand_over(runs: Sequence[Run]) -> None:
    """Submit runs whose schedulers look after them, all or none. Raises JobError, with every record closed."""
    done: list[Run] = []
    for at, run in enumerate(runs):
        try:
            _submit(run, watch=None)
            done.append(run)
        except (JobError, KeyboardInterrupt) as error:
            cause = error if isinstance(error, JobError) else JobError("cancelled", "stopped while submitting.")
            left = _undo(done)
            close(run, cause)
            for rest in runs[at + 1 :]:
                finish(rest, "cancelled", "dependency_failed", f"{run.id} was not submitted")
            if left:
                queued = f"{cause.cause} These are still with the scheduler: {', '.join(left)}."
                raise JobError(cause.name, queued, "nemo experiment cancel ID, once it answers.") from error
            raise cause from error


def _undo(runs: Sequence[Run]) -> list[str]:
    """Cancel what was submitted; return the ids of those that could not be."""
    left = []
    for submitted in reversed(runs):
        run = submitted.update(cancel_asked=True)
        assert run.job is not None
        try:
            if run.scheduled is not None:
                run.job.place.cancel(run.scheduled)
            finish(run, "cancelled", "cancelled", "a later stage of the same experiment was not submitted")
            if run.job.secrets:
                run.job.place.unstage([run.job.secrets])
        except JobError:
            left.append(run.id)
    return left


def submit_elements(runs: Sequence[Run], array: Job) -> None:
    """Submit runs as the elements of one job. Raises JobError with every record closed."""
    try:
        array = array.noting(waits_for=parents_ready(runs[0], None))
        with named_failures(), opened_experiment(array, array.partial) as experiment, without_main():
            deliver(runs, array, experiment)
    except (JobError, KeyboardInterrupt) as error:
        cause = error if isinstance(error, JobError) else JobError("cancelled", "stopped while submitting.")
        for run in runs:
            close(run, cause)
        raise cause from error


def _submit(run: Run, watch: Watcher | None) -> None:
    """Wait for parents, submit, and stay with the job where nobody else does. Raises JobError."""
    assert run.job is not None
    job = run.job.noting(waits_for=parents_ready(run, watch))
    with named_failures(), opened_experiment(job, job.partial or partial_of(run.folder)) as experiment:
        with without_main():
            scheduled = deliver([run], job, experiment)
        if job.capabilities.detach == "supervisor":
            _see_to_its_end(run, job.place, scheduled, watch)


def parents_ready(run: Run, watch: Watcher | None) -> tuple[str, ...]:
    """Wait for the parents that the run's own scheduler does not know; return the job ids of those it does.

    Raises JobError `dependency_failed` when one ended badly: then this run is recorded as one that will not begin.
    """
    assert run.job is not None
    waiting = [RunFolder.of(run_id) for run_id in run.job.after]
    while waiting:
        parents = look(waiting)
        for parent in parents:
            if parent.ended and parent.state != "succeeded":
                how = {"cancelled": "was cancelled", "lost": "was lost", "failed": "failed"}
                state = how.get(parent.state, f"is {parent.state}")
                cause = f"{parent.id}, which must succeed first, {state}"
                finish(run, "cancelled", "dependency_failed", cause)
                raise JobError("dependency_failed", cause)
        going_on = [parent for parent in parents if not parent.ended]
        native = [job_id for parent in going_on if (job_id := native_id(parent, run.job.place))]
        if len(native) == len(going_on):
            return tuple(native)
        waiting = [parent.folder for parent in going_on]
        _beat(run)
        if watch:
            watch(look([run.folder])[0])
        time.sleep(_PARENT_POLL_SECONDS)
    return ()


def native_id(parent: Run, place: Place) -> str | None:
    """A parent's job id, where the scheduler of `place` can wait for it by itself."""
    if parent.job is None or parent.scheduled is None or place.capabilities.dependencies != "native":
        return None
    same = parent.job.place.scheduler == place.scheduler
    known = same and not parent.scheduled.id.startswith("?")  # submitted, but nobody knows as what
    return parent.scheduled.id if known else None


def _see_to_its_end(run: Run, place: Place, job: SchedulerJob, watch: Watcher | None) -> None:
    """Follow a job whose end nobody else will see; Ctrl-C cancels it."""
    folder, places, me = run.folder, {run.id: place}, run.again().supervisor

    def seen() -> Run | None:
        """None once it has ended, or is another supervisor's."""
        nonlocal run
        run = look([folder], places)[0]
        return None if run.ended or run.supervisor != me else run

    try:
        while going_on := seen():
            _beat(run)
            if watch:
                watch(going_on)
            time.sleep(_POLL_SECONDS)
    except KeyboardInterrupt:
        run.update(cancel_asked=True)
        asked, deadline = False, time.monotonic() + _STOP_SECONDS
        while seen() and time.monotonic() < deadline:
            with suppress(UnreachableError):  # it may answer in a moment
                if not asked:
                    place.cancel(job)
                    asked = True
            time.sleep(_POLL_SECONDS)
        raise
    if watch:
        watch(run)
    # Whoever looks later would wait for ever. (That a run is lost is written down by nobody.)
    told = run.note and run.state in FINAL_STATES - {"lost"}
    if told and read_record(run.dir)["state"] not in FINAL_STATES:
        cause = f"{run.id} is {run.state}, and that cannot be recorded. {run.note}"
        raise JobError("disk_full", cause, "Make room in NeMo-Run's home.")


def finish(run: Run, state: str, name: str, cause: str, remedy: str = "") -> bool:
    """Record how a run ended that has no job to do so; one that has ended already stays as it is.

    Returns whether that could be written; else `look` finds that nobody looks after it.
    """
    record = read_record(run.dir)
    if record["state"] in FINAL_STATES:
        return True
    error = error_data(name, cause, remedy)
    found = diagnose_unbegun(error)
    try:
        ended = Record(run.dir, record)
        ended.finish(state, error)
        if found is not None:
            ended.update(diagnosis=asdict(found))
        run.update(settled=True)
    except OSError:
        return False
    return True


def close(run: Run, error: JobError) -> bool:
    """Record why a run was not submitted; one that perhaps was stays open, and `look` finds out.

    Returns False where it could not be written.
    """
    if isinstance(error, SubmitError) and error.job is not None:
        return True
    return finish(run, "failed", error.name, error.cause, error.remedy)


def _beat(run: Run) -> None:
    with suppress(OSError):
        run.folder.supervisor_heartbeat.touch()


@contextmanager
def _sigterm_stops() -> Iterator[None]:
    def handler(_signal: int, _frame: FrameType | None) -> None:
        raise Stopped

    with ExitStack() as stack:
        with suppress(ValueError):  # only the main thread may; a caller's own thread goes without
            before = signal.signal(signal.SIGTERM, handler)
            stack.callback(signal.signal, signal.SIGTERM, before)
        yield


@contextmanager
def named_failures() -> Iterator[None]:
    """NeMo-Run's own failures become ours: a record must not stay at `submitted` for want of a name."""
    try:
        yield
    except JobError:
        raise
    except OSError as error:
        raise JobError.of_os_error(error) from error
    except Exception as error:
        cause = f"{type(error).__name__}: {error}"
        raise JobError("launch_failed", cause, "NeMo-Run or the executor failed; nothing runs.") from error


def deliver(runs: Sequence[Run], job: Job, experiment: Any) -> SchedulerJob:
    """Put what the job needs where it runs, submit it, and note what the scheduler calls it.

    Several runs are the elements of one job array. Nothing stays behind where that fails.
    """
    place, put = job.place, _staged_files(runs)
    try:
        if (expected := place.expected(experiment, job)) is not None:
            _note(runs, job, expected, submitting=True)
        place.stage(put)
        with without_stdin():
            scheduled = place.submit(experiment, job)
    except BaseException as error:
        if isinstance(error, SubmitError) and error.job is not None:
            _note(runs, job, error.job)  # it may run, and need what was put there
        else:
            for run in runs:
                with suppress(OSError):  # a full disk: then `look` finds no job of that name
                    run.update(scheduled=None, submitting=False)
            with suppress(JobError, OSError):
                place.unstage(list(put))
        raise
    _note(runs, job, scheduled)
    return scheduled


def _note(runs: Sequence[Run], job: Job, scheduled: SchedulerJob, *, submitting: bool = False) -> None:
    for index, run in enumerate(runs):
        assert run.job is not None
        own = replace(scheduled, run_id=run.id, run_dir=str(run.job.run_dir))
        element = replace(own, id=f"{scheduled.id}_{index}") if job.array else own
        run.update(scheduled=element, submitting=submitting)


def _staged_files(runs: Sequence[Run]) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for run in runs:
        assert run.job is not None
        if run.is_elsewhere:
            files[f"{run.job.run_dir}/run.json"] = read_limited(run.dir / "run.json", MAX_BYTES)
        if run.job.secrets and (secrets := pack_secrets(run.job.profile.secrets)):
            files[run.job.secrets] = secrets
    return files


@contextmanager
def without_stdin() -> Iterator[None]:
    """NeMo-Run's shell commands read from standard input what somebody types for the next command."""
    before = sys.stdin
    with Path(os.devnull).open() as nothing:
        sys.stdin = nothing
        try:
            yield
        finally:
            sys.stdin = before


def partial_of(folder: RunFolder) -> "run.Partial[Any]":
    """The recipe that a folder keeps."""
    from fiddle.experimental.serialization import load_json

    try:
        unpacked = zlib.decompressobj()
        content = unpacked.decompress(base64.urlsafe_b64decode(read_limited(folder.partial, MAX_BYTES)), MAX_BYTES)
        if not unpacked.eof:
            raise ValueError("it is cut short, or too large")
        return load_json(json.dumps(current(json.loads(content))))
    except Exception as error:  # whatever a damaged file makes of itself
        cause = f"{folder.partial} cannot be read: {type(error).__name__}: {error}."
        raise JobError("damaged_recipe", cause, "Submit the recipe again, as a new run.") from error


class _Hidden:
    """The main program, while as many threads as `by` have NeMo-Run not find it."""

    lock, by = threading.Lock(), 0
    main: ModuleType


@contextmanager
def without_main() -> Iterator[None]:
    """NeMo-Run finds no main program meanwhile; around a submission, which takes a moment.

    It sends the text of that along, and the node runs it before the task: a script that submits would submit again
    unless it has a `__main__` guard, and one from standard input has no text to send. Our tasks need nothing of it.
    """
    with _Hidden.lock:
        if not _Hidden.by:
            _Hidden.main, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
        _Hidden.by += 1
    try:
        yield
    finally:
        with _Hidden.lock:
            _Hidden.by -= 1
            if not _Hidden.by:
                sys.modules["__main__"] = _Hidden.main


@contextmanager
def opened_experiment(job: Job, partial: "run.Partial[Any] | None", base_dir: str | None = None) -> Iterator[Any]:
    """A NeMo-Run experiment of one task, entered, quiet, and left without NeMo-Run's waiting."""
    import nemo_run as run
    from rich.console import Console

    title, _, _ = job.id.rpartition("_")
    experiment = run.Experiment(
        title,
        id=job.id,
        base_dir=base_dir,
        log_level="WARN",
        enable_goodbye_message=False,
        skip_status_at_exit=True,
    )
    # Not clean_mode: it is saved with the experiment, and would silence `nemo experiment status` later.
    experiment.console = Console(quiet=True)
    with experiment:
        experiment.add(partial, executor=job.place.executor(job), name=job.recipe)
        try:
            yield experiment
        finally:
            experiment.detach = True  # or it waits once more for what has ended, in steps of two seconds
