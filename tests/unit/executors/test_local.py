"""This machine as a place."""

import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from executors.base import AnyJob, JobState, SchedulerJob
from executors.local import LocalPlace, LocalProfile
from scripts.run.identity import identity
from scripts.run.record import Record, now


def test_a_job_that_never_began_shows_what_its_launcher_printed(tmp_path: Path) -> None:
    """An import that fails, say: the run directory has no log of its own then."""
    place = LocalPlace(LocalProfile())
    job = SchedulerJob(run_id="probe_1-a", id="h", run_dir=str(tmp_path / "run"), folder=str(tmp_path / "probe"))
    assert place.log(job, "rank0.log", 0) == b""
    launcher = tmp_path / "probe" / "nemo_run" / "probe-x" / "probe" / "0" / "combined.log"
    launcher.parent.mkdir(parents=True)
    launcher.write_bytes(b"ImportError: cannot import name 'CONFIGS'\n")
    assert place.log(job, "rank0.log", 13) == b"cannot import name 'CONFIGS'\n"
    own = tmp_path / "run" / "logs" / "rank0.log"
    own.parent.mkdir(parents=True)
    own.write_bytes(b"rank 0 began\n")
    assert place.log(job, "rank0.log", 0) == b"rank 0 began\n"


def test_folders_of_common_names_where_somebody_works_are_not_taken_for_ours(tmp_path: Path) -> None:
    job = AnyJob(id="probe_1-a", recipe="probe", run_dir=tmp_path)
    assert LocalPlace(LocalProfile()).executor(job).env_vars["PYTHONSAFEPATH"] == "1"


def started(tmp_path: Path, word: str, handle: str, asked: list[str]) -> tuple[LocalPlace, SchedulerJob]:
    """A job of which NeMo-Run says that."""
    task = SimpleNamespace(id="t", handle=handle, status=lambda _: SimpleNamespace(name=word))
    experiment = SimpleNamespace(jobs=[task], run=lambda: None, _exp_dir=tmp_path, _runner=None, cancel=asked.append)
    place = LocalPlace(LocalProfile())
    return place, place.submit(experiment, AnyJob(id="probe_1-a", recipe="probe", run_dir=tmp_path / "probe_1-a"))


@pytest.mark.parametrize("attempt", ["probe_1-a", "probe_1-a-r2"])
@pytest.mark.parametrize(
    ("word", "state"), [("FAILED", "failed"), ("CANCELLED", "cancelled"), ("SUCCEEDED", "succeeded")]
)
def test_who_started_a_job_sees_its_end_in_every_attempt(tmp_path: Path, attempt: str, word: str, state: str) -> None:
    """One that was killed left no word of its own, and nobody else would ever say so."""
    asked: list[str] = []
    place, submitted = started(tmp_path, word, f"local_persistent://x/{attempt}", asked)
    noted = SchedulerJob(run_id="probe_1-a", id=submitted.id, run_dir=submitted.run_dir, folder=submitted.folder)
    found: JobState | None = place.states([noted])["probe_1-a"]
    assert found is not None and found.state == state
    place.cancel(noted)
    assert asked == ["t"]


def test_how_an_attempt_ended_is_not_said_of_the_next(tmp_path: Path) -> None:
    place, first = started(tmp_path, "FAILED", "local_persistent://x/1", [])
    assert place.states([replace(first, id="local_persistent://x/2")]) == {"probe_1-a": None}


def test_a_job_whose_launcher_alone_was_killed_goes_on(tmp_path: Path) -> None:
    asked: list[str] = []
    place, job = started(tmp_path, "FAILED", "local_persistent://x/1", asked)
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as rank:
        record = Record.submit(tmp_path / "probe_1-a")
        record.update(state="running", started_at=now(), process=identity(rank.pid))
        found = place.states([job])["probe_1-a"]
        assert found is not None and found.state == "running"
        place.cancel(job)
        assert rank.wait(10) == -signal.SIGTERM
    found = place.states([job])["probe_1-a"]
    assert found is not None and found.state == "failed"
    assert not asked


def test_who_submitted_a_job_that_has_not_begun_is_not_ended_in_its_place(
    tmp_path: Path,
) -> None:
    """Until the job has begun, its record names the process that submitted it: a notebook, say, which cancels."""
    ended: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: ended.append(number))
    try:
        record = Record.submit(tmp_path / "run")
        LocalPlace(LocalProfile()).cancel(SchedulerJob(run_id="r", id="h", run_dir=str(record.dir), folder="/f"))
        assert not ended
        with record.running():
            LocalPlace(LocalProfile()).cancel(SchedulerJob(run_id="r", id="h", run_dir=str(record.dir), folder="/f"))
        assert ended, "it is the job that is ended"
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(("recorded", "state"), [("succeeded", "succeeded"), ("cancelled", "failed"), ("", "failed")])
def test_a_job_that_is_gone_while_its_launcher_has_not_said_how(tmp_path: Path, recorded: str, state: str) -> None:
    """Stopped by torchrun for another rank's end it says `cancelled`, and torchrun itself has not ended yet."""
    record = Record.submit(tmp_path / "run", id="run")
    record.update(state="running", started_at="2026-01-01T00:00:00.000Z", process={**identity(), "pid": 2**22 + 1})
    if recorded:
        record.finish(recorded)
    place, job = started(tmp_path, "RUNNING", "7", [])
    job = replace(job, run_dir=str(tmp_path / "run"))
    (seen,) = place.states([job]).values()
    assert seen is not None and seen.state == state
