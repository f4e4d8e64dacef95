"""The frame around an entrypoint, in this process: what is recorded, and the exit status."""

import os
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scripts.errors import JobError
from scripts.quantize import quantize
from scripts.record import Record, observe
from scripts.session import run_job
from scripts.types import QuantizeArgs, ScriptSpec


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NEMO_RUN_DIR", str(tmp_path / "run"))
    return tmp_path / "run"


def _run(job: Callable[[Record], None]) -> None:
    run_job(name="test", algorithm="quantize", values={}, job=job)


def _raise(error: BaseException) -> Callable[[Record], None]:
    def job(_: Record) -> None:
        raise error

    return job


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (JobError("bad_thing", "it broke", "mend it"), "bad_thing"),
        (MemoryError(), "out_of_memory"),
        (OSError(28, "No space left on device"), "disk_full"),
        (KeyError("x"), "unexpected_error"),
    ],
)
def test_a_failure_is_recorded_with_its_cause(
    run_dir: Path, capsys: pytest.CaptureFixture[str], error: Exception, name: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        _run(_raise(error))
    assert caught.value.code == 1
    record = observe(run_dir)
    assert (record["state"], record["error"]["name"]) == ("failed", name)
    assert "Traceback" in (run_dir / "logs" / "traceback.txt").read_text()
    said = capsys.readouterr()
    assert f"failed: {name}" in said.out
    assert "Traceback" not in said.out + said.err


def test_sigterm_cancels(run_dir: Path) -> None:
    with pytest.raises(SystemExit) as caught:
        _run(lambda _: os.kill(os.getpid(), signal.SIGTERM))
    assert caught.value.code == 143
    assert observe(run_dir)["state"] == "cancelled"


def test_output_and_warnings_go_to_the_logs(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def job(_: Record) -> None:
        print("hello")
        warnings.warn("mind the gap", UserWarning, stacklevel=1)

    _run(job)
    assert "hello" in (run_dir / "logs" / "rank0.log").read_text()
    assert "mind the gap" in (run_dir / "logs" / "warnings.log").read_text()
    said = capsys.readouterr()
    assert "hello" in said.out
    assert "mind the gap" not in said.out + said.err


def test_without_a_launcher_the_run_directory_is_below_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NEMO_RUN_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
    _run(lambda _: None)
    (record,) = tmp_path.glob("output/test-*/run.json")
    assert observe(record.parent)["state"] == "succeeded"


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"args": QuantizeArgs(tp=2)}, "engine_has_no_parallelism"),
        ({"script": ScriptSpec(path="x.py")}, "script_unused"),
        ({"extra_args": ["--x"]}, "script_unused"),
        ({"args": QuantizeArgs(export_quant_cfg="fp9")}, "unknown_format"),
        ({"args": QuantizeArgs(export_dir="${oc.env:NO_SUCH_VARIABLE}")}, "unresolved_value"),
    ],
)
def test_the_node_refuses_what_preflight_would_have(run_dir: Path, given: dict[str, Any], name: str) -> None:
    with pytest.raises(SystemExit) as caught:
        quantize(**given)
    assert caught.value.code == 1
    assert observe(run_dir)["error"]["name"] == name


@pytest.mark.parametrize("damage", [None, "{"])
def test_a_taken_run_directory_is_left_as_it_is(
    run_dir: Path, capsys: pytest.CaptureFixture[str], damage: str | None
) -> None:
    _run(lambda _: None)
    if damage:
        (run_dir / "run.json").write_text(damage)
    before = (run_dir / "run.json").read_bytes()
    with pytest.raises(SystemExit) as caught:
        _run(lambda _: pytest.fail("must not run"))
    assert caught.value.code == 1
    assert (run_dir / "run.json").read_bytes() == before
    assert "run.json" in (said := capsys.readouterr().err) or "run_dir_taken" in said


def test_a_second_rank_is_refused(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit):
        quantize()
    assert observe(run_dir)["error"]["name"] == "world_size_not_one"
