"""What a shell offers after TAB: recipes, keys and their values, profiles, runs, names of failures.

A key and its value are one word to zsh and fish. To bash they are three: `=` ends a word there, and what is offered
takes the place of what stands behind it.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import fields
from pathlib import Path

import typer

from executors import find_profile, profile_names
from recipes.catalogue import RECIPES, Recipe, values_described
from recipes.experiment.pipeline import pipelines, read
from recipes.experiment.run_ids import LATEST
from recipes.experiment.store import last_written, runs_dir
from recipes.experiment.tags import tags
from recipes.values import field_types
from scripts.args.meaning import meanings
from scripts.args.typed import choices
from scripts.formats import FORMATS
from scripts.run.files import expanded
from scripts.run.names import names
from scripts.run.problems import JobError, ProblemsError
from scripts.tracking.known import NAMES

Offer = tuple[str, str]
#: Of a key: what it means, and the values that it takes where they are few.
_Key = tuple[str, tuple[str, ...]]
_MODELS = ("tiny:qwen3", "tiny:llama")


def recipe_names(incomplete: str) -> Iterator[Offer]:
    """Recipes, each with what it is."""
    for name, recipe in RECIPES.items():
        if name.startswith(incomplete):
            with suppress(ProblemsError):  # of a user's file; running it says what it is
                yield name, recipe.summary


def runnable(incomplete: str) -> Iterator[Offer]:
    """Recipes and pipelines, each with what it is."""
    yield from recipe_names(incomplete)
    for name, file in pipelines().items():
        if name.startswith(incomplete):
            with suppress(ProblemsError):
                yield name, read(file).summary


def profiles(incomplete: str) -> list[str]:
    """Executor profiles."""
    return [name for name in profile_names() if name.startswith(incomplete)]


def failures(incomplete: str) -> list[str]:
    """What `explain` explains."""
    return [name for name in names() if name.startswith(incomplete)]


def run_ids(incomplete: str) -> list[str]:
    """`latest`, and the runs of this machine, the newest first."""
    try:
        with os.scandir(runs_dir()) as entries:
            found = [entry.name for entry in sorted(entries, key=last_written, reverse=True)]
    except OSError:
        found = []
    return [name for name in (LATEST, *found) if name.startswith(incomplete) and not name.startswith(".")]


def tag_names(incomplete: str) -> list[str]:
    """Names that were given to artifacts."""
    try:
        return [name for name in tags() if name.startswith(incomplete)]
    except JobError:  # of a damaged file; the command says what it is
        return []


def references(incomplete: str) -> list[str]:
    """What names artifacts, but for their types."""
    return [*tag_names(incomplete), *run_ids(incomplete)]


def artifact_types(incomplete: str) -> list[str]:
    """What recipes leave behind."""
    left = {kind for recipe in RECIPES.values() for kind in recipe.produces}
    return sorted(kind for kind in left if kind.startswith(incomplete))


def overrides(ctx: typer.Context, incomplete: str) -> Iterator[Offer]:
    """Keys with a `=`, and behind that the values of one."""
    typed, value = _behind_equals(incomplete)
    keys = dict(_keys(RECIPES.get(str(ctx.params.get("recipe"))), _said_profile(ctx)))
    if typed is None:
        yield from ((f"{key}=", meaning) for key, (meaning, _) in keys.items() if key.startswith(incomplete))
        return
    before = "" if _bash_words() else f"{typed}="
    known = keys.get(typed, ("", ()))[1]
    offered = [*(one for one in known if one.startswith(value)), *(_paths(value) if "/" in value else ())]
    yield from ((f"{before}{one}", "") for one in offered)


def _bash_words() -> list[str]:
    """What is typed, as bash divides it; nothing in other shells."""
    text = os.environ.get("COMP_WORDS", "")
    return text.split("\n") if text else []


def _behind_equals(incomplete: str) -> tuple[str | None, str]:
    """The key whose value is being typed, and as much of that as there is."""
    words, at = _bash_words(), int(os.environ.get("COMP_CWORD") or 0)
    if 1 < at < len(words) and words[at] == "=":
        return words[at - 1], ""
    if 2 < at <= len(words) and words[at - 1] == "=":
        return words[at - 2], incomplete
    key, equals, value = incomplete.partition("=")
    return (key, value) if equals else (None, incomplete)


def _said_profile(ctx: typer.Context) -> str:
    """The profile that is named before the cursor."""
    said, words = [str(word) for word in ctx.params.get("words") or ()], _bash_words()
    said += ["".join(words[at - 1 : at + 2]) for at, word in enumerate(words) if word == "=" and at]
    named = [word.partition("=")[2] for word in said if word.startswith("executor=")]
    return named[-1] if named else str(ctx.params.get("attached") or ctx.params.get("batch") or "local")


def _keys(recipe: Recipe | None, profile: str) -> Iterator[tuple[str, _Key]]:
    yield "executor", ("the profile to run on", tuple(profile_names()))
    yield "track", ("whom the run is told to", NAMES)
    if (found := find_profile(profile, {})[0]) is not None:
        yield from ((f"executor.{one.name}", ("", ())) for one in fields(found))
    if recipe is None:
        return
    try:
        docs = {row["key"]: row["meaning"] for row in values_described(recipe)}
    except ProblemsError:  # of a user's file; running it says what it is
        return
    few = {"format": tuple(FORMATS), "model": _MODELS}
    roles = {f"args.{one.name}": str(meaning.role) for one, meaning in meanings(recipe.family.args)}
    for key, kind in field_types(recipe.outline()).items():
        yield key, (docs[key], few.get(roles.get(key, ""), tuple(choices(kind))))


def _paths(value: str) -> Iterator[str]:
    folder, _, beginning = value.rpartition("/")
    try:
        entries = sorted(Path(expanded(folder or "/")).iterdir())
    except OSError:
        return
    for entry in entries:
        if entry.name.startswith(beginning):
            yield f"{folder}/{entry.name}{'/' if entry.is_dir() else ''}"
