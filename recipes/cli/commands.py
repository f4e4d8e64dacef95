"""`nemo experiment run` and `recipes`."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from scripts.run.problems import JobError, ProblemsError

_FAILED, _REFUSED, _INTERRUPTED = 1, 2, 130


def register(app: typer.Typer) -> None:
    """Add our commands to NeMo-Run's `experiment` group; status, logs and cancel take the place of its own."""
    from recipes.cli import executors, inspect, manage, plan
    from recipes.cli.passthrough import RecipeCommand

    app.command("run", cls=RecipeCommand)(run)
    app.command("plan", cls=RecipeCommand)(plan.plan)
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
    force: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Go on in spite of this Problem (repeatable); recorded.")
    ] = None,
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
    from recipes.cli.passthrough import passed_through
    from recipes.cli.request import examined_of, request_of
    from recipes.experiment.examine import Options
    from recipes.experiment.following import LeftRunningError
    from recipes.experiment.sweep import start_sweep

    out = show.Output(as_json=as_json)
    options = Options(profiles=profiles, online=not dryrun, force_squash=force_squash, force=frozenset(force or ()))
    try:
        request = request_of(recipe, words or [], config, passed_through(ctx), options)
        examined = examined_of(request, after or [], sweep or [])
        out.warnings(examined.problems)
        prepared = examined.submissions
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
            out.catalogue([recipe for recipe in RECIPES.values() if not recipe.problems()])
            out.warnings(RECIPES.problems())
        else:
            out.recipe(describe(find(name)))
    except ProblemsError as error:
        out.problems(error.problems)
        raise typer.Exit(_REFUSED) from None
