"""Trackers are told of a run after its end, from the machine that submitted it."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from recipes.experiment.runs import Run, look
from recipes.experiment.store import RunFolder
from scripts.engines.installed import is_installed
from scripts.run.problems import JobError, Problem, ProblemsError, install, nearest
from scripts.run.record import Record, read_record
from scripts.tracking.followers import Followers
from scripts.tracking.known import MLFLOW_URI, NAMES

_SECONDS = 300.0


def retell(folder: RunFolder, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """How it stands with each tracker then, which the record says too.

    Raises ProblemsError with all that is in the way, before anything is written.
    """
    run = look([folder])[0]
    if folder.is_foreign:
        raise JobError("not_your_run", f"{folder.dir} belongs to another user.", "Ask whoever submitted it.")
    if problems := list(_problems(run, names)):
        raise ProblemsError(problems)
    run_dir = _run_dir(run)
    (run_dir / "logs").mkdir(exist_ok=True)
    followers = Followers(run_dir, tuple(name for name in NAMES if name in names))
    followers.start()
    followers.end(_SECONDS)
    tracked = followers.tracked()
    for place in dict.fromkeys((run_dir, run.dir)):
        with folder.turn():
            record = read_record(place)
            others = {name: one for name, one in (record.get("tracked") or {}).items() if name not in tracked}
            Record(place, record).update(tracked={**others, **tracked})
    return tracked


def _problems(run: Run, names: Sequence[str]) -> Iterator[Problem]:
    if run.state == "unreadable" or not run.ended:
        yield Problem(name="still_running", key="ID", value=run.id, cause=f"it is {run.state}")
    elif not (_run_dir(run) / "run.json").is_file() or (run.is_elsewhere and _run_dir(run) == run.dir):
        cause = f"{run.job.run_dir if run.job else run.dir} cannot be read from here"
        yield Problem(name="run_dir_elsewhere", key="ID", value=run.id, cause=cause, remedy="Do it where the job ran.")
    for name in names:
        if name not in NAMES:
            cause = "there is no such tracker"
            yield Problem(name="wrong_value", key="--to", value=name, cause=cause, remedy=nearest(name, NAMES))
        elif not is_installed(name):
            cause = "its library is not installed here"
            yield Problem(name="tool_not_installed", key="--to", value=name, cause=cause, remedy=install("track"))
        elif name == "mlflow" and not os.environ.get(MLFLOW_URI):
            cause, remedy = f"{MLFLOW_URI} is not set", "Set it to the address of MLflow's server."
            yield Problem(name="tracker_not_set", key="--to", value=name, cause=cause, remedy=remedy)


def _run_dir(run: Run) -> Path:
    """Where the run wrote, as far as it can be seen from here; else what this machine keeps of it."""
    return (run.job and run.job.place.path_here(run.job.run_dir, run.job.run_dir)) or run.dir
