"""Runs as a table: what was run, where, how it stands, since when, how long, what it left, and what came of it."""

from collections.abc import Callable, Sequence
from datetime import datetime
from functools import cache

from recipes.catalogue import RECIPES
from recipes.cli.document import say
from recipes.experiment.progress import progress_of
from recipes.experiment.runs import Run
from scripts.args.meaning import fields_of
from scripts.run.drawing import size_text, took_text
from scripts.run.problems import error_line, shown

#: A table that goes to a file or a pipe is as wide as its words.
_ANY_WIDTH = 4096


def print_runs(runs: Sequence[Run], *, hidden: int = 0, stood: frozenset[str] = frozenset()) -> None:
    """A line each, within the width of the terminal; below, why runs ended badly, and how many are not shown.

    `stood`: of a pipeline's, those of earlier ones that it took as they were.
    """
    from rich.console import Console

    console = Console()
    fits = console.is_terminal
    short = _short_ids(runs) if fits else {}
    rows = [[short.get(run.id, run.id), *(_cell(cell, run) for cell in _CELLS)] for run in runs]
    for row in (row for row, run in zip(rows, runs, strict=True) if run.id in stood and run.state == "succeeded"):
        row[_STATE] = "stands"
    widths = _widths(rows, (console.width or 80) if fits else _ANY_WIDTH)
    lines = [
        " ".join(map(_fitted, row, widths, _COLUMNS)).rstrip()
        for row in ([name.upper() for name, _ in _COLUMNS], *rows)
    ]
    if runs:
        say("\n".join(lines))
    for run in runs:
        cause = error_line(run.record["error"]) if "name" in (run.record.get("error") or {}) else ""
        for line in filter(None, (cause, run.note)):
            say(f"{short.get(run.id, run.id)}  {line}", as_line=True)
    if hidden:
        say(f"{hidden} more ended: nemo experiment ps --all.")


#: Each with the least that it is cut to; None: it is not cut.
_COLUMNS: tuple[tuple[str, int | None], ...] = (
    *(("id", None), ("recipe", 9), ("model", 8), ("where", 5), ("state", None)),
    *(("since", None), ("took", None), ("size", None), ("figure", 8)),
)


_STATE = [name for name, _ in _COLUMNS].index("state")


def _widths(rows: Sequence[Sequence[str]], room: int) -> list[int]:
    """As wide as the words, or what is left of `room`, from the widest column that may be cut."""
    names = [name for name, _ in _COLUMNS]
    widths = [max(map(len, column)) for column in zip(names, *rows, strict=True)]
    while sum(widths) + len(widths) > room:
        cut = [at for at, (_, least) in enumerate(_COLUMNS) if least is not None and widths[at] > least]
        if not cut:
            break
        widths[max(cut, key=lambda at: widths[at])] -= 1
    return widths


def _fitted(text: str, width: int, column: tuple[str, int | None]) -> str:
    """As wide as its column, and cut where it is wider. Of thousands: rich's own tables take seconds for them."""
    from rich.cells import cell_len, set_cell_size

    room = width - (len(text) if text.isascii() else cell_len(text))
    if room < 0:
        return set_cell_size(text, width - 1) + "…"
    return " " * room + text if column[0] in ("took", "size") else text + " " * room


def _cell(cell: Callable[[Run], str], run: Run) -> str:
    """On one line, and `?` where a damaged record has something else in its place."""
    try:
        return shown(cell(run)).replace("\n", "\\n")
    except (TypeError, AttributeError, ValueError, KeyError, OverflowError, ZeroDivisionError):
        return "?"


@cache
def _model_keys() -> dict[str, list[str]]:
    """By recipe, the keys of its model."""
    return {name: fields_of(recipe.family.args, "model") for name, recipe in RECIPES.items()}


def _short_ids(runs: Sequence[Run]) -> dict[str, str]:
    """The last part of each id, where no other of them ends like that."""
    ends = [run.id.rpartition("-")[2] for run in runs]
    return {run.id: end for run, end in zip(runs, ends, strict=True) if end and ends.count(end) == 1}


def _recipe(run: Run) -> str:
    """The recipe, with the values of a sweep, and the name that it was given."""
    title, recipe = run.id.rpartition("_")[0], str(run.record.get("recipe") or "")
    return title if title.startswith(recipe) else f"{recipe} {title}".strip()


def _model(run: Run) -> str:
    args = (run.record.get("values") or {}).get("args") or {}
    named = _model_keys().get(str(run.record.get("recipe")), [])
    return next((str(args[name]).rstrip("/").rpartition("/")[2] for name in named if args.get(name)), "")


def _since(run: Run) -> str:
    """When its state began, here: the time of a day that is today, else the day."""
    began = run.time_of("finished_at", "started_at", "submitted_at")
    if began is None:
        return ""
    local = began.astimezone()
    return local.strftime("%H:%M" if local.date() == datetime.now().date() else "%b %d")


def _took(run: Run) -> str:
    return "" if run.seconds is None else took_text(run.seconds)


def _size(run: Run) -> str:
    left = [output["bytes"] for output in run.record.get("outputs") or [] if isinstance(output.get("bytes"), int)]
    return size_text(sum(left)) if left else ""


_CELLS: tuple[Callable[[Run], str], ...] = (
    _recipe,
    _model,
    lambda run: run.where,
    lambda run: run.state,
    _since,
    _took,
    _size,
    lambda run: str(progress_of(run) or run.figure),
)
