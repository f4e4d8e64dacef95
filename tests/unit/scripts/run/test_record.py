import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scripts.run import identity as process
from scripts.run.problems import JobError
from scripts.run.record import FINAL_STATES, STATES, DamagedRecordError, Record, observe

JOB = """
import sys, time
from pathlib import Path
from scripts.run.record import Record
record = Record.submit(Path(sys.argv[1]), id="x")
def wait():
    print("ready", flush=True)
    time.sleep(60)
if sys.argv[2] == "submitted":
    wait()
with record.running():
    with record.phase("calibrate"):
        record.progress(1, 10, "samples")
        wait()
"""


@pytest.mark.parametrize("state", ["submitted", "running"])
def test_a_killed_process_leaves_a_lost_run(tmp_path: Path, state: str) -> None:
    run_dir = tmp_path / "run"
    child = subprocess.Popen([sys.executable, "-c", JOB, str(run_dir), state], stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    assert observe(run_dir)["state"] == state
    child.send_signal(signal.SIGKILL)
    child.wait()
    seen = observe(run_dir)
    assert seen["state"] == "lost"
    assert str(child.pid) in seen["error"]["message"]
    assert json.loads((run_dir / "run.json").read_text())["state"] == state, "observing writes nothing"


def test_another_process_with_the_same_pid_is_not_the_owner(tmp_path: Path) -> None:
    owner = process.identity()
    assert process.is_alive(owner, tmp_path / "heartbeat")
    assert not process.is_alive(owner | {"ticks": owner["ticks"] - 1}, tmp_path / "heartbeat")
    of_before = {key: value for key, value in owner.items() if key != "ticks"}
    assert process.is_alive(of_before, tmp_path / "heartbeat")
    assert not process.is_alive(of_before | {"started": owner["started"] - 100}, tmp_path / "heartbeat")


def test_whoever_sets_the_clock_loses_no_run(tmp_path: Path) -> None:
    """When a process started, in seconds since the epoch, is worked out from the clock as it stands."""
    owner = process.identity()
    assert process.is_alive(owner | {"started": owner["started"] + 3600}, tmp_path / "heartbeat")


@pytest.mark.parametrize(("age", "alive"), [(0, True), (process.STALE_SECONDS + 5, False)])
def test_from_another_machine_the_heartbeat_decides(tmp_path: Path, age: float, alive: bool) -> None:
    beat = tmp_path / "heartbeat"
    beat.touch()
    at = beat.stat().st_mtime - age
    os.utime(beat, (at, at))
    owner = process.identity() | {"host": "elsewhere", "boot": "another"}
    assert process.is_alive(owner, beat) is alive


def test_a_machine_that_was_restarted_lost_its_runs(tmp_path: Path) -> None:
    (tmp_path / "heartbeat").touch()
    assert not process.is_alive(process.identity() | {"boot": "an earlier one"}, tmp_path / "heartbeat")


def test_states_and_timings(tmp_path: Path) -> None:
    record = Record.submit(tmp_path / "run", id="x", recipe="quantize")
    with record.running():
        assert observe(record.dir)["state"] == "running"
        with record.phase("load"):
            pass
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "a").write_bytes(b"123")
        record.artifact("checkpoint_hf", tmp_path / "out", quantization="fp8")
        record.finish("succeeded")
    seen = observe(record.dir)
    assert seen["state"] == "succeeded"
    assert seen["timings"]["load"] >= 0
    assert seen["peak_memory"]["rss_bytes"] > 1 << 20
    (output,) = seen["outputs"]
    assert output["bytes"] == 3
    assert output["digest"].startswith("sha256:")
    assert output["quantization"] == "fp8"
    assert set(STATES) >= FINAL_STATES


def test_a_run_directory_records_one_run(tmp_path: Path) -> None:
    record = Record.submit(tmp_path / "run", id="x")
    with pytest.raises(JobError, match="run_dir_taken"):
        Record.submit(tmp_path / "run", id="y")
    with record.running():
        record.finish("succeeded")
    with pytest.raises(JobError, match="run_dir_taken"):
        Record.resume(tmp_path / "run")


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"schema": 1}',
        b'{"schema": 99, "state": "running"}',
        b'{"schema": 1, "state": "weird"}',
        b'{"schema": 1, "state": "running"}',
        b'{"schema": 1, "state": "running", "process": 7}',
    ],
)
def test_damaged_records_are_refused_by_name(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "run.json").write_bytes(damage)
    with pytest.raises(DamagedRecordError, match=r"run\.json"):
        observe(tmp_path)
    with pytest.raises(DamagedRecordError):
        Record.resume(tmp_path)


@pytest.mark.parametrize("owner", [{}, {"pid": "x"}, {"pid": None, "started": None}, {"pid": -1, "started": 0}])
def test_an_owner_that_makes_no_sense_is_not_alive(tmp_path: Path, owner: dict[str, Any]) -> None:
    here = {key: process.identity()[key] for key in ("host", "boot", "pid_namespace")}
    assert not process.is_alive(here | owner, tmp_path / "heartbeat")


def test_every_version_on_disk_is_complete(tmp_path: Path) -> None:
    """A reader that looks while a writer replaces never sees half a record."""
    script = """
import sys
from pathlib import Path
from scripts.run.record import Record
record = Record.submit(Path(sys.argv[1]), id="x")
for n in range(400):
    record.update(n=n, filler="y" * 20000)
"""
    run_dir = tmp_path / "run"
    child = subprocess.Popen([sys.executable, "-c", script, str(run_dir)])
    reads = 0
    while child.poll() is None:
        if (run_dir / "run.json").exists():
            json.loads((run_dir / "run.json").read_text())
            reads += 1
    assert child.returncode == 0
    assert reads > 10
