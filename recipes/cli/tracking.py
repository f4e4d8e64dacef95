"""`nemo experiment track`: a run that has ended is told to trackers from this machine."""

from typing import Annotated

import typer

from recipes.cli.document import FAILED, AsJson, answer, exits, say
from recipes.cli.manage import RunId
from scripts.tracking.known import NAMES, tracked_lines


def track(
    run_id: RunId,
    to: Annotated[
        list[str], typer.Option("--to", metavar="NAME", help=f"{', '.join(NAMES)} (repeatable).", show_default=False)
    ],
    as_json: AsJson = False,
) -> None:
    """Tell trackers of a run that has ended, from this machine: its node reached nobody, or nobody had asked for it.

    Example: nemo experiment track latest:quantize_fp8 --to mlflow

    Each time makes a new run there. Exit status: 1 where one could not be told.
    """
    from recipes.experiment.retelling import retell
    from recipes.experiment.run_ids import find_run

    with exits(as_json=as_json):
        tracked = retell(find_run(run_id), to)
    status = FAILED if any(one["state"] == "failed" for one in tracked.values()) else 0
    if as_json:
        answer({"tracked": tracked}, status=status)
    else:
        for line in tracked_lines({"tracked": tracked}):
            say(line, as_line=True)
    raise typer.Exit(status)
