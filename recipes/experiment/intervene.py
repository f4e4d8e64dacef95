"""Ending runs, and starting over those that ended badly."""

import time
from contextlib import suppress

from executors.base import SchedulerJob
from recipes.experiment.runs import Run, look
from recipes.experiment.store import RunFolder, run_folders
from scripts.run.identity import terminate
from scripts.run.problems import JobError, Problem, ProblemsError, error_data
from scripts.run.record import FINAL_STATES, DamagedRecordError, Record, read_record

#: Seconds.
_ASK_AGAIN = 5.0


def cancel_run(folder: RunFolder, seconds: float = 30.0) -> Run:
    """End a run, and wait until that is recorded (or `seconds` are over). Ended runs stay as they are.

    Raises JobError when that cannot be, as for a damaged record.
    """
    run, deadline = look([folder])[0], time.monotonic() + seconds
    if run.state == "unreadable":
        error = run.record["error"]
        raise JobError(error["name"], error["message"], error["remedy"])
    if folder.is_foreign:
        raise JobError("not_your_run", f"{folder.dir} belongs to another user.", "Ask whoever submitted it.")
    if run.ended and (run.state != "lost" or run.job is None or run.job.place.runs_here):
        return run
    run = _ask_for_its_end(run)
    while not (run := run.wait(min(_ASK_AGAIN, deadline - time.monotonic()))).ended and time.monotonic() < deadline:
        # A supervisor that was stopped before it knew of its job left the job behind.
        if not run.supervised:
            run = _ask_for_its_end(run)
        elif run.supervisor and _is_alone(run):  # it may be busy with its submission, which a signal breaks off
            terminate(run.supervisor)
    return run


def _is_alone(run: Run) -> bool:
    """Whether whoever looks after a run looks after no other that has not ended."""
    for folder in run_folders():
        with suppress(DamagedRecordError):
            other = Run.read(folder)
            if other.id != run.id and other.supervisor == run.supervisor and not other.ended:
                return False
    return True


def _ask_for_its_end(run: Run) -> Run:
    """Whoever looks after it finds that written down; else its scheduler is told, or its processes."""
    if run.job is None:
        terminate(run.record["process"])
        return run
    job, place, run = run.job, run.job.place, run.update(cancel_asked=True)
    if run.supervised:
        return run  # whoever looks after it reads that
    if run.scheduled is not None:
        place.cancel(run.scheduled)
    elif run.processes:  # whoever started it died before noting that
        place.cancel(SchedulerJob.of(job, "", ""))
    else:  # it never got to its scheduler
        record = Record(run.dir, read_record(run.dir))
        if record.values["state"] not in FINAL_STATES:  # else it did, and has ended meanwhile
            record.finish("cancelled", error_data("cancelled", "cancelled before it was submitted"))
    return run


def refuse_unless_ended_badly(folder: RunFolder) -> Run:
    """The run, which was lost, failed or cancelled. Raises ProblemsError `cannot_resume` for any other, and
    `damaged_record` for one that cannot be read."""
    run = look([folder])[0]
    if run.state == "unreadable":
        found = run.record["error"]
        raise ProblemsError(
            [Problem(name=found["name"], key="ID", value=folder.id, cause=found["message"], remedy=found["remedy"])]
        )
    if run.job is None or run.state not in ("lost", "failed", "cancelled"):
        cause = f"it is {run.state}" if run.job else "it was not submitted from here"
        remedy = (
            f"Only a run that ended badly can be started over; nemo experiment status {folder.id} says how it stands."
        )
    elif folder.is_foreign:
        cause, remedy = "it belongs to another user", "Submit the recipe as a run of your own."
    elif run.processes:
        cause = f"processes of it go on: {', '.join(map(str, run.processes))}"
        remedy = "Wait for their end, or kill them."
    else:
        return run
    raise ProblemsError([Problem(name="cannot_resume", key="ID", value=folder.id, cause=cause, remedy=remedy)])


def reopen_run(folder: RunFolder) -> Run:
    """Make a run that ended badly ready to be started again. Raises ProblemsError when it did not.

    Of two who ask at once one does it: the other finds it submitted.
    """
    with folder.turn("resume"):
        return refuse_unless_ended_badly(folder).reopen()
