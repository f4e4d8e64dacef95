"""A copy of an artifact that can be taken along: whole, as its run left it, with what it was made of."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path, PurePath
from typing import Any

from executors.base import is_below
from recipes.artifacts.artifact import Artifact
from recipes.artifacts.lineage import Node, lineage
from recipes.artifacts.verification import compared
from scripts.engines import card
from scripts.run.content import content_of
from scripts.run.files import staged, write_json
from scripts.run.problems import JobError, Problem, ProblemsError
from scripts.stores import objects

#: What an artifact was made of, back to models of the hub.
LINEAGE = "lineage.json"
_NAMED = 5


def export(
    artifact: Artifact, folder: Path, known: Sequence[Artifact], advance: Callable[[int], None] = lambda read: None
) -> list[str]:
    """Copy it to `folder`, which is made, and say which files were added to it; `known` are those of all runs.

    Raises ProblemsError where something is at `folder`, and OSError; JobError `artifact_elsewhere`, `artifact_gone`,
    or `artifact_damaged` with the files that are not what they were. Then nothing is left.
    """
    place = None if artifact.in_store else _seen(artifact)
    _refuse(folder, place)
    with staged(folder) as partial:
        found = content_of(place, advance, partial) if place else objects.content_of(artifact.path, advance, partial)
        if found is None:
            raise _gone(artifact, artifact.path)
        seen = compared(artifact, found)
        if not seen.sound:
            wrong = [*seen.changed, *seen.missing, *seen.extra]
            more = f" and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
            named = ", ".join(wrong[:_NAMED]) or artifact.path
            cause = f"{artifact.reference} is not what its run left: {named}{more}."
            remedy = "Run it again, or take another copy: nemo experiment artifacts lists those of the same digest."
            raise JobError("artifact_damaged", cause, remedy)
        before = {path.name for path in partial.iterdir()}
        if LINEAGE not in before:
            write_json(partial / LINEAGE, _told(lineage(artifact, known)))
        if artifact.type.startswith("checkpoint"):
            run = artifact.run
            card.write_card(
                partial,
                run.job and (run.job.resolved or run.job.args),
                run.record,
                card.measured(Path(run.record.get("run_dir") or run.dir)),
                fmt=artifact.quantization,
                kind=artifact.type,
            )
        return sorted({path.name for path in partial.iterdir()} - before)


def _seen(artifact: Artifact) -> Path:
    place = artifact.place
    if place is None:
        cause = f"{artifact.reference} lies at {artifact.path} on {artifact.run.where}, which is not seen from here."
        remedy = "Run this where its disk is mounted, or copy it from there."
        raise JobError("artifact_elsewhere", cause, remedy)
    if not os.path.lexists(place):
        raise _gone(artifact, place)
    return place


def _gone(artifact: Artifact, place: object) -> JobError:
    remedy = "nemo experiment artifacts lists what is left; another may have the same digest."
    return JobError("artifact_gone", f"{artifact.reference}: nothing is at {place} any more.", remedy)


def _refuse(folder: Path, place: Path | None) -> None:
    """What is there already, and a folder inside of what is copied. Raises ProblemsError."""
    cause = ""
    if os.path.lexists(folder):
        cause = "there is something already"
    elif place is not None and is_below(os.path.realpath(folder), os.path.realpath(place)):
        cause = "it lies in what is to be copied"
    if cause:
        wrong = Problem(name="output_exists", key="--output", value=folder, cause=cause, remedy="Name another folder.")
        raise ProblemsError([wrong])


def _told(node: Node, told: set[int] | None = None) -> dict[str, Any]:
    """As `artifacts lineage --json` has it, without what is another on each machine: places."""
    told = set() if told is None else told
    of, again = node.of, id(node) in told
    told.add(id(node))
    facts: dict[str, Any] = {"type": of.type, "digest": of.digest}
    if isinstance(of, Artifact):
        facts |= {"reference": of.reference, "bytes": of.bytes, "files": of.files, "made_at": of.made_at}
        facts |= {key: of.run.record.get(key) for key in ("recipe", "engine", "versions")}
    else:
        name = PurePath(of.name).name if of.name.startswith(("/", "~", ".")) else of.name
        facts |= {"name": name, "revision": of.revision, "made_by": of.made_by}
    return facts | {"parents": None if again else [_told(parent, told) for parent in node.parents]}
