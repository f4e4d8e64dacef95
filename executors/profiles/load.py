"""Named places to run: YAML that ships, overlaid by the user's own, typed, overlaid by `executor.KEY=VALUE`.

    slurm:                      # the name of a shipped profile: its values, these over them
      account: my_account
    dgx-h100:
      extends: slurm
      partition: h100
      env: {NCCL_DEBUG: "${oc.env:NCCL_DEBUG,WARN}"}

A file nearer to the working directory counts more. Mappings join key by key, anything else replaces
what it overlays; `NAME: null` inside a mapping takes NAME out again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from executors.base import Profile
from executors.kinds import kind_of, kinds, taken
from executors.profiles.files import Layer, names_of, read_brought, read_own, read_shipped
from executors.profiles.values import Values
from scripts.run.problems import Problem, ProblemsError, nearest

#: Problems after which it is clear why a profile has no kind.
_EXPLAIN_NO_KIND = frozenset({"not_a_profile", "circular_extends", "unknown_profile", "wrong_value"})


@dataclass(frozen=True, kw_only=True)
class ProfileSource:
    """A profile as `nemo experiment executors` lists it."""

    name: str
    kind: str | None
    files: tuple[Path, ...]  # the one that counts least first
    profile: Profile | None  # None where the kind is not known
    problems: tuple[Problem, ...]


@dataclass(kw_only=True)
class _Merged:
    """A profile's values after every file and `extends`, and where each comes from."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def profile_names(files: Path | None = None, cwd: Path | None = None) -> list[str]:
    """The profiles that ship and the user's own."""
    return sorted(_layers(files, cwd)[0])


def load_profile(
    name: str, overrides: Mapping[str, str], *, files: Path | None = None, cwd: Path | None = None
) -> tuple[Profile, list[Problem]]:
    """The profile as `find_profile` has it; a name or a kind that nobody has gives the defaults and a Problem."""
    profile, problems = find_profile(name, overrides, files=files, cwd=cwd)
    return profile or kind_of("local").profile(), problems


def find_profile(
    name: str, overrides: Mapping[str, str], *, files: Path | None = None, cwd: Path | None = None
) -> tuple[Profile | None, list[Problem]]:
    """The profile `name` with what fits of its files and `overrides` (text), and a Problem for all that does not.

    `files` is read in place of the user's own files. None: nobody can say what kind of place it is.
    """
    layers, problems = _layers(files, cwd, name)
    if name not in layers:
        cause, remedy = "there is no such executor", nearest(name, layers)
        unknown = Problem(name="unknown_executor", key="executor", value=name, cause=cause, remedy=remedy)
        return None, [*problems, unknown]
    source = _load(name, layers, overrides)
    return source.profile, [*problems, *source.problems]


def list_profiles(files: Path | None = None, cwd: Path | None = None) -> tuple[list[ProfileSource], list[Problem]]:
    """Every profile with what is wrong with it, and what is wrong with files as a whole."""
    layers, problems = _layers(files, cwd)
    return [_load(name, layers, {}) for name in sorted(layers)], [*problems, *taken()]


def _layers(
    files: Path | None, cwd: Path | None, name: str | None = None
) -> tuple[Mapping[str, Sequence[Layer]], list[Problem]]:
    """The layers of every profile; with `name`, of kinds from elsewhere only where something needs them."""
    read = [*read_shipped(), *read_own(files, cwd)]
    layers = names_of(read)
    asked = {name, *(str(layer.values.get("extends", name)) for several in layers.values() for layer in several)}
    if not all(any({"kind", "extends"} & layer.values.keys() for layer in layers.get(str(one), ())) for one in asked):
        layers = names_of([*read_brought(), *read])
    return layers, [problem for file in read for problem in file.problems]


def _load(name: str, layers: Mapping[str, Sequence[Layer]], overrides: Mapping[str, str]) -> ProfileSource:
    """Merge and type one profile."""
    merged = _merge(name, layers, ())
    kind, problems, profile = merged.values.get("kind"), merged.problems, None
    if kind is not None:
        try:
            cls = kind_of(kind if isinstance(kind, str) else "").profile
            listed = merged.values.get("secrets")
            names = [item for item in listed if isinstance(item, str)] if isinstance(listed, list) else []
            values = Values(cls=cls, name=name, secrets=frozenset(names))
            values.take_file(merged.values, lambda key: merged.origins.get(key, str(merged.files[-1])))
            values.take_words(overrides)
            profile = cls(**values.fit)
            problems += values.problems
        except ProblemsError as error:
            where = merged.origins.get("kind", str(merged.files[0]))
            problems += [replace(one, key=f"{name}.kind", cause=f"{where}: {one.cause}") for one in error.problems]
    elif not any(problem.name in _EXPLAIN_NO_KIND for problem in problems):
        cause = f"{merged.files[-1]}: it has no kind"
        remedy = f"Add kind: ({', '.join(kinds())}), or extends: with the name of a profile."
        problems.append(Problem(name="missing_kind", key=f"{name}.kind", value=None, cause=cause, remedy=remedy))
    return ProfileSource(
        name=name,
        kind=kind if isinstance(kind, str) else None,
        files=tuple(dict.fromkeys(merged.files)),
        profile=profile,
        problems=tuple(problems),
    )


def _merge(name: str, layers: Mapping[str, Sequence[Layer]], chain: tuple[str, ...]) -> _Merged:
    """The values of `name`. A profile that extends another starts from that one alone."""
    own, merged, chain = list(layers[name]), _Merged(), (*chain, name)
    extending = next((layer for layer in reversed(own) if "extends" in layer.values), None)
    if extending is not None:
        base = extending.values["extends"]
        problem = _wrong_base(name, base, extending.where("extends"), layers, chain)
        if problem is None:
            merged = _merge(base, layers, chain)
            own = own[next(index for index, layer in enumerate(own) if layer.file == extending.file) :]
        else:
            merged.problems.append(problem)
    for layer in own:
        merged.files.append(layer.file)
        merged.problems += layer.problems
        values = {key: value for key, value in layer.values.items() if key != "extends"}
        kind = merged.values.get("kind")
        if kind is not None and values.get("kind", kind) != kind:
            cause = f"{layer.where('kind')}: it is laid over a profile of kind {kind}, and a kind cannot change"
            remedy = "Leave kind out, or choose another name for a profile of its own."
            problem = Problem(name="wrong_value", key=f"{name}.kind", value=None, cause=cause, remedy=remedy)
            merged.problems.append(problem)
            del values["kind"]
        merged.origins |= {key: layer.where(key) for key in layer.lines}
        merged.values = _overlay(merged.values, values)
    return merged


def _wrong_base(
    name: str, base: Any, where: str, layers: Mapping[str, Sequence[Layer]], chain: tuple[str, ...]
) -> Problem | None:
    if not isinstance(base, str):
        cause = "the name of one profile is expected"
        problem = Problem(name="wrong_value", key="", value=None, cause=cause, remedy=nearest("", layers))
    elif base in chain:
        cause = f"it comes back to itself: {' -> '.join((*chain[chain.index(base) :], base))}"
        remedy = "A profile with the name of a shipped one lies over it without extends."
        problem = Problem(name="circular_extends", key="", value=base, cause=cause, remedy=remedy)
    elif base not in layers:
        cause = "there is no profile of that name"
        problem = Problem(name="unknown_profile", key="", value=base, cause=cause, remedy=nearest(base, layers))
    else:
        return None
    return replace(problem, key=f"{name}.extends", cause=f"{where}: {problem.cause}")


def _overlay(below: Mapping[str, Any], above: Mapping[str, Any], depth: int = 0) -> dict[str, Any]:
    """Mappings join, anything else replaces; inside a mapping None takes a key out."""
    result = dict(below)
    for key, value in above.items():
        under = result.get(key)
        if isinstance(value, dict):
            result[key] = _overlay(under if isinstance(under, dict) else {}, value, depth + 1)
        elif value is None and depth:
            result.pop(key, None)
        elif value is None and isinstance(under, (dict, list)):
            continue  # a key with only comments below it says nothing
        else:
            result[key] = value
    return result
