"""`nemo experiment run` and `recipes`."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from scripts.errors import JobError
from scripts.problems import ProblemsError

if TYPE_CHECKING:
    from recipes.preparation import Options, Submission

_PASSTHROUGH = "recipes.passthrough"
_FAILED, _REFUSED, _INTERRUPTED = 1, 2, 130


class _RunCommand(TyperCommand):
    """Keeps the words after `--` apart: they are arguments for an upstream script, not overrides."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        cut = args.index("--") if "--" in args else len(args)
        ctx.meta[_PASSTHROUGH] = args[cut + 1 :]
        parsed: list[str] = super().parse_args(ctx, args[:cut])
        return parsed


def register(app: typer.Typer) -> None:
    """Add our commands to NeMo-Run's `experiment` group; status, logs and cancel take the place of its own."""
    from recipes.cli import executors, inspect, manage

    app.command("run", cls=_RunCommand)(run)
    app.command("recipes")(recipes)
    app.command("inspect")(inspect.inspect)
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
    config: Annotated[str | None, typer.Option(help="A YAML file, or the name of a shipped config.")] = None,
    profiles: Annotated[Path | None, typer.Option(help="A file of executor profiles, instead of your own.")] = None,
    after: Annotated[list[str] | None, typer.Option(help="Begin when this run has succeeded (repeatable).")] = None,
    sweep: Annotated[
        list[str] | None, typer.Option(metavar="KEY=A,B,C", help="One run for each value; repeated: each combination.")
    ] = None,
    dryrun: Annotated[bool, typer.Option("--dryrun", help="Check, show what would run, write nothing.")] = False,
    detach: Annotated[bool, typer.Option("--detach", help="Return at once; the job outlives the terminal.")] = False,
    force_squash: Annotated[bool, typer.Option("--force-squash", help="Slurm: import the image anew.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask on a terminal.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show tracebacks.")] = False,
) -> None:
    """Check a recipe, run it, and say what came of it.

    Example: nemo experiment run quantize_fp8 executor=slurm args.hf_model_id=Qwen/Qwen3-8B executor.nodes=2 --detach

    Exit status: 0 when every job succeeded (or was handed over with --detach), 1 when one failed, 2 when
    it was refused before anything was written, 130 after Ctrl-C. Ctrl-C ends a local or Docker job; one on
    Slurm or Lepton goes on.
    """
    from recipes.cli import show
    from recipes.following import LeftRunningError
    from recipes.preparation import Options
    from recipes.sweeps import start_sweep

    out = show.Output(as_json=as_json)
    options = Options(profiles=profiles, online=not dryrun, force_squash=force_squash)
    try:
        prepared = _prepare(recipe, words or [], config, ctx.meta[_PASSTHROUGH], after or [], sweep or [], options)
        out.plan(prepared, full=dryrun)
        if dryrun:
            out.finish_plan()
            return
        if not yes and not as_json and sys.stdin.isatty() and not typer.confirm("Run it?", default=True):
            raise typer.Exit(_INTERRUPTED)
        with out.following() as watch:
            runs = start_sweep(prepared, detach=detach, watch=watch)
    except ProblemsError as error:
        out.problems(error.problems)
        raise typer.Exit(_REFUSED) from None
    except LeftRunningError as error:
        out.left_running(error.runs)
        raise typer.Exit(_INTERRUPTED) from None
    except JobError as error:
        out.failure(error)
        raise typer.Exit(_FAILED) from None
    if detach:
        out.detached(runs)
        raise typer.Exit(_FAILED if any(run.state == "failed" for run in runs) else 0)
    out.results(runs, verbose=verbose)
    raise typer.Exit(exit_status([run.state for run in runs]))


def exit_status(states: Sequence[str]) -> int:
    """0 only if every run succeeded; 130 when the worst that happened is that somebody stopped it."""
    if all(state == "succeeded" for state in states):
        return 0
    return _INTERRUPTED if set(states) <= {"succeeded", "cancelled"} else _FAILED


def _prepare(
    recipe: str,
    words: list[str],
    config: str | None,
    passthrough: list[str],
    after: list[str],
    sweep: list[str],
    options: "Options",
) -> "list[Submission]":
    """Build the recipe with everything the command line says; raise ProblemsError with all that is wrong."""
    from executors import load_profile
    from recipes.base import config_path, load_yaml
    from recipes.catalogue import find
    from recipes.overrides import merge, parse_sweep, parse_words, set_value
    from recipes.preparation import Stage, prepare_all
    from recipes.sweeps import stages_of

    parsed, problems = parse_words(words)
    options = replace(options, overrides=parsed.profile)
    try:
        entry = find(recipe)
    except ProblemsError as error:
        wrong = load_profile(parsed.executor, parsed.profile, files=options.profiles)[1]
        raise ProblemsError([*error.problems, *problems, *wrong]) from None
    partial = entry.build()
    if config is not None:
        try:
            problems += merge(partial, load_yaml(config_path(entry.family.name, config)))
        except ProblemsError as error:
            problems += error.problems
    for key, value in parsed.recipe.items():
        problems += set_value(partial, key, value)
    partial.extra_args = [*partial.extra_args, *passthrough]
    grid, wrong = parse_sweep(sweep)
    problems += wrong
    try:
        stages = [replace(stage, after=after) for stage in stages_of(partial, grid)]
    except ProblemsError as error:
        problems += error.problems
        stages = [Stage(name=recipe, partial=partial, after=after)]
    try:
        prepared = prepare_all(stages, parsed.executor, options)
    except ProblemsError as error:
        raise ProblemsError([*problems, *error.problems]) from None
    if problems:
        raise ProblemsError(problems)
    return prepared


def recipes(
    name: Annotated[str | None, typer.Argument(help="One recipe: its values and what they mean.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")] = False,
) -> None:
    """List the recipes, or describe one.

    Example: nemo experiment recipes quantize_fp8
    """
    from recipes.catalogue import RECIPES, describe, find
    from recipes.cli import show

    out = show.Output(as_json=as_json)
    try:
        if name is None:
            out.catalogue(list(RECIPES.values()))
        else:
            out.recipe(describe(find(name)))
    except ProblemsError as error:
        out.problems(error.problems)
        raise typer.Exit(_REFUSED) from None
