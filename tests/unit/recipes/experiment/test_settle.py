"""What a run's state is, from what it recorded and what its scheduler says; the table of all that can meet."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from executors.base import JobState, SchedulerJob
from executors.local import LocalProfile
from recipes.experiment.runs import Run, look
from recipes.experiment.store import RunFolder
from scripts.run.identity import identity
from scripts.run.record import Record, read_record
from tests.jobs import submitted

ACTIVE, WAITING = JobState(state="running", detail="RUNNING"), JobState(state="submitted", detail="PENDING (Priority)")
OK = JobState(state="succeeded", detail="COMPLETED")
FAILED = JobState(state="failed", name="job_failed", detail="FAILED exit code 1:0")
TIMEOUT = JobState(state="failed", name="timeout", detail="TIMEOUT")
CANCELLED = JobState(state="cancelled", name="cancelled", detail="CANCELLED by 0")
GONE = {**identity(), "pid": 2**22 + 1}


class Scheduler:
    """A place that says what it is told to say; only the methods that `look` calls."""

    def __init__(self, state: JobState | None) -> None:
        self.state = state

    def states(self, jobs: list[SchedulerJob]) -> dict[str, JobState | None]:
        return {job.run_id: self.state for job in jobs}

    def records(self, jobs: list[SchedulerJob]) -> dict[str, dict[str, Any]]:
        return {job.run_id: read_record(Path(job.run_dir)) for job in jobs}


def run_of(tmp_path: Path, recorded: str, **flags: Any) -> RunFolder:
    folder = RunFolder(dir=tmp_path / "probe_1-ab")
    record = Record.submit(folder.dir, id=folder.id)
    if recorded != "submitted":
        record.update(state="running", started_at="2026-01-01T00:00:00.000Z", process=GONE)
    if recorded not in ("submitted", "running"):
        record.finish(recorded, {"name": "its_own", "message": "m", "remedy": ""} if recorded != "succeeded" else None)
    job = SchedulerJob(run_id=folder.id, id="7", run_dir=str(folder.dir), folder="/f")
    submitted(folder, LocalProfile(), **{"scheduled": job, **flags})
    return folder


@pytest.mark.parametrize(
    ("recorded", "seen", "state", "error", "settled"),
    [
        ("submitted", WAITING, "submitted", None, False),
        ("submitted", ACTIVE, "running", None, False),
        ("running", ACTIVE, "running", None, False),
        ("succeeded", ACTIVE, "running", None, False),  # another rank may fail yet
        ("failed", ACTIVE, "running", None, False),  # its script may ask for another attempt
        ("failed", WAITING, "submitted", None, False),  # and has
        ("cancelled", WAITING, "submitted", None, False),  # preempted and requeued
        ("succeeded", OK, "succeeded", None, True),
        ("failed", OK, "failed", "its_own", True),
        ("submitted", OK, "failed", "no_record", True),
        ("running", OK, "failed", "no_record", True),
        ("failed", FAILED, "failed", "its_own", True),
        ("running", TIMEOUT, "failed", "timeout", True),
        ("cancelled", TIMEOUT, "failed", "timeout", True),  # SIGTERM came from the scheduler's limit
        ("succeeded", FAILED, "failed", "job_failed", True),  # another rank failed after rank 0 was done
        ("submitted", CANCELLED, "cancelled", "cancelled", True),
        ("running", CANCELLED, "cancelled", "cancelled", True),
        ("cancelled", CANCELLED, "cancelled", "its_own", True),
        ("succeeded", CANCELLED, "succeeded", None, True),
        ("succeeded", None, "succeeded", None, True),
        ("failed", None, "failed", "its_own", True),
        ("submitted", None, "lost", "lost", False),
        ("running", None, "lost", "lost", False),
    ],
)
def test_state(
    tmp_path: Path, recorded: str, seen: JobState | None, state: str, error: str | None, settled: bool
) -> None:
    folder = run_of(tmp_path, recorded)
    (run,) = look([folder], {folder.id: Scheduler(seen)})  # type: ignore[dict-item]
    assert run.state == state
    assert (run.record.get("error") or {}).get("name") == error
    assert Run.read(folder).settled == settled
    if settled:
        assert read_record(folder.dir)["state"] == state, "and it is written down"
        (again,) = look([folder], {folder.id: Scheduler(WAITING)})  # type: ignore[dict-item]
        assert again.state == state, "nothing can change it any more"


def test_a_cancellation_that_was_asked_for_is_not_a_failure(tmp_path: Path) -> None:
    folder = run_of(tmp_path, "cancelled", cancel_asked=True)
    (run,) = look([folder], {folder.id: Scheduler(FAILED)})  # type: ignore[dict-item]
    assert (run.state, run.record["error"]["name"]) == ("cancelled", "its_own")


def test_the_rank_that_failed_is_the_cause(tmp_path: Path) -> None:
    folder = run_of(tmp_path, "cancelled")
    logs = folder.dir / "logs"
    logs.mkdir()
    (logs / "rank3.error.json").write_text(json.dumps({"name": "out_of_memory", "message": "m", "remedy": "r"}))
    (run,) = look([folder], {folder.id: Scheduler(FAILED)})  # type: ignore[dict-item]
    assert run.record["error"] == {"name": "out_of_memory", "message": "rank3: m", "remedy": "r"}


def test_an_earlier_attempt_s_rank_is_not_the_cause(tmp_path: Path) -> None:
    folder = run_of(tmp_path, "failed")
    record = json.loads((folder.dir / "run.json").read_text())
    (folder.dir / "run.json").write_text(json.dumps(record | {"submitted_at": "2026-01-01T00:00:00.000Z"}))
    error = folder.dir / "logs" / "rank1.error.json"
    error.parent.mkdir()
    error.write_text(json.dumps({"name": "of_old", "message": "m", "remedy": ""}))
    os.utime(error, (time.time() - 3600, time.time() - 3600))
    Record.reopen(folder.dir)
    (run,) = look([folder], {folder.id: Scheduler(TIMEOUT)})  # type: ignore[dict-item]
    assert run.record["error"]["name"] == "timeout"


def test_a_supervisor_at_work_means_that_a_waiting_run_is_not_lost(tmp_path: Path) -> None:
    folder = run_of(tmp_path, "submitted", scheduled=None, supervisor=identity())
    assert look([folder])[0].state == "submitted"
    Run.read(folder).update(supervisor=GONE)
    (run,) = look([folder])
    assert run.state == "lost"
    assert f"nemo experiment resume {folder.id}" in run.record["error"]["remedy"]
