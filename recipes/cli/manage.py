"""`nemo experiment ps`, `status`, `logs`, `cancel` and `resume`: runs after their submission."""

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from recipes.cli.completion import run_ids
from recipes.cli.document import FAILED, AsJson, Command, Quiet, answer, cause_of, exits, print_problems, say
from scripts.run.files import expanded
from scripts.run.problems import JobError, Problem, ProblemsError, Severity
from scripts.run.record import DamagedRecordError

if TYPE_CHECKING:
    from recipes.experiment.store import RunFolder

_WATCH_SECONDS = 2.0
#: Folders whose runs `ps` lists too.
RUNS_VARIABLE = "MODELOPT_RECIPES_RUNS"
#: In a JSON document.
_MOST_OF_LOG = 1 << 16
RunId = Annotated[
    str,
    typer.Argument(metavar="ID", help="A run's id, a part of it, latest, or latest:RECIPE.", autocompletion=run_ids),
]
RunIds = Annotated[
    list[str],
    typer.Argument(metavar="ID...", help="Runs' ids, parts of them, latest, latest:RECIPE.", autocompletion=run_ids),
]


class OrNemoRunsCommand(Command):
    """A command that NeMo-Run has too: of an experiment that is its own, its own answers, whatever words it takes."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        word = next((one for one in args if not one.startswith("-")), "")
        if _is_nemo_runs(word):
            from nemo_run.cli import experiment

            theirs = typer.Typer(pretty_exceptions_enable=False)
            theirs.command()(getattr(experiment, str(self.name)))
            ctx.exit(typer.main.get_command(theirs).main(args, ctx.command_path, standalone_mode=False) or 0)
        parsed: list[str] = super().parse_args(ctx, args)
        return parsed


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("ps", cls=Command)(ps)
    app.command("status", cls=OrNemoRunsCommand)(status)
    app.command("logs", cls=OrNemoRunsCommand)(logs)
    app.command("cancel", cls=OrNemoRunsCommand)(cancel)
    app.command("resume", cls=Command)(resume)


def ps(
    everything: Annotated[bool, typer.Option("--all", help="Finished runs too.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Show it anew every two seconds, until Ctrl-C.")] = False,
    within: Annotated[
        Path | None,
        typer.Option("--in", metavar="DIR", help="Instead, runs that recorded themselves below a folder: ./output."),
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """List the runs submitted from this machine, wherever they run, as they truly stand.

    Example: nemo experiment ps --all

    `mor logs ID`, and each other command, takes as ID any part of an id that no other run has. Folders that
    MODELOPT_RECIPES_RUNS lists, as PATH does, are looked through too: for runs of other NeMo-Run experiments.
    """
    from rich.console import Console

    from recipes.cli import show
    from recipes.experiment.runs import runs_below
    from recipes.experiment.settled import known_runs

    named = [] if within else os.environ.get(RUNS_VARIABLE, "").split(os.pathsep)
    beside = [expanded(path) for path in named if path]
    lost = [_no_folder(RUNS_VARIABLE, path, "warning") for path in beside if not path.is_dir()]

    def tell() -> None:
        found = runs_below(within) if within else [*known_runs(), *(run for path in beside for run in runs_below(path))]
        if beside:
            found = list({os.path.realpath(run.dir): run for run in found}.values())
        listed = [run for run in found if everything or not run.ended or run.state in ("lost", "unreadable")]
        show.Output(as_json=as_json, quiet=quiet).runs(listed, hidden=len(found) - len(listed), problems=lost)
        if not listed and not as_json and not quiet:
            say("No run goes on." if found else "No run is recorded here.")

    with exits(as_json=as_json):
        if within is not None and not within.is_dir():
            raise ProblemsError([_no_folder("--in", within)])
        print_problems(lost)
        if watch and as_json:
            cause, remedy = "one document is printed once", "Leave one of them out."
            wrong = Problem(name="contradiction", key="--watch", value="--json", cause=cause, remedy=remedy)
            raise ProblemsError([wrong])
        tell()
        try:
            while watch:
                time.sleep(_WATCH_SECONDS)
                Console().clear()  # nothing, where there is no terminal
                tell()
        except KeyboardInterrupt:
            raise typer.Exit(0) from None


def _no_folder(key: str, path: Path, severity: Severity = "error") -> Problem:
    return Problem(name="missing_path", key=key, value=path, cause="there is no such folder", severity=severity)


def status(run_id: RunId, as_json: AsJson = False) -> None:
    """Say how a run stands, or each stage of a pipeline: its recorded state, set against what its scheduler says.

    Example: nemo experiment status quantize_fp8_1126-0805-47f9a1

    Stages come in the order in which they were submitted, after those that stood already.
    """
    from recipes.cli import show
    from recipes.cli.listing import print_runs
    from recipes.experiment.pipeline_runs import with_those_that_stood
    from recipes.experiment.runs import look

    runs = look(_found([run_id], as_json=as_json, pipelines=True))
    if len(runs) == 1 and (runs[0].job is None or runs[0].job.pipeline != run_id):
        show.Output(as_json=as_json).status(runs[0])
        return
    stood, own = with_those_that_stood(runs)
    if as_json:
        answer(
            {
                "runs": [*(run.as_data() | {"stands": True} for run in stood), *(run.as_data() for run in own)],
                "hidden": 0,
            }
        )
    else:
        print_runs([*stood, *own], stood=frozenset(run.id for run in stood))


def logs(
    run_id: RunId,
    rank: Annotated[int, typer.Argument(help="Whose log.")] = 0,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run has ended.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Its end, in one JSON document.")] = False,
) -> None:
    """Print the log of a run's rank 0, or of another; of its launcher, as long as the job has not begun.

    Example: nemo experiment logs -f quantize_fp8_1126-0805-47f9a1
    """
    from recipes.experiment.logs import log_of, refuse_rank
    from recipes.experiment.runs import look

    with exits(as_json=as_json):
        (folder,) = _found([run_id])
        refuse_rank(folder, rank)
        pieces = log_of(folder, f"rank{rank}.log", follow=follow)
        if as_json:
            whole = b"".join(pieces)
            text = whole[-_MOST_OF_LOG:].decode(errors="replace")
            answer({"id": folder.id, "rank": rank, "bytes": len(whole), "text": text})
            return
        said = 0
        try:
            for piece in pieces:
                said += len(piece)
                sys.stdout.buffer.write(piece)
                sys.stdout.buffer.flush()
        except KeyboardInterrupt:
            raise typer.Exit(0) from None
        if not said:
            say(f"{folder.id} is {look([folder])[0].state}, and has no log of rank {rank}.", to=sys.stderr)


def cancel(ids: RunIds, as_json: AsJson = False) -> None:
    """End runs, and wait until that is recorded. Those that have ended stay as they are.

    Example: nemo experiment cancel quantize_fp8_1126-0805-47f9a1

    Exit status: 0 when every run has ended, 1 when one could not be reached or goes on.
    """
    from recipes.experiment.intervene import cancel_run

    runs, problems = [], []
    for folder in _found(ids, as_json=as_json, pipelines=True):
        try:
            runs.append(cancel_run(folder))
        except (JobError, DamagedRecordError, OSError) as error:
            problems.append(cause_of(error).as_problem("ID", folder.id))
            say(f"{folder.id}: {error}", to=sys.stderr)
    status = 0 if not problems and all(run.ended for run in runs) else FAILED
    if as_json:
        answer({"runs": [run.as_data() for run in runs]}, status=status, problems=problems)
    for run in () if as_json else runs:
        say(f"{run.state:10}  {run.id}  {run.note}".rstrip(), as_line=True)
    raise typer.Exit(status)


def resume(ids: RunIds, as_json: AsJson = False, quiet: Quiet = False) -> None:
    """Start runs that were lost, failed or cancelled over, detached, in their own run directories.

    Example: nemo experiment resume quantize_fp8_1126-0805-47f9a1

    What the ended attempt left is moved to attempts/ in the run directory. What the hf engine calibrated from the same
    model, samples and values is gone on from; a training goes on from its last checkpoint.

    Of a pipeline, by its id or that of any of its stages, all stages that ended badly: what succeeded is kept.
    """
    from recipes.cli import show
    from recipes.experiment.submit import take_up

    with exits(as_json=as_json):
        show.Output(as_json=as_json, quiet=quiet).detached(take_up(_found(ids, as_json=as_json, pipelines=True)))


def _found(words: list[str], *, as_json: bool = False, pipelines: bool = False) -> "list[RunFolder]":
    """The runs that words name; with `pipelines`, all of a pipeline that one names."""
    from recipes.experiment.run_ids import find_run, find_runs_of

    with exits(as_json=as_json):
        each = [find_runs_of(word) if pipelines else [find_run(word)] for word in words]
        return list({folder.id: folder for folders in each for folder in folders}.values())


def _is_nemo_runs(word: str) -> bool:
    """Whether `word` is an experiment that NeMo-Run made, and none of ours."""
    from recipes.experiment.run_ids import runs_of_pipeline
    from recipes.experiment.store import runs_dir

    is_name = 0 < len(word) < 256 and "/" not in word and word.strip(".")
    if not is_name or any(path.name.startswith(word) for path in runs_dir().glob("*")) or runs_of_pipeline(word):
        return False
    experiments = runs_dir().with_name("experiments")
    title = word.rpartition("_")[0]
    return any(Path(path).is_dir() for path in (f"{experiments}/{title}/{word}", f"{experiments}/{word}"))
