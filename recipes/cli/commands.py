"""`nemo experiment run`, `recipes` and `ps`."""

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from scripts.problems import ProblemsError

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
    """Add our commands to NeMo-Run's `experiment` group."""
    app.command("run", cls=_RunCommand)(run)
    app.command("recipes")(recipes)
    app.command("ps")(ps)


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
    dryrun: Annotated[bool, typer.Option("--dryrun", help="Check, show what would run, write nothing.")] = False,
    detach: Annotated[bool, typer.Option("--detach", help="Return at once; the job outlives the terminal.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask on a terminal.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show tracebacks.")] = False,
) -> None:
    """Check a recipe, run it, and say what came of it.

    Example: nemo experiment run quantize_fp8 executor=local args.hf_model_id=tiny:qwen3 --yes

    Exit status: 0 when the job succeeded (or was detached), 1 when it failed, 2 when it was refused
    before anything was written, 130 after Ctrl-C.
    """
    from recipes import submission
    from recipes.cli import show

    out = show.Output(as_json=as_json)
    try:
        prepared = _prepare(recipe, words or [], config, ctx.meta[_PASSTHROUGH], online=not dryrun)
        out.plan(prepared, full=dryrun)
        if dryrun:
            out.finish_plan()
            return
        if not yes and not as_json and sys.stdin.isatty() and not typer.confirm("Run it?", default=True):
            raise typer.Exit(_INTERRUPTED)
        with out.following() as watch:
            job = submission.start(prepared, detach=detach, watch=watch)
        if detach:
            out.detached(job)
            return
        out.result(job, verbose=verbose)
        state = job.state
    except ProblemsError as error:
        out.problems(error.problems)
        raise typer.Exit(_REFUSED) from None
    raise typer.Exit({"succeeded": 0, "cancelled": _INTERRUPTED}.get(state, _FAILED))


def _prepare(recipe: str, words: list[str], config: str | None, passthrough: list[str], *, online: bool) -> Any:
    """Build the recipe with everything the command line says; raise ProblemsError with all that is wrong."""
    from executors import load_profile
    from recipes import submission
    from recipes.base import config_path, load_yaml
    from recipes.catalogue import find
    from recipes.overrides import merge, parse_words, set_value

    parsed, problems = parse_words(words)
    try:
        entry = find(recipe)
    except ProblemsError as error:
        problems = [*error.problems, *problems, *load_profile(parsed.executor, parsed.profile)[1]]
        raise ProblemsError(problems) from None
    partial = entry.build()
    if config is not None:
        try:
            problems += merge(partial, load_yaml(config_path(entry.algorithm, config)))
        except ProblemsError as error:
            problems += error.problems
    for key, value in parsed.recipe.items():
        problems += set_value(partial, key, value)
    partial.extra_args = [*partial.extra_args, *passthrough]
    try:
        prepared = submission.prepare(partial, parsed.executor, parsed.profile, online=online)
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


def ps(
    everything: Annotated[bool, typer.Option("--all", help="Finished runs too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")] = False,
) -> None:
    """List the runs recorded on this machine, as they truly stand.

    Example: nemo experiment ps --all
    """
    from recipes.cli import show
    from recipes.submission import runs_dir
    from scripts.record import FINAL_STATES, DamagedRecordError, observe

    rows: list[dict[str, Any]] = []
    for path in sorted(runs_dir().glob("*/run.json")):
        try:
            record = observe(path.parent)
        except DamagedRecordError as error:
            record = {"id": path.parent.name, "state": "unreadable", "error": {"message": str(error)}}
        if everything or record["state"] not in FINAL_STATES - {"lost"}:
            rows.append(record | {"dir": str(path.parent)})
    show.Output(as_json=as_json).runs(rows)
