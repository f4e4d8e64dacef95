"""`nemo experiment run`, `plan` and `recipes`: what can be run, what it would need, and running it."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from recipes.cli.document import FAILED, INTERRUPTED, REFUSED, AsJson, exits, print_json, print_problems, say
from scripts.run.problems import Problem, ProblemsError

if TYPE_CHECKING:
    from recipes.experiment.examine import Examined
    from recipes.experiment.stage import Options, Stage

_PASSTHROUGH = "recipes.passthrough"
_HELP = {"help_option_names": ["-h", "--help"]}
Configs = Annotated[
    list[str] | None,
    typer.Option("-c", "--config", metavar="NAME|PATH", help="A shipped config (fp8, tiny) or a YAML file; in order."),
]
Attached = Annotated[
    str | None, typer.Option("-r", metavar="PROFILE", help="Run there, attached: executor=PROFILE.", show_default=False)
]
Batch = Annotated[
    str | None,
    typer.Option("-b", metavar="PROFILE", help="Run there, detached: executor=PROFILE --detach.", show_default=False),
]
Profiles = Annotated[Path | None, typer.Option(help="A file of executor profiles, instead of your own.")]


class RecipeCommand(TyperCommand):
    """Keeps the words after `--` apart: they are arguments for an upstream script, not overrides."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        cut = args.index("--") if "--" in args else len(args)
        ctx.meta[_PASSTHROUGH] = args[cut + 1 :]
        known = {name for one in self.params for name in (*one.opts, *one.secondary_opts)}
        for option in (word.partition("=")[0] for word in args[:cut] if word.startswith("--")):
            if option not in known and (instead := _word_for(option, args[:cut])):
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


def register(app: typer.Typer) -> None:
    """Add our commands to NeMo-Run's `experiment` group; status, logs and cancel take the place of its own."""
    from recipes.cli import executors, explain, inspect, manage

    app.command("run", cls=RecipeCommand, context_settings=_HELP)(run)
    app.command("plan", cls=RecipeCommand, context_settings=_HELP)(plan)
    app.command("recipes")(recipes)
    app.command("inspect")(inspect.inspect)
    app.command("explain")(explain.explain)
    manage.register(app)
    executors.register(app)


def run(
    ctx: typer.Context,
    recipe: Annotated[str, typer.Argument(help="A name from `nemo experiment recipes`.")],
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...", help="executor=NAME, executor.KEY=VALUE, args.KEY=VALUE, script.KEY=VALUE ..."
        ),
    ] = None,
    config: Configs = None,
    attached: Attached = None,
    batch: Batch = None,
    profiles: Profiles = None,
    after: Annotated[list[str] | None, typer.Option(help="Begin when this run has succeeded (repeatable).")] = None,
    sweep: Annotated[
        list[str] | None, typer.Option(metavar="KEY=A,B,C", help="One run for each value; repeated: each combination.")
    ] = None,
    dryrun: Annotated[
        bool, typer.Option("--dryrun", "--dry-run", "-d", help="Check, show what would run, write nothing.")
    ] = False,
    detach: Annotated[bool, typer.Option("--detach", help="Return at once; the job outlives the terminal.")] = False,
    force: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Go on in spite of this Problem (repeatable); recorded.")
    ] = None,
    force_squash: Annotated[bool, typer.Option("--force-squash", help="Slurm: import the image anew.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask on a terminal.")] = False,
    as_json: AsJson = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show tracebacks.")] = False,
) -> None:
    """Check a recipe, run it, and say what came of it.

    Example: nemo experiment run quantize_fp8 executor=slurm args.hf_model_id=Qwen/Qwen3-8B executor.nodes=2 --detach

    With names of a config and a profile: nemo experiment run quantize -c fp8 -b slurm args.hf_model_id=Qwen/Qwen3-8B

    Exit status: 0 when every job succeeded (or was handed over with --detach), 1 when one failed, 2 when
    it was refused before anything was written, 130 after Ctrl-C. Ctrl-C ends a local or Docker job; one on
    Slurm or Lepton goes on.
    """
    from recipes.cli import show
    from recipes.experiment.logs import LeftRunningError
    from recipes.experiment.stage import Options
    from recipes.experiment.submit import start_sweep

    out = show.Output(as_json=as_json)
    options = Options(profiles=profiles, online=not dryrun, force_squash=force_squash, force=frozenset(force or ()))
    try:
        with exits(as_json=as_json, submits=True) as refusal:
            asked = _asked(recipe, words or [], config or [], ctx.meta[_PASSTHROUGH], options)
            asked = asked.at(attached, batch, detach=detach)
            detach = detach or batch is not None
            stages, examined = _examined(replace(asked, stage=replace(asked.stage, after=after or [])), sweep or [])
            refused = bool(examined.errors)
            if dryrun and examined.jobs:
                out.plan(examined.jobs, full=True, sound=not refused)
            elif dryrun and asked.whole:
                out.values(stages)
            if refused or out.problems:
                refusal |= out.planned if dryrun else {}
                raise ProblemsError([*examined.problems, *out.problems])
            print_problems(examined.problems)
            if dryrun:
                if as_json:
                    print_json(out.planned)
                return
            out.plan(examined.jobs, full=False)
            if not yes and not as_json and sys.stdin.isatty() and not typer.confirm("Run it?", default=True):
                raise typer.Exit(INTERRUPTED)
            with out.following() as watch:
                runs = start_sweep(examined.jobs, detach=detach, watch=watch)
    except LeftRunningError as error:
        out.left_running(error.runs)
        raise typer.Exit(INTERRUPTED) from None
    if detach:
        out.detached(runs)
        raise typer.Exit(FAILED if any(run.state == "failed" for run in runs) else 0)
    out.results(runs, verbose=verbose)
    raise typer.Exit(exit_status([run.state for run in runs]))


def plan(
    ctx: typer.Context,
    recipe: Annotated[str, typer.Argument(help="A name from `nemo experiment recipes`.")],
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="The words that `nemo experiment run` would be given."),
    ] = None,
    config: Configs = None,
    attached: Attached = None,
    batch: Batch = None,
    profiles: Profiles = None,
    force: Annotated[list[str] | None, typer.Option(metavar="NAME", help="As `run` has it (repeatable).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document; configs/schemas/plan.json.")] = False,
) -> None:
    """Say whether a job fits, where its memory goes, what each rank runs, and what is wrong. No GPU, no network.

    Example: nemo experiment plan quantize_fp8 executor=slurm args.hf_model_id=Qwen/Qwen3-30B-A3B executor.nodes=2

    Exit status: 0 when `run` would submit it, 2 when it would refuse.
    """
    from recipes.experiment.stage import Options
    from recipes.planner.plan import plan_of

    options = Options(profiles=profiles, online=False, force=frozenset(force or ()))
    with exits(as_json=as_json):
        asked = _asked(recipe, words or [], config or [], ctx.meta[_PASSTHROUGH], options)
        found = plan_of(_examined(asked.at(attached, batch))[1])
    if as_json:
        print_json(found.as_data())
    else:
        say(found)
    raise typer.Exit(REFUSED if found.refused else 0)


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


def _asked(
    recipe: str, words: Sequence[str], configs: Sequence[str], passthrough: Sequence[str], options: "Options"
) -> Asked:
    """Raises ProblemsError where there is no recipe of that name, with all else that is wrong."""
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
    partial, whole = entry.build(), True
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


def _examined(asked: Asked, sweep: Sequence[str] = ()) -> "tuple[Sequence[Stage], Examined]":
    """The stage, or one for each value of a sweep, checked; with every Problem, those of the command line first."""
    from recipes.experiment.examine import Examined, examine, place_named
    from recipes.experiment.stage import stages_of
    from recipes.values import parse_sweep

    grid, wrong = parse_sweep(list(sweep))
    problems, stages = [*asked.problems, *wrong], [asked.stage]
    try:
        if grid:
            made = stages_of(asked.stage.partial, grid)
            stages = [replace(asked.stage, name=one.name, partial=one.partial) for one in made]
    except ProblemsError as error:
        problems += error.problems
    if not asked.whole or any(one.key == "executor" for one in problems):  # of another job than was meant
        problems += place_named(asked.stage.executor or "", asked.options)[1]  # the place is as it was meant
        return stages, Examined(jobs=(), problems=tuple(problems))
    examined = examine(stages, options=asked.options)
    errors_first = sorted(examined.problems, key=lambda problem: problem.severity != "error")
    return stages, replace(examined, problems=(*problems, *errors_first))


def exit_status(states: Sequence[str]) -> int:
    """0 only if every run succeeded; 130 when the worst that happened is that somebody stopped it."""
    if all(state == "succeeded" for state in states):
        return 0
    return INTERRUPTED if set(states) <= {"succeeded", "cancelled"} else FAILED


def recipes(
    name: Annotated[str | None, typer.Argument(help="One recipe: its values and what they mean.")] = None,
    models: Annotated[
        bool,
        typer.Option("--models", help="Instead, the architectures that the hf engine was tried with in its format."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List the recipes, or describe one.

    Example: nemo experiment recipes quantize_fp8 --models
    """
    from recipes.catalogue import RECIPES, describe, find
    from recipes.cli import show

    out = show.Output(as_json=as_json)
    with exits(as_json=as_json):
        if models:
            values = describe(find(name))["values"] if name else []
            formats = [row["value"] for row in values if row["key"] == "args.export_quant_cfg"]
            out.architectures(formats[0] if formats else None)
        elif name is None:
            out.catalogue([recipe for recipe in RECIPES.values() if not recipe.problems()])
            print_problems(RECIPES.problems())
        else:
            out.recipe(describe(find(name)))
