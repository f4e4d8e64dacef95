"""Sweeps over pipelines: of each stage as many copies as differ, and once what is the same whatever is swept."""

import hashlib
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from recipes.experiment.run_ids import MOST_OF_COPY
from recipes.experiment.stage import Stage, values_of_recipe

Grid = Mapping[str, Sequence[str]]
_REFERENCE = re.compile(r"\$\{artifact:([^.}]+)")
#: A combination, and the stages that it makes, by name.
_Built = tuple[Mapping[str, str], Mapping[str, Stage]]


def combinations(grid: Grid) -> list[dict[str, str]]:
    """Each choice of one value for every key."""
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def swept(grid: Grid, stages: Sequence[Sequence[Stage]]) -> list[Stage]:
    """The stages of a pipeline for every combination of `grid`, of which `stages` has those of each.

    One is copied for the values that change it, or something that it comes after, and named after them: `quantize-fp8`.
    """
    named = ({stage.name: stage for stage in one} for one in stages)
    built = list(zip(combinations(grid), named, strict=True))
    parents = {name: _parents(stage) for name, stage in built[0][1].items()}
    direct = {name: _keys(name, grid, built) for name in parents}
    keys = {name: [key for key in grid if any(key in direct[one] for one in _line(name, parents))] for name in parents}
    made: dict[str, Stage] = {}
    for name in parents:
        for chosen, own in built:
            variants = {one: "-".join(chosen[key].rpartition("/")[2] for key in keys[one]) for one in parents}
            names = {one: varied(one, variant) for one, variant in variants.items()}
            made.setdefault(names[name], replace(_renamed(own[name], names), variant=variants[name]))
    return list(made.values())


def varied(name: str, variant: str) -> str:
    """The name of a stage's copy, or of what is put in for one: no longer than an id has room for."""
    text = re.sub(r"[^A-Za-z0-9_-]+", "-", f"{name}-{variant}").rstrip("_-") if variant else name
    if len(text) <= MOST_OF_COPY:
        return text
    digest = hashlib.sha256(f"{name}-{variant}".encode()).hexdigest()[:6]
    return f"{text[: MOST_OF_COPY - 7].rstrip('_-')}-{digest}"


def _keys(name: str, grid: Grid, built: Sequence[_Built]) -> set[str]:
    """Those of the grid that change a stage: of two combinations that differ in one alone it is not the same."""
    found = set()
    for key in grid:
        seen: dict[str, str] = {}
        for chosen, stages in built:
            others = repr({one: value for one, value in chosen.items() if one != key})
            if seen.setdefault(others, _content(stages[name])) != _content(stages[name]):
                found.add(key)
    return found


def _content(stage: Stage) -> str:
    return repr((stage.partial.recipe, values_of_recipe(stage.partial), stage.executor, stage.profile))


def _parents(stage: Stage) -> list[str]:
    return [*stage.after, *_REFERENCE.findall(_content(stage))]


def _line(name: str, parents: Mapping[str, Sequence[str]]) -> set[str]:
    """A stage and all that it comes after."""
    ahead, seen = [name], set()
    while ahead:
        one = ahead.pop()
        if one in parents and one not in seen:
            seen.add(one)
            ahead += parents[one]
    return seen


def _renamed(stage: Stage, names: Mapping[str, str]) -> Stage:
    """After the copies of its parents, and with what they leave."""
    from fiddle import copy_with

    def text(value: Any) -> Any:
        if isinstance(value, list):
            return [text(item) for item in value]
        if not isinstance(value, str):
            return value
        return _REFERENCE.sub(lambda match: f"${{artifact:{names.get(match[1], match[1])}", value)

    partial = stage.partial
    changed = {
        name: now
        for name, value in values_of_recipe(partial)["args"].items()
        if "${artifact:" in repr(value) and (now := text(value)) != value
    }
    if changed:
        partial = copy_with(partial, args=copy_with(partial.args, **changed))
    after = [names.get(one, one) for one in stage.after]
    return replace(stage, name=names[stage.name], partial=partial, after=after)
