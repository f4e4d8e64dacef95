"""Runs that are recorded by hand, and our commands about them in this process."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import typer
from typer.testing import CliRunner, Result

from executors.base import SchedulerJob
from executors.local import LocalProfile
from recipes import find
from recipes.cli import commands
from recipes.experiment.job import serialized
from recipes.experiment.store import RunFolder
from scripts.run.identity import identity
from scripts.run.record import Record
from tests.jobs import submitted

#: A process of this machine that has ended.
GONE = {**identity(), "pid": 2**22 + 1}


def recorded(home: Path, run_id: str, *, ended: bool = True) -> Path:
    """The folder of a local run that failed; or one of which nobody has said how it ended."""
    folder = RunFolder(dir=home / "runs" / run_id)
    record = Record.submit(folder.dir, id=run_id, recipe="probe", algorithm="probe", values={"args": {}})
    if ended:
        record.finish("failed", {"name": "told_to_fail", "message": "m", "remedy": "r"})
    else:
        record.update(process=GONE, state="running", started_at=record.values["submitted_at"])
    job = SchedulerJob(run_id=run_id, id="local_persistent://x/y", run_dir=str(folder.dir), folder="/f")
    submitted(folder, LocalProfile(), scheduled=job, settled=ended, supervisor=GONE)
    folder.partial.write_text(_recipe())
    (folder.dir / "logs").mkdir()
    (folder.dir / "logs" / "rank0.log").write_text("a line\n")
    return folder.dir


@contextmanager
def in_time(seconds: float = 5) -> Iterator[None]:
    def late(*_: object) -> None:
        raise TimeoutError(f"took longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@cache
def _recipe() -> str:
    return serialized(find("probe").build())


class Shell:
    """Our commands, each of which must end soon."""

    def __init__(self) -> None:
        self._app = typer.Typer()
        commands.register(self._app)

    def __call__(self, *words: str, seconds: float = 5) -> Result:
        with in_time(seconds):
            return CliRunner().invoke(self._app, words)
