"""Several runs together, and runs after their submission, on the local executor with the probe."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from scripts.run.record import read_record
from tests.conftest import Done
from tests.testbed.waiting import until
from tests.testbed.warm import Warm

pytestmark = pytest.mark.integration

Nemo = Callable[..., Done]


def state(nemo: Nemo, run_id: str) -> str:
    return str(nemo("status", run_id, "--json").json["state"])


def detached(nemo: Nemo, *words: str) -> Path:
    done = nemo("run", "probe", *words, "--detach", "--json")
    assert done.code == 0, done.err
    return Path(done.json["run_dir"])


def test_a_run_never_begins_when_its_parent_failed(nemo: Nemo) -> None:
    parent = detached(nemo, "args.seconds=4", "args.exit_code=3")
    done = nemo("run", "probe", "--after", parent.name, "--json")
    assert done.code == 130  # nothing of its own failed; it was called off
    assert done.json["state"] == "cancelled"
    assert done.json["error"]["name"] == "dependency_failed"
    assert parent.name in done.json["error"]["message"]
    assert "started_at" not in done.json
    assert read_record(parent)["error"]["name"] == "told_to_fail"


def test_an_unknown_parent_is_refused(nemo: Nemo, home: Path) -> None:
    done = nemo("run", "probe", "--after", "no_such_run")
    assert done.code == 2
    assert "unknown_run" in done.err
    assert not (home / "runs").exists()


_PIPELINE = """
from recipes import Stage, probe, submit_all

def stage(name, after=(), **args):
    recipe = probe()
    for key, value in args.items():
        setattr(recipe.args, key, value)
    return Stage(name=name, partial=recipe, after=after)

if __name__ == "__main__":
    stages = [stage("c", ["b"]), stage("d", ["a"]), stage("b", ["a"], exit_code=5), stage("a")]
    for run in submit_all(stages, "local"):
        print(run.state, (run.record["error"] or {}).get("name"))
"""


def test_stages_in_python(home: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(_PIPELINE)
    env = {**os.environ, "NEMORUN_HOME": str(home)}
    done = subprocess.run(
        [sys.executable, "mine.py"], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    rows = [
        line.split() for line in done.stdout.splitlines() if line.split()[0] in ("succeeded", "failed", "cancelled")
    ]
    assert sorted(map(tuple, rows)) == [
        ("cancelled", "dependency_failed"),
        ("failed", "told_to_fail"),
        ("succeeded", "None"),
        ("succeeded", "None"),
    ]


def test_a_rank_that_fails_is_the_cause_and_all_are_started_over(nemo: Nemo) -> None:
    words = ["torchrun.nproc_per_node=2", "args.exit_code=9", "args.fail_rank=1", "args.fail_attempts=1"]
    done = nemo("run", "probe", *words, "--json")
    assert (done.code, done.json["state"]) == (1, "failed")
    assert done.json["error"]["message"] == "rank1: rank 1 was told to fail with 9 (attempt 1)."
    folder = Path(done.json["dir"])
    assert nemo("resume", folder.name).code == 0
    until(lambda: read_record(folder)["state"] == "succeeded")
    record = read_record(folder)
    assert [attempt["error"]["name"] for attempt in record["attempts"]] == ["told_to_fail"]
    assert "outputs" in record
    ranks = json.loads((folder / "report" / "probe.json").read_text())["ranks"]
    assert [(row["rank"], row["world"], row["sum_of_ranks"]) for row in ranks] == [(n, 2, 1) for n in range(2)]
    assert "rank 1 of 2" in nemo("logs", folder.name, "1").out
    assert "rank 0 of 2" in nemo("logs", folder.name).out


def test_cancel_a_running_and_a_waiting_run(nemo: Nemo) -> None:
    running = detached(nemo, "args.seconds=300")
    waiting = detached(nemo, "--after", running.name)
    until(lambda: read_record(running)["state"] == "running")
    done = nemo("cancel", waiting.name, running.name)
    assert done.code == 0, done.err
    assert read_record(running)["state"] == "cancelled"
    assert read_record(waiting)["state"] == "cancelled"
    # Its supervisor settles it, once NeMo-Run has seen the end too.
    until(lambda: json.loads((running / "job.json").read_text())["settled"])
    handle = json.loads((running / "job.json").read_text())
    until(lambda: _is_gone(handle["supervisor"]["pid"]))
    again = nemo("cancel", running.name)
    assert again.code == 0
    assert "cancelled" in again.out


def _is_gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_supervisor_that_dies_leaves_a_job_that_goes_on(nemo: Nemo) -> None:
    run_dir = detached(nemo, "args.seconds=20")
    until(lambda: read_record(run_dir)["state"] == "running")
    waiting = detached(nemo, "--after", run_dir.name)
    for folder in (run_dir, waiting):
        os.kill(json.loads((folder / "job.json").read_text())["supervisor"]["pid"], signal.SIGKILL)
    rows = {row["id"]: row["state"] for row in nemo("ps", "--json").json}
    assert rows == {run_dir.name: "running", waiting.name: "lost"}
    assert nemo("resume", waiting.name).code == 0
    until(lambda: state(nemo, waiting.name) == "succeeded")
    assert state(nemo, run_dir.name) == "succeeded"
    refused = nemo("resume", run_dir.name)
    assert refused.code == 2
    assert "cannot_resume" in refused.err


def test_a_sweep_runs_each_combination(nemo: Nemo) -> None:
    done = nemo("run", "probe", "--sweep", 'args.message=a,"b,c"', "--sweep", "args.exit_code=0,2", "--json")
    assert done.code == 1
    runs = done.json["runs"]
    seen = {(run["values"]["args"]["message"], run["values"]["args"]["exit_code"], run["state"]) for run in runs}
    assert seen == {("a", 0, "succeeded"), ("b,c", 0, "succeeded"), ("a", 2, "failed"), ("b,c", 2, "failed")}


def test_a_sweep_with_a_mistake_is_refused_whole(nemo: Nemo, home: Path) -> None:
    done = nemo("run", "probe", "--sweep", "args.second=1,2", "--sweep", "args.exit_code=0,x", "--sweep", "nonsense")
    assert done.code == 2
    for expected in ("unknown_key", "Did you mean args.seconds", "wrong_value", "not_a_sweep"):
        assert expected in done.err
    assert not (home / "runs").exists()


def test_logs_follow_until_the_end_and_then_a_run_after_it_begins(nemo: Nemo) -> None:
    parent = detached(nemo, "args.seconds=10")
    child = detached(nemo, "--after", parent.name)
    assert state(nemo, child.name) == "submitted"
    done = nemo("logs", "-f", parent.name)
    assert done.code == 0
    assert "rank 0 of 1" in done.out
    assert f"succeeded: {parent}" in done.out
    assert nemo("logs", parent.name[:-2]).out == done.out, "and afterwards, by the beginning of its id"
    until(lambda: read_record(child)["state"] == "succeeded")
    assert read_record(parent)["finished_at"] < read_record(child)["started_at"]
    assert read_record(child)["after"] == [parent.name]


def test_secrets_stay_where_they_are(nemo: Nemo, home: Path, tmp_path: Path) -> None:
    marker = "hf_MARKER0123456789"
    done = nemo("run", "probe", "args.message=x", "--json", env={"HF_TOKEN": marker})
    assert done.code == 0
    (report,) = json.loads((Path(done.json["dir"]) / "report" / "probe.json").read_text())["ranks"]
    assert "HF_TOKEN" in report["variables"], "the job has it"
    assert not [file for file in home.rglob("*") if file.is_file() and marker.encode() in file.read_bytes()]


def test_nemo_run_s_own_experiments_keep_their_commands(home: Path, tmp_path: Path, nemo: Nemo) -> None:
    (tmp_path / "mine.py").write_text(
        "import nemo_run as run\n"
        "if __name__ == '__main__':\n"
        "    with run.Experiment('mine') as experiment:\n"
        "        experiment.add(run.Script(inline='echo hello'), executor=run.LocalExecutor(), name='hello')\n"
        "        experiment.run()\n"
    )
    env = {**os.environ, "NEMORUN_HOME": str(home)}
    subprocess.run([sys.executable, "mine.py"], cwd=tmp_path, env=env, check=True, capture_output=True, timeout=120)
    (experiment,) = (home / "experiments" / "mine").iterdir()
    status = nemo("status", experiment.name)
    assert status.code == 0, status.err
    assert "hello" in status.out + status.err


def test_ctrl_c_on_one_of_several_stages_records_them_all(warm: Warm, home: Path, tmp_path: Path) -> None:
    env = {**os.environ, "NEMORUN_HOME": str(home)}
    words = ["experiment", "run", "probe", "args.seconds=300", "--sweep", "args.message=a,b,c", "--yes"]
    process = warm.begin(words, env, tmp_path)
    records = lambda: [read_record(path.parent) for path in home.glob("runs/*/run.json")]  # noqa: E731
    until(lambda: any(record["state"] == "running" for record in records()))
    process.send_signal(signal.SIGINT)
    printed = process.communicate(timeout=60)
    assert process.returncode == 130, printed
    assert [record["state"] for record in records()] == ["cancelled"] * 3
