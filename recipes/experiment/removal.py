"""What runs keep on this machine, and removing it: nothing that another run reads, nothing but their own folders."""

import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from executors.base import is_below, nemorun_home
from recipes.experiment.runs import Run
from scripts.run.problems import Problem
from scripts.run.record import read_json

#: How a folder is called that is being removed: it is no run any more, whenever that is interrupted.
REMOVED = ".removed-"
#: Of a run's folder, beside what it left: what it was, how it went, and what it takes to run it again.
_RECORDS = ("run.json", "job.json", "partial.zlib", "report")
#: A run that ended like this is never taken up again.
_OVER = ("succeeded", "cancelled")


@dataclass(frozen=True, kw_only=True)
class Holding:
    """A run's own folders on this machine: its record, its run directory where that is another, NeMo-Run's notes."""

    run: Run
    folders: tuple[Path, ...]
    elsewhere: str | None  # its run directory, where it cannot be seen from here

    @property
    def artifacts(self) -> tuple[Path, ...]:
        """What it left below its own folders."""
        paths = (Path(str(output["path"])) for output in self.run.record.get("outputs") or [])
        return tuple(path for path in paths if any(is_below(str(path), str(folder)) for folder in self.folders))

    @property
    def bytes(self) -> int:
        return bytes_of(self.folders)

    @property
    def artifact_bytes(self) -> int:
        return bytes_of(self.artifacts)

    def going(self, *, keep_artifacts: bool = False) -> list[Path]:
        """What a removal takes: the folders, or of them what is neither artifact nor record."""
        if not keep_artifacts:
            return list(self.folders)
        found: list[Path] = []
        for folder in self.folders:
            kept = {folder / name for name in _RECORDS} | set(self.artifacts)
            is_runs = (folder / "run.json").exists()
            found += _beside(folder, kept) if is_runs else [folder]
        return found

    def remove(self, *, keep_artifacts: bool = False) -> None:
        """Raises OSError."""
        for path in reversed(self.going(keep_artifacts=keep_artifacts)):  # records go last: they say where the rest is
            if path.is_dir() and not path.is_symlink():
                _remove(path)
            else:
                path.unlink()


def holding_of(run: Run) -> Holding:
    """Where a run has something here. A run directory counts where it holds the record of this run."""
    folders = [run.dir]
    where = str(run.record.get("run_dir") or run.dir)
    own = read_json(Path(where) / "run.json") if Path(where) != run.dir else None
    seen = own is not None and own.get("id") == run.id and not Path(where).is_symlink()
    if seen:
        folders.append(Path(where))
    notes = Path(nemorun_home()) / "experiments" / run.id.rpartition("_")[0] / run.id
    if notes.is_dir() and not notes.is_symlink():
        folders.append(notes)
    elsewhere = None if seen or Path(where) == run.dir else where
    return Holding(run=run, folders=tuple(folders), elsewhere=elsewhere)


def kept_back(holding: Holding, others: Sequence[Run]) -> Problem | None:
    """Why a run must stay: it goes on, it is somebody else's, or another one that may go on reads what it left."""
    run = holding.run

    def stays(cause: str, remedy: str) -> Problem:
        return Problem(name="in_use", key="ID", value=run.id, cause=cause, remedy=remedy)

    if run.folder.is_foreign:
        return stays("it is another user's", "They can remove it.")
    if not run.ended:
        return stays(f"it is {run.state}", f"Wait for its end, or: nemo experiment cancel {run.id}")
    places = [str(folder) for folder in holding.folders] + ([holding.elsewhere] if holding.elsewhere else [])
    for other in others:
        if other.id == run.id or other.state in _OVER:
            continue
        named = [text for text in _texts(other.record.get("values")) if any(place in text for place in places)]
        if named or run.id in (other.record.get("after") or ()):
            cause = f"{other.id}, which is {other.state}, reads {named[0] if named else 'what it leaves'}"
            return stays(cause, f"Remove {other.id} too, or before.")
    return None


def ended_before(run: Run, age: timedelta) -> bool:
    """Whether a run ended longer ago than that; one whose record does not say when did not."""
    for key in ("finished_at", "submitted_at"):
        try:
            return run.ended and datetime.now(UTC) - datetime.fromisoformat(str(run.record.get(key))) > age
        except (ValueError, TypeError):
            continue
    return False


def sweep_removed(root: Path) -> None:
    """Go on with what an earlier removal was interrupted in."""
    for path in root.glob(f"{REMOVED}*"):
        shutil.rmtree(path, ignore_errors=True)


def _texts(values: object) -> Iterator[str]:
    if isinstance(values, str):
        yield values
    elif isinstance(values, (dict, list)):
        for one in values.values() if isinstance(values, dict) else values:
            yield from _texts(one)


def bytes_of(paths: Iterable[Path]) -> int:
    """What files below them hold together."""
    return sum(map(_size, paths))


def _size(path: Path) -> int:
    """Bytes below a path; of files alone, and of links nothing."""
    if not path.is_dir():
        return path.stat().st_size if path.is_file() and not path.is_symlink() else 0
    files = (Path(at) / name for at, _, names in os.walk(path) for name in names)
    return sum(file.lstat().st_size for file in files if os.path.lexists(file))


def _remove(folder: Path) -> None:
    """First out of sight, so that no half of it is ever taken for a run."""
    aside = folder.with_name(f"{REMOVED}{folder.name}-{secrets.token_hex(3)}")
    folder.rename(aside)
    shutil.rmtree(aside)


def _beside(folder: Path, kept: set[Path]) -> Iterator[Path]:
    """Everything below that is not kept, nor leads there; as few paths as say that."""
    for entry in sorted(folder.iterdir()):
        if entry in kept:
            continue
        if entry.is_dir() and not entry.is_symlink() and any(entry in path.parents for path in kept):
            yield from _beside(entry, kept)
        else:
            yield entry
