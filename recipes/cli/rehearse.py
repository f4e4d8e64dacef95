"""`nemo experiment rehearse`: the job that somebody means to submit, here and now, on a small model."""

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from recipes.cli.asked import Asked, Configs, Line, Profiles, Words, asked_for, looked_at
from recipes.cli.completion import runnable
from recipes.cli.document import AsJson, answer, exit_status, exits, print_problems, say
from scripts.run.problems import JobError, Problem, ProblemsError, nearest

if TYPE_CHECKING:
    from recipes.experiment.job import Job
    from recipes.experiment.runs import Run
    from recipes.experiment.stage import Options
    from recipes.rehearsal.chained import PipelineRehearsal
    from recipes.rehearsal.perform import Rehearsal

#: What is said of a job whose checkpoint or data nobody has named.
_INPUTS = ("missing_input", "missing_value", "missing_flag", "no_data", "one_data_source")
_GATED = "gated_without_token"


def rehearse(
    ctx: typer.Context,
    recipe: Annotated[
        str | None,
        typer.Argument(help="A name from `nemo experiment recipes`, or a pipeline's file.", autocompletion=runnable),
    ] = None,
    words: Words = None,
    config: Configs = None,
    profiles: Profiles = None,
    force: Annotated[list[str] | None, typer.Option(metavar="NAME", help="As `run` has it (repeatable).")] = None,
    only: Annotated[
        list[str] | None, typer.Option(metavar="STAGE", help="Of a pipeline, this stage (repeatable).")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Instead, every recipe as it is shipped, as a table.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run a job here before it is submitted: the same recipe, on a small model of the same architecture.

    Example: nemo experiment rehearse prune executor=slurm args.prune_target_params=6e9

    It is checked and packaged as it was asked for; then its values are made as small as this machine needs them, and
    it is run. What was exercised by that and what was not is printed. Of a pipeline, each stage takes what the small
    stages before it leave, conversions included; limits (`gate`) are not judged, since random weights are scored.

    Exit status: 0 when it succeeded, 1 when it failed, 2 when it was refused, or cannot be rehearsed here.
    """
    from recipes.experiment.stage import Options

    options = Options(profiles=profiles, online=False, force=frozenset(force or ()))
    if every:
        raise typer.Exit(_all(options, words or [], as_json=as_json))
    if recipe is None:
        raise typer.BadParameter("Name a recipe, or give --all.", param_hint="RECIPE")
    from recipes.rehearsal.perform import Rehearsal

    with exits(as_json=as_json):
        asked = asked_for(recipe, Line.of(ctx, words, config), options).at(None, None)
        if only and not asked.is_pipeline:
            cause = f"{recipe} is one job, without stages"
            raise ProblemsError([Problem(name="contradiction", key="--only", value=only[0], cause=cause)])
        found = _pipeline(asked, only or [], quiet=as_json) if asked.is_pipeline else _one(asked, quiet=as_json)
    if as_json:
        answer(found.as_data(), status=exit_status([found.state]))
    elif found.state == "cancelled":
        say("cancelled; nothing of it is left", to=sys.stderr)
    elif isinstance(found, Rehearsal):
        _tell(found)
    else:
        _tell_pipeline(found)
    raise typer.Exit(exit_status([found.state]))


def _one(asked: Asked, *, quiet: bool, shipped: bool = False) -> "Rehearsal":
    """The rehearsal of one job; `shipped`: of a recipe to which nobody gave what only they have."""
    from recipes.cli import show
    from recipes.rehearsal.perform import perform, prepared

    one = prepared(_sound(asked, shipped=shipped)[-1])
    out = show.Output(as_json=quiet)
    with out.following() as watch:
        return perform(one, watch)


def _pipeline(asked: Asked, only: Sequence[str], *, quiet: bool) -> "PipelineRehearsal":
    """The rehearsal of a pipeline, or of some of its stages."""
    from recipes.rehearsal.chained import perform_pipeline, prepared_pipeline

    names = [stage.name for stage in asked.stages]
    if unknown := [name for name in only if name not in names]:
        cause = "the pipeline has no such stage"
        raise ProblemsError(
            [
                Problem(
                    name="unknown_stage", key="--only", value=unknown[0], cause=cause, remedy=nearest(unknown[0], names)
                )
            ]
        )
    if only:
        left = set(names) - set(only)
        stages = [replace(one, after=[name for name in one.after if name not in left]) for one in asked.stages]
        asked = replace(asked, stages=tuple(one for one in stages if one.name in only))
    one = prepared_pipeline(asked.stages, _sound(asked))
    if not quiet:
        say(f"{'stages':10} {', '.join(job.name for job in one.jobs)}")
    known: dict[str, str] = {}

    def watch(run: "Run") -> None:
        if not quiet and known.get(run.id) != run.state:
            took = f"  {run.seconds:.0f} s" if run.ended and run.seconds else ""
            say(f"{run.state:10} {run.id}{took}", as_line=True)
        known[run.id] = run.state

    return perform_pipeline(one, watch)


def _sound(asked: Asked, *, shipped: bool = False) -> "Sequence[Job]":
    """What is asked for, checked, but for inputs that something else is taken for. Raises ProblemsError."""
    examined = looked_at(replace(asked, options=replace(asked.options, fresh=True)))[1]
    if not examined.jobs or not all(_is_stood_in(one, shipped=shipped) for one in examined.errors):
        raise ProblemsError(examined.problems)
    if not shipped:
        print_problems(examined.problems)
    return examined.jobs


def _is_stood_in(problem: Problem, *, shipped: bool) -> bool:
    """Whether it says only that an input is not set yet, which something else is taken for."""
    return (problem.name in _INPUTS and problem.value is None) or (shipped and problem.name == _GATED)


def _tell(found: "Rehearsal") -> None:
    job = found.prepared.job
    _say_all(("key", "as asked", "here"), [change.as_row for change in found.prepared.scaled.changes], found)
    for run in found.runs:
        error = run.record.get("error")
        say(f"{'run':10} {run.id}  {run.state}" + (f"  {error['name']}: {error['message']}" if error else ""))
    say(f"{'rehearsed':10} {job.recipe} for {job.executor}: {found.state}, {found.seconds:.0f} s")


def _tell_pipeline(found: "PipelineRehearsal") -> None:
    rows = []
    for row in found.rows:
        part = found.prepared.parts.get(row["stage"])
        changes = [change.as_row for change in part.scaled.changes] if part else []
        small = [f"{key.removeprefix('args.')}: {asked} -> {here}" for key, asked, here in changes]
        took = "" if row["seconds"] is None else f"{row['seconds']:.0f} s"
        done = "\n".join([", ".join(filter(None, (row["recipe"], row["engine"], row["note"]))), *small])
        rows.append((row["stage"], done, took, "\n".join(row["outputs"]), row["state"]))
    _say_all(("stage", "here", "time", "left", "verdict"), rows, found)
    if (broken := found.broken) is not None:
        say(f"{broken['state']:10} {broken['stage']}  {broken['error']}")
        say(f"{'log':10} nemo experiment logs {broken['run']}")
    say(f"{'rehearsed':10} {found.prepared.name}: {found.state}, {found.seconds:.0f} s")


def _say_all(columns: Sequence[str], rows: Sequence[Sequence[str]], found: "Rehearsal | PipelineRehearsal") -> None:
    """A table, and what was shown by all that and what was not."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, box=box.SIMPLE)
    for row in rows:
        table.add_row(*map(Text, row))
    Console().print(table)
    for title, lines in (("stands in", found.stand_ins), ("exercised", found.exercised), ("not", found.missing)):
        for number, line in enumerate(lines):
            say(f"{title if number == 0 else '':10} {line}")


def _shipped(name: str, words: Sequence[str], options: "Options") -> "Rehearsal":
    """A recipe as it is, for a cluster; for this machine, where its container lacks what an engine of ours does."""
    from recipes.catalogue import RECIPES
    from scripts.engines.installed import engine_here

    def at(place: str) -> Asked:
        return asked_for(name, Line(words=[place, *words]), options).at(None, None)

    try:
        return _one(at("executor=slurm"), quiet=True, shipped=True)
    except ProblemsError as refused:
        if (engine := engine_here(RECIPES[name].family.args)) is None:
            raise
        there = refused
    try:
        return _one(at(f"engine={engine}"), quiet=True, shipped=True)
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
