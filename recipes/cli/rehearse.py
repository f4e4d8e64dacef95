"""`nemo experiment rehearse`: the job that somebody means to submit, here and now, on a small model."""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from recipes.cli.asked import PASSTHROUGH, Configs, Profiles, Words, asked_for, looked_at
from recipes.cli.completion import recipe_names
from recipes.cli.document import AsJson, answer, exit_status, exits, print_problems, say
from scripts.run.problems import JobError, Problem, ProblemsError

if TYPE_CHECKING:
    from recipes.experiment.stage import Options
    from recipes.rehearsal.perform import Rehearsal

#: What is said of a job whose checkpoint or data nobody has named.
_INPUTS = ("missing_input", "missing_value", "missing_flag", "no_data", "one_data_source")
_GATED = "gated_without_token"


def rehearse(
    ctx: typer.Context,
    recipe: Annotated[
        str | None, typer.Argument(help="A name from `nemo experiment recipes`.", autocompletion=recipe_names)
    ] = None,
    words: Words = None,
    config: Configs = None,
    profiles: Profiles = None,
    force: Annotated[list[str] | None, typer.Option(metavar="NAME", help="As `run` has it (repeatable).")] = None,
    every: Annotated[bool, typer.Option("--all", help="Instead, every recipe as it is shipped, as a table.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run a job here before it is submitted: the same recipe, on a small model of the same architecture.

    Example: nemo experiment rehearse prune executor=slurm args.prune_target_params=6e9

    It is checked and packaged as it was asked for; then its values are made as small as this machine needs them, and
    it is run. What was exercised by that and what was not is printed.

    Exit status: 0 when it succeeded, 1 when it failed, 2 when it was refused, or cannot be rehearsed here.
    """
    from recipes.experiment.stage import Options

    options = Options(profiles=profiles, online=False, force=frozenset(force or ()))
    if every:
        raise typer.Exit(_all(options, words or [], as_json=as_json))
    if recipe is None:
        raise typer.BadParameter("Name a recipe, or give --all.", param_hint="RECIPE")
    with exits(as_json=as_json):
        found = _one(recipe, words or [], config or [], ctx.meta.get(PASSTHROUGH, []), options, quiet=as_json)
    if as_json:
        answer(found.as_data(), status=exit_status([found.state]))
    else:
        _tell(found)
    raise typer.Exit(exit_status([found.state]))


def _one(
    recipe: str,
    words: Sequence[str],
    configs: Sequence[str],
    more: Sequence[str],
    options: "Options",
    *,
    quiet: bool,
    shipped: bool = False,
) -> "Rehearsal":
    """The rehearsal of one job; `shipped`: of a recipe to which nobody gave what only they have."""
    from recipes.cli import show
    from recipes.rehearsal.perform import perform, prepared

    asked = asked_for(recipe, words, configs, more, options).at(None, None)
    if asked.is_pipeline:
        cause = "a pipeline has stages, each on what the one before it leaves, and a rehearsal is of one job"
        remedy = f"Rehearse a stage: nemo experiment rehearse {asked.stages[0].partial.recipe} ...; or plan {recipe}."
        raise ProblemsError([Problem(name="cannot_rehearse", key="recipe", value=recipe, cause=cause, remedy=remedy)])
    examined = looked_at(asked)[1]
    if not examined.jobs or not all(_is_stood_in(one, shipped=shipped) for one in examined.errors):
        raise ProblemsError(examined.problems)
    if not shipped:
        print_problems(examined.problems)
    one = prepared(examined.jobs[-1])
    out = show.Output(as_json=quiet)
    with out.following() as watch:
        return perform(one, watch)


def _is_stood_in(problem: Problem, *, shipped: bool) -> bool:
    """Whether it says only that an input is not set yet, which something else is taken for."""
    return (problem.name in _INPUTS and problem.value is None) or (shipped and problem.name == _GATED)


def _tell(found: "Rehearsal") -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    job, scaled = found.prepared.job, found.prepared.scaled
    table = Table("key", "as asked", "here", box=box.SIMPLE)
    for change in scaled.changes:
        table.add_row(*change.as_row)
    Console().print(table)
    for title, lines in (
        ("stands in", scaled.stand_ins),
        ("exercised", found.exercised),
        ("not", found.missing),
    ):
        for number, line in enumerate(lines):
            say(f"{title if number == 0 else '':10} {line}")
    for run in found.runs:
        error = run.record.get("error")
        say(f"{'run':10} {run.id}  {run.state}" + (f"  {error['name']}: {error['message']}" if error else ""))
    say(f"{'rehearsed':10} {job.recipe} for {job.executor}: {found.state}, {found.seconds:.0f} s")


def _shipped(name: str, words: Sequence[str], options: "Options") -> "Rehearsal":
    """A recipe as it is, for a cluster; for this machine, where its container lacks what an engine of ours does."""
    from recipes.catalogue import RECIPES
    from scripts.engines.installed import engine_here

    try:
        return _one(name, ["executor=slurm", *words], [], [], options, quiet=True, shipped=True)
    except ProblemsError as refused:
        if (engine := engine_here(RECIPES[name].family.args)) is None:
            raise
        there = refused
    try:
        return _one(name, [f"engine={engine}", *words], [], [], options, quiet=True, shipped=True)
    except ProblemsError:
        raise there from None


def _all(options: "Options", words: Sequence[str], *, as_json: bool) -> int:
    """Every recipe, one after the other; 0 where none failed."""
    from recipes.catalogue import RECIPES

    rows: list[dict[str, Any]] = []
    for name in RECIPES:
        began = time.monotonic()
        row: dict[str, Any] = {"recipe": name, "engine": None}
        try:
            found = _shipped(name, words, options)
            error = next((run.record["error"] for run in found.runs if run.record.get("error")), None)
            said = f"{error['name']}: {error['message']}" if error else ""
            row |= {"engine": found.prepared.scaled.engine, "state": found.state, "why": said}
        except ProblemsError as refused:
            first: Problem = refused.problems[0]
            row |= {
                "state": "cannot" if first.name == "cannot_rehearse" else "refused",
                "why": f"{first.name}: {first.cause}",
            }
        except JobError as failed:
            row |= {"state": "failed", "why": str(failed)}
        rows.append(row | {"seconds": round(time.monotonic() - began, 1)})
        stopped = row["state"] == "cancelled"  # somebody wants no more of it
        if not as_json:
            say("{recipe:38} {state:10} {engine!s:7} {seconds:6} s  {why}".format(**rows[-1]), as_line=True)
        if stopped:
            break
    ended = ("failed", "cancelled")
    status = exit_status(["failed" if row["state"] in ended else "succeeded" for row in rows])
    if as_json:
        answer({"recipes": rows}, status=status)
    else:
        done = sum(row["state"] == "succeeded" for row in rows)
        say(f"{done} of {len(rows)} recipes were rehearsed; {sum(row['state'] == 'failed' for row in rows)} failed.")
    return status
