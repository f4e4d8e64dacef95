"""From a recorded run to a job: hand it to its scheduler through NeMo-Run, see it to its end, or leave it there."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from contextvars import Context, copy_context
from dataclasses import asdict, dataclass, field, replace
from types import FrameType
from typing import Any

from executors.base import Place, SchedulerJob, SubmitError, UnreachableError
from recipes.experiment.experiment import opened_experiment, partial_of, without_main, without_stdin
from recipes.experiment.job import Job
from recipes.experiment.room import Room
from recipes.experiment.runs import Run, Watcher, look
from recipes.experiment.store import RunFolder
from scripts.run.diagnosis import diagnose_unbegun
from scripts.run.files import read_limited, regular
from scripts.run.identity import identity
from scripts.run.problems import JobError, error_data
from scripts.run.record import FINAL_STATES, Record, read_record
from scripts.run.schema import MAX_BYTES
from scripts.run.secrets import pack_secrets

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
    """Bring recorded runs to their places, each after those it waits for, and as many at a time as have room.

    A job that nobody else looks after is seen to its end here. Whatever happens, every record ends
    in a final state, or its job is with its scheduler. Ctrl-C and SIGTERM cancel. Raises JobError
    where that cannot be written down: the disk is full.
    """
    with _sigterm_stops(), cancelled_where_stopped(runs), _Ahead(waiting=list(runs), watch=watch) as ahead:
        while ahead.go_on():
            time.sleep(_POLL_SECONDS)
    if ahead.unwritten:
        raise ahead.unwritten[0]


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
            assert run.job is not None
            _submit(run, run.job.noting(waits_for=parents_ready(run))).close()
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
        array = array.noting(waits_for=parents_ready(runs[0]))
        with named_failures(), opened_experiment(array, array.partial) as experiment, without_main():
            deliver(runs, array, experiment)
    except (JobError, KeyboardInterrupt) as error:
        cause = error if isinstance(error, JobError) else JobError("cancelled", "stopped while submitting.")
        for run in runs:
            close(run, cause)
        raise cause from error


def _submit(run: Run, job: Job) -> "_Kept":
    """Submit a job, and keep its experiment open. Raises JobError."""
    context, opened = copy_context(), ExitStack()
    with named_failures():
        try:
            partial = job.partial or partial_of(run.folder)
            experiment = context.run(opened.enter_context, opened_experiment(job, partial))
            with without_main():
                scheduled = context.run(deliver, [run], job, experiment)
        except BaseException:
            context.run(opened.close)
            raise
    return _Kept(run=run, job=job, scheduled=scheduled, opened=opened, context=context)


def parents_ready(run: Run) -> tuple[str, ...]:
    """Wait for the parents that the run's own scheduler does not know; return the job ids of those it does.

    Raises JobError as `_waits_for` does.
    """
    assert run.job is not None
    while (ready := _waits_for(run, look(map(RunFolder.of, run.job.after)))) is None:
        _beat(run)
        time.sleep(_PARENT_POLL_SECONDS)
    return ready


def _waits_for(run: Run, parents: Sequence[Run]) -> tuple[str, ...] | None:
    """The job ids of the parents that go on, where the run's own scheduler knows them all; None: it may not begin yet.

    Raises JobError `dependency_failed` when one ended badly: then this run is recorded as one that will not begin.
    """
    assert run.job is not None
    for parent in parents:
        if parent.ended and parent.state != "succeeded":
            how = {"cancelled": "was cancelled", "lost": "was lost", "failed": "failed"}
            cause = f"{parent.id}, which must succeed first, {how.get(parent.state, f'is {parent.state}')}"
            finish(run, "cancelled", "dependency_failed", cause)
            raise JobError("dependency_failed", cause)
    going_on = [parent for parent in parents if not parent.ended]
    native = [job_id for parent in going_on if (job_id := native_id(parent, run.job.place))]
    return tuple(native) if len(native) == len(going_on) else None


def native_id(parent: Run, place: Place) -> str | None:
    """A parent's job id, where the scheduler of `place` can wait for it by itself."""
    if parent.job is None or parent.scheduled is None or place.capabilities.dependencies != "native":
        return None
    same = parent.job.place.scheduler == place.scheduler
    known = same and not parent.scheduled.id.startswith("?")  # submitted, but nobody knows as what
    return parent.scheduled.id if known else None


@dataclass(frozen=True, kw_only=True, eq=False)
class _Kept:
    """A job that was submitted, with its experiment, which is open until it is closed.

    That is in a context of its own: NeMo-Run notes in the present one which experiment it works on.
    """

    run: Run
    job: Job
    scheduled: SchedulerJob
    opened: ExitStack
    context: Context

    def close(self) -> None:
        """Raises JobError."""
        with named_failures():
            self.context.run(self.opened.close)


@dataclass(kw_only=True)
class _Ahead:
    """Runs on their way: those that wait, and those that are seen to their end here, which Ctrl-C cancels."""

    waiting: list[Run]
    watch: Watcher | None = None
    kept: list[_Kept] = field(default_factory=list)
    unwritten: list[JobError] = field(default_factory=list)  # ends that could not be written down
    _room: Room = field(default_factory=Room)
    _told: set[str] = field(default_factory=set)  # runs that are to end
    _due: float = 0.0  # when to look again at those that wait

    def __enter__(self) -> "_Ahead":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is not None and issubclass(kind, KeyboardInterrupt):
                self._cancel()
        finally:
            for one in self.kept:
                with suppress(JobError):
                    one.close()

    def go_on(self) -> bool:
        """Look at all of them once, and begin what may; whether any is left."""
        for one, run in self._seen():
            self._tell(run)
            if run.ended or run.supervisor != one.run.supervisor:  # else it is another's by now
                self._leave(one, run)
                continue
            _beat(run)
            if run.cancel_asked:
                with suppress(JobError):  # whoever asked for it will see that it goes on
                    self._end(one)
        if self.waiting and time.monotonic() >= self._due:
            self._begin()
            self._due = time.monotonic() + _PARENT_POLL_SECONDS
        return bool(self.waiting or self.kept)

    def _tell(self, run: Run) -> None:
        if self.watch:
            self.watch(run)

    def _seen(self) -> list[tuple[_Kept, Run]]:
        places = {one.run.id: one.job.place for one in self.kept}
        return list(zip(self.kept, look([one.run.folder for one in self.kept], places), strict=True))

    def _leave(self, one: _Kept, run: Run) -> None:
        """One that has ended; others may have waited for that, or for its room."""
        self.kept.remove(one)
        self._due = 0.0
        with self._closing(run):
            one.close()
            # Whoever looks later would wait for ever. (That a run is lost is written down by nobody.)
            told = run.note and run.state in FINAL_STATES - {"lost"}
            if told and read_record(run.dir)["state"] not in FINAL_STATES:
                cause = f"{run.id} is {run.state}, and that cannot be recorded. {run.note}"
                raise JobError("disk_full", cause, "Make room in NeMo-Run's home.")

    @contextmanager
    def _closing(self, run: Run) -> Iterator[None]:
        """What goes wrong with one run is its end, and not that of the others."""
        try:
            yield
        except JobError as error:
            if not close(run, error):
                self.unwritten.append(error)

    def _begin(self) -> None:
        """In the order of submission: nothing passes one that is ready and has no room."""
        waiting, self.waiting = look([run.folder for run in self.waiting]), []
        ids = {parent for run in waiting if run.job for parent in run.job.after} - {one.run.id for one in self.kept}
        parents = {run.id: run for run in [*look(map(RunFolder.of, ids)), *(one.run for one in self.kept)]}
        full = False
        for run in waiting:
            self._tell(run)
            if run.ended or run.job is None:
                continue
            if run.cancel_asked:
                finish(run, "cancelled", "cancelled", "cancelled before it was submitted")
                continue
            _beat(run)
            going = [one.job for one in self.kept]
            keeps = run.job.capabilities.detach == "supervisor"
            with self._closing(run):
                ready = _waits_for(run, [parents[parent] for parent in run.job.after])
                full = full or (ready is not None and keeps and not self._room.fits(run.job, going))
                if ready is None or (keeps and full):
                    self.waiting.append(run)
                    continue
                job = run.job.noting(waits_for=ready, devices=self._room.devices(run.job, going))
                one = _submit(run, job)
                if keeps:
                    self.kept.append(one)
                else:
                    one.close()

    def _end(self, one: _Kept) -> None:
        if one.run.id not in self._told:
            with suppress(UnreachableError):  # it may answer in a moment
                one.job.place.cancel(one.scheduled)
                self._told.add(one.run.id)

    def _cancel(self) -> None:
        deadline = time.monotonic() + _STOP_SECONDS
        for one in self.kept:
            one.run.update(cancel_asked=True)
        while time.monotonic() < deadline:
            going = [one for one, run in self._seen() if not run.ended and run.supervisor == one.run.supervisor]
            if not going:
                return
            for one in going:
                self._end(one)
            time.sleep(_POLL_SECONDS)


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
