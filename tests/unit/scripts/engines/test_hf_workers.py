"""Processes that share files: what each makes, what is said of one that fails or is killed, and that none is left."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from scripts.engines.hf import workers
from scripts.run.problems import JobError
from tests.testbed.waiting import until

ROOT = Path(__file__).resolve().parents[4]


@dataclass(frozen=True)
class Made:
    """In the place of a conversion, of which it has the one method that workers call."""

    place: Path

    def make(self, name: str) -> None:
        if name == "refused":
            raise JobError("weights_not_finite", "one holds NaN.", "Copy it again.", exit_code=3)
        if name == "full":
            raise OSError(28, "No space left on device")
        if name == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if name.startswith("slow"):
            signal.pause()
        (self.place / name).write_text(str(os.getpid()))


@pytest.fixture(autouse=True)
def _found_by_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def made(place: Path, *names: str, count: int = 2) -> Iterator[str]:
    stand_in: Any = Made(place)
    return workers.made(stand_in, names, count, place / "logs")


def gone() -> bool:
    """Whether no worker is left; the tests' process has children of other tests', too."""
    return not [child for child in psutil.Process().children() if workers.__name__ in child.cmdline()]


def test_each_file_once_and_by_several(tmp_path: Path) -> None:
    names = [f"{number}.safetensors" for number in range(9)]
    assert sorted(made(tmp_path, *names)) == names
    assert len({(tmp_path / name).read_text() for name in names}) == 2
    assert gone()


@pytest.mark.parametrize("bad", ["refused", "full"])
def test_what_one_fails_of_ends_all(tmp_path: Path, bad: str) -> None:
    with pytest.raises((JobError, OSError)) as caught:
        list(made(tmp_path, "slow", bad))
    if isinstance(error := caught.value, JobError):
        assert (error.name, error.remedy, error.exit_code) == ("weights_not_finite", "Copy it again.", 3)
    else:
        assert error.errno == 28
    assert "test_hf_workers.py" in "".join(caught.value.__notes__)  # where it happened
    assert gone()


def test_one_that_is_killed_ends_the_job(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"was ended by SIGKILL; .*worker1\.log") as caught:
        list(made(tmp_path, "slow", "killed"))
    assert caught.value.name == "worker_killed"
    assert gone()


def test_none_outlives_the_job(tmp_path: Path) -> None:
    """Killed outright: nobody is left to end them."""
    code = f"""
from pathlib import Path
from tests.unit.scripts.engines.test_hf_workers import made
list(made(Path({str(tmp_path)!r}), "slow one", "slow two"))
"""
    job = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)})
    until(lambda: len(psutil.Process(job.pid).children()) == 2)
    left = psutil.Process(job.pid).children()
    job.kill()
    job.wait()
    assert not psutil.wait_procs(left, timeout=20)[1]


def test_without_a_number_small_models_are_one_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Several where there are cores, memory and work for them."""
    gib = 1 << 30
    monkeypatch.setattr(workers, "cores", lambda: 16)
    monkeypatch.setattr(workers, "free_memory", lambda: 64 * gib)
    files = {str(number): 5 * gib for number in range(8)}

    model: Any = SimpleNamespace(
        args=SimpleNamespace(processes=None),
        device=SimpleNamespace(type="cpu"),
        source=SimpleNamespace(shapes={"layer.weight": (8192, 8192)}),
        selection=SimpleNamespace(quantized=frozenset({"layer"})),
    )
    assert workers.number(model, files) == 8
    assert workers.number(model, {"small": 1 << 20}) == workers.number(model, {}) == 1
    monkeypatch.setattr(workers, "free_memory", lambda: 4 * gib)
    assert workers.number(model, files) == 4
    monkeypatch.setattr(workers, "free_memory", lambda: 0)
    assert workers.number(model, files) == 1
    model.args.processes = 3
    assert workers.number(model, files) == 3
    model.device.type = "cuda"
    with pytest.raises(JobError, match="one process where it computes on a GPU"):
        workers.number(model, files)
