"""What runs keep on this machine, and removing it: nothing that another run reads, nothing but their own folders."""

import os
import re
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from executors.base import is_below, nemorun_home
from recipes.experiment.runs import Run
from recipes.experiment.store import RECORDING
from recipes.experiment.tags import Tag, tags
from scripts.run.problems import Problem
from scripts.run.record import read_json
from scripts.stores.objects import is_url

#: How a folder is called that is being removed: it is no run any more, whenever that is interrupted.
REMOVED = ".removed-"
#: Of a run's folder, beside what it left: what it was, how it went, and what it takes to run it again.
_RECORDS = ("run.json", "job.json", "partial.zlib", "report")
#: A run that ended like this reads nothing any more.
_OVER = ("succeeded",)
_DAY = 86400.0
#: A variable in a value, as OmegaConf has it.
_ENV = re.compile(r"\$\{oc\.env:\s*(\w+)\s*(?:,([^}]*))?\}")


@dataclass(frozen=True, kw_only=True)
class Holding:
    """A run's own folders on this machine: its record, its run directories where those are others, NeMo-Run's notes."""

    run: Run
    folders: tuple[Path, ...]  # real ones, that of the record first
    notes: tuple[Path, ...]
    elsewhere: str | None  # its run directory, where it cannot be seen from here

    @property
    def artifacts(self) -> set[Path]:
        """What it left in its own folders, wherever those lie by now."""
        return {place for output in self._outputs for place in self._places(output)}

    @property
    def bytes(self) -> int:
        return bytes_of((*self.folders, *self.notes))

    @property
    def artifact_bytes(self) -> int:
        return bytes_of(self.artifacts)

    def going(self, *, keep_artifacts: bool = False) -> list[Path]:
        """What a removal takes: the folders, or of them what is neither artifact nor record.

        Nothing of a folder that is an artifact as a whole, and nothing at all where an artifact is not found: it may be
        any of what lies there.
        """
        if not keep_artifacts:
            return [*self.folders, *self.notes]
        lost = any(not self._places(output) and not _exists(Path(output)) for output in self._outputs)
        if lost or self.artifacts & set(self.folders):
            return []
        kept = self.artifacts | {folder / name for folder in self.folders for name in _RECORDS}
        return [*(path for folder in self.folders for path in _beside(folder, kept)), *self.notes]

    @property
    def _outputs(self) -> list[str]:
        return [path for path in self._paths if not is_url(path)]

    @property
    def stored(self) -> list[str]:
        """URLs of what it published, which no removal takes."""
        return [path for path in self._paths if is_url(path)]

    @property
    def _paths(self) -> list[str]:
        return [str(output["path"]) for output in self.run.record.get("outputs") or []]

    def _places(self, output: str) -> list[Path]:
        """Where an output lies in the run's folders: as recorded, or where it lay in the folder that was recorded."""
        recorded = os.path.normpath(str(self.run.record.get("run_dir") or self.run.dir))
        path = os.path.normpath(output)
        tried = [Path(path)]
        if is_below(path, recorded):
            tried += [folder / os.path.relpath(path, recorded) for folder in self.folders]
        real = [Path(os.path.realpath(one)) for one in tried if _exists(one)]
        return [one for one in real if any(is_below(str(one), str(folder)) for folder in self.folders)]


def remove(going: Sequence[Path]) -> None:
    """Remove what `Holding.going` says. Raises OSError."""
    for path in reversed(going):  # records go last: they say where the rest is
        if path.is_dir() and not path.is_symlink():
            _remove(path)
        else:
            path.unlink()


def holding_of(run: Run) -> Holding:
    """What of a run is here. A run directory counts by its name and the record that lies in it; no link does."""
    attempt = re.compile(re.escape(run.id) + r"(?:-r\d+)?")
    folders = [] if run.dir.is_symlink() else [Path(os.path.realpath(run.dir))]
    run_dir = run.job.run_dir if run.job else run.dir  # of run.json anybody may have written it
    found = [] if run_dir == run.dir else [path for path in _entries(run_dir.parent) if attempt.fullmatch(path.name)]
    for path in found:
        own = None if path.is_symlink() else read_json(path / "run.json")
        if own is not None and own.get("id") == run.id and Path(os.path.realpath(path)) not in folders:
            folders.append(Path(os.path.realpath(path)))
    title = run.id.rpartition("_")[0]
    below = Path(nemorun_home()) / "experiments" / title
    noted = _entries(below) if title else []
    notes = [path for path in noted if attempt.fullmatch(path.name) and not path.is_symlink()]
    seen = run_dir == run.dir or any(path.name == run_dir.name for path in folders[1:])
    return Holding(run=run, folders=tuple(folders), notes=tuple(notes), elsewhere=None if seen else str(run_dir))


def kept_back(chosen: Sequence[Holding], runs: Sequence[Run]) -> list[Problem]:
    """Those of the chosen that must stay: they go on, are somebody else's, named, or read by one that stays."""
    found: dict[str, Problem] = {}
    tagged = tags()
    reads = {run.id: tuple(_read_by(run)) for run in runs if run.state not in _OVER}
    while True:  # what is read by one that stays must stay
        going = {one.run.id for one in chosen} - found.keys()
        others = [run for run in runs if run.id not in going and run.id in reads]
        more = [one for one in chosen if one.run.id in going]
        stay = {one.run.id: problem for one in more if (problem := _kept_back(one, others, reads, tagged)) is not None}
        if not stay:
            return list(found.values())
        found |= stay


def _kept_back(
    holding: Holding, others: Sequence[Run], reads: Mapping[str, Sequence[str]], tagged: Mapping[str, Tag]
) -> Problem | None:
    run = holding.run

    def stays(cause: str, remedy: str) -> Problem:
        return Problem(name="in_use", key="ID", value=run.id, cause=cause, remedy=remedy)

    if run.folder.is_foreign:
        return stays("it is another user's", "They can remove it.")
    if run.dir.is_symlink():
        return stays(f"{run.dir} is a link", "Remove the link yourself, or what it leads to.")
    if run.state == "unreadable":
        return stays("its record cannot be read, and so not whether it goes on", f"Remove {run.dir} yourself.")
    if named := next((name for name, tag in tagged.items() if tag.run == run.id), None):
        return stays(f"{named} is what it left", f"nemo experiment artifacts untag {named}")
    if not run.ended:
        return stays(f"it is {run.state}", f"Wait for its end, or: nemo experiment cancel {run.id}")
    places = [str(folder) for folder in holding.folders] + ([holding.elsewhere] if holding.elsewhere else [])
    for other in others:
        if other.id == run.id:
            continue
        read = next((path for path in reads[other.id] if any(is_below(path, place) for place in places)), None)
        if read or run.id in (other.record.get("after") or ()):
            cause = f"{other.id}, which is {other.state}, reads {read or 'what it leaves'}"
            return stays(cause, f"Remove {other.id} too, or before.")
    return None


def _read_by(run: Run) -> Iterator[str]:
    """Every path among a run's values, as given and as resolved, from the folder where it was submitted."""
    given: list[object] = [run.record.get("values"), run.record.get("resolved")]
    if run.job is not None:
        given += [run.job.values, vars(run.job.resolved) if run.job.resolved is not None else None]
    start = str(run.record.get("cwd") or "/")
    for text in _texts(given):
        with suppress(ValueError, RuntimeError):  # it is no path
            path = Path(start) / Path(os.path.expandvars(_ENV.sub(_variable, text))).expanduser()
            yield from (os.path.normpath(path), os.path.realpath(path))


def _variable(match: re.Match[str]) -> str:
    return os.environ.get(match[1], match[2] or "")


def ended_before(run: Run, age: timedelta) -> bool:
    """Whether a run ended longer ago than that; one whose record does not say when did not."""
    when = run.time_of("finished_at", "submitted_at")
    return run.ended and when is not None and datetime.now(UTC) - when > age


def sweep_removed(root: Path) -> None:
    """Go on with what an earlier removal was interrupted in; so goes what somebody was recording a day ago."""
    left = [path for path in root.glob(f"{RECORDING}*") if time.time() - path.lstat().st_mtime > _DAY]
    for path in (*root.glob(f"{REMOVED}*"), *left):
        shutil.rmtree(path, ignore_errors=True)


def _texts(values: object) -> Iterator[str]:
    if isinstance(values, str):
        yield values
    elif isinstance(values, (dict, list, tuple)):
        for one in values.values() if isinstance(values, dict) else values:
            yield from _texts(one)


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that is none
        return False


def bytes_of(paths: Iterable[Path]) -> int:
    """What files below them hold together; of links nothing."""
    return sum(map(_size, set(paths)))


def _size(path: Path) -> int:
    try:
        if path.is_symlink() or not path.is_dir():
            return 0 if path.is_symlink() else path.stat().st_size
        files = (Path(at) / name for at, _, names in os.walk(path) for name in names)
        return sum(file.lstat().st_size for file in files if os.path.lexists(file))
    except OSError:
        return 0


def _remove(folder: Path) -> None:
    """First out of sight, so that no half of it is ever taken for a run."""
    aside = folder.with_name(f"{REMOVED}{folder.name}-{secrets.token_hex(3)}")
    folder.rename(aside)
    shutil.rmtree(aside)


def _beside(folder: Path, kept: set[Path]) -> Iterator[Path]:
    """Everything below that is not kept, nor leads there; as few paths as say that."""
    for entry in _entries(folder):
        if entry in kept:
            continue
        if entry.is_dir() and not entry.is_symlink() and any(entry in path.parents for path in kept):
            yield from _beside(entry, kept)
        else:
            yield entry
