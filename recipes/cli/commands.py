"""`nemo experiment run`, `plan` and `recipes`: what can be run, what it would need, and running it."""

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from recipes.cli.asked import (
    Asked,
    Attached,
    Batch,
    Configs,
    Line,
    Profiles,
    RecipeCommand,
    RecipeName,
    RecipeOrNone,
    Sweep,
    Words,
    asked_for,
    looked_at,
)
from recipes.cli.bundle import OfBundle, asked_of_bundle
from recipes.cli.bundle import register as register_bundle
from recipes.cli.completion import recipe_names
from recipes.cli.document import (
    FAILED,
    INTERRUPTED,
    REFUSED,
    AsJson,
    Command,
    Quiet,
    answer,
    exit_status,
    exits,
    print_problems,
    say,
    write_new,
)
from scripts.run.problems import Problem, ProblemsError

if TYPE_CHECKING:
    from recipes.experiment.stage import Options

_HELP = {"help_option_names": ["-h", "--help"]}


def register(app: typer.Typer) -> None:
    """Add our commands to NeMo-Run's `experiment` group; status, logs and cancel take the place of its own."""
    from recipes.cli import (
        agents,
        artifacts,
        compare,
        executors,
        explain,
        inspect,
        manage,
        rehearse,
        storage,
        tracking,
        verdict,
    )

    app.command("run", cls=RecipeCommand, context_settings=_HELP)(run)
    app.command("plan", cls=RecipeCommand, context_settings=_HELP)(plan)
    app.command("rehearse", cls=RecipeCommand, context_settings=_HELP)(rehearse.rehearse)
    app.command("recipes", cls=Command)(recipes)
    app.command("inspect", cls=Command)(inspect.inspect)
    app.command("explain", cls=Command)(explain.explain)
    manage.register(app)
    register_bundle(app, carry_out)
    storage.register(app)
    artifacts.register(app)
    app.command("compare", cls=Command)(compare.compare)
    app.command("verdict", cls=Command)(verdict.verdict)
    app.command("track", cls=Command)(tracking.track)
    executors.register(app)
    app.command("mcp", cls=Command)(agents.mcp)


def run(
    ctx: typer.Context,
    recipe: RecipeOrNone = None,
    words: Words = None,
    config: Configs = None,
    attached: Attached = None,
    batch: Batch = None,
    profiles: Profiles = None,
    bundle: OfBundle = None,
    after: Annotated[list[str] | None, typer.Option(help="Begin when this run has succeeded (repeatable).")] = None,
    sweep: Sweep = None,
    name: Annotated[str | None, typer.Option(help="How the run's id begins, instead of with the recipe.")] = None,
    dryrun: Annotated[
        bool, typer.Option("--dryrun", "--dry-run", "-d", help="Check, show what would run, write nothing.")
    ] = False,
    detach: Annotated[bool, typer.Option("--detach", help="Return at once; the job outlives the terminal.")] = False,
    force: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Go on in spite of this Problem (repeatable); recorded.")
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Of a pipeline: run the stages too that stand already.")
    ] = False,
    force_squash: Annotated[bool, typer.Option("--force-squash", help="Slurm: import the image anew.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask on a terminal.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show tracebacks.")] = False,
) -> None:
    """Check a recipe or a pipeline, run it, and say what came of it.

    Example: nemo experiment run quantize_fp8 executor=slurm args.hf_model_id=Qwen/Qwen3-8B executor.nodes=2 --detach

    A pipeline, by name or file: nemo experiment run prune_distill_quantize executor=slurm quantize.args.calib_size=64

    With names of a config and a profile: nemo experiment run quantize -c fp8 -b slurm args.hf_model_id=Qwen/Qwen3-8B

    Exit status: 0 when every job succeeded (or was handed over with --detach), 1 when one failed, 2 when
    it was refused before anything was written, 130 after Ctrl-C. Ctrl-C ends a local or Docker job; one on
    Slurm or Lepton goes on.
    """
    line = Line.of(ctx, words, config, sweep)
    if bundle is not None:  # then each word is one of its values
        line = replace(line, words=[*([] if recipe is None else [recipe]), *line.words])
        asked_of = asked_of_bundle(bundle, line, attached or batch)
    else:
        if recipe is None:
            ctx.fail("Missing argument 'RECIPE'.")

        def asked_of(options: "Options", stack: ExitStack) -> Asked:
            return asked_for(recipe or "", line, options)

    said: dict[str, Any] = {"attached": attached, "batch": batch, "profiles": profiles, "after": after, "name": name}
    said |= {"dryrun": dryrun, "detach": detach, "force": force, "fresh": fresh, "force_squash": force_squash}
    carry_out(asked_of, **said, yes=yes, as_json=as_json, quiet=quiet, verbose=verbose)


def carry_out(
    asked_of: "Callable[[Options, ExitStack], Asked]",
    *,
    attached: str | None,
    batch: str | None,
    profiles: Path | None,
    name: str | None,
    dryrun: bool,
    detach: bool,
    force: Sequence[str] | None,
    fresh: bool,
    yes: bool,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    after: Sequence[str] | None = None,
    force_squash: bool = False,
) -> None:
    """Check what is asked for, run it, and say what came of it; `asked_of` may hold something until the end."""
    from recipes.cli import show
    from recipes.experiment.logs import LeftRunningError
    from recipes.experiment.stage import Options
    from recipes.experiment.store import folders_there
    from recipes.experiment.submit import begin, record_all, start_sweep, turn_of_pipelines

    out = show.Output(as_json=as_json, quiet=quiet)
    options = Options(
        profiles=profiles,
        online=not dryrun,
        force_squash=force_squash,
        force=frozenset(force or ()),
        fresh=fresh,
    )
    try:
        with exits(as_json=as_json, submits=True) as refusal, ExitStack() as whole, ExitStack() as turn:
            asked = asked_of(options, whole)
            asked = asked.at(attached, batch, detach=detach)
            detach = detach or batch is not None
            asked = asked.called(name, after or [])
            known = folders_there() if asked.is_pipeline else frozenset()
            stages, examined = looked_at(asked)
            if asked.is_pipeline:
                out.pipeline(stages, examined)
            refused = bool(examined.errors)
            if dryrun and examined.jobs:
                out.plan(examined.jobs, full=True, sound=not refused)
            elif dryrun and asked.whole:
                out.values(stages, asked.executor or "local")
            if refused or out.problems:
                refusal |= out.planned if dryrun else {}
                raise ProblemsError([*examined.problems, *out.problems])
            print_problems(examined.problems)
            out.warnings = examined.problems
            if dryrun:
                if as_json:
                    answer(out.planned, problems=examined.problems)
                return
            if not examined.jobs:
                out.stands(examined)
                return
            out.plan(examined.jobs, full=False)
            asks = sys.stdin.isatty() and not (yes or as_json or quiet)
            if asks and not typer.confirm("Run it?", default=True):
                raise typer.Exit(INTERRUPTED)
            if asked.is_pipeline:
                turn.enter_context(turn_of_pipelines())
                if folders_there() != known:  # somebody may have submitted the same meanwhile
                    stages, examined = looked_at(asked)
                    out.pipeline(stages, examined)
                    if examined.errors:
                        raise ProblemsError(examined.problems)
                    if not examined.jobs:
                        out.stands(examined)
                        return
                recorded = record_all(examined.jobs)
                turn.close()
            with out.following() as watch:
                if asked.is_pipeline:
                    runs = begin(recorded, detach=detach, watch=watch)
                else:
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
    recipe: RecipeName,
    words: Words = None,
    config: Configs = None,
    attached: Attached = None,
    batch: Batch = None,
    profiles: Profiles = None,
    sweep: Sweep = None,
    force: Annotated[list[str] | None, typer.Option(metavar="NAME", help="As `run` has it (repeatable).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document; its data: schemas/plan.json.")] = False,
) -> None:
    """Say whether a job fits, where its memory goes, what each rank runs, and what is wrong. No GPU, no network.

    Example: nemo experiment plan quantize_fp8 executor=slurm args.hf_model_id=Qwen/Qwen3-30B-A3B executor.nodes=2

    Exit status: 0 when `run` would submit it, 2 when it would refuse.
    """
    from recipes.experiment.stage import Options
    from recipes.planner.pipeline import pipeline_plan
    from recipes.planner.plan import plan_of

    options = Options(profiles=profiles, online=False, force=frozenset(force or ()))
    with exits(as_json=as_json):
        asked = asked_for(recipe, Line.of(ctx, words, config, sweep), options, submits=False)
        stages, examined = looked_at(asked.at(attached, batch))
        several = asked.is_pipeline or len(stages) > 1
        if several and not (examined.jobs or examined.reused):
            raise ProblemsError(examined.problems)
        found = pipeline_plan(stages, examined) if several else plan_of(examined)
    if as_json:
        answer(found.as_data(), status=REFUSED if found.refused else 0, problems=found.problems)
    else:
        say(found)
    raise typer.Exit(REFUSED if found.refused else 0)


def recipes(
    name: Annotated[
        str | None, typer.Argument(help="One recipe: its values and what they mean.", autocompletion=recipe_names)
    ] = None,
    models: Annotated[
        bool,
        typer.Option("--models", help="Instead, the architectures that the hf engine was tried with in its format."),
    ] = False,
    as_yaml: Annotated[bool, typer.Option("--yaml", help="Instead, a file of all its values, to start from.")] = False,
    copy: Annotated[Path | None, typer.Option(metavar="FILE", help="Write that file; none is overwritten.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the recipes, and what can be run here; or describe one.

    Example: nemo experiment recipes quantize_fp8 --copy mine.yaml
    """
    from recipes.catalogue import RECIPES, describe, find, written_out
    from recipes.cli import show

    out = show.Output(as_json=as_json)
    with exits(as_json=as_json):
        if as_yaml or copy is not None:
            if name is None:
                cause, key = "it is not said of which recipe", "--yaml" if as_yaml else "--copy"
                wrong = Problem(name="contradiction", key=key, value=copy, cause=cause, remedy="Name one.")
                raise ProblemsError([wrong])
            text = written_out(find(name))
            if copy is None:
                say(text.rstrip())
            else:
                write_new(copy, text, "--copy")
                say(f"written    {copy}\nrun it     nemo experiment run {name} --config {copy}")
        elif models:
            values = describe(find(name))["values"] if name else []
            formats = [row["value"] for row in values if row["key"] == "args.export_quant_cfg"]
            out.architectures(formats[0] if formats else None)
        elif name is None:
            out.catalogue([recipe for recipe in RECIPES.values() if not recipe.problems()], RECIPES.problems())
            print_problems(RECIPES.problems())
        else:
            out.recipe(describe(find(name)))
