"""The frame around an entrypoint, in this process: what is recorded, and the exit status."""

import json
import os
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scripts.args.meaning import ScriptSpec
from scripts.args.quantize import QuantizeArgs
from scripts.entrypoints import quantize
from scripts.run.files import write_private
from scripts.run.problems import JobError
from scripts.run.record import Record, observe
from scripts.run.session import run_job
from tests.runs import in_time


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
    "name", ["logs/rank0.log", "logs/warnings.log", "logs/traceback.txt", "metrics.jsonl", "heartbeat"]
)
@pytest.mark.parametrize(
    "make",
    [
        os.mkfifo,
        lambda path: path.symlink_to(next(one for one in path.parents if (one / "outside").exists()) / "outside"),
    ],
)
def test_what_was_planted_where_a_job_writes_is_taken_away(
    run_dir: Path, tmp_path: Path, name: str, make: Callable[[Path], object]
) -> None:
    outside = tmp_path / "outside"
    outside.write_text("as it was")
    outside.chmod(0o600)
    (run_dir / "logs").mkdir(parents=True)
    make(run_dir / name)

    def job(record: Record) -> None:
        record.metric("loss", 1.0)
        raise JobError("bad_thing", "it broke")

    with in_time(), pytest.raises(SystemExit):
        _run(job)
    assert observe(run_dir)["error"]["name"] == "bad_thing"
    assert outside.read_text() == "as it was"
    assert (run_dir / name).is_file() and not (run_dir / name).is_symlink()


def test_a_launcher_that_ends_all_ranks_does_not_keep_the_cause_from_the_record(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = Record.finish

    def disturbed(record: Record, *words: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        finish(record, *words)

    monkeypatch.setattr(Record, "finish", disturbed)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as end:
        _run(_raise(JobError("bad_thing", "it broke")))
    assert (end.value.code, observe(run_dir)["error"]["name"]) == (1, "bad_thing")
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (JobError("bad_thing", "it broke", "mend it"), "bad_thing"),
        (MemoryError(), "out_of_memory"),
        (OSError(28, "No space left on device"), "disk_full"),
        (RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"), "disk_full"),
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
        ({"engine": "hf", "script": ScriptSpec(path="x.py")}, "script_unused"),
        ({"script": ScriptSpec(path="x.py")}, "script_not_found"),
        ({"engine": "script"}, "script_not_found"),
        ({"extra_args": ["--x"]}, "script_unused"),
        ({"args": QuantizeArgs(export_quant_cfg="fp9")}, "unsupported_quant_recipe"),
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


def test_a_second_rank_is_refused_where_one_process_has_to_see_all(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit):
        quantize(args=QuantizeArgs(export_quant_cfg="int4_awq"))
    assert observe(run_dir)["error"]["name"] == "world_size_not_one"


def test_a_rank_other_than_0_leaves_a_log_and_its_cause_and_no_record(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "3")
    with pytest.raises(SystemExit) as caught:
        _run(_raise(JobError("bad_thing", "it broke", "mend it", exit_code=9)))
    assert caught.value.code == 9
    assert not (run_dir / "run.json").exists()
    assert json.loads((run_dir / "logs" / "rank3.error.json").read_text())["name"] == "bad_thing"
    assert "failed: bad_thing" in (run_dir / "logs" / "rank3.log").read_text()


def test_rank_0_that_is_stopped_because_another_failed_records_that(run_dir: Path) -> None:
    def job(record: Record) -> None:
        cause = {"name": "bad_thing", "message": "it broke", "remedy": ""}
        (record.dir / "logs" / "rank3.error.json").write_text(json.dumps(cause))
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()

    with pytest.raises(SystemExit) as caught:
        _run(job)
    assert caught.value.code == 1
    record = observe(run_dir)
    assert (record["state"], record["error"]["message"]) == ("failed", "rank3: it broke")


def test_a_requeued_job_starts_over_in_its_own_directory(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def attempt(fails: bool) -> Callable[[Record], None]:
        def job(record: Record) -> None:
            (record.dir / "out").mkdir()  # as a job that refuses to overwrite
            if fails:
                raise JobError("bad_thing", "it broke")

        return job

    with pytest.raises(SystemExit):
        _run(attempt(fails=True))
    with pytest.raises(SystemExit) as refused:
        _run(attempt(fails=False))
    assert refused.value.code == 1, "without a requeue the directory is another run's"
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    _run(attempt(fails=False))
    record = observe(run_dir)
    assert record["state"] == "succeeded"
    assert [ended["error"]["name"] for ended in record["attempts"]] == ["bad_thing"]
    assert (run_dir / "attempts" / "1" / "out").is_dir()
    with pytest.raises(SystemExit):
        _run(attempt(fails=False))
    assert observe(run_dir)["state"] == "succeeded", "what succeeded is not started over"


def test_the_record_goes_to_the_log_where_nobody_can_read_the_directory(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MODELOPT_RECIPES_PRINT_RECORD", "1")
    _run(lambda record: record.update(fact="a\nb"))
    (line,) = [line for line in capfd.readouterr().out.splitlines() if line.startswith("run.json: ")]
    assert json.loads(line.removeprefix("run.json: "))["fact"] == "a\nb"


def test_secrets_go_with_the_job(run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "secrets.json"
    write_private(file, b'{"A_TOKEN_OF_MINE": "x"}')
    monkeypatch.setenv("MODELOPT_RECIPES_SECRETS", str(file))
    monkeypatch.setenv("A_TOKEN_OF_MINE", "")
    monkeypatch.delenv("A_TOKEN_OF_MINE")
    _run(lambda _: monkeypatch.setenv("SEEN", os.environ["A_TOKEN_OF_MINE"]))
    assert os.environ["SEEN"] == "x"
    assert not file.exists()


@pytest.mark.parametrize(("retries", "restarts", "kept"), [("1", "0", True), ("1", "1", False), ("0", "0", False)])
def test_secrets_wait_for_the_next_attempt(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, retries: str, restarts: str, kept: bool
) -> None:
    file = tmp_path / "secrets.json"
    write_private(file, b"{}")
    monkeypatch.setenv("MODELOPT_RECIPES_SECRETS", str(file))
    monkeypatch.setenv("TORCHX_MAX_RETRIES", retries)
    monkeypatch.setenv("SLURM_RESTART_COUNT", restarts)
    with pytest.raises(SystemExit):
        _run(_raise(JobError("bad_thing", "it broke")))
    assert file.exists() == kept


def test_no_secret_is_written_or_shown(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", "plain-looking")

    def job(record: Record) -> None:
        print("logging in with plain-looking")
        warnings.warn("plain-looking is old", stacklevel=1)
        raise RuntimeError("bad token plain-looking, nor is hf_aBcDeFgHiJkL one")

    with pytest.raises(SystemExit):
        _run(job)
    said = observe(run_dir)["error"]["message"]
    assert said.startswith("RuntimeError: bad token <HF_TOKEN>, nor is *** one")
    printed = capsys.readouterr()
    assert "failed: unexpected_error: RuntimeError: bad token <HF_TOKEN>" in printed.out
    files = [path for path in run_dir.rglob("*") if path.is_file()]
    assert {"run.json", "traceback.txt", "rank0.log", "warnings.log"} <= {path.name for path in files}
    for text in (printed.out, printed.err, *(path.read_text() for path in files)):
        assert "hf_aBc" not in text and "plain-looking" not in text
