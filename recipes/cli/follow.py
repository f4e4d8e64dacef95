"""What is shown while jobs run: a progress bar on a terminal, plain lines elsewhere."""

from pathlib import Path
from typing import TYPE_CHECKING

from executors.base import UnreachableError
from recipes.experiment.logs import Tail
from recipes.experiment.runs import Run
from scripts.run.problems import shown
from scripts.run.record import read_json

if TYPE_CHECKING:
    from rich.console import Console

_PROGRESS = {"phase": str, "done": int, "total": int, "unit": str}
#: With more runs than this, only their states are followed.
_LOGS_UP_TO = 4


def follower(console: "Console", *, runs: int) -> "_States | _Lines | _Bar":
    """The view that fits: one run on a terminal gets a bar, a few get their logs, many their states."""
    if runs > _LOGS_UP_TO:
        return _States(console)
    return _Bar(console) if console.is_terminal and runs == 1 else _Lines(console, prefix=runs > 1)


class _States:
    """One line whenever the state of a run changes. As every view, it is shown a run again and again as it stands."""

    def __init__(self, console: "Console") -> None:
        self._console = console
        self._known: dict[str, str] = {}

    def show(self, run: Run) -> None:
        if self._known.get(run.id) != run.state:
            self._known[run.id] = run.state
            self._console.file.write(shown(f"{run.state:10}  {run.id}\n"))
            self._console.file.flush()

    def close(self) -> None: ...


class _Lines:
    """Follows the jobs' own logs, line by line, and what their scheduler says until they begin."""

    def __init__(self, console: "Console", *, prefix: bool) -> None:
        self._console = console
        self._prefix = prefix
        self._tails: dict[str, Tail] = {}
        self._said: dict[str, str] = {}

    def show(self, run: Run) -> None:
        tail = self._tails.setdefault(run.id, Tail())
        before = f"{run.id}: " if self._prefix else ""
        word = run.note or (str(run.record.get("scheduler", "")) if run.state == "submitted" else "")
        if word and self._said.get(run.id) != word:
            self._said[run.id] = word
            self._console.file.write(shown(f"{before}{run.where}: {word}\n"))
        try:
            for line in tail.lines(run):
                self._console.file.write(f"{before}{line}\n")
        except UnreachableError as error:
            self._said[run.id] = str(error)
        self._console.file.flush()

    def close(self) -> None:
        self._console.file.flush()


class _Bar:
    """One bar for the present phase, with rate and time left."""

    def __init__(self, console: "Console") -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        rate = TextColumn("{task.fields[rate]}")
        columns = (
            TextColumn("{task.description:16}"),
            BarColumn(),
            MofNCompleteColumn(),
            rate,
            TimeRemainingColumn(),
            TimeElapsedColumn(),
        )
        self._progress = Progress(*columns, console=console)
        self._task = self._progress.add_task("starting", total=None, rate="")
        self._phase = ""
        self._progress.start()

    def show(self, run: Run) -> None:
        state = read_json(Path(run.record.get("run_dir", run.dir)) / "progress.json", _PROGRESS)
        waits = str(run.record.get("scheduler", "starting")) if run.state == "submitted" else "starting"
        phase = run.record.get("phase", waits)
        if phase != self._phase:
            self._phase = phase
            self._progress.reset(self._task, total=None, description=phase, rate="")
        if state and state["phase"] == phase:
            speed = self._progress.tasks[0].speed
            rate = f"{speed:.1f} {state['unit']}/s" if speed else state["unit"]
            self._progress.update(self._task, completed=state["done"], total=state["total"], rate=rate)

    def close(self) -> None:
        self._progress.stop()
