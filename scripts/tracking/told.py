"""What trackers are told of a run, read from its run directory: values, versions, figures, files, outputs by digest."""

import json
import math
import shlex
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

from scripts.run.files import regular
from scripts.run.record import read_json
from scripts.run.secrets import masked, secrets_here

#: Of the report. Trackers are for what people look at; checkpoints are named to them.
_MOST_FILES, _FILE_BYTES, _ALL_BYTES = 200, 8 << 20, 32 << 20
_MOST_FIGURES = 1000
_LONGEST = 5000
#: Of metrics.jsonl at a time, and of one of its lines.
_PIECE, _LINE = 1 << 20, 1 << 12


@dataclass(frozen=True, kw_only=True)
class Told:
    """A run as its record stands; nothing in it is a secret that this environment knows."""

    id: str
    state: str
    began: float  # seconds since the epoch
    ended: float | None
    values: Mapping[str, str | int | float | bool]  # as given, by dotted key
    facts: Mapping[str, str]  # what it is, and what it was made of and ran on
    figures: Mapping[str, float]  # of its report
    report: tuple[Path, ...]
    report_folder: Path
    outputs: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, kw_only=True)
class Point:
    """A figure at a time."""

    name: str
    value: float
    time: float  # seconds since the epoch
    step: int


@dataclass(frozen=True, kw_only=True)
class Where:
    """Under what a tracker has the run, and where it is looked at: an address, or a folder of this machine."""

    id: str
    url: str | None = None
    folder: Path | None = None
    note: str | None = None  # why it is in a folder, where it was to be sent


class Tracker(ABC):
    """A run at one tracker. Whatever is raised is said of the tracker, tried again, and no fault of the run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder  # it may write there

    @abstractmethod
    def begin(self, told: Told) -> Where:
        """Make the run there, with its values and facts."""

    @abstractmethod
    def measure(self, points: Sequence[Point]) -> None:
        """Tell figures over time."""

    @abstractmethod
    def end(self, told: Told) -> None:
        """Tell what came of it: figures, report, outputs, and its state, one of those that are final."""


def told_of(run_dir: Path, record: Mapping[str, Any]) -> Told:
    """What there is to tell of a run now."""
    hidden = secrets_here()
    values = masked(record.get("values") or {}, hidden)
    ended = record.get("finished_at")
    return Told(
        id=str(record.get("id") or run_dir.name),
        state=str(record["state"]),
        began=_seconds(record.get("started_at") or record["submitted_at"]),
        ended=_seconds(ended) if ended else None,
        values=dict(_leaves("", values)),
        facts=masked(_facts(run_dir, record), hidden),
        figures=_figures(run_dir / "report" / "report.json"),
        report=tuple(_small_files(run_dir / "report")),
        report_folder=run_dir / "report",
        outputs=tuple(masked(record.get("outputs") or [], hidden)),
    )


def _facts(run_dir: Path, record: Mapping[str, Any]) -> dict[str, str]:
    given, error = record.get("values") or {}, record.get("error") or {}
    facts = {
        "run_id": record.get("id") or run_dir.name,
        "run_dir": run_dir,
        "attempt": len(record.get("attempts") or []) + 1,
        **{key: record.get(key) for key in ("recipe", "algorithm", "device", "name")},
        "engine": given.get("engine"),
        "host": (record.get("process") or {}).get("host"),
        "command": shlex.join(map(str, record.get("command") or [])),
        **{f"version.{name}": version for name, version in (record.get("versions") or {}).items()},
        "state": record["state"],
        "error": ": ".join(str(error[key]) for key in ("name", "message") if error.get(key)),
    }
    return {key: str(value)[:_LONGEST] for key, value in facts.items() if value not in (None, "")}


def _leaves(path: str, value: Any) -> Iterator[tuple[str, str | int | float | bool]]:
    """Values by dotted key; a list is one of them, and what is not set is none."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(f"{path}.{key}" if path else str(key), inner)
    elif isinstance(value, (bool, int, float, str)):
        yield path, value
    elif value:
        yield path, json.dumps(value, ensure_ascii=False, default=str)


def _figures(file: Path) -> dict[str, float]:
    """The numbers of a report by dotted key; rows of tables are in the report itself."""
    leaves = _leaves("", read_json(file) or {})
    numbers = ((key, float(value)) for key, value in leaves if type(value) in (int, float))
    return dict(islice((one for one in numbers if math.isfinite(one[1])), _MOST_FIGURES))


def _small_files(folder: Path) -> Iterator[Path]:
    room, count = _ALL_BYTES, 0
    for path in sorted(folder.rglob("*")):
        with suppress(OSError):
            if path.is_symlink() or not path.is_file() or (size := path.stat().st_size) > min(_FILE_BYTES, room):
                continue
            room, count = room - size, count + 1
            yield path
        if count == _MOST_FILES:
            return


def _seconds(time: str) -> float:
    return datetime.fromisoformat(time).timestamp()


class Points:
    """The rows of metrics.jsonl, as they come."""

    def __init__(self, file: Path) -> None:
        self._file, self._at = file, 0
        self._steps: dict[str, int] = {}

    def new(self) -> Iterator[Point]:
        """Those that were written since it was last asked, whole lines alone; what is no row is left out."""
        with suppress(OSError), open(self._file, "rb", opener=regular) as handle:
            handle.seek(self._at)
            while lines := handle.read(_PIECE):
                whole = lines.rfind(b"\n") + 1
                if not whole and len(lines) < _PIECE:
                    return
                self._at += whole or len(lines)
                handle.seek(self._at)
                for line in lines[:whole].splitlines():
                    if len(line) <= _LINE and (point := self._point(line)):
                        yield point

    def _point(self, line: bytes) -> Point | None:
        with suppress(ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
            row = json.loads(line)
            time, name, value = _seconds(row.pop("time")), row.pop("name"), row.pop("value")
            step = row.pop("step", None)
            tags = [tag for tag in row.values() if isinstance(tag, str)]  # such as the layer that it is a figure of
            name = "/".join([name, *tags])
            step = self._steps.get(name, -1) + 1 if step is None else int(step)
            self._steps[name] = step
            return Point(name=name, value=float(value), time=time, step=step)
        return None
