"""Runs as a table: what was run, where, how it stands, since when, how long, what it left, and what came of it."""

from collections.abc import Callable, Sequence
from datetime import datetime
from functools import cache
from typing import Literal

from recipes.catalogue import RECIPES
from recipes.cli.document import say
from recipes.experiment.runs import Run
from scripts.args.meaning import fields_of
from scripts.run.drawing import size_text, took_text
from scripts.run.problems import error_line, shown

#: A table that goes to a file or a pipe is as wide as its words.
_ANY_WIDTH = 4096


def print_runs(runs: Sequence[Run], *, hidden: int = 0) -> None:
    """A line each, within the width of the terminal; below, why runs ended badly, and how many are not shown."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False, emoji=False, color_system=None)
    fits = console.is_terminal
    short = _short_ids(runs) if fits else {}
    rows = [[short.get(run.id, run.id), *(_cell(cell, run) for cell in _CELLS)] for run in runs]
    widths = _widths(rows, (console.width or 80) if fits else _ANY_WIDTH)
    console.width = sum(widths) + len(widths)  # a line runs over rather than lose its id
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="")
    for (name, _), width in zip(_COLUMNS, widths, strict=True):
        side: Literal["left", "right"] = "right" if name in ("took", "size") else "left"
        table.add_column(name.upper(), justify=side, no_wrap=True, overflow="ellipsis", width=width)
    for row in rows:
        table.add_row(*row)
    if runs:
        console.print(table)
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


def key_figure(run: Run) -> str:
    """The one figure that says most: what quantization did to the perplexity, a score, a size; or how it failed."""
    if run.state != "succeeded":
        error = run.record.get("error") or {}
        phase = run.record.get("phase") if run.state == "running" else ""
        name = str(error.get("name") or phase or "")
        return "" if name == run.state else name
    report = run.report or {}
    scores, size, rows = (report.get(key) for key in ("evaluation", "size", "scores"))
    if isinstance(scores, dict) and scores.get("perplexity_base") and scores.get("perplexity_quantized"):
        return f"ppl {(scores['perplexity_quantized'] / scores['perplexity_base'] - 1) * 100:+.2f}%"
    score = rows[0].get("score") if isinstance(rows, list) and rows and isinstance(rows[0], dict) else None
    if isinstance(score, dict) and isinstance(score.get("value"), float):
        return f"{score.get('task', '')} {score['value']:.3f}"
    if isinstance(size, dict) and size.get("base_bytes") and size.get("export_bytes"):
        return f"{(size['export_bytes'] / size['base_bytes'] - 1) * 100:+.0f}% size"
    return ""


_CELLS: tuple[Callable[[Run], str], ...] = (
    _recipe,
    _model,
    lambda run: run.where,
    lambda run: run.state,
    _since,
    _took,
    _size,
    key_figure,
)
