"""What a run folder names is acted on only where this product would have named it, and by whom it belongs to."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from executors.base import JobState, SchedulerJob
from executors.local import LocalProfile
from executors.slurm.jobs import job_states
from executors.slurm.profile import SlurmProfile
from recipes.experiment import store
from recipes.experiment.intervene import cancel_run, refuse_unless_ended_badly
from recipes.experiment.runs import Run, look
from recipes.experiment.store import RunFolder
from scripts.run.files import locked
from scripts.run.identity import identity
from scripts.run.problems import JobError, ProblemsError
from scripts.run.record import DamagedRecordError, Record
from tests.answers import data_of
from tests.jobs import submitted
from tests.runs import GONE, Shell, recorded
from tests.testbed.waiting import until


def edited(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        yield process
        process.kill()


def waiting(home: Path, **facts: Any) -> RunFolder:
    """A run that was submitted by a process that is gone."""
    folder = RunFolder(dir=home / "runs" / "probe_1-a")
    Record.submit(folder.dir, id=folder.id).update(process=GONE)
    submitted(folder, LocalProfile(), supervisor=GONE, **facts)
    return folder


# --- processes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["running", "submitted"])
def test_a_process_that_has_the_number_of_another_by_now_is_not_ended(
    home: Path, child: subprocess.Popen[bytes], state: str
) -> None:
    owner = identity(child.pid)
    folder = RunFolder(dir=home / "runs" / "probe_1-a")
    Record.submit(folder.dir, id=folder.id).update(state=state, process=owner | {"ticks": owner["ticks"] + 1})
    assert cancel_run(folder).state == "lost"
    edited(folder.dir / "run.json", process=owner)
    assert child.poll() is None
    cancel_run(folder, seconds=0)
    assert child.wait(10) == -15, "and its own process is"


def test_a_lock_that_is_never_given_back_stops_nobody_else(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "LOCK_SECONDS", 0.2)
    held, other = waiting(home), RunFolder(dir=home / "runs" / "probe_2-b")
    Record.submit(other.dir, id=other.id)
    with locked(held.dir / ".job.lock"):
        found = {run.id: run for run in look([held, other])}
        with pytest.raises(DamagedRecordError, match="another process has held"), held.turn():
            pass
    assert found[other.id].state == "submitted"
    assert found[held.id].id == held.id
    with held.turn():
        pass


@pytest.mark.parametrize("pid", [-1, 0, "1", 2.0, 10**30, None])
def test_what_is_no_process_id_is_damage(home: Path, pid: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "kill", lambda *_: pytest.fail("a signal was sent"))
    folder = RunFolder(dir=home / "runs" / "probe_1-a")
    Record.submit(folder.dir, id=folder.id)
    edited(folder.dir / "run.json", process=identity() | {"pid": pid})
    with pytest.raises(JobError, match="damaged_record"):
        cancel_run(folder)


def test_a_job_that_begins_after_its_submitter_died_is_not_lost(home: Path) -> None:
    folder = waiting(home)
    assert look([folder])[0].state == "lost"
    words = [sys.executable, "-c", "import time; time.sleep(60)"]
    with subprocess.Popen(words, env={**os.environ, "NEMO_RUN_DIR": str(folder.dir)}) as job:
        try:
            until(lambda: look([folder])[0].state == "submitted")
            with pytest.raises(ProblemsError, match="cannot_resume"):
                refuse_unless_ended_badly(folder)
            assert cancel_run(folder, seconds=20).state == "cancelled"
            assert job.wait(10) == -15
        finally:
            job.kill()
    assert refuse_unless_ended_badly(folder).record["error"]["message"] == "somebody asked for its end"


def test_a_failed_run_of_which_a_process_goes_on_is_not_started_over(home: Path) -> None:
    folder = RunFolder(dir=recorded(home, "probe_1-a"))
    words = [sys.executable, "-c", "import time; time.sleep(60)"]
    with subprocess.Popen(words, env={**os.environ, "NEMO_RUN_DIR": str(folder.dir)}) as rank:
        try:
            with pytest.raises(ProblemsError, match=f"processes of it go on: {rank.pid}"):
                refuse_unless_ended_badly(folder)
        finally:
            rank.kill()
    assert refuse_unless_ended_badly(folder).state == "failed"


def test_ctrl_c_is_not_the_scheduler_s_doing(home: Path) -> None:
    class Place:
        def states(self, jobs: list[SchedulerJob]) -> dict[str, JobState]:
            return {job.run_id: JobState(state="cancelled") for job in jobs}

        def records(self, jobs: list[SchedulerJob]) -> dict[str, Any]:
            return {}

    job = SchedulerJob(run_id="probe_1-a", id="7", run_dir=str(home / "runs" / "probe_1-a"), folder="/f")
    folder = waiting(home, scheduled=job, cancel_asked=True)
    (run,) = look([folder], {folder.id: Place()})  # type: ignore[dict-item]
    assert (run.state, run.record["error"]["message"]) == ("cancelled", "somebody asked for its end")


# --- files and commands --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("id_", ["1; touch pwned; echo ", "$(touch pwned)", "--user=root", "7 8", "7_", ""])
def test_a_job_s_number_is_a_number(home: Path, id_: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    folder = waiting(home)
    job = SchedulerJob(run_id=folder.id, id=id_, run_dir=str(folder.dir), folder="/f")
    submitted(folder, SlurmProfile(), scheduled=job)
    assert look([folder])[0].state == "unreadable"
    with pytest.raises(JobError, match="damaged_record"):
        cancel_run(folder)
    assert not (home / "pwned").exists()


def test_nothing_that_slurm_is_asked_about_is_part_of_the_command() -> None:
    class Shell:
        where = "here"

        def sh(self, script: str, *args: str, timeout: float) -> Any:
            assert "touch" not in script
            assert sorted(args)[-1].count("touch") == 1
            raise JobError("asked", "")

    job = SchedulerJob(run_id="x", id="1; touch x", run_dir="/r", folder="/f")
    with pytest.raises(JobError, match="asked"):
        job_states(Shell(), [job])  # type: ignore[arg-type]


def test_secrets_of_another_are_not_removed(home: Path) -> None:
    victim = home / "mine" / "key"
    victim.parent.mkdir()
    victim.write_text("x")
    folder = RunFolder(dir=recorded(home, "probe_1-a"))
    file = folder.dir / "job.json"
    data = json.loads(file.read_text())
    data |= {"settled": False, "job": data["job"] | {"secrets": str(victim)}}
    for profile in (data["job"]["profile"], {"kind": "docker", "image": "x", "secrets": ["HF_TOKEN"]}):
        scheduled = data["scheduler"] | {"id": "x-y"}
        file.write_text(json.dumps(data | {"job": data["job"] | {"profile": profile}, "scheduler": scheduled}))
        look([folder])
        run = Run.read(folder)
        assert run.job is not None and run.job.secrets is None
    assert victim.exists()


@pytest.mark.parametrize("key", ["id", "run_dir", "archive"])
def test_a_job_of_another_run_is_damage(home: Path, key: str) -> None:
    folder = RunFolder(dir=recorded(home, "probe_1-a"))
    file = folder.dir / "job.json"
    data = json.loads(file.read_text())
    file.write_text(json.dumps(data | {"job": data["job"] | {key: "/etc/other"}}))
    assert look([folder])[0].state == "unreadable"


def test_a_folder_of_another_user_is_shown_and_left_alone(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = waiting(home)
    monkeypatch.setattr(os, "getuid", lambda: folder.dir.stat().st_uid + 1)
    (run,) = look([folder])
    assert run.state == "submitted" and "another user" in run.note
    with pytest.raises(JobError, match="not_your_run"):
        cancel_run(folder)


# --- words ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["..", ".", "probe_1/../other", "/etc", "x" * 300, "../runs", ""])
@pytest.mark.parametrize("command", ["status", "logs", "cancel"])
def test_a_path_is_no_run(home: Path, command: str, word: str) -> None:
    (home / "experiments" / "probe_1").mkdir(parents=True)
    (home / "experiments" / "other").mkdir(parents=True)
    done = Shell()(command, word)
    assert (done.exit_code, "unknown_run" in done.stderr) == (2, True), done.output
    assert "submitted" not in done.output


def test_ps_says_that_there_is_nothing(home: Path) -> None:
    assert "No run is recorded" in Shell()("ps", "--all").stdout
    recorded(home, "probe_1-a")
    assert "ps --all" in Shell()("ps").stdout
    assert data_of(Shell()("ps", "--json").stdout) == []


def test_a_rank_that_is_not_there(home: Path) -> None:
    recorded(home, "probe_1-a")
    assert Shell()("logs", "probe_1-a").stdout == "a line\n"
    done = Shell()("logs", "probe_1-a", "3")
    assert done.exit_code == 2
    assert "no_such_rank   RANK=3: it has rank 0 alone" in done.stderr
    edited_job = json.loads((home / "runs/probe_1-a/job.json").read_text())
    edited_job["job"] |= {"nodes": 2, "processes": 4, "ranked": True}
    (home / "runs/probe_1-a/job.json").write_text(json.dumps(edited_job))
    assert "it has ranks 0 to 7" in Shell()("logs", "probe_1-a", "8").stderr
    assert Shell()("logs", "probe_1-a", "7").exit_code == 0
