"""The frame around every entrypoint: open the record, run the job, record success or the cause of failure."""

import io
import json
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

from scripts.run import identity as process
from scripts.run.diagnosis import CLOCK_SKEW_SECONDS, NEXT_ATTEMPT, diagnose, is_vague
from scripts.run.files import opened, write_text
from scripts.run.problems import JobError, error_data, error_line, is_disk_full
from scripts.run.provenance import job_facts, versions
from scripts.run.record import ERROR, DamagedRecordError, Follower, Record, observe, read_json, read_record
from scripts.run.secrets import VARIABLE as SECRETS_FILE
from scripts.run.secrets import forget_secrets, load_secrets, masked, redacted, secrets_here
from scripts.tracking.followers import Followers, asked_for

#: Set where the run directory cannot be read from the submitting machine: the record goes to the log as well.
PRINT_RECORD = "MODELOPT_RECIPES_PRINT_RECORD"
#: Between one rank's failure and the launcher's SIGTERM to the others, its cause reaches shared storage.
_RANK_GRACE_SECONDS = 1.0
#: How long after its end a job waits for its trackers. Whoever stops one does not wait long, nor do other ranks.
_TRACKED_SECONDS = {"succeeded": 60.0, "failed": 20.0, "cancelled": 3.0}


class Cancelled(BaseException):
    """SIGTERM arrived. Not an Exception, so that no engine's handler takes it for a failure."""


def run_job(*, name: str, algorithm: str, values: dict[str, Any], job: Callable[[Record], None]) -> None:
    """Run `job` inside its run directory and exit non-zero unless it succeeded.

    The directory is `NEMO_RUN_DIR`, else one of its own under `$PWD/output`. Of several ranks, rank 0
    writes the record; the others leave a log each, and the cause if they fail. Raises SystemExit: 1
    (or the error's own status) after a failure, 143 after SIGTERM, 130 after Ctrl-C. The traceback of
    a failure goes to logs/traceback.txt, not to the terminal.
    """
    rank = int(os.environ.get("RANK", "0"))
    try:
        record = _open(name, algorithm, values, rank)
    except (JobError, DamagedRecordError) as error:  # the directory is another run's
        print(f"failed: {error}", file=sys.stderr, flush=True)
        raise SystemExit(1) from None
    followers = Followers(record.dir, () if rank else asked_for())
    with _on_sigterm(_cancel), _logged(record.dir / "logs", rank), record.running():
        try:
            load_secrets()
            followers.start()
            job(record)
        except (Cancelled, KeyboardInterrupt) as stop:
            end_undisturbed()
            raise SystemExit(_stopped(record, followers, stop)) from None
        except Exception as error:
            end_undisturbed()
            traces = record.dir / "logs" / (f"traceback.rank{rank}.txt" if rank else "traceback.txt")
            with suppress(OSError):  # a full disk, which may be the error itself
                write_text(traces, redacted("".join(traceback.format_exception(error))))
            cause = {part: redacted(text) for part, text in _cause(error).items()}
            record.line(f"failed: {error_line(cause)}")
            _finish(record, followers, "failed", cause)
            raise SystemExit(error.exit_code if isinstance(error, JobError) else 1) from None
        end_undisturbed()
        _finish(record, followers, "succeeded", None)
        record.line(f"succeeded: {record.dir}")


def run_element(*, run_dirs: list[str], jobs: list[str]) -> None:
    """Run the job of this element of a Slurm job array, in its own run directory; `jobs` are Partials as text."""
    from fiddle import build
    from nemo_run.core.serialization.zlib_json import ZlibJSONSerializer

    index = int(os.environ["SLURM_ARRAY_TASK_ID"])
    os.environ["NEMO_RUN_DIR"] = run_dirs[index]
    if SECRETS_FILE in os.environ:
        os.environ[SECRETS_FILE] += f".{index}"
    build(ZlibJSONSerializer().deserialize(jobs[index]))()


def values_given(engine: str, script: Any, args: Any, torchrun: Any, extra_args: list[str]) -> dict[str, Any]:
    """What an entrypoint was called with, as the record keeps it: section by section, as a YAML file has it."""
    sections = {"script": asdict(script), "args": asdict(args), "torchrun": asdict(torchrun)}
    return {"engine": engine, **sections, "extra_args": list(extra_args)}


def rank_error(logs: Path, since: float) -> dict[str, Any] | None:
    """Why another rank failed, as it wrote down after `since` (seconds since the epoch)."""
    for file in sorted(logs.glob("rank*.error.json")):
        with suppress(OSError):
            if file.stat().st_mtime >= since - CLOCK_SKEW_SECONDS and (error := read_json(file, ERROR)):
                rank = file.name.removesuffix(".error.json")
                return {**error, "message": f"{rank}: {error['message']}"}
    return None


def _open(name: str, algorithm: str, values: dict[str, Any], rank: int) -> Record:
    facts = {"recipe": name, "algorithm": algorithm, "values": values}
    own = f"{name}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{os.getpid()}"
    run_dir = Path(os.environ.get("NEMO_RUN_DIR") or Path.cwd() / "output" / own)
    if rank:
        run_dir.mkdir(parents=True, exist_ok=True)
        with suppress(DamagedRecordError):  # rank 0 may not have got that far
            facts["attempts"] = read_record(run_dir).get("attempts", [])
        return Follower(run_dir, {"rank": rank, **facts})
    if not (run_dir / "run.json").exists():
        record = Record.submit(run_dir, id=run_dir.name, **facts)
    elif _restarts() and observe(run_dir).get("started_at"):  # our own directory, from an earlier attempt
        record = Record.reopen(run_dir)
    else:
        record = Record.resume(run_dir)
    record.update(versions=versions(), command=sys.argv, cwd=str(Path.cwd()), job=job_facts())
    return record


def _restarts() -> int:
    """How often Slurm started this same job before."""
    return int(os.environ.get("SLURM_RESTART_COUNT", "0"))


def _stopped(record: Record, followers: Followers, stop: BaseException) -> int:
    """Record why the job was told to stop, and return its exit status."""
    by_signal = "SIGTERM" if isinstance(stop, Cancelled) else "SIGINT"
    status = 143 if isinstance(stop, Cancelled) else 130
    if not isinstance(record, Follower):
        time.sleep(_RANK_GRACE_SECONDS if os.environ.get("WORLD_SIZE", "1") != "1" else 0)
        other = rank_error(record.dir / "logs", _process_start())
        if other:  # the launcher ends all ranks when one fails
            record.line(f"failed: {error_line(other)}")
            _finish(record, followers, "failed", other, seconds=_TRACKED_SECONDS["cancelled"])
            return 1
    record.line(f"cancelled by {by_signal}")
    _finish(record, followers, "cancelled", error_data("cancelled", f"stopped by {by_signal}"))
    return status


def _finish(
    record: Record, followers: Followers, state: str, error: dict[str, Any] | None, seconds: float | None = None
) -> None:
    """Record the end, what the logs say about it, and what trackers made of it, for which `seconds` are waited."""
    if followers.names:
        record.values["tracked"] = followers.tracked()
    record.finish(state, error)
    if isinstance(record, Follower):
        return
    # Slurm may start a job again that was stopped (`cancel` removes the secrets itself), or that failed and has
    # retries left, by a variable of NeMo-Run's; it needs them then.
    retried = int(os.environ.get("TORCHX_MAX_RETRIES", "0")) > _restarts()
    if not (state == "cancelled" and "SLURM_JOB_ID" in os.environ) and not (state == "failed" and retried):
        forget_secrets()
    if state == "failed" and error and is_vague(error):
        _diagnose(record, error)
    _print_record(record)
    if followers.names:
        _await_trackers(record, followers, _TRACKED_SECONDS[state] if seconds is None else seconds)
        _print_record(record)  # the last one counts; the first is there if this process is not left to wait


def _print_record(record: Record) -> None:
    if os.environ.get(PRINT_RECORD):
        # One write past our own buffers and log: another rank's output must not split the line.
        sys.stdout.flush()
        os.write(1, f"\nrun.json: {json.dumps(record.values)}\n".encode())


def _await_trackers(record: Record, followers: Followers, seconds: float) -> None:
    """Add to an end that is recorded what trackers were told of it. Nothing here changes how the run ended."""
    stops: list[int] = []
    with _on_sigterm(lambda signum, _: stops.append(signum)), suppress(Exception):
        try:
            followers.end(seconds, hurried=lambda: bool(stops))
        except KeyboardInterrupt:
            followers.end(0)
        failed = followers.warnings()
        for warning in failed:
            record.line(f"warning: {warning['text']}")
        warnings = [one for one in record.values.get("warnings", []) if one["name"] != "tracking_failed"]
        with suppress(OSError, DamagedRecordError):
            # Somebody may have started it over meanwhile; then the record is of another attempt.
            if read_record(record.dir).get("finished_at") == record.values["finished_at"]:
                record.update(tracked=followers.tracked(), warnings=[*warnings, *failed])


def _diagnose(record: Record, error: dict[str, Any]) -> None:
    """Add to a failure that is recorded what the logs of all ranks say about it."""
    with _on_sigterm(signal.SIG_IGN):  # that it failed is recorded; what is said about it must not be cut short
        if os.environ.get("WORLD_SIZE", "1") != "1":
            time.sleep(_RANK_GRACE_SECONDS)  # the rank whose failure ended this one may not have said so yet
        found = diagnose(record.dir / "logs", since=_process_start(), error=error, phase=record.values.get("phase"))
        if found is None:
            return
        record.line(f"diagnosis: {found.name}: {found.remedy}")
        with suppress(OSError):  # a full disk, which may be the very cause; that the run failed is recorded
            record.update(diagnosis=asdict(found))


def _process_start() -> float:
    return float(process.identity()["started"])


class _Tee(io.TextIOBase):
    """Writes to two text streams, without the values of secrets; asks the first what a terminal is."""

    def __init__(self, first: TextIO, second: TextIO) -> None:
        self._first, self._second = first, second

    def write(self, text: str) -> int:
        shown = masked(text, secrets_here())
        with suppress(OSError):  # a full disk must not hide the message that says so
            self._second.write(shown)
        self._first.write(shown)
        return len(text)

    def flush(self) -> None:
        self._first.flush()
        with suppress(OSError):
            self._second.flush()

    def isatty(self) -> bool:
        return self._first.isatty()

    def fileno(self) -> int:
        return self._first.fileno()


@contextmanager
def _logged(logs: Path, rank: int) -> Iterator[None]:
    """Copy standard output and error of this rank to logs/rank<N>.log, wherever else they go."""
    logs.mkdir(exist_ok=True)
    before = sys.stdout, sys.stderr
    with opened(logs / f"rank{rank}.log", encoding="utf-8", errors="backslashreplace", buffering=1) as log:
        if log.tell():
            log.write(f"{NEXT_ATTEMPT}\n")
        sys.stdout, sys.stderr = _Tee(before[0], log), _Tee(before[1], log)
        try:
            with _warnings_to(logs / "warnings.log"):
                yield
        finally:
            sys.stdout, sys.stderr = before


@contextmanager
def _warnings_to(path: Path) -> Iterator[None]:
    """Python warnings of the libraries go to a file of their own, each once."""
    with warnings.catch_warnings(), opened(path, encoding="utf-8") as log:

        def write(message: Any, category: Any, filename: str, lineno: int, file: Any = None, line: Any = None) -> None:
            log.write(redacted(warnings.formatwarning(message, category, filename, lineno, line)))
            log.flush()

        warnings.showwarning = write  # until catch_warnings ends
        yield


def _cancel(_signal: int, _frame: FrameType | None) -> None:
    raise Cancelled


def end_undisturbed() -> None:
    """Let no SIGTERM interrupt what is left: why the job ends is known, and launchers end all ranks where one fails."""
    signal.signal(signal.SIGTERM, lambda *_: None)  # no SIG_IGN, which programs inherit


@contextmanager
def _on_sigterm(handler: Callable[[int, FrameType | None], None] | signal.Handlers) -> Iterator[None]:
    """Answer the launcher's SIGTERM otherwise while the block lasts."""
    before = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _cause(error: Exception) -> dict[str, str]:
    if isinstance(error, JobError):
        return error.as_data()
    if is_disk_full(error):
        return JobError.of_os_error(error).as_data()
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        remedy = "Lower args.calib_batch_size or args.calib_seq_length, or use a machine with more memory."
        return error_data("out_of_memory", str(error) or "memory ran out", remedy)
    last = traceback.extract_tb(error.__traceback__)[-1]
    message = f"{type(error).__name__}: {error} ({Path(last.filename).name}:{last.lineno})"
    return error_data("unexpected_error", message, "The traceback is in logs/traceback.txt.")
