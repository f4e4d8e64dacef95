"""`nemo experiment open`, `du`, `rm` and `prune`: what runs left on this machine."""

import re
import sys
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from recipes.cli.document import REFUSED, AsJson, Command, answer, exits, print_problems, say
from recipes.cli.manage import RunId, RunIds
from scripts.run.problems import Problem, ProblemsError

if TYPE_CHECKING:
    from recipes.experiment.removal import Holding
    from recipes.experiment.runs import Run

_Dryrun = Annotated[bool, typer.Option("--dryrun", "--dry-run", "-d", help="Say what would go, and remove nothing.")]
_Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask on a terminal.")]
_AGE = re.compile(r"(\d{1,4})([hdw])")
_UNITS = {"h": "hours", "d": "days", "w": "weeks"}


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("open", cls=Command)(open_report)
    app.command("du", cls=Command)(du)
    app.command("rm", cls=Command)(rm)
    app.command("prune", cls=Command)(prune)


def open_report(
    run_id: RunId,
    as_json: AsJson = False,
) -> None:
    """Show a run's report: in the browser, or as its address where there is none.

    Example: nemo experiment open latest:quantize_fp8
    """
    import webbrowser

    from recipes.experiment.run_ids import find_run
    from recipes.experiment.runs import Run

    with exits(as_json=as_json):
        run = Run.read(find_run(run_id))
        folder = (run.job.run_dir if run.job else run.dir) / "report"
        pages = [folder / "index.html", folder / "report.json", *sorted(folder.glob("*.json"))]
        pages = [path for path in pages if path.is_file()]
        if not pages:
            left = any(str(output.get("path")) == str(folder) for output in run.record.get("outputs") or [])
            cause = f"{folder} cannot be seen from here" if left else f"it left no report; its state is {run.state}"
            remedy = f"nemo experiment status {run.id}"
            raise ProblemsError([Problem(name="no_report", key="ID", value=run.id, cause=cause, remedy=remedy)])
    if as_json:
        answer({"id": run.id, "url": pages[0].as_uri()})
        return
    say(pages[0].as_uri())
    if sys.stdout.isatty():
        webbrowser.open(pages[0].as_uri())


def du(as_json: AsJson = False) -> None:
    """Say how much each run keeps on this machine, the largest first; `artifacts` is what of it are its outputs.

    Example: nemo experiment du
    """
    from recipes.experiment.runs import all_runs
    from scripts.run.drawing import Table, size_text, tables_as_text

    rows: list[dict[str, Any]] = [
        {"id": one.run.id, "state": one.run.state, "bytes": one.bytes, "artifact_bytes": one.artifact_bytes}
        | {"elsewhere": one.elsewhere}
        for one in _holdings(all_runs())
    ]
    rows.sort(key=lambda row: -row["bytes"])
    if as_json:
        answer({"runs": rows})
        return
    columns: Any = {"id": "left", "state": "left", "artifacts": "right", "all": "right"}
    lines = [(row["id"], row["state"], *(size_text(row[key]) for key in ("artifact_bytes", "bytes"))) for row in rows]
    total = size_text(sum(row["bytes"] for row in rows))
    say(tables_as_text([Table(title="", columns=columns, rows=lines)], [f"{_runs(len(rows))}, {total}"]).strip("\n"))


def rm(ids: RunIds, dryrun: _Dryrun = False, yes: _Yes = False, as_json: AsJson = False) -> None:
    """Remove runs that have ended: record, logs, and what they left in their own folders.

    Example: nemo experiment rm 47f9a1 latest:quantize_tiny --dryrun

    What was written elsewhere (args.export_dir=...), or published to an object store, stays. A run that another one
    may still read is refused, and then nothing is removed; exit status 2.
    """
    from recipes.experiment.removal import kept_back
    from recipes.experiment.run_ids import find_run
    from recipes.experiment.runs import all_runs

    with exits(as_json=as_json):
        named = {find_run(word).id for word in ids}
        runs = all_runs()
        chosen = _holdings(run for run in runs if run.id in named)
        if problems := kept_back(chosen, runs):
            raise ProblemsError(problems)
        _remove(chosen, dryrun=dryrun, yes=yes, as_json=as_json)


def prune(
    older_than: Annotated[str, typer.Option(metavar="AGE", help="Since they ended: 12h, 30d, 8w.")],
    keep_artifacts: Annotated[
        bool, typer.Option("--keep-artifacts", help="Leave records, reports and outputs; logs and the rest go.")
    ] = False,
    dryrun: _Dryrun = False,
    yes: _Yes = False,
    as_json: AsJson = False,
) -> None:
    """Remove all runs that ended long ago, but for those that another run may still read.

    Example: nemo experiment prune --older-than 30d --keep-artifacts --dryrun
    """
    from recipes.experiment.removal import ended_before, kept_back
    from recipes.experiment.runs import all_runs

    with exits(as_json=as_json):
        match = _AGE.fullmatch(older_than)
        if match is None:
            cause = "a number and h, d or w is expected, as in 30d"
            raise ProblemsError([Problem(name="wrong_value", key="--older-than", value=older_than, cause=cause)])
        age = timedelta(**{_UNITS[match[2]]: int(match[1])})
        runs = all_runs()
        chosen = _holdings(run for run in runs if ended_before(run, age))
        stay = kept_back(chosen, runs)
        if not as_json:
            print_problems(stay)
        chosen = [one for one in chosen if one.run.id not in {problem.value for problem in stay}]
        _remove(chosen, dryrun=dryrun, yes=yes, as_json=as_json, keep_artifacts=keep_artifacts, kept=stay)


def _holdings(runs: "Iterable[Run]") -> "list[Holding]":
    from recipes.experiment.removal import holding_of

    return [holding_of(run) for run in runs]


def _runs(count: int) -> str:
    return f"{count} run{'' if count == 1 else 's'}"


def _remove(
    chosen: "Sequence[Holding]",
    *,
    dryrun: bool,
    yes: bool,
    as_json: bool,
    keep_artifacts: bool = False,
    kept: Sequence[Problem] = (),
) -> None:
    from recipes.experiment.removal import bytes_of, remove, sweep_removed
    from recipes.experiment.store import runs_dir
    from recipes.experiment.submit import disk_failures
    from scripts.run.drawing import size_text

    rows: list[dict[str, Any]] = []
    goes = [(one, going) for one in chosen if (going := one.going(keep_artifacts=keep_artifacts))]
    for one, going in goes:
        row: dict[str, Any] = {"id": one.run.id, "bytes": bytes_of(going)}
        row |= {"paths": list(map(str, going)), "stays": one.elsewhere, "stays_in_store": one.stored}
        rows.append(row)
        if not as_json:
            of = "of " if keep_artifacts else ""
            say(f"{'would remove' if dryrun else 'remove':12}  {of}{one.run.id}  {size_text(row['bytes'])}")
            for path in going:
                say(f"{'':12}  {path}")
            if one.elsewhere:
                say(f"{'':12}  stays, not on this machine: {one.elsewhere}")
            for url in one.stored:
                say(f"{'':12}  stays, in its store: {url}", as_line=True)
    total = f"{'parts of ' if keep_artifacts else ''}{_runs(len(rows))}, {size_text(sum(row['bytes'] for row in rows))}"
    if not dryrun and rows:
        if not yes and not as_json and sys.stdin.isatty() and not typer.confirm(f"Remove {total}?", default=False):
            raise typer.Exit(REFUSED)
        with disk_failures():
            sweep_removed(runs_dir())
            for _, going in goes:
                remove(going)
    if as_json:
        answer({"dryrun": dryrun, "removed": rows}, problems=kept)
    else:
        say(f"{total} {'would be removed' if dryrun else 'removed'}." if rows else "There is nothing to remove.")
