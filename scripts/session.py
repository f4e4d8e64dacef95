"""The frame around every entrypoint: open the record, run the job, record success or the cause of failure."""

import io
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

from scripts.errors import JobError
from scripts.provenance import versions
from scripts.record import DamagedRecordError, Record, default_run_dir

_DISK_FULL = 28


class Cancelled(BaseException):
    """SIGTERM arrived. Not an Exception, so that no engine's handler takes it for a failure."""


def run_job(*, name: str, algorithm: str, values: dict[str, Any], job: Callable[[Record], None]) -> None:
    """Run `job` inside its run directory and exit non-zero unless it succeeded.

    The directory is `NEMO_RUN_DIR`, else one of its own under `$PWD/output`. Raises
    SystemExit: 1 after a failure, 143 after SIGTERM, 130 after Ctrl-C. The traceback of a failure
    goes to logs/traceback.txt, not to the terminal.
    """
    try:
        record = _open(name, algorithm, values)
    except (JobError, DamagedRecordError) as error:  # the directory is another run's, or another rank's
        print(f"failed: {error}", file=sys.stderr, flush=True)
        raise SystemExit(1) from None
    with _sigterm_cancels(), _logged(record.dir / "logs"), record.running():
        try:
            job(record)
        except (Cancelled, KeyboardInterrupt) as stop:
            signal_name = "SIGTERM" if isinstance(stop, Cancelled) else "SIGINT"
            record.finish("cancelled", {"name": "cancelled", "message": f"stopped by {signal_name}", "remedy": ""})
            record.line(f"cancelled by {signal_name}")
            raise SystemExit(143 if isinstance(stop, Cancelled) else 130) from None
        except Exception as error:
            _write_traceback(record, error)
            cause = _cause(error)
            record.line(f"failed: {error_line(cause)}")
            record.finish("failed", cause)
            raise SystemExit(1) from None
        record.finish("succeeded")
        record.line(f"succeeded: {record.dir}")


def error_line(error: dict[str, Any]) -> str:
    """A recorded error as one line: name, message, remedy."""
    return " ".join(part for part in (f"{error['name']}:", error["message"], error["remedy"]) if part)


def _open(name: str, algorithm: str, values: dict[str, Any]) -> Record:
    facts = {"recipe": name, "algorithm": algorithm, "values": values}
    given = os.environ.get("NEMO_RUN_DIR")
    run_dir = Path(given) if given else default_run_dir(name)
    taken = run_dir / "run.json"
    record = Record.resume(run_dir) if taken.exists() else Record.submit(run_dir, id=run_dir.name, **facts)
    record.update(versions=versions(), command=sys.argv, cwd=str(Path.cwd()))
    return record


class _Tee(io.TextIOBase):
    """Writes to two text streams; asks the first what a terminal is."""

    def __init__(self, first: TextIO, second: TextIO) -> None:
        self._first, self._second = first, second

    def write(self, text: str) -> int:
        with suppress(OSError):  # a full disk must not hide the message that says so
            self._second.write(text)
        return self._first.write(text)

    def flush(self) -> None:
        self._first.flush()
        with suppress(OSError):
            self._second.flush()

    def isatty(self) -> bool:
        return self._first.isatty()

    def fileno(self) -> int:
        return self._first.fileno()


@contextmanager
def _logged(logs: Path) -> Iterator[None]:
    """Copy standard output and error of this rank to logs/rank<N>.log, wherever else they go."""
    logs.mkdir(exist_ok=True)
    rank = os.environ.get("RANK", "0")
    before = sys.stdout, sys.stderr
    with (logs / f"rank{rank}.log").open("a", encoding="utf-8", errors="backslashreplace", buffering=1) as log:
        sys.stdout, sys.stderr = _Tee(before[0], log), _Tee(before[1], log)
        try:
            with _warnings_to(logs / "warnings.log"):
                yield
        finally:
            sys.stdout, sys.stderr = before


@contextmanager
def _warnings_to(path: Path) -> Iterator[None]:
    """Python warnings of the libraries go to a file of their own, each once."""
    with warnings.catch_warnings(), path.open("a", encoding="utf-8") as log:
        show = warnings.showwarning

        def write(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            log.write(warnings.formatwarning(message, category, filename, lineno, line))
            log.flush()

        warnings.showwarning = write
        try:
            yield
        finally:
            warnings.showwarning = show


@contextmanager
def _sigterm_cancels() -> Iterator[None]:
    def handler(_signal: int, _frame: FrameType | None) -> None:
        raise Cancelled

    before = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _cause(error: Exception) -> dict[str, Any]:
    if isinstance(error, JobError):
        return {"name": error.name, "message": error.cause, "remedy": error.remedy}
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        remedy = "Lower args.calib_batch_size or args.calib_seq_length, or use a machine with more memory."
        return {"name": "out_of_memory", "message": str(error) or "memory ran out", "remedy": remedy}
    if isinstance(error, OSError) and error.errno == _DISK_FULL:
        return {"name": "disk_full", "message": str(error), "remedy": "Free some space, or write elsewhere."}
    last = traceback.extract_tb(error.__traceback__)[-1]
    message = f"{type(error).__name__}: {error} ({Path(last.filename).name}:{last.lineno})"
    return {"name": "unexpected_error", "message": message, "remedy": "The traceback is in logs/traceback.txt."}


def _write_traceback(record: Record, error: Exception) -> None:
    logs = record.dir / "logs"
    logs.mkdir(exist_ok=True)
    (logs / "traceback.txt").write_text("".join(traceback.format_exception(error)), encoding="utf-8")
