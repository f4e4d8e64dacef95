"""The kinds of executor that there are: those that ship, and those that other installed packages bring.

One that ships is a module of this package with a `KIND`, called as its profile in configs/executors. Another package
brings one with an entry point that names its Kind:

    [project.entry-points."modelopt_recipes.executors"]
    ray = "my_package.ray:KIND"

It is imported when a profile of the kind is used, and not before.
"""

import dataclasses
import importlib
import sys
from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs import CONFIGS
from executors.base import Kind, Place, Profile, keys_of
from scripts.args.typed import convert
from scripts.engines.script.flags.tables import newest_container
from scripts.run.problems import JobError, Problem, ProblemsError, nearest

if TYPE_CHECKING:
    import nemo_run as run

GROUP = "modelopt_recipes.executors"
SHIPPED = CONFIGS / "executors"
_OWN = tuple(sorted(file.stem for file in SHIPPED.glob("*.yaml")))


def kinds() -> list[str]:
    """The names of all kinds; imports none of them."""
    return sorted({*_OWN, *brought()})


def kind_of(name: str) -> Kind:
    """A kind by its name. Raises ProblemsError: unknown_kind, kind_taken, broken_kind."""
    if name in _OWN:
        found: Kind = importlib.import_module(f"executors.{name}").KIND
        return found
    points = brought().get(name, [])
    if not points:
        raise _refused("unknown_kind", name[:80], "there is no such kind", nearest(name[:80], kinds()))
    if len(points) > 1:
        cause = f"{' and '.join(map(_whose, points))} both bring it"
        raise _refused("kind_taken", name, cause, "Uninstall one of them.")
    try:
        found = points[0].load()
        fault = "" if isinstance(found, Kind) else "which is no Kind of executors.base"
    except Exception as error:
        fault = f"and that fails: {type(error).__name__}: {error}"
    if fault:
        cause = f"{_whose(points[0])} brings it as {points[0].value}, {fault}"
        raise _refused("broken_kind", name, cause, "Upgrade that package, or uninstall it.")
    return found


def brought() -> Mapping[str, list[EntryPoint]]:
    """What other packages bring, by name. To look through what is installed takes longer than all else here."""
    return _brought(tuple(sys.path))


@cache
def _brought(_path: tuple[str, ...]) -> Mapping[str, list[EntryPoint]]:
    found: dict[str, list[EntryPoint]] = {}
    for point in entry_points(group=GROUP):
        found.setdefault(point.name, []).append(point)
    return found


def taken() -> list[Problem]:
    """Names of ours that other packages claim; ours stay what they are."""
    cause, remedy = "brings it, and it ships already", "Uninstall that package."
    claims = [(name, point) for name in _OWN for point in brought().get(name, ())]
    return [_wrong("kind_taken", name, f"{_whose(point)} {cause}", remedy) for name, point in claims]


def home_of(name: str) -> Path:
    """The file that a kind's own profile ships in; for a kind from elsewhere, where its module lies."""
    if name in _OWN:
        return SHIPPED / f"{name}.yaml"
    (point, *_) = brought()[name]
    assert point.dist is not None
    return Path(str(point.dist.locate_file(point.module.replace(".", "/"))))


def template_of(name: str) -> str:
    """A commented profile of a kind, to edit. Raises ProblemsError as `kind_of` does."""
    return shipped_text(home_of(name)) if name in _OWN else kind_of(name).template or f"kind: {name}\n"


def shipped_text(file: Path) -> str:
    """A profile that ships, with the name of NVIDIA's container in its place."""
    return file.read_text(encoding="utf-8").replace("${container}", newest_container())


def place_of(profile: Profile) -> Place:
    """The profile as a place that can act. Raises ProblemsError when the package of its kind is gone."""
    return kind_of(profile.kind).place(profile=profile)


def profile_from_record(values: Mapping[str, Any]) -> Profile:
    """The profile that a run recorded in run.json. Raises JobError `unknown_profile` for one that cannot be read.

    Keys that this version does not have are left out: an older or newer one may have recorded it.
    """
    kind = values.get("kind")
    try:
        cls = kind_of(str(kind)).profile
    except ProblemsError as error:
        (problem,) = error.problems
        cause = f"the recorded executor has kind {kind!r}: {problem.cause}."
        raise JobError("unknown_profile", cause, problem.remedy) from error
    try:
        known = keys_of(cls).items()
        return cls(**{key: convert(hint, values[key], strict=False) for key, hint in known if key in values})
    except ValueError as error:
        raise JobError("unknown_profile", f"the recorded {kind} profile cannot be read: {error}.") from error


def place_from_record(values: Mapping[str, Any]) -> Place:
    """The place where a recorded run runs. Raises JobError as `profile_from_record` does."""
    return place_of(profile_from_record(values))


def executor_of(profile: Profile | str, **values: Any) -> "run.Executor":
    """NeMo-Run's executor for a profile, or a kind's defaults, with `values` (its keys) over it: for any experiment.

    `executor_of("slurm", account="me", nodes=2)`. Raises ProblemsError.
    """
    profile = kind_of(profile).profile() if isinstance(profile, str) else profile
    known = keys_of(type(profile)).keys() - {"kind"}
    cause = f"{profile.kind} has no such key"
    wrong = [
        Problem(name="unknown_key", key=key, value=None, cause=cause, remedy=nearest(key, known))
        for key in values.keys() - known
    ]
    place = place_of(dataclasses.replace(profile, **{key: values[key] for key in values.keys() & known}))
    if wrong := [*wrong, *place.problems()]:
        raise ProblemsError(wrong)
    return place.executor(None)


def _whose(point: EntryPoint) -> str:
    return f"the package {point.dist.name} {point.dist.version}" if point.dist is not None else "a package"


def _refused(problem: str, name: str, cause: str, remedy: str) -> ProblemsError:
    return ProblemsError([_wrong(problem, name, cause, remedy)])


def _wrong(problem: str, name: str, cause: str, remedy: str) -> Problem:
    return Problem(name=problem, key="kind", value=name, cause=cause, remedy=remedy)
