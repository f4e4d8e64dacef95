"""What is shown while jobs run: a table of all of them on a terminal, plain lines elsewhere."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from executors.base import UnreachableError
from recipes.experiment.logs import Tail
from recipes.experiment.progress import Progress, progress_of
from recipes.experiment.runs import Run
from scripts.run.drawing import took_text
from scripts.run.problems import shown

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table
    from rich.text import Text

#: With more runs than this, only their states are followed where there is no terminal.
_LOGS_UP_TO = 4
#: Seconds between two lines about how far a run is whose log is not shown.
_PROGRESS_SECONDS = 30.0
#: Of a terminal, those that the table leaves to others.
_LINES_BESIDE = 4
_BAR = 20
_GOES_ON = ("submitted", "running")


@dataclass(frozen=True, kw_only=True)
class Row:
    """A stage, or a run of a sweep, before anybody has looked at it."""

    name: str
    run_id: str
    stands: bool = False  # an earlier run stands for it


def follower(console: "Console", rows: Sequence[Row]) -> "_States | _Lines | _Table":
    """The view that fits: a table on a terminal; elsewhere the logs of a few runs, of many their states."""
    if console.is_terminal:
        return _Table(console, rows)
    runs = sum(not row.stands for row in rows)
    return _States(console) if runs > _LOGS_UP_TO else _Lines(console, prefix=runs > 1)


class _States:
    """A line whenever the state of a run changes, and now and then one of how far it is.

    As every view, it is shown a run again and again as it stands.
    """

    def __init__(self, console: "Console") -> None:
        self._console = console
        self._known: dict[str, str] = {}
        self._due: dict[str, float] = {}

    def show(self, run: Run) -> None:
        if self._known.get(run.id) != run.state:
            self._known[run.id] = run.state
            self._due[run.id] = time.monotonic() + _PROGRESS_SECONDS
            self._say(run, "")
        elif time.monotonic() >= self._due[run.id] and (progress := progress_of(run)) is not None:
            self._due[run.id] = time.monotonic() + _PROGRESS_SECONDS
            self._say(run, f"  {progress}")

    def _say(self, run: Run, more: str) -> None:
        self._console.file.write(shown(f"{run.state:10}  {run.id}{more}\n"))
        self._console.file.flush()

    def close(self) -> None: ...


class _Lines:
    """Follows the jobs' own logs, line by line, and what their scheduler says until they begin; of several, states."""

    def __init__(self, console: "Console", *, prefix: bool) -> None:
        self._console = console
        self._prefix = prefix
        self._tails: dict[str, Tail] = {}
        self._said: dict[str, str] = {}
        self._states: dict[str, str] = {}

    def show(self, run: Run) -> None:
        tail = self._tails.setdefault(run.id, Tail())
        before = f"{run.id}: " if self._prefix else ""
        if self._prefix and self._states.get(run.id) != run.state:
            self._states[run.id] = run.state
            self._console.file.write(shown(f"{before}{run.state}\n"))
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


class _Table:
    """All stages at once, a line each; of more than the terminal has lines for, those that go on."""

    def __init__(self, console: "Console", rows: Sequence[Row]) -> None:
        from rich.live import Live

        self._console, self._rows = console, {row.run_id: row for row in rows}
        self._runs: dict[str, Run] = {}
        self._live = Live(console=console, get_renderable=self._drawn, refresh_per_second=4)
        self._live.start()

    def show(self, run: Run) -> None:
        self._rows.setdefault(run.id, Row(name=run.id, run_id=run.id))
        self._runs[run.id] = run

    def close(self) -> None:
        self._live.stop()

    def _state(self, row: Row) -> str:
        return "stands" if row.stands else self._runs[row.run_id].state if row.run_id in self._runs else "submitted"

    def _drawn(self) -> "Table":
        from rich.table import Table

        rows = list(self._rows.values())
        states = [self._state(row) for row in rows]
        counts = [f"{states.count(state)} {state}" for state in dict.fromkeys(states)]
        if len(rows) > (room := max(1, self._console.height - _LINES_BESIDE)):
            rows = [row for row in rows if self._state(row) in _GOES_ON][:room]
        table = Table.grid(padding=(0, 2, 0, 0))
        for name in ("stage", "state", "phase", "bar", "done", "rate", "left", "took"):
            right = name in ("done", "rate", "left", "took")
            table.add_column(justify="right" if right else "left", no_wrap=True, overflow="ellipsis")
        for row in rows:
            run = self._runs.get(row.run_id)
            told = [] if run is None or row.stands else [_plain(_phase(run)), *_measured(progress_of(run)), _took(run)]
            table.add_row(_plain(row.name), self._state(row), *told)
        if len(self._rows) > 1:
            table.caption = ", ".join(counts)
            table.caption_justify = "left"
        return table


def _phase(run: Run) -> str:
    """What it does, or what it waits for."""
    if run.note:
        return run.note
    waits = str(run.record.get("scheduler") or "starting") if run.scheduled or run.submitting else ""
    return {"running": str(run.record.get("phase") or "starting"), "submitted": waits}.get(run.state, "")


def _measured(progress: Progress | None) -> "list[RenderableType]":
    """The bar, how much is done, how fast, and how long that lasts."""
    from rich.progress_bar import ProgressBar

    if progress is None:
        return ["", "", "", ""]
    bar = ProgressBar(total=progress.total, completed=progress.done, width=_BAR)
    rate = f"{progress.rate:.1f} {progress.unit}/s" if progress.rate else progress.unit
    left = "" if progress.left is None else f"{took_text(progress.left)} left"
    return [bar, f"{progress.done}/{progress.total}", _plain(rate), left]


def _plain(text: str) -> "Text":
    """On one line, without what a terminal or rich would take for a command."""
    from rich.text import Text

    return Text(shown(text).replace("\n", " "))


def _took(run: Run) -> str:
    return "" if run.seconds is None else took_text(run.seconds)
