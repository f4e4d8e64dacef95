"""From a recorded run to a job: hand it to NeMo-Run, see it to its end, or leave it to its scheduler."""

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, replace
from types import FrameType

from executors.base import Place, SchedulerJob, SubmitError, UnreachableError
from recipes.experiment.delivery import deliver, named_failures, opened_experiment, partial_of
from recipes.experiment.standing import Run, look
from recipes.experiment.store import Handle, RunFolder, handle_of, scheduler_of
from scripts.run.diagnosis import diagnose_unbegun
from scripts.run.problems import JobError, error_data
from scripts.run.record import FINAL_STATES, Record, read_record

_POLL_SECONDS = 0.3
_PARENT_POLL_SECONDS = 1.0
_STOP_SECONDS = 30.0
Watcher = Callable[[Run], None]


class Stopped(KeyboardInterrupt):
    """SIGTERM arrived at the process that looks after jobs; taken like Ctrl-C."""


def carry_out(folders: Sequence[RunFolder], watch: Watcher | None = None) -> None:
    """Bring recorded runs to their places, one after another, each after those it waits for.

    A job that nobody else looks after is seen to its end here. Whatever happens, every record ends
    in a final state, or its job is with its scheduler. Ctrl-C and SIGTERM cancel.
    """
    with _sigterm_stops(), cancelled_where_stopped(folders):
        for folder in folders:
            _carry_out_one(folder, watch)


@contextmanager
def cancelled_where_stopped(folders: Sequence[RunFolder]) -> Iterator[None]:
    """Ctrl-C ends the block, and recorded runs that have no job yet are recorded as cancelled."""
    try:
        yield
    except KeyboardInterrupt:
        for folder in folders:
            if handle_of(folder).job is None:  # else `look` knows better
                finish(folder, "cancelled", "cancelled", "stopped before it began")


def hand_over(folders: Sequence[RunFolder]) -> None:
    """Submit runs whose schedulers look after them, all or none. Raises JobError, with every record closed."""
    done: list[RunFolder] = []
    for at, folder in enumerate(folders):
        try:
            _submit(folder, watch=None)
            if folder.handle_settled():  # a parent from before has failed
                raise JobError("dependency_failed", str(read_record(folder.dir)["error"]["message"]))
            done.append(folder)
        except (JobError, KeyboardInterrupt) as error:
            cause = error if isinstance(error, JobError) else JobError("cancelled", "stopped while submitting.")
            left = _undo(done)
            close(folder, cause)
            for rest in folders[at + 1 :]:
                finish(rest, "cancelled", "dependency_failed", f"{folder.id} was not submitted")
            if left:
                queued = f"{cause.cause} These are still with the scheduler: {', '.join(left)}."
                raise JobError(cause.name, queued, "nemo experiment cancel ID, once it answers.") from error
            raise cause from error


def _undo(folders: Sequence[RunFolder]) -> list[str]:
    """Cancel what was submitted; return the ids of those that could not be."""
    left = []
    for folder in reversed(folders):
        handle = folder.update_handle(cancel_asked=True)
        try:
            if (job := handle.known_job) is not None:
                handle.place().cancel(job)
            finish(folder, "cancelled", "cancelled", "a later stage of the same experiment was not submitted")
            if secrets := handle.launch.get("secrets"):
                handle.place().unstage([secrets])
        except JobError:
            left.append(folder.id)
    return left


def _carry_out_one(folder: RunFolder, watch: Watcher | None) -> None:
    try:
        _submit(folder, watch)
    except JobError as error:
        close(folder, error)


def _submit(folder: RunFolder, watch: Watcher | None) -> None:
    """Wait for parents, submit, and stay with the job where nobody else does. Raises JobError."""
    handle = handle_of(folder)
    place = handle.place()
    native = parents_ready(folder, handle, watch)
    if native is None:
        return
    launch = replace(handle.as_launch(), after=tuple(native))
    with named_failures(), opened_experiment(launch, partial_of(folder), place) as experiment:
        job = deliver([folder], place, launch, experiment)
        if place.capabilities.detach == "supervisor":
            _see_to_its_end(folder, place, job, watch)


def parents_ready(folder: RunFolder, handle: Handle, watch: Watcher | None) -> list[str] | None:
    """Wait for the parents that the run's own scheduler does not know; return the job ids of those it does.

    None when a parent ended badly: then this run is recorded as one that will not begin.
    """
    waiting = [RunFolder.of(run_id) for run_id in handle.after]
    while waiting:
        runs = look([parent.dir for parent in waiting])
        for run in runs:
            if run.ended and run.state != "succeeded":
                finish(
                    folder, "cancelled", "dependency_failed", f"{run.id}, which must succeed first, {_how(run.state)}"
                )
                return None
        parents = [RunFolder(dir=run.dir) for run in runs if not run.ended]
        native = [job_id for parent in parents if (job_id := native_id(parent, handle.place()))]
        if len(native) == len(parents):
            return native
        waiting = parents
        _beat(folder)
        if watch:
            watch(look([folder.dir])[0])
        time.sleep(_PARENT_POLL_SECONDS)
    return []


def native_id(parent: RunFolder, place: Place) -> str | None:
    """A parent's job id, where the scheduler of `place` can wait for it by itself."""
    other = parent.handle()
    if other is None or other.job is None or place.capabilities.dependencies != "native":
        return None
    same = scheduler_of(other.profile) == scheduler_of(vars(place.profile))
    known = same and not str(other.job["id"]).startswith("?")  # submitted, but nobody knows as what
    return str(other.job["id"]) if known else None


def _how(state: str) -> str:
    return {"failed": "failed", "cancelled": "was cancelled", "lost": "was lost"}.get(state, f"is {state}")


def _see_to_its_end(folder: RunFolder, place: Place, job: SchedulerJob, watch: Watcher | None) -> None:
    """Follow a job whose end nobody else will see; Ctrl-C cancels it."""
    places = {folder.id: place}
    try:
        while not (run := look([folder.dir], places)[0]).ended:
            _beat(folder)
            if watch:
                watch(run)
            time.sleep(_POLL_SECONDS)
    except KeyboardInterrupt:
        folder.update_handle(cancel_asked=True)
        asked, deadline = False, time.monotonic() + _STOP_SECONDS
        while not look([folder.dir], places)[0].ended and time.monotonic() < deadline:
            with suppress(UnreachableError):  # it may answer in a moment
                if not asked:
                    place.cancel(job)
                    asked = True
            time.sleep(_POLL_SECONDS)
        raise
    if watch:
        watch(run)


def finish(folder: RunFolder, state: str, name: str, cause: str, remedy: str = "") -> None:
    """Record how a run ended that has no job to do so; one that has ended already stays as it is."""
    record = read_record(folder.dir)
    if record["state"] in FINAL_STATES:
        return
    error = error_data(name, cause, remedy)
    found = diagnose_unbegun(error)
    with suppress(OSError):  # a full disk: then `look` finds that nobody looks after it
        ended = Record(folder.dir, record)
        ended.finish(state, error)
        if found is not None:
            ended.update(diagnosis=asdict(found))
        folder.update_handle(settled=True)


def close(folder: RunFolder, error: JobError) -> None:
    """Record why a run was not submitted; one that perhaps was stays open, and `look` finds out."""
    if not (isinstance(error, SubmitError) and error.job is not None):
        finish(folder, "failed", error.name, error.cause, error.remedy)


def _beat(folder: RunFolder) -> None:
    """For observers on other machines."""
    with suppress(OSError):
        (folder.dir / "supervisor.heartbeat").touch()


@contextmanager
def _sigterm_stops() -> Iterator[None]:
    def handler(_signal: int, _frame: FrameType | None) -> None:
        raise Stopped

    with ExitStack() as stack:
        with suppress(ValueError):  # only the main thread may; a caller's own thread goes without
            before = signal.signal(signal.SIGTERM, handler)
            stack.callback(signal.signal, signal.SIGTERM, before)
        yield
