"""Runs after their submission: finding them, their logs, ending them, and starting them over."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from executors.base import read_from
from recipes.experiment.standing import Run, is_elsewhere, look
from recipes.experiment.store import Handle, RunFolder, runs_dir
from scripts.run.identity import identity, is_alive
from scripts.run.problems import JobError, Problem, ProblemsError, error_data, nearest
from scripts.run.record import DamagedRecordError, Record, read_record

_POLL_SECONDS = 0.3
#: What a recorded error's parts are called in the exception.
_ERROR_PARTS = {"name": "name", "cause": "message", "remedy": "remedy"}
_REMOTE_POLL_SECONDS = 2.0


def all_runs() -> list[Run]:
    """Every run recorded on this machine, oldest first."""
    runs = look(path.parent for path in runs_dir().glob("*/run.json"))
    return sorted(runs, key=lambda run: (run.record.get("submitted_at", ""), run.id))


def find_run(word: str) -> RunFolder:
    """The run that `word` names: its id, or the beginning of exactly one. Raises ProblemsError."""
    folders = [path.parent for path in sorted(runs_dir().glob("*/run.json"))]
    matches = [folder for folder in folders if folder.name == word] or [
        folder for folder in folders if word and folder.name.startswith(word)
    ]
    if len(matches) == 1:
        return RunFolder(dir=matches[0])
    cause = "several runs begin like that" if matches else "no run of that id is recorded here"
    names = [folder.name for folder in (matches or folders)][-8:]
    remedy = nearest(word, names) if names else "nemo experiment ps --all lists them."
    raise ProblemsError([Problem(name="unknown_run", key="ID", value=word, cause=cause, remedy=remedy)])


def log_piece(run: Run, name: str, offset: int) -> bytes:
    """What the log `name` of a run (`rank0.log`) holds from byte `offset` on. Raises UnreachableError.

    Nothing before the job has opened its own log, unless it ended without: then its launcher's.
    """
    folder = RunFolder(dir=run.dir)
    try:
        handle = folder.handle()
    except DamagedRecordError:
        handle = None
    if handle is None or (job := handle.known_job) is None:
        return read_from(folder.dir / "logs" / name, offset)
    place = handle.place()
    began = "started_at" in run.record or run.ended or not place.capabilities.reads_run_dir
    return place.log(job, name, offset) if began else b""


def log_of(folder: RunFolder, name: str, *, follow: bool) -> Iterator[bytes]:
    """A log piece by piece; with `follow` until the run has ended."""
    offset = 0
    while True:
        run = look([folder.dir])[0]
        piece = log_piece(run, name, offset)
        offset += len(piece)
        yield piece
        if not follow or (run.ended and not piece):
            return
        time.sleep(poll_seconds(folder.handle()))


def poll_seconds(handle: Handle | None) -> float:
    """How long to wait between two looks: a scheduler is not to be asked three times a second."""
    remote = handle is not None and handle.supervisor is None
    return _REMOTE_POLL_SECONDS if remote else _POLL_SECONDS


def cancel_run(folder: RunFolder, seconds: float = 30.0) -> Run:
    """End a run, and wait until that is recorded (or `seconds` are over). Ended runs stay as they are.

    Raises JobError when that cannot be, as for a damaged record.
    """
    run = look([folder.dir])[0]
    if run.state == "unreadable":
        raise JobError(**{key: run.record["error"][word] for key, word in _ERROR_PARTS.items()})
    if run.ended and run.state != "lost":
        return run
    handle = folder.update_handle(cancel_asked=True) if folder.handle() else None
    if handle is None:
        _terminate(run.record["process"])
    elif handle.supervisor and is_alive(handle.supervisor, folder.dir / "supervisor.heartbeat"):
        _terminate(handle.supervisor)
    elif (job := handle.known_job) is not None:
        handle.place().cancel(job)
    else:  # it never got to its scheduler
        Record(folder.dir, read_record(folder.dir)).finish(
            "cancelled", error_data("cancelled", "cancelled before it was submitted")
        )
    deadline = time.monotonic() + seconds
    while not (run := look([folder.dir])[0]).ended and time.monotonic() < deadline:
        time.sleep(poll_seconds(handle))
    return run


def _terminate(process: dict[str, Any]) -> None:
    """SIGTERM to a process of this machine. Raises JobError for one of another."""
    here = identity()
    if any(process.get(key) != here[key] for key in ("host", "boot", "pid_namespace")):
        cause = f"process {process.get('pid')} on {process.get('host')} looks after it, which cannot be told from here."
        raise JobError("runs_elsewhere", cause, f"Cancel it on {process.get('host')}.")
    with suppress(ProcessLookupError):  # it ended this moment
        os.kill(process["pid"], signal.SIGTERM)


def reopen_run(folder: RunFolder) -> None:
    """Make a run that ended badly ready to be started again. Raises ProblemsError when it did not."""
    run = look([folder.dir])[0]
    handle = folder.handle() if run.state != "unreadable" else None
    if handle is None or run.state not in ("lost", "failed", "cancelled"):
        cause = f"it is {run.state}" if handle else "it was not submitted from here"
        if run.state == "unreadable":
            cause = run.record["error"]["message"]
        remedy = "Only a run that ended badly can be started over."
        raise ProblemsError([Problem(name="cannot_resume", key="ID", value=folder.id, cause=cause, remedy=remedy)])
    Record(folder.dir, run.record).update()
    attempt = len(Record.reopen(folder.dir).values["attempts"]) + 1
    launch = handle.launch | {"run_id": f"{folder.id}-r{attempt}", "after": [], "array": 0}
    if is_elsewhere(folder, handle):  # what the last attempt left over there cannot be moved aside from here
        launch["run_dir"] = f"{Path(str(launch['run_dir'])).parent}/{folder.id}-r{attempt}"
    folder.update_handle(launch=launch, job=None, supervisor=None, cancel_asked=False, settled=False)
