"""What a command line asks for: a recipe with its values and its place, as words, and then checked."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from recipes.cli.completion import overrides, profiles, recipe_names
from recipes.cli.document import Command
from scripts.run.problems import Problem, ProblemsError

if TYPE_CHECKING:
    from recipes.experiment.examine import Examined
    from recipes.experiment.stage import Options, Stage

PASSTHROUGH = "recipes.passthrough"
RecipeName = Annotated[str, typer.Argument(help="A name from `nemo experiment recipes`.", autocompletion=recipe_names)]
Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...",
        help="executor=NAME, executor.KEY=VALUE, args.KEY=VALUE, script.KEY=VALUE ...",
        autocompletion=overrides,
    ),
]
Attached = Annotated[
    str | None,
    typer.Option(
        "-r",
        metavar="PROFILE",
        help="Run there, attached: executor=PROFILE.",
        show_default=False,
        autocompletion=profiles,
    ),
]
Batch = Annotated[
    str | None,
    typer.Option(
        "-b",
        metavar="PROFILE",
        help="Run there, detached: executor=PROFILE --detach.",
        show_default=False,
        autocompletion=profiles,
    ),
]
Configs = Annotated[
    list[str] | None,
    typer.Option("-c", "--config", metavar="NAME|PATH", help="A shipped config (fp8, tiny) or a YAML file; in order."),
]
Profiles = Annotated[Path | None, typer.Option(help="A file of executor profiles, instead of your own.")]


class RecipeCommand(Command):
    """Keeps the words after `--` apart: they are arguments for an upstream script, not overrides."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        cut = args.index("--") if "--" in args else len(args)
        ctx.meta[PASSTHROUGH] = args[cut + 1 :]
        known = {name for one in self.params for name in (*one.opts, *one.secondary_opts)}
        for option in (word.partition("=")[0] for word in args[:cut] if word.startswith("--")):
            if option not in known and not ctx.resilient_parsing and (instead := _word_for(option, args[:cut])):
                ctx.fail(f"No such option: {option}. {instead}")
        parsed: list[str] = super().parse_args(ctx, args[:cut])
        return parsed


def _word_for(option: str, words: Sequence[str]) -> str:
    """What to type for an option that is none: values are words without hyphens in front."""
    from recipes.catalogue import RECIPES

    name = option.lstrip("-").replace("-", "_")
    joined = next((word.partition("=")[2] for word in words if word.startswith(f"{option}=")), "VALUE")
    value = words[words.index(option) + 1] if option in words[:-1] else joined
    if name in ("executor", "profile"):
        return f"Write executor={value}."
    recipe = next((RECIPES[word] for word in words if word in RECIPES), None)
    if recipe is not None and name in {one.name for one in fields(recipe.family.args)}:
        return f"Write args.{name}={value}."
    return ""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a command line asks for, and what of it does not fit."""

    stage: "Stage"
    options: "Options"
    problems: "list[Problem]"
    whole: bool  # every file was read, and so the values are those that were meant

    def at(self, attached: str | None, batch: str | None, *, detach: bool = False) -> "Asked":
        """On the profile of -r or -b, where one of them was given."""
        said = {"-r": attached, "-b": batch, "executor": self.stage.executor}
        named = {key: value for key, value in said.items() if value is not None}
        cause = ""
        if attached is not None and (batch is not None or detach):
            cause = "-r is an attached run, -b and --detach are a detached one"
        elif len(set(named.values())) > 1:
            cause = f"{' and '.join(f'{key} {value}' for key, value in named.items())}: a job runs in one place"
        executor = next(iter(named.values()), "local")
        problems = [*self.problems]
        if cause:
            key = next(iter(named))
            problems.append(Problem(name="contradiction", key=key, value=executor, cause=cause, remedy="Give one."))
        return replace(self, stage=replace(self.stage, executor=executor), problems=problems)

    def called(self, name: str | None, after: Sequence[str]) -> "Asked":
        """Under a name that somebody gives to the run, and after other runs."""
        from recipes.experiment.run_ids import title_problems

        stage = replace(self.stage, title=name or "", after=after)
        return replace(self, stage=stage, problems=[*self.problems, *title_problems(name)])


def asked_for(
    recipe: str,
    words: Sequence[str],
    configs: Sequence[str],
    passthrough: Sequence[str],
    options: "Options",
    *,
    submits: bool = True,
) -> Asked:
    """With `submits`, as NeMo-Run's Partial, which takes seconds to import.

    Raises ProblemsError where there is no recipe of that name, with all else that is wrong.
    """
    from executors import load_profile
    from recipes.catalogue import RECIPES, config_of, find, layers, merge_files, named_config
    from recipes.experiment.stage import Stage
    from recipes.values import parse_words, set_value

    if "=" in recipe:
        first = next((word for word in words if word in RECIPES), "RECIPE")
        cause, remedy = "the recipe comes first", f"Write: nemo experiment run {first} {recipe} ..."
        raise ProblemsError([Problem(name="unknown_recipe", key="recipe", value=recipe, cause=cause, remedy=remedy)])
    parsed, problems = parse_words(list(words))
    options = replace(options, overrides=parsed.profile)
    try:
        entry = find(recipe)
    except ProblemsError as error:
        wrong = load_profile(parsed.executor or "local", parsed.profile, files=options.profiles)[1]
        raise ProblemsError([*error.problems, *problems, *wrong]) from None
    if configs and (named := named_config(entry.family, configs[0])) is not None:
        entry, configs = named, configs[1:]  # `quantize -c tiny` is the recipe quantize_tiny
    partial, whole = entry.build() if submits else entry.outline(), True
    for config in configs:
        try:
            found = merge_files(partial, layers(entry.family, config_of(entry.family, config)))
            whole = whole and not any(one.name == "unknown_key" and "." not in one.key for one in found)
            problems += found
        except ProblemsError as error:
            problems += error.problems
            whole = False
    for key, value in parsed.recipe.items():
        problems += set_value(partial, key, value)
    partial.extra_args = [*partial.extra_args, *passthrough]
    stage = Stage(name=entry.name, partial=partial, executor=parsed.executor)
    return Asked(stage=stage, options=options, problems=problems, whole=whole)


def looked_at(asked: Asked, sweep: Sequence[str] = ()) -> "tuple[Sequence[Stage], Examined]":
    """The stage, or one for each value of a sweep, checked; with every Problem, those of the command line first."""
    from recipes.experiment.examine import Examined, examine, place_named
    from recipes.experiment.stage import stages_of
    from recipes.values import parse_sweep

    grid, wrong = parse_sweep(list(sweep))
    problems, stages = [*asked.problems, *wrong], [asked.stage]
    try:
        if grid:
            made = stages_of(asked.stage.partial, grid, asked.stage.title)
            stages = [replace(asked.stage, name=one.name, partial=one.partial, title=one.title) for one in made]
    except ProblemsError as error:
        problems += error.problems
    if not asked.whole or any(one.key == "executor" for one in problems):  # of another job than was meant
        problems += place_named(asked.stage.executor or "", asked.options)[1]  # the place is as it was meant
        return stages, Examined(jobs=(), problems=tuple(problems))
    examined = examine(stages, options=asked.options)
    errors_first = sorted(examined.problems, key=lambda problem: problem.severity != "error")
    return stages, replace(examined, problems=(*problems, *errors_first))
