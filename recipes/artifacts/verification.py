"""Whether an artifact is what its run left: the content is read again, and set against the digest that was recorded."""

import os
import posixpath
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from recipes.artifacts.artifact import Artifact
from scripts.run.content import Content, content_of, listing_in
from scripts.run.problems import JobError
from scripts.stores import objects

#: intact: as it was left. damaged: it is another content now. gone: nothing is there. elsewhere: on a disk that is not
#: seen from here. unrecorded: its run wrote no digest down.
State = Literal["intact", "damaged", "gone", "elsewhere", "unrecorded"]


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What became of an artifact, and of which of its files; `unnamed`: its manifest is not there to say of which."""

    artifact: Artifact
    state: State
    changed: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    unnamed: bool = False

    @property
    def sound(self) -> bool:
        """Whether nothing is known against it."""
        return self.state in ("intact", "elsewhere", "unrecorded")

    def as_data(self) -> dict[str, Any]:
        """As `artifacts verify --json` has it."""
        facts = asdict(self, dict_factory=lambda rows: {key: value for key, value in rows if key != "artifact"})
        return self.artifact.as_data() | facts


def verify(artifact: Artifact, advance: Callable[[int], None] = lambda read: None) -> Verification:
    """Read all of an artifact. `advance` is called with bytes read, by several threads.

    Raises OSError, or JobError for a store that cannot be read.
    """
    place = artifact.place
    if place is None and not artifact.in_store:
        return Verification(artifact=artifact, state="elsewhere")
    if place is not None and not os.path.lexists(place):
        return Verification(artifact=artifact, state="gone")
    if artifact.digest is None:
        return Verification(artifact=artifact, state="unrecorded")
    found = objects.content_of(artifact.path, advance) if place is None else content_of(place, advance)
    return Verification(artifact=artifact, state="gone") if found is None else compared(artifact, found)


def compared(artifact: Artifact, found: Content) -> Verification:
    """What was read of an artifact, beside what its run wrote down."""
    if artifact.digest is None:
        return Verification(artifact=artifact, state="unrecorded")
    if found.digest == artifact.digest:
        return _by_manifest(artifact) if artifact.in_store else Verification(artifact=artifact, state="intact")
    recorded = _listing(artifact)
    if recorded is None:
        return Verification(artifact=artifact, state="damaged", unnamed=True)
    both = found.listing.keys() & recorded.keys()
    return Verification(
        artifact=artifact,
        state="damaged",
        changed=tuple(name for name in recorded if name in both and found.listing[name] != recorded[name]),
        missing=tuple(name for name in recorded if name not in both),
        extra=tuple(name for name in found.listing if name not in both),
    )


def _by_manifest(artifact: Artifact) -> Verification:
    """Of what is whole in a store: whether its manifest is, without which nobody takes it for whole."""
    name = f"{posixpath.basename(artifact.path)}{objects.SUFFIX}"
    try:
        found = objects.manifest_of(artifact.path)
    except JobError as error:
        if error.name != "artifact_damaged":
            raise
        return Verification(artifact=artifact, state="damaged", changed=(name,))
    if found is None:
        return Verification(artifact=artifact, state="damaged", missing=(name,))
    changed = () if found.digest == artifact.digest else (name,)
    return Verification(artifact=artifact, state="damaged" if changed else "intact", changed=changed)


def _listing(artifact: Artifact) -> dict[str, str] | None:
    """Its manifest, from the run directory as far as that is seen from here, or what this machine keeps of the run."""
    run = artifact.run
    there = run.job.place.path_here(run.job.run_dir, run.job.run_dir) if run.job else None
    folders: list[Path] = [run.dir, *([there] if there else [])]
    assert artifact.digest is not None
    return next((found for folder in folders if (found := listing_in(folder, artifact.digest)) is not None), None)
