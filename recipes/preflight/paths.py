"""The paths that a job reads and writes, and where they lie on this machine, if they do."""

import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from executors.base import is_below
from recipes.experiment.job import Job
from recipes.models import hub
from scripts.args.meaning import values_of
from scripts.run.files import is_folder, is_there


@dataclass(frozen=True, kw_only=True)
class Named:
    """A path and the argument that names it."""

    key: str
    field: str
    path: str
    consumes: str = ""  # the artifact type
    must_exist: bool = False  # and no check that knows what it must hold looks for it


def inputs_of(job: Job) -> Iterator[Named]:
    """What the job reads, as it sees it; a name that may as well be a hub's is none, unless it is a folder here."""
    for field, value, meaning in values_of(job.resolved):
        kind = meaning.consumes
        plain = meaning.names == "path" and not kind.startswith("checkpoint_")
        looked_for = plain or (meaning.names == "data" and job.engine != "hf")
        for item in value if isinstance(value, list) else [value]:
            named = meaning.reads and isinstance(item, str) and item and "\0" not in item
            if named and (posixpath.isabs(item) or (job.here and is_there(item))):
                yield Named(key=f"args.{field}", field=field, path=item, consumes=kind, must_exist=looked_for)


def path_here(job: Job, path: str | Path) -> Path | None:
    """Where a path of the job lies on this machine; None where that is elsewhere, or cannot be told."""
    return job.place.path_here(path, job.run_dir)


def model_folder(job: Job, name: str) -> Path | None:
    """The folder of a model that the job names, where its files can be read here: its own, or a cached snapshot."""
    found = path_here(job, name) if posixpath.isabs(name) or job.here else None
    return found if found is not None and is_folder(found) else hub.cached_model(name)


def overlap(one: str | Path, other: str | Path) -> bool:
    """Whether one of two paths lies in the other, links followed."""
    first, second = real(str(one)), real(str(other))
    return is_below(first, second) or is_below(second, first)


def real(path: str) -> str:
    """An absolute path with links followed, as far as they can be."""
    try:
        return posixpath.realpath(path)
    except (OSError, ValueError):  # a folder that is closed to us, characters that no file system has
        return posixpath.abspath(path)
