"""What a command line asks for: a recipe with its values and its place, as words, and then checked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from recipes.cli.completion import overrides, profiles, runnable
from recipes.cli.document import Command
from scripts.run.problems import Problem, ProblemsError, near_miss

if TYPE_CHECKING:
    from recipes.experiment.examine import Examined
    from recipes.experiment.pipeline import Pipeline
    from recipes.experiment.stage import Options, Stage

PASSTHROUGH = "recipes.passthrough"
RecipeName = Annotated[
    str,
    typer.Argument(help="A name from `nemo experiment recipes`, or a pipeline's file.", autocompletion=runnable),
]
RecipeOrNone = Annotated[
    str | None,
    typer.Argument(help="A name from `nemo experiment recipes`, or a pipeline's file.", autocompletion=runnable),
]
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
Sweep = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY=A,B,C", help="A run for each value; of a pipeline, of what it changes. In all combinations."
    ),
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
class Line:
    """What stands on a command line besides its recipe and options that say how it is carried out."""

    words: Sequence[str] = ()
    configs: Sequence[str] = ()
    passthrough: Sequence[str] = ()  # after `--`
    sweep: Sequence[str] = ()

    @classmethod
    def of(
        cls,
        ctx: typer.Context,
        words: Sequence[str] | None,
        configs: Sequence[str] | None = None,
        sweep: Sequence[str] | None = None,
    ) -> "Line":
        """As a command of typer's has them."""
        more = ctx.meta.get(PASSTHROUGH, ())
        return cls(words=words or (), configs=configs or (), passthrough=more, sweep=sweep or ())


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a command line asks for, and what of it does not fit: a recipe, or the stages of a pipeline."""

    stages: "tuple[Stage, ...]"
    executor: str | None  # of all that name none of their own; None: nobody said
    options: "Options"
    problems: "list[Problem]"
    whole: bool  # every file was read, and so the values are those that were meant
    grid: "Mapping[str, Sequence[str]]"  # of a sweep over one recipe; the stages of a pipeline are those of its sweep

    @property
    def is_pipeline(self) -> bool:
        return any(stage.pipeline for stage in self.stages)

    def at(self, attached: str | None, batch: str | None, *, detach: bool = False) -> "Asked":
        """On the profile of -r or -b, where one of them was given."""
        said = {"-r": attached, "-b": batch, "executor": self.executor}
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
        return replace(self, executor=executor, problems=problems)

    def called(self, name: str | None, after: Sequence[str]) -> "Asked":
        """Under a name that somebody gives to the run, and after other runs; of a pipeline, its first stages."""
        from recipes.experiment.run_ids import title_problems

        stages = []
        for stage in self.stages:
            called = (
                replace(stage, pipeline=name or stage.pipeline)
                if stage.pipeline
                else replace(stage, title=name or stage.title)
            )
            stages.append(called if stage.after else replace(called, after=after))
        return replace(self, stages=tuple(stages), problems=[*self.problems, *title_problems(name)])


def asked_for(recipe: str, line: Line, options: "Options", *, submits: bool = True) -> Asked:
    """With `submits`, as NeMo-Run's Partial, which takes seconds to import.

    Raises ProblemsError where there is no recipe of that name, with all else that is wrong.
    """
    from executors import load_profile
    from recipes.catalogue import RECIPES, config_of, find, layers, merge_files, named_config
    from recipes.experiment.pipeline import file_of, pipelines, read
    from recipes.experiment.stage import Stage
    from recipes.values import parse_sweep, parse_words, set_value

    if (pipeline := file_of(recipe)) is not None and recipe not in RECIPES:
        return asked_of_pipeline(read(pipeline), line, options)
    if "=" in recipe:
        first = next((word for word in line.words if word in RECIPES), "RECIPE")
        cause, remedy = "the recipe comes first", f"Write: nemo experiment run {first} {recipe} ..."
        raise ProblemsError([Problem(name="unknown_recipe", key="recipe", value=recipe, cause=cause, remedy=remedy)])
    parsed, problems = parse_words(list(line.words))
    grid, wrong = parse_sweep(list(line.sweep))
    options = replace(options, overrides=parsed.profile)
    configs = line.configs
    try:
        entry = find(recipe)
    except ProblemsError as error:
        wrong += load_profile(parsed.executor or "local", parsed.profile, files=options.profiles)[1]
        near = near_miss(recipe, pipelines(), cutoff=0.8)
        found = [replace(one, remedy=near) if near and one.name == "unknown_recipe" else one for one in error.problems]
        raise ProblemsError([*found, *problems, *wrong]) from None
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
    partial.extra_args = [*partial.extra_args, *line.passthrough]
    return Asked(
        stages=(Stage(name=entry.name, partial=partial),),
        executor=parsed.executor,
        options=options,
        problems=[*problems, *wrong],
        whole=whole,
        grid=grid,
    )


def asked_of_pipeline(
    pipeline: "Pipeline",
    line: Line,
    options: "Options",
    said: Mapping[str, Mapping[str, str]] = {},
) -> Asked:
    """The stages of a pipeline; `said`: by stage, what of its executor was said before the words, as `build` has it."""
    from recipes.experiment.pipeline import build_swept
    from recipes.values import parse_sweep, parse_words

    parsed, problems = parse_words(list(line.words))
    grid, wrong = parse_sweep(list(line.sweep))
    built = build_swept(pipeline, parsed.recipe, grid, said)
    for key, given in (("--config", line.configs), ("--", line.passthrough)):
        if given:
            cause, remedy = "a pipeline has stages, and it is not said of which", "Write STAGE.KEY=VALUE."
            problems.append(Problem(name="contradiction", key=key, value=given[0], cause=cause, remedy=remedy))
    stages = [  # one with values of its own of the executor of all has those of all besides
        replace(stage, profile={**parsed.profile, **stage.profile})
        if stage.executor is None and stage.profile
        else stage
        for stage in built.stages
    ]
    return Asked(
        stages=tuple(stages),
        executor=parsed.executor,
        options=replace(options, overrides=parsed.profile),
        problems=[*problems, *wrong, *built.problems],
        whole=not built.problems,
        grid={},
    )


def looked_at(asked: Asked) -> "tuple[Sequence[Stage], Examined]":
    """The stages, or one for each value of a sweep, checked; with every Problem, those of the command line first."""
    from recipes.experiment.examine import Examined, examine, options_of, place_named
    from recipes.experiment.pipeline import wrong_values
    from recipes.experiment.prepare import wired_at
    from recipes.experiment.stage import stages_of

    executor = "local" if asked.executor is None else asked.executor
    problems, stages = [*asked.problems], list(asked.stages)
    try:
        if asked.grid:
            (one,) = stages
            made = stages_of(one.partial, asked.grid, one.title)
            stages = [replace(one, name=each.name, partial=each.partial, title=each.title) for each in made]
        elif asked.is_pipeline and asked.whole:
            stages = wired_at(stages, executor, asked.options)
    except ProblemsError as error:
        problems += error.problems
    unwired = asked.is_pipeline and len(problems) > len(asked.problems)
    if not asked.whole or unwired or any(one.key == "executor" for one in problems):  # of another job than was meant
        places = [place_named(one.executor or executor, options_of(one, asked.options))[1] for one in stages]
        problems += [problem for found in places for problem in found]  # the places are as they were meant
        problems += wrong_values(stages) if asked.is_pipeline else []
        problems = [one for at, one in enumerate(problems) if one not in problems[:at]]
        return stages, Examined(jobs=(), problems=tuple(problems))
    examined = examine(stages, executor, asked.options)
    errors_first = sorted(examined.problems, key=lambda problem: problem.severity != "error")
    return stages, replace(examined, problems=(*problems, *errors_first))
