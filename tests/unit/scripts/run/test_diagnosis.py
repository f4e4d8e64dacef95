"""Failures are told by what programs print: each signature by its own words, causes before consequences, tokens never.

The lines are those of diagnosis_examples.yaml, as the programs print them; some are made here for real.
"""

import json
import os
import re
import resource
import signal
import string
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from re import _constants, _parser  # type: ignore[attr-defined]
from typing import Any

import pytest
import yaml

from executors.base import JobState, SchedulerJob
from executors.docker.container import ended
from executors.local import LocalProfile
from executors.slurm.jobs import _STATES
from recipes.cli.show import Output
from recipes.experiment.runs import look
from recipes.experiment.store import RunFolder
from scripts.run.diagnosis import LOG_BYTES, NEXT_ATTEMPT, Diagnosis, Signature, catalogue, clean, diagnose
from scripts.run.ending import Ending
from scripts.run.identity import identity
from scripts.run.problems import JobError
from scripts.run.record import Record, read_record
from scripts.run.session import run_job
from tests.answers import data_of
from tests.jobs import submitted

EXAMPLES = yaml.safe_load(Path(__file__).with_name("diagnosis_examples.yaml").read_text(encoding="utf-8"))
SIGNATURES = catalogue().signatures
FAILURES = Path(__file__).with_name("failures")
FAILED = {"name": "script_failed", "message": "quantize.py ended with status 1.", "remedy": ""}
FULL = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."
WAITED = "[rank0]:[E321 ProcessGroupNCCL.cpp:607] [Rank 0] Watchdog caught collective operation timeout: WorkNCCL("


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    folder = tmp_path / "run" / "logs"
    folder.mkdir(parents=True)
    return folder


def found(logs: Path, **values: Any) -> Diagnosis:
    diagnosis = diagnose(logs, **{"since": 0.0, "error": FAILED, **values})
    assert diagnosis is not None
    return diagnosis


def nothing(logs: Path, **values: Any) -> bool:
    return diagnose(logs, **{"since": 0.0, "error": FAILED, **values}) is None


# --- the catalogue -------------------------------------------------------------------------------------------------


def _examples(kind: str) -> list[Any]:
    return [
        pytest.param(name, text, id=f"{name}-{number}")
        for name, of_one in EXAMPLES.items()
        for number, text in enumerate(of_one[kind])
    ]


@pytest.mark.parametrize(("name", "text"), _examples("said"))
def test_what_a_program_says_is_understood(logs: Path, name: str, text: str) -> None:
    (logs / "rank0.log").write_text(f"loading the model\ncalibrating\n{text}\n")
    diagnosis = found(logs)
    assert diagnosis.name == name
    assert diagnosis.file == "rank0.log"
    assert diagnosis.line is not None and diagnosis.line > 2
    told = (logs / "rank0.log").read_text().splitlines()[diagnosis.line - 1]
    assert told.strip()[:200] == diagnosis.evidence[:200], "the line that it names is the one that it shows"


@pytest.mark.parametrize(("name", "text"), _examples("near"))
def test_what_only_looks_like_it_is_not(logs: Path, name: str, text: str) -> None:
    (logs / "rank0.log").write_text(f"{text}\n")
    diagnosis = diagnose(logs, since=0.0, error=FAILED)
    assert diagnosis is None or diagnosis.name != name


def test_every_signature_and_every_pattern_has_an_example() -> None:
    assert [signature.name for signature in SIGNATURES] == list(EXAMPLES), "none twice, and in the same order"
    everything = "\n".join(text for of_one in EXAMPLES.values() for text in of_one["said"])
    unseen = {pattern.pattern for one in SIGNATURES for pattern in one.patterns if not pattern.search(everything)}
    assert not unseen
    assert all(of_one["near"] for of_one in EXAMPLES.values())


@pytest.mark.parametrize("signature", SIGNATURES, ids=lambda signature: signature.name)
def test_a_signature_is_well_made(signature: Signature) -> None:
    wanted = {name for _, name, _, _ in string.Formatter().parse(signature.remedy) if name}
    for pattern in signature.patterns:
        assert wanted - {"phase"} <= set(pattern.groupindex), "the remedy can be written for every pattern"
        tree = _parser.parse(pattern.pattern)
        assert _literal(tree[0]), f"{pattern.pattern} begins with plain text"
        assert not list(_unbounded(tree)), f"{pattern.pattern} repeats without a bound, or repeats a repetition"
    assert signature.remedy.endswith(".") and signature.source


def _literal(first: Any) -> bool:
    return bool(first[0] is _constants.LITERAL)


def _unbounded(tree: Any, inside: bool = False) -> Iterator[Any]:
    for operation, value in tree:
        if operation in (_constants.MAX_REPEAT, _constants.MIN_REPEAT):
            _, most, body = value
            if inside or most > 300:
                yield value
            yield from _unbounded(body, inside=most > 1)
        elif operation is _constants.SUBPATTERN:
            yield from _unbounded(value[-1], inside)
        elif operation is _constants.BRANCH:
            for branch in value[1]:
                yield from _unbounded(branch, inside)


def test_the_words_of_schedulers_are_those_that_executors_use() -> None:
    words = {name for _, name in _STATES.values()} | {"out_of_memory"}
    assert {word for signature in SIGNATURES for word in signature.scheduler} <= words
    assert words - {"", "cancelled"} <= catalogue().vague


# --- whole logs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("log", sorted(FAILURES.rglob("*.log")), ids=lambda log: log.name)
def test_a_failure_is_named_by_what_ended_it(logs: Path, log: Path) -> None:
    """Logs that real failures left (tests/testbed/failures.py), and some after what programs print elsewhere.

    The first line says what is to be found: `nothing` where no signature is the cause, whatever else was got over.
    """
    due, _, text = log.read_text(encoding="utf-8").partition("\n")
    (logs / f"{log.name.split('.')[1]}.log").write_text(text, encoding="utf-8")
    diagnosis = diagnose(logs, since=0.0, error=FAILED)
    assert f"# {diagnosis.name if diagnosis else 'nothing'}" == due.partition(" (")[0], diagnosis


def test_there_are_logs_enough() -> None:
    assert len(list(FAILURES.rglob("*.log"))) >= 60


@pytest.mark.parametrize(
    "text",
    [
        "Traceback (most recent call last):\n" * 7500,
        "Traceback (most recent call last):\nE: y\n\n"
        "During handling of the above exception, another exception occurred:\n\n" * 2000,
        "".join(f"[{number}]: Traceback (most recent call last):\n" for number in range(6000)),
        "Failures:\n" * 26_000,
        " \n" * 120_000,
        "[1]: " * 50_000,
    ],
    ids=["tracebacks", "chains", "processes", "summaries", "blank", "prefixes"],
)
@pytest.mark.timeout(60)  # of a second at most; a step for each pair of lines would take hours
def test_any_log_is_soon_told_apart(text: str) -> None:
    assert isinstance(Ending(text, alone=False).tells(0), bool)


# --- which line counts ---------------------------------------------------------------------------------------------


def test_the_cause_on_one_rank_comes_before_its_consequences_on_the_others(logs: Path) -> None:
    for rank in (0, 2, 3):
        (logs / f"rank{rank}.log").write_text(f"{WAITED}\n")
    (logs / "rank1.log").write_text(f"calibrating\n{FULL}\n{WAITED}\n")
    (logs / "launcher.log").write_text("  exitcode  : -9 (pid: 2345)\n")
    assert (found(logs).name, found(logs).file, found(logs).line) == ("gpu_out_of_memory", "rank1.log", 2)
    (logs / "rank1.log").unlink()
    assert (found(logs).name, found(logs).file) == ("nccl_timeout", "rank0.log")


def test_the_rank_that_failed_first_is_the_cause(logs: Path) -> None:
    for rank, after in ((0, 30), (2, 10), (10, 20)):
        (logs / f"rank{rank}.log").write_text(f"ModuleNotFoundError: No module named 'of{rank}'\n")
        error = logs / f"rank{rank}.error.json"
        error.write_text("{}")
        os.utime(error, (time.time() + after, time.time() + after))
    assert found(logs).file == "rank2.log"
    for file in logs.glob("*.error.json"):
        file.unlink()
    (logs / "rank0.log").unlink()
    assert found(logs).file == "rank2.log", "without their word, by number"


def test_what_was_got_over_long_before_is_not_the_cause(logs: Path) -> None:
    steps = "".join(f"iteration {step} of 9999, all is well\n" for step in range(2000))
    cache = "could not cache a kernel: [Errno 28] No space left on device\n"
    (logs / "rank0.log").write_text(f"{cache}{steps}429 Too Many Requests for url: https://huggingface.co/api\n")
    assert found(logs).name == "hub_rate_limited"
    (logs / "rank0.log").write_text(f"{cache}429 Too Many Requests for url: https://huggingface.co/api\n")
    assert found(logs).name == "disk_full", "which comes first where both are last words"


def test_of_a_chain_of_tracebacks_the_specific_one_counts(logs: Path) -> None:
    chain = "huggingface_hub.errors.HfHubHTTPError: 401 Client Error\nThe above exception was the direct cause\n"
    (logs / "rank0.log").write_text(f"{chain}OSError: You are trying to access a gated repo.\n")
    assert found(logs).name == "gated_repository"


@pytest.mark.parametrize(
    ("phase", "name"),
    [
        ("load", "gpu_out_of_memory_loading"),
        ("calibrate", "gpu_out_of_memory_calibration"),
        ("export", "gpu_out_of_memory_exporting"),
        ("generate before", "gpu_out_of_memory"),
        (None, "gpu_out_of_memory"),
    ],
)
def test_memory_is_told_by_what_was_being_done(logs: Path, phase: str | None, name: str) -> None:
    (logs / "traceback.txt").write_text(f"Traceback (most recent call last):\n{FULL}\n")
    diagnosis = found(logs, phase=phase, error={"name": "out_of_memory", "message": FULL})
    assert (diagnosis.name, diagnosis.file) == (name, "traceback.txt")
    if name == "gpu_out_of_memory":
        assert f'"{phase or "the run"}"' in diagnosis.remedy


def test_frames_of_an_earlier_traceback_do_not_tell_the_stage(logs: Path) -> None:
    earlier = "Traceback (most recent call last):\n  in from_pretrained\nKeyError: 'x'\n"
    (logs / "rank0.log").write_text(f"{earlier}Traceback (most recent call last):\n  in other\n{FULL}\n")
    assert found(logs).name == "gpu_out_of_memory"


@pytest.mark.parametrize("rank", ["", "[rank3]: ", "0: ", "[default1]:[rank1]: "])
def test_a_program_that_a_traceback_quotes_says_nothing(logs: Path, rank: str) -> None:
    quoted = ["Traceback (most recent call last):", '  File "x.py", line 3, in main', "    raise ValueError("]
    quoted += ["        'No space left on device' if full else 'other'", "        ^^^^", "ValueError: other"]
    (logs / "rank0.log").write_text("".join(f"{rank}{line}\n" for line in quoted))
    assert nothing(logs)
    (logs / "rank0.log").write_text("\n".join(["    ", "    No space left on device"]))
    assert found(logs).name == "disk_full", "what is only indented may well be said"


def test_an_error_that_names_its_cause_is_not_contradicted(logs: Path) -> None:
    (logs / "rank0.log").write_text(f"{FULL}\n")
    assert nothing(logs, error={"name": "output_exists", "message": FULL})


def test_a_remedy_names_what_the_line_named(logs: Path) -> None:
    (logs / "rank0.log").write_text("ImportError: cannot import name 'mtp' from 'modelopt.torch.prune' (x)\n")
    assert found(logs).remedy.startswith("modelopt.torch.prune here has no mtp: ")


def test_our_own_lines_are_no_evidence(logs: Path) -> None:
    own = "[12:00:00] failed: script_failed: ended with status 1: ModuleNotFoundError: No module named 'x'.\n"
    own += "scripts.run.problems.JobError: script_failed: ModuleNotFoundError: No module named 'x'.\n"
    own += "[12:00:00] diagnosis: missing_module: ModuleNotFoundError: No module named 'x'\n"
    (logs / "rank0.log").write_text(own)
    assert nothing(logs)
    diagnosis = found(
        logs, error=FAILED | {"message": "ended with status 1: ModuleNotFoundError: No module named 'x'."}
    )
    assert (diagnosis.name, diagnosis.file, diagnosis.line) == ("missing_module", None, None)


# --- which logs are read -------------------------------------------------------------------------------------------


def test_only_the_end_of_a_log_is_read_and_lines_are_counted_from_its_beginning(logs: Path) -> None:
    filler = "x" * 99 + "\n"
    lines = 4 * LOG_BYTES // len(filler)
    (logs / "rank0.log").write_text(f"{FULL}\n" + filler * lines)
    assert nothing(logs), "it stands beyond the end"
    (logs / "rank0.log").write_text(filler * lines + f"{FULL}\nbye\n")
    assert found(logs).line == lines + 1


def test_logs_of_an_earlier_attempt_are_not_read(logs: Path) -> None:
    log = logs / "rank0.log"
    log.write_text(f"{FULL}\n{NEXT_ATTEMPT}\nall is well\n")
    assert nothing(logs)
    log.write_text(f"{FULL}\n{NEXT_ATTEMPT}\nall is well\n[Errno 28] No space left on device\n")
    assert (found(logs).name, found(logs).line) == ("disk_full", 4)
    assert nothing(logs, since=time.time() + 60)


def test_warnings_and_our_supervisor_are_no_evidence(logs: Path) -> None:
    for name in ("warnings.log", "supervisor.log", "rank0.command.json"):
        (logs / name).write_text(f"{FULL}\n")
    assert nothing(logs)


def test_logs_that_lie_elsewhere(tmp_path: Path) -> None:
    absent = tmp_path / "absent"
    text = "x\n" * LOG_BYTES + "slurmstepd: error: Detected 1 oom_kill event in StepId=1.0."
    diagnosis = found(absent, printed={"launcher.log": text.encode()})
    assert (diagnosis.name, diagnosis.file, diagnosis.line) == ("host_out_of_memory", "launcher.log", None)
    assert nothing(absent)


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe\x00\x80" * 100_000,
        os.urandom(300_000),
        b"x" * 600_000,
        b"size mismatch for " * 30_000,
        b"Repo id must be in the form " * 20_000,
        b"Connection reset by peer\n" * 20_000,
        b"\x1b[" * 150_000,
        b"",
    ],
    ids=["not-utf8", "random", "one-line", "beginnings", "more-beginnings", "flood", "escapes", "empty"],
)
@pytest.mark.timeout(60)  # of seconds at most; a pattern that backtracks would take hours
def test_logs_of_any_content_are_read_to_their_end(logs: Path, content: bytes) -> None:
    for rank in range(4):
        (logs / f"rank{rank}.log").write_bytes(content)
    (logs / "rank4.log").mkdir()
    diagnosis = diagnose(logs, since=0.0, error=FAILED)
    assert diagnosis is None or diagnosis.name == "rank_lost"


# --- what is shown -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "secret",
    [
        "hf_aBcDeFgHiJkLmNoP",
        "nvapi-abc_DEF-123456",
        "Authorization: Bearer abc.def.ghi",
        "https://me:pass-word@host/x",
        "https://host/x?token=abcdef&y",
        "password: abcdef",
    ],
)
def test_tokens_are_not_shown(logs: Path, secret: str) -> None:
    (logs / "rank0.log").write_text(f"OSError: [Errno 28] {secret} end\n")
    evidence = found(logs).evidence
    value = re.split(r"Bearer |//|token=|: ", secret)[-1].partition("@")[0].partition("&")[0]
    assert value not in evidence and "***" in evidence
    assert evidence.endswith("end")


def test_values_of_secret_variables_are_not_shown(logs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SITE_TOKEN", "plain-looking")
    monkeypatch.setenv("OTHER_TOKEN", "No")  # too short to be looked for in any text
    (logs / "rank0.log").write_text("No space left on device: plain-looking\n")
    assert found(logs).evidence == "No space left on device: <SITE_TOKEN>"


def test_evidence_is_one_plain_line(logs: Path) -> None:
    line = f"12/99 [00:10<\r\x1b[31mOSError\x1b[0m: \x07[Errno 28] \x1b]0;title\x07 {'y' * 400}"
    (logs / "rank0.log").write_text(line, newline="")
    evidence = found(logs).evidence
    assert evidence.startswith("OSError:  [Errno 28]") and evidence.endswith("yyy...")
    assert len(evidence) == 300 and evidence.isprintable()
    (logs / "rank0.log").write_text("No space \x1b[1mleft\x1b[0m on device")
    assert found(logs).evidence == "No space left on device"
    assert clean("\x9b31m\tred\u202e") == "31m red"


def test_of_a_long_line_the_part_that_tells_is_shown(logs: Path) -> None:
    (logs / "rank0.log").write_text(f"hf_aBcDeFgHiJkLmNoP {'x ' * 5000}{FULL}{' y' * 5000}\n")
    evidence = found(logs).evidence
    assert evidence.startswith("...") and evidence.endswith("...") and len(evidence) == 300
    assert "CUDA out of memory. Tried to allocate 2.00 GiB" in evidence


# --- really made ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("disk_full", "open('/dev/full', 'w').write('x' * 99999)"),
        ("too_many_open_files", "kept = [open('/dev/null') for _ in range(99)]"),
        ("port_in_use", "import socket; a, b = socket.socket(), socket.socket(); a.bind(('127.0.0.1', 0)); a.listen(); "
                        "b.bind(a.getsockname())"),
        ("missing_module", "import megatron.core.no_such"),
        ("missing_name", "from json import no_such"),
        ("missing_name", "import json; json.no_such"),
        ("unknown_flag", "import argparse; argparse.ArgumentParser().parse_args(['--no-such', '1'])"),
        ("bad_flag_value", "import argparse; p = argparse.ArgumentParser(); p.add_argument('--n', type=int); "
                           "p.parse_args(['--n', 'many'])"),
        ("host_out_of_memory", "bytearray(1 << 60)"),
        ("permission_denied", "raise PermissionError(13, 'Permission denied', '/x')"),
        ("segmentation_fault", "import faulthandler, ctypes; faulthandler.enable(); ctypes.string_at(0)"),
    ],
)  # fmt: skip
def test_what_python_says_is_understood(logs: Path, name: str, source: str) -> None:
    def few_files() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    with (logs / "rank0.log").open("wb") as log:
        done = subprocess.run([sys.executable, "-c", source], stdout=log, stderr=log, preexec_fn=few_files)
    assert done.returncode
    assert found(logs).name == name


# --- in a run ------------------------------------------------------------------------------------------------------


def carry_out(job: Callable[[Record], None], run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("NEMO_RUN_DIR", str(run_dir))
    with pytest.raises(SystemExit):
        run_job(name="test", algorithm="quantize", values={}, job=job)
    return read_record(run_dir)


def test_a_failed_job_records_its_diagnosis(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def job(record: Record) -> None:
        with record.phase("calibrate"):
            raise RuntimeError("CUDA error: out of memory")

    record = carry_out(job, tmp_path / "run", monkeypatch)
    assert record["error"]["name"] == "unexpected_error"
    diagnosis = record["diagnosis"]
    assert (diagnosis["name"], diagnosis["file"]) == ("gpu_out_of_memory_calibration", "traceback.txt")
    assert diagnosis["evidence"] == "RuntimeError: CUDA error: out of memory"
    told = (tmp_path / "run" / "logs" / "traceback.txt").read_text().splitlines()
    assert told[diagnosis["line"] - 1] == diagnosis["evidence"]
    assert "diagnosis: gpu_out_of_memory_calibration: The model fitted" in capsys.readouterr().out


def test_a_job_that_knows_why_it_failed_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def job(_: Record) -> None:
        print(FULL)
        raise JobError("output_exists", "it is there")

    assert "diagnosis" not in carry_out(job, tmp_path / "run", monkeypatch)


def test_another_rank_s_failure_is_looked_for_in_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes a little later, and the launcher's SIGTERM with it."""
    log = tmp_path / "run" / "logs" / "rank1.log"

    def job(_: Record) -> None:
        threading.Timer(0.3, lambda: (log.write_text(f"{FULL}\n"), os.kill(os.getpid(), signal.SIGTERM))).start()
        print(WAITED)
        raise JobError("script_failed", "quantize.py ended with status 1.")

    monkeypatch.setenv("WORLD_SIZE", "2")
    record = carry_out(job, tmp_path / "run", monkeypatch)
    assert record["state"] == "failed"
    assert (record["diagnosis"]["name"], record["diagnosis"]["file"]) == ("gpu_out_of_memory", "rank1.log")


def test_the_next_attempt_does_not_inherit_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def job(_: Record) -> None:
        print("OSError: [Errno 28] No space left on device")
        raise JobError("script_failed", "it failed")

    def silent(_: Record) -> None:
        raise JobError("script_failed", "it failed")

    assert carry_out(job, tmp_path / "run", monkeypatch)["diagnosis"]["name"] == "disk_full"
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    record = carry_out(silent, tmp_path / "run", monkeypatch)
    assert "diagnosis" not in record
    assert [attempt["diagnosis"]["name"] for attempt in record["attempts"]] == ["disk_full"]
    assert (tmp_path / "run" / "logs" / "rank0.log").read_text().count(NEXT_ATTEMPT) == 1


class Scheduler:
    """A place that says what it is told to say; only the methods that `look` calls."""

    def __init__(self, state: JobState) -> None:
        self.state = state

    def states(self, jobs: list[SchedulerJob]) -> dict[str, JobState | None]:
        return {job.run_id: self.state for job in jobs}

    def records(self, jobs: list[SchedulerJob]) -> dict[str, dict[str, Any]]:
        return {job.run_id: read_record(Path(job.run_dir)) for job in jobs}


def silent_run(tmp_path: Path) -> RunFolder:
    """A run whose job was cut short."""
    folder = RunFolder(dir=tmp_path / "probe_1-ab")
    record = Record.submit(folder.dir, id=folder.id)
    gone = {**identity(), "pid": 2**22 + 1}
    record.update(state="running", started_at="2026-01-01T00:00:00.000Z", process=gone, phase="calibrate")
    (folder.dir / "logs").mkdir()
    job = SchedulerJob(run_id=folder.id, id="7", run_dir=str(folder.dir), folder="/f")
    submitted(folder, LocalProfile(), scheduled=job)
    return folder


def test_a_job_that_its_scheduler_starts_again_has_none(tmp_path: Path) -> None:
    folder = silent_run(tmp_path)
    record = Record(folder.dir, read_record(folder.dir))
    record.finish("failed", FAILED)
    record.update(diagnosis={"name": "disk_full", "remedy": "", "evidence": "", "file": None, "line": None})
    waits = JobState(state="submitted", detail="PENDING (BeginTime)")
    (run,) = look([folder], {folder.id: Scheduler(waits)})  # type: ignore[dict-item]
    assert (run.state, run.record["diagnosis"]) == ("submitted", None)


@pytest.mark.parametrize(
    ("state", "name"),
    [
        (JobState(state="failed", name="timeout", detail="TIMEOUT"), "walltime"),
        (JobState(state="failed", name="deadline", detail="DEADLINE"), "walltime"),
        (JobState(state="failed", name="preempted", detail="PREEMPTED"), "preempted"),
        (JobState(state="failed", name="node_failed", detail="NODE_FAIL"), "node_failure"),
        (JobState(state="failed", name="out_of_memory", detail="OUT_OF_MEMORY"), "host_out_of_memory"),
    ],
)
def test_a_scheduler_s_word_is_a_diagnosis_whatever_the_log_says(tmp_path: Path, state: JobState, name: str) -> None:
    folder = silent_run(tmp_path)
    (folder.dir / "logs" / "rank0.log").write_text(f"{WAITED}\nOSError: [Errno 28] No space left on device\n")
    look([folder], {folder.id: Scheduler(state)})  # type: ignore[dict-item]
    diagnosis = read_record(folder.dir)["diagnosis"]
    assert (diagnosis["name"], diagnosis["evidence"], diagnosis["file"]) == (name, state.detail, None)


def test_a_scheduler_s_word_is_shown_by_its_own_line(tmp_path: Path) -> None:
    folder = silent_run(tmp_path)
    line = "slurmstepd: error: *** STEP 7.0 ON n1 CANCELLED AT 2026-04-14T16:20:46 DUE TO TIME LIMIT ***"
    (folder.dir / "logs" / "rank0.log").write_text(f"calibrating\n{line}\n")
    state = JobState(state="failed", name="timeout", detail="TIMEOUT")
    (run,) = look([folder], {folder.id: Scheduler(state)})  # type: ignore[dict-item]
    found = run.record["diagnosis"]
    assert (found["name"], found["evidence"], found["file"], found["line"]) == ("walltime", line, "rank0.log", 2)


def test_a_rank_that_failed_before_the_time_limit_is_the_cause(tmp_path: Path) -> None:
    folder = silent_run(tmp_path)
    (folder.dir / "logs" / "rank3.log").write_text(f"{FULL}\n")
    (folder.dir / "logs" / "rank3.error.json").write_text(json.dumps(FAILED))
    state = JobState(state="failed", name="timeout", detail="TIMEOUT")
    (run,) = look([folder], {folder.id: Scheduler(state)})  # type: ignore[dict-item]
    assert run.record["error"]["name"] == "script_failed"
    assert run.record["diagnosis"]["name"] == "gpu_out_of_memory_calibration"


def test_a_job_that_was_killed_is_diagnosed_by_its_status(tmp_path: Path) -> None:
    folder = silent_run(tmp_path)
    state = ended(SchedulerJob(run_id="x", id="x", run_dir=str(tmp_path), folder=""), 137, False)
    assert state is not None
    (run,) = look([folder], {folder.id: Scheduler(state)})  # type: ignore[dict-item]
    assert run.record["diagnosis"]["name"] == "process_killed"


def test_nothing_known_is_no_diagnosis(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = silent_run(tmp_path)
    state = JobState(state="failed", name="job_failed", detail="FAILED exit code 1:0")
    (run,) = look([folder], {folder.id: Scheduler(state)})  # type: ignore[dict-item]
    assert "diagnosis" not in run.record
    Output(as_json=False).status(run)
    Output(as_json=False).results([run], verbose=False)
    said = capsys.readouterr()
    assert "diagnosis" not in said.out + said.err


def test_status_and_the_end_of_a_run_show_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = silent_run(tmp_path)
    (folder.dir / "logs" / "rank1.log").write_text(f"calibrating\n{FULL}\n")
    state = JobState(state="failed", name="job_failed", detail="FAILED exit code 1:0")
    (run,) = look([folder], {folder.id: Scheduler(state)})  # type: ignore[dict-item]
    Output(as_json=False).status(run)
    Output(as_json=False).results([run], verbose=False)
    said = capsys.readouterr()
    for text in (said.out, said.err):
        assert "diagnosis    gpu_out_of_memory_calibration: The model fitted" in text
        assert f"evidence     rank1.log:2: {FULL}" in text
    Output(as_json=True).status(run)
    assert data_of(capsys.readouterr().out)["diagnosis"]["line"] == 2
