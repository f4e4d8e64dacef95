"""What a run's state is, from what it recorded and what its scheduler says; the table of all that can meet."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from contextvars import copy_context
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from executors.base import JobState, SchedulerJob
from executors.local import LocalProfile
from recipes.experiment import intervene, runs, supervisor
from recipes.experiment.intervene import cancel_run, refuse_unless_ended_badly
from recipes.experiment.runs import Run, look
from recipes.experiment.store import RunFolder
from scripts.run.identity import identity
from scripts.run.problems import ProblemsError
from scripts.run.record import FINAL_STATES, Record, read_record
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


def run_of(tmp_path: Path, recorded: str, *, elsewhere: bool = False, **flags: Any) -> RunFolder:
    folder = RunFolder(dir=tmp_path / "probe_1-ab")
    record = Record.submit(folder.dir, id=folder.id)
    run_dir = tmp_path / "elsewhere" / folder.id if elsewhere else folder.dir
    if elsewhere:
        record = Record.submit(run_dir, id=folder.id)
    if recorded != "submitted":
        record.update(state="running", started_at="2026-01-01T00:00:00.000Z", process=GONE)
    if recorded not in ("submitted", "running"):
        record.finish(recorded, {"name": "its_own", "message": "m", "remedy": ""} if recorded != "succeeded" else None)
    job = SchedulerJob(run_id=folder.id, id="7", run_dir=str(run_dir), folder="/f")
    submitted(folder, LocalProfile(), run_dir=run_dir, **{"scheduled": job, **flags})
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
        ("succeeded", FAILED, "succeeded", None, True),  # it was killed when it had nothing left to do
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


def test_another_rank_can_fail_after_rank_0_was_done(tmp_path: Path) -> None:
    folder = run_of(tmp_path, "succeeded", processes=2)
    (run,) = look([folder], {folder.id: Scheduler(FAILED)})  # type: ignore[dict-item]
    assert (run.state, run.record["error"]["name"]) == ("failed", "job_failed")
    assert "rank 0 succeeded" in run.record["error"]["message"]


# --- what has been told once -----------------------------------------------------------------------------------------


@pytest.fixture
def other() -> Iterator[Mapping[str, Any]]:
    """A process that lives, and looks after runs."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        yield identity(process.pid)
        process.kill()


@pytest.mark.parametrize("recorded", ["succeeded", "failed", "cancelled"])
@pytest.mark.parametrize("seen", [OK, FAILED, CANCELLED, None])
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("cancel_asked", [False, True])
def test_an_end_that_was_told_stays(
    tmp_path: Path, other: Mapping[str, Any], recorded: str, seen: JobState | None, processes: int, cancel_asked: bool
) -> None:
    """A job was killed after its last word; whoever looks after it learns of that a moment later than who asks."""
    folder = run_of(tmp_path, recorded, processes=processes, cancel_asked=cancel_asked, supervisor=other)
    told = [look([folder])[0].state]
    if told[0] not in FINAL_STATES:
        with pytest.raises(ProblemsError, match="it is running"):
            refuse_unless_ended_badly(folder)
    told.append(look([folder], {folder.id: Scheduler(seen)})[0].state)  # type: ignore[dict-item]
    Run.read(folder).update(supervisor=GONE)
    told += [look([folder])[0].state, read_record(folder.dir)["state"]]
    assert len({state for state in told if state in FINAL_STATES}) == 1, told


@pytest.mark.parametrize(("processes", "state"), [(1, "succeeded"), (2, "running")])
def test_a_success_that_nothing_can_belie_waits_for_nobody(
    tmp_path: Path, other: Mapping[str, Any], processes: int, state: str
) -> None:
    folder = run_of(tmp_path, "succeeded", processes=processes, supervisor=other)
    folder.supervisor_heartbeat.touch()
    assert look([folder])[0].state == state


def test_a_supervisor_that_lives_on_is_not_waited_for(tmp_path: Path, other: Mapping[str, Any]) -> None:
    """A notebook, say, whose disk was full when the job ended."""
    folder = run_of(tmp_path, "failed", supervisor=other)
    folder.supervisor_heartbeat.touch()
    assert look([folder])[0].state == "running"
    os.utime(folder.supervisor_heartbeat, (time.time() - 3600, time.time() - 3600))
    assert look([folder])[0].state == "failed"


@pytest.mark.parametrize("elsewhere", [False, True])
@pytest.mark.parametrize("cancel_asked", [False, True])
@pytest.mark.parametrize("word", ["succeeded", "failed", "cancelled"])
def test_a_last_word_counts_that_was_written_while_one_looked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, elsewhere: bool, cancel_asked: bool, word: str
) -> None:
    """Its process was gone when it was looked for, and had not written yet when its record was read."""
    flags = {"cancel_asked": cancel_asked, "supervisor": GONE}
    folder = run_of(tmp_path, "running", elsewhere=elsewhere, **flags)
    job = Run.read(folder).job
    assert job is not None

    def ends(*_: Any) -> bool:
        record = Record(job.run_dir, read_record(job.run_dir))
        if record.values["state"] not in FINAL_STATES:
            record.finish(word)
        return False

    monkeypatch.setattr(runs, "is_alive", ends)
    assert look([folder])[0].state == word
    assert read_record(folder.dir)["state"] == word


def test_what_was_found_out_of_an_attempt_is_not_said_of_the_next(tmp_path: Path) -> None:
    folder = run_of(tmp_path, "running")
    run = Run.read(folder)
    ended = run.record | {"state": "failed", "error": None}
    replace(run, record=ended).reopen()
    assert run.conclude(ended, settled=True).state == "submitted"
    assert read_record(folder.dir)["state"] == "submitted"
    assert not Run.read(folder).settled


def test_a_job_that_has_ended_meanwhile_was_not_cancelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its supervisor died before it noted what it had started; when processes of it are looked for, it is done."""
    folder = run_of(tmp_path, "submitted", scheduled=None, supervisor=GONE)
    found = iter([{str(folder.dir): [2**22 + 1]}])

    def started_with(_: str) -> dict[str, list[int]]:
        if living := next(found, None):
            return living
        if read_record(folder.dir)["state"] == "submitted":
            record = Record(folder.dir, read_record(folder.dir))
            record.update(started_at="2026-01-01T00:00:00.000Z", process=GONE)
            record.finish("succeeded")
        return {}

    monkeypatch.setattr(runs, "started_with", started_with)
    assert cancel_run(folder).state == "succeeded"


def test_who_looked_after_an_attempt_leaves_the_next_alone(tmp_path: Path, other: Mapping[str, Any]) -> None:
    folder = run_of(tmp_path, "running", supervisor=identity())
    run, began = Run.read(folder), time.monotonic()
    assert run.job is not None and run.scheduled is not None
    seen: list[str] = []

    def watch(run: Run) -> None:
        seen.append(run.state)
        run.update(supervisor=other)  # it was taken up again

    job = run.job.noting(place=Scheduler(ACTIVE))
    kept = supervisor._Kept(run=run, job=job, scheduled=run.scheduled, opened=ExitStack(), context=copy_context())
    ahead = supervisor._Ahead(waiting=[], watch=watch, kept=[kept])
    while ahead.go_on():
        continue
    assert seen == ["running", "running"]
    assert time.monotonic() - began < 30


def test_a_job_that_its_supervisor_left_behind_is_ended_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was stopped while NeMo-Run was still starting the job, and so did not know of it."""
    monkeypatch.setattr(intervene, "_ASK_AGAIN", 0.2)
    folder = RunFolder(dir=tmp_path / "probe_1-ab")
    words = [sys.executable, "-c", "import time; time.sleep(60)"]
    env = {**os.environ, "NEMO_RUN_DIR": str(folder.dir)}
    with subprocess.Popen(words) as supervisor, subprocess.Popen(words, env=env) as job:
        record = Record.submit(folder.dir, id=folder.id)
        record.update(state="running", started_at="2026-01-01T00:00:00.000Z", process=identity(job.pid))
        scheduled = SchedulerJob(run_id=folder.id, id="local_persistent://x/y", run_dir=str(folder.dir), folder="/f")
        submitted(folder, LocalProfile(), scheduled=scheduled, supervisor=identity(supervisor.pid))
        threading.Thread(target=supervisor.wait, daemon=True).start()
        assert cancel_run(folder, seconds=20).ended
        assert job.wait(10) == -signal.SIGTERM
