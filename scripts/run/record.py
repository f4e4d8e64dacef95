"""The run directory: run.json, its state machine, progress, metrics and artifacts.

run.json is the truth about a run. It is replaced, never edited in place; whoever dies leaves the
last complete version. `observe` turns a record whose process is gone into state `lost`.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

from scripts.run import identity as process
from scripts.run import schema
from scripts.run.content import Written, content_of, manifest_of, manifest_path
from scripts.run.files import opened, read_limited, write_json, write_text
from scripts.run.problems import JobError, error_data
from scripts.run.provenance import peak_memory
from scripts.tracking.known import NAMES, TRACKED

SCHEMA = 1
STATES = ("submitted", "running", "succeeded", "failed", "cancelled", "lost")
FINAL_STATES = frozenset({"succeeded", "failed", "cancelled", "lost"})
_TIME = (schema.timestamp, None)
#: Why a run ended, as `error_data` makes it.
ERROR = {"name": str, "message": str, "remedy": str}
_CODE = {"packager": str, "files": int, "bytes": int, "changed?": [str], "untracked?": [str], "withheld?": [str]}
#: run.json, as far as somebody relies on it.
RECORD = {
    **{"schema": schema.one_of(SCHEMA), "state": schema.one_of(*STATES), "submitted_at": schema.timestamp},
    **{"id?": str, "recipe?": str, "algorithm?": str, "run_dir?": str, "phase?": str, "scheduler?": str},
    **{"started_at?": _TIME, "finished_at?": _TIME, "reopened_at?": _TIME, "process?": schema.IDENTITY},
    **{"values?": (dict, None), "executor?": (dict, None), "timings?": dict, "after?": [schema.run_id]},
    "outputs?": [{"type": str, "path": str, "bytes": int, "files?": int, "digest?": str}],
    "expects?": [{"type": str, "path": str}],
    "inputs?": [{"type": str, "name": str, "path?": str, "digest?": (str, None), "run?": str, "revision?": str}],
    **{"error?": (ERROR, None), "attempts?": [dict], "code?": (_CODE, None)},
    "baseline?": {"how": str, "run": str, "digest": (str, None)},  # what the model was before, and who measured that
    "unverified?": [{"path": str, "stamp": str}],  # checkpoints that ended attempts left beside their places
    "warnings?": [{"name": str, "key": str, "cause": str, "severity?": str}],
    "tracked?": {f"{name}?": TRACKED for name in NAMES},
    "diagnosis?": ({"name": str, "remedy": str, "evidence": str, "file": (str, None), "line": (int, None)}, None),
}
#: What a new attempt of the same run does not inherit, in run.json and in the run directory.
_OF_ONE_ATTEMPT = (
    *("started_at", "finished_at", "error", "outputs", "timings", "phase", "peak_memory", "process"),
    *("job", "scheduler", "diagnosis", "tracked", "verdict", "baseline"),
)
#: What belongs to the submitting machine, where the two directories are one, or to every attempt.
_KEPT = frozenset(
    {"run.json", "job.json", ".job.lock", ".resume.lock", "partial.zlib", "code.tar.gz", "logs", "attempts"}
)
#: The heartbeat file is this large while the run lasts, so that a full disk has room for how it ended.
_ROOM_BYTES = 64 << 10
_LINE_SECONDS = 5.0
_PROGRESS_SECONDS = 0.5


class DamagedRecordError(ValueError):
    """A run.json that is absent, unreadable or not a record of ours; says which file and why."""


def now() -> str:
    """The time in UTC as ISO 8601, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def read_record(run_dir: Path) -> dict[str, Any]:
    """The record as it was last written. Raises DamagedRecordError."""
    path = run_dir / "run.json"
    try:
        content = read_limited(path, schema.MAX_BYTES)
    except (OSError, ValueError) as error:
        raise DamagedRecordError(f"{path}: {error}") from error
    return as_record(content, path)


def as_record(content: bytes, path: object) -> dict[str, Any]:
    """The content of a run.json. Raises DamagedRecordError."""
    try:
        value: dict[str, Any] = schema.fitting(schema.parse(content), RECORD)
    except ValueError as error:
        raise DamagedRecordError(f"{path}: {error}") from error
    if value["state"] not in FINAL_STATES and "process" not in value:
        raise DamagedRecordError(f"{path}: state {value['state']} without a process")
    return value


def observe(run_dir: Path) -> dict[str, Any]:
    """The record as it truly stands: a run whose process is gone is `lost`, not running.

    Raises DamagedRecordError. Writes nothing.
    """
    value = read_record(run_dir)
    if value["state"] in FINAL_STATES:
        return value
    owner = value["process"]
    if not process.is_alive(owner, run_dir / "heartbeat"):
        how = f"process {owner.get('pid')} on {owner.get('host')} ended without recording how"
        value["error"] = error_data("lost", how, "Nothing half-written was published; run it again.")
        value["state"] = "lost"
    return value


class Record:
    """Writes one run directory. One process at a time owns it."""

    def __init__(self, run_dir: Path, values: dict[str, Any]) -> None:
        self.dir = run_dir
        self.values = values
        self._progress_at = 0.0
        self._first: tuple[str, int, float] | None = None  # what the first word of the present phase was, and when
        self._line_at = 0.0

    @classmethod
    def submit(cls, run_dir: Path, /, **facts: Any) -> "Record":
        """Make the run directory and its record in state `submitted`. Raises JobError `run_dir_taken`."""
        run_dir.mkdir(parents=True, exist_ok=True)
        if (run_dir / "run.json").exists():
            cause = f"{run_dir} already records a run."
            raise JobError("run_dir_taken", cause, "Every run has a directory of its own.")
        record = cls(run_dir, {"schema": SCHEMA, "state": "submitted", "submitted_at": now(), **facts})
        record.update(process=process.identity())
        return record

    @classmethod
    def resume(cls, run_dir: Path) -> "Record":
        """Take over a submitted record, as its owner's child. Raises DamagedRecordError or JobError `run_dir_taken`."""
        values = observe(run_dir)
        if values["state"] not in ("submitted", "lost") or "started_at" in values:
            cause = f"{run_dir} records a run that is {values['state']}."
            raise JobError("run_dir_taken", cause, "Submit again; a new run gets a new directory.")
        values.pop("error", None)
        return cls(run_dir, values | {"state": "submitted"})

    @classmethod
    def reopen(cls, run_dir: Path) -> "Record":
        """Start a run that ended badly over, in its own directory. Raises DamagedRecordError or JobError.

        What the ended attempt left is moved to attempts/<n>, so that the next one finds its outputs
        free; how it ended stays in run.json under `attempts`.
        """
        values = observe(run_dir)
        if values["state"] not in ("failed", "cancelled", "lost"):
            cause = f"{run_dir} records a run that is {values['state']}."
            raise JobError("run_dir_taken", cause, "Only a run that ended badly can be started over.")
        ended = {key: values.pop(key) for key in _OF_ONE_ATTEMPT if key in values} | {"state": values["state"]}
        attempts = [*values.get("attempts", []), ended]
        aside = run_dir / "attempts" / str(len(attempts))
        aside.mkdir(parents=True, exist_ok=True)
        for path in run_dir.iterdir():
            if path.name not in _KEPT:
                path.rename(aside / path.name)
        record = cls(run_dir, values | {"state": "submitted"})
        record.update(attempts=attempts, reopened_at=now(), process=process.identity())
        return record

    @property
    def earlier(self) -> list[Path]:
        """Where this run's ended attempts left their files, the newest first."""
        aside = [self.dir / "attempts" / str(number) for number in range(len(self.values.get("attempts", [])), 0, -1)]
        name, _, number = self.dir.name.rpartition("-r")  # elsewhere each attempt has a directory of its own
        if not name or not number.isdecimal() or len(number) > 3:
            return aside
        beside = [*(f"{name}-r{one}" for one in range(int(number) - 1, 1, -1)), name]
        return [*aside, *map(self.dir.with_name, beside)]

    def update(self, **fields: Any) -> None:
        """Merge `fields` and replace run.json."""
        self.values.update(fields)
        write_json(self.dir / "run.json", self.values)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Own the run while the block lasts: state `running`, with a heartbeat for observers on other machines."""
        stop = threading.Event()
        beat = self.dir / "heartbeat"

        def pulse() -> None:
            while not stop.wait(process.HEARTBEAT_SECONDS):
                with suppress(OSError):  # a full disk must not kill the run; observers here ask the kernel
                    beat.touch()

        with opened(beat, "wb") as handle:
            handle.write(bytes(_ROOM_BYTES))
        self.update(state="running", started_at=now(), process=process.identity())
        thread = threading.Thread(target=pulse, name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def finish(self, state: str, error: dict[str, Any] | None = None) -> None:
        """Write the final state."""
        assert state in FINAL_STATES, state
        with suppress(OSError):
            os.truncate(self.dir / "heartbeat", 0)
        self.update(state=state, finished_at=now(), error=error, peak_memory=peak_memory())
        (self.dir / "progress.json").unlink(missing_ok=True)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a phase; its seconds stand in run.json under `timings`."""
        self.line(name)
        self.update(phase=name)
        began = time.perf_counter()
        try:
            yield
        finally:
            seconds = round(time.perf_counter() - began, 3)
            self.update(timings=self.values.get("timings", {}) | {name: seconds})

    def progress(self, done: int, total: int, unit: str) -> None:
        """Say how far the present phase is: progress.json for whoever follows, plain lines in the log."""
        at, phase = time.monotonic(), self.values["phase"]
        if self._first is None or self._first[0] != phase or done < self._first[1]:
            self._first = phase, done, time.time()
        if at - self._progress_at >= _PROGRESS_SECONDS or done >= total:
            self._progress_at = at
            state = {"phase": phase, "done": done, "total": total, "unit": unit}
            state |= {"first": self._first[1], "since": self._first[2], "at": time.time()}  # which give a rate
            with suppress(OSError):  # for show only; the record itself is written elsewhere
                write_json(self.dir / "progress.json", state)
        if at - self._line_at >= _LINE_SECONDS or done >= total:
            self._line_at = at
            self.line(f"{phase}: {done}/{total} {unit}")

    def line(self, text: str) -> None:
        """One plain line in the job's log."""
        print(f"[{datetime.now(UTC):%H:%M:%S}] {text}", file=sys.stdout, flush=True)

    def metric(self, name: str, value: float, **tags: Any) -> None:
        """Append one number to metrics.jsonl."""
        self._append([{"time": now(), "name": name, "value": value, **tags}])

    def measured(self, step: int, figures: Mapping[str, float]) -> None:
        """Append what was measured in one step, by whichever rank was told: of several, that is one."""
        at = now()
        with suppress(OSError):  # a full disk ends what must be written, and not a training
            self._append([{"time": at, "name": name, "value": value, "step": step} for name, value in figures.items()])

    def _append(self, rows: list[dict[str, Any]]) -> None:
        """With one write, so that ranks do not cut each other's lines."""
        with opened(self.dir / "metrics.jsonl", "ab", buffering=0) as handle:
            handle.write("".join(json.dumps(row) + "\n" for row in rows).encode())

    def artifact(
        self, kind: str, path: Path, known: Mapping[Written, str] = MappingProxyType({}), **facts: Any
    ) -> None:
        """Record an output: type, path, bytes, files, content digest, and whatever else is known of it.

        Its manifest is written first: with it `artifacts verify` says which file is not what it was. `known`: SHA-256
        of files that were read when they were written.
        """
        content = content_of(path, known=known)
        write_text(manifest_path(self.dir, content.digest), manifest_of(content))
        entry = {"type": kind, "path": str(path), **content.facts, **facts}
        self.update(outputs=[*self.values.get("outputs", []), entry])


class Follower(Record):
    """What a rank other than 0 holds: the same interface, and nothing written but lines in its own log."""

    def update(self, **fields: Any) -> None:
        self.values.update(fields)

    @contextmanager
    def running(self) -> Iterator[None]:
        yield

    def finish(self, state: str, error: dict[str, Any] | None = None) -> None:
        """Leave the cause of a failure where rank 0 and the launcher's side find it."""
        if state == "failed" and error:
            write_json(self.dir / "logs" / f"rank{self.values['rank']}.error.json", error)

    def progress(self, done: int, total: int, unit: str) -> None: ...

    def metric(self, name: str, value: float, **tags: Any) -> None: ...

    def artifact(
        self, kind: str, path: Path, known: Mapping[Written, str] = MappingProxyType({}), **facts: Any
    ) -> None: ...


def read_json(path: Path, expected: Any = dict) -> dict[str, Any] | None:
    """A JSON object of a run directory; None where it is absent, not as expected, or half a file (as a follower may
    come too early)."""
    try:
        return schema.read(path, expected)
    except (OSError, ValueError):
        return None
