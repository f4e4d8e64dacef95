"""A contract of starts, made of the declarations: for every recipe and every argument, all that it cannot be.

What cannot work is never accepted, nothing ends in a traceback, and each answer names the key and says what is wrong
with its value. Jobs are examined in this process. A case is tried at one of its places, of recipes that share a class
of arguments in full for the first and in part for the others; CONTRACT=all tries 13,000, each everywhere.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest

from recipes.catalogue import FAMILIES, RECIPES
from recipes.experiment.examine import examine
from recipes.experiment.stage import Options, Stage
from recipes.values import set_value
from scripts.args.meaning import Meaning
from scripts.run.problems import Problem
from tests.testbed.scripted import fill, write_checkpoints

#: Places by what they see: this machine; what is mounted of it; nothing of it.
PLACES = ("local", "site", "far")
LONG = "/data/" + "x" * 300
EVERYTHING = os.environ.get("CONTRACT") == "all"


@dataclass(frozen=True, kw_only=True)
class Case:
    """A value that an argument cannot have."""

    field: str
    value: str
    what: str
    places: tuple[str, ...] = PLACES


@dataclass(frozen=True, kw_only=True)
class World:
    """A folder that containers see as /data, with checkpoints of each kind, and a file of profiles."""

    disk: Path
    profiles: Path
    checkpoints: Mapping[str, Path]

    def seen(self, value: str, place: str) -> str:
        """A path as it is called at a place."""
        return value.replace("/data/", f"{self.disk}/") if place == "local" else value


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("contract")
    disk = folder / "disk"
    disk.mkdir()
    checkpoints = write_checkpoints(disk)
    (disk / "file").write_text("x")
    (disk / "full").mkdir()
    (disk / "full" / "something").touch()
    (disk / "empty").mkdir()
    (disk / "hung").mkdir()
    os.mkfifo(disk / "hung" / "config.json")
    shape = "gpus: 8, gpu: h100-80gb, image: 'nvcr.io/nvidia/nemo:26.06', account: a"
    (folder / "executors.yaml").write_text(
        f"site: {{kind: slurm, {shape}, mounts: ['{disk}:/data']}}\n"
        f"far: {{kind: slurm, {shape}, mounts: ['/nowhere:/data'], host: login, job_dir: /data/me}}\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HOME", str(folder / "hf"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("HF_TOKEN", "a token that opens nothing")
        patch.setattr("nemo_run.config._NEMORUN_HOME", str(folder / "home"))  # read once, at import
        patch.chdir(folder)
        yield World(disk=disk, profiles=folder / "executors.yaml", checkpoints=checkpoints)


def filled(name: str, world: World, place: str) -> Any:
    """A recipe with something that is there for what it leaves to its user."""
    partial = RECIPES[name].build()
    partial.engine = "script" if RECIPES[name].family.args.SCRIPTS else "auto"
    there = {kind: Path(world.seen(f"/data/{path.name}", place)) for kind, path in world.checkpoints.items()}
    fill(partial.args, there)
    return partial


def errors(partial: Any, place: str, world: World) -> list[Problem]:
    options = Options(profiles=world.profiles, online=False)
    return list(examine([Stage(name="one", partial=partial)], place, options).errors)


def refused(name: str, place: str, world: World, key: str, value: str, before: list[Problem]) -> list[Problem]:
    """The errors about one key that one value makes."""
    partial = filled(name, world, place)
    found = set_value(partial, key, value) or errors(partial, place, world)
    for problem in found:
        assert problem.name and problem.key and problem.cause, problem
        assert len(str(problem)) < 1500, problem
    return [one for one in found if one.key.startswith(key) and one not in before]


# --- what an argument cannot be --------------------------------------------------------------------------------------


def wrong_texts(name: str, kind: Any, meaning: Meaning) -> Iterator[Case]:
    """Of an argument that names something."""

    def case(value: str, what: str, places: tuple[str, ...] = PLACES) -> Case:
        return Case(field=name, value=f"['{value}']" if listed else value, what=what, places=places)

    listed = get_origin(kind) is list or any(get_origin(one) is list for one in get_args(kind))
    yield case("", "empty")
    yield case("http://bucket/x", "a URL")
    yield case("$HOME/x", "a variable of a shell")
    yield case("~nobody-here/x", "somebody's home")
    yield case("~/x", "a home elsewhere", ("site", "far"))
    yield case("deep/relative/path", "relative", ("site", "far"))
    yield case("./relative", "relative", ("site", "far"))
    yield case(LONG, "too long")
    if type(None) not in get_args(kind) and not listed:
        yield case("null", "null")
    if meaning.names == "output":
        yield from (case("/elsewhere/x", "not mounted", ("site",)), case("/", "no name"))
        if meaning.produces:
            yield case("/data/full", "there already", ("local", "site"))
        return
    yield case("/elsewhere/x", "not there, or not mounted", ("local", "site"))
    yield case("/data/missing", "not there", ("local", "site"))
    if meaning.names == "model":
        yield from (case("bare", "a bare name"), case("org/name/", "a slash at its end"))
        yield case("https://huggingface.co/org/name", "a page of the hub")
        if meaning.role != "tokenizer":
            yield case("/data/hung", "unreadable", ("local", "site"))
            yield from (case(f"/data/{one}", "of another kind", ("local", "site")) for one in ("file", "empty"))
    if meaning.consumes.startswith("checkpoint_") and meaning.names == "path":
        yield case("org/name", "a name of the hub")
        yield from (case(f"/data/{one}", "of another kind", ("local", "site")) for one in ("hf", "empty", "file"))


def wrong_numbers(name: str, meaning: Meaning, *, whole: bool) -> Iterator[Case]:
    step = 1 if whole else 1e-3
    low = meaning.least if meaning.least is not None else (0 if meaning.above is None else meaning.above + step)
    yield Case(field=name, value=_number(low - step, whole=whole), what="below its bound", places=("far",))
    for bound in (meaning.most, meaning.below):
        if bound is not None:
            yield Case(field=name, value=_number(bound + step, whole=whole), what="above its bound", places=("far",))
    for word in ("nan", "many", "1 000"):
        yield Case(field=name, value=word, what="no number", places=("far",))


def _number(value: float, *, whole: bool) -> str:
    return str(round(value)) if whole else repr(value)


def cases(name: str) -> Iterator[Case]:
    """Every Case of a recipe's arguments that the script engine, or a tool, uses."""
    args = RECIPES[name].family.args
    hints = get_type_hints(args)
    for one in fields(args):
        meaning, kind = one.metadata["meaning"], hints[one.name]
        kinds = {kind, *get_args(kind)} if get_origin(kind) is not Literal else {kind}
        if not meaning.used_by("script"):
            continue
        if meaning.required:
            yield Case(field=one.name, value="null", what="left out")
        if meaning.names:
            yield from wrong_texts(one.name, kind, meaning)
        elif kinds & {int, float} and str not in kinds:
            yield from wrong_numbers(one.name, meaning, whole=float not in kinds)
        elif bool in kinds:
            yield Case(field=one.name, value="maybe", what="no switch", places=("far",))
        elif any(get_origin(each) is Literal for each in kinds):
            yield Case(field=one.name, value="nonsense", what="no choice", places=("far",))


def chosen(name: str) -> Iterator[tuple[Case, str]]:
    """The cases of a recipe, each with a place to try it at."""
    first = next(one.name for one in RECIPES.values() if one.family.args is RECIPES[name].family.args) == name
    for number, case in enumerate(cases(name)):
        places = case.places if EVERYTHING else case.places[number % len(case.places) :][:1]
        if first or EVERYTHING or (number + len(name)) % 16 == 0:
            yield from ((case, place) for place in places)


@pytest.mark.parametrize("name", RECIPES)
def test_what_cannot_work_is_refused_with_its_key(name: str, world: World) -> None:
    before: dict[str, list[Problem]] = {}
    accepted = []
    for case, place in chosen(name):
        if place not in before:
            before[place] = errors(filled(name, world, place), place, world)
        key, value = f"args.{case.field}", world.seen(case.value, place)
        if not refused(name, place, world, key, value, before[place]):
            accepted.append((case.what, place, f"{key}={value[:80]}"))
    assert accepted == [], f"{len(accepted)} of {name} are accepted"


@pytest.mark.parametrize("name", FAMILIES)
def test_a_number_at_its_bound_is_let_through(name: str) -> None:
    for one in fields(FAMILIES[name].args):
        meaning: Meaning = one.metadata["meaning"]
        for bound in (meaning.least, meaning.most):
            assert bound is None or meaning.violation(bound) == "", one.name


def test_there_is_something_to_test() -> None:
    assert len(RECIPES) > 60
    assert sum(1 for name in RECIPES for _ in chosen(name)) > 2000
    assert {case.what for name in RECIPES for case, _ in chosen(name)} >= {"left out", "empty", "null", "unreadable"}
