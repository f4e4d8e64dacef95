"""What a person reads after an evaluation: report.json, one HTML page with a plot, and a table for the log.

report.json (schema 1): `harness`, `checkpoint`, `backend`, `quantization`, `restored`, `conditions`, `seconds`,
`baseline` (null without one), `scores` (score, before, change, sigmas, interval), `warnings`.
"""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.evaluation.scores import REPORT, Compared
from scripts.run import page
from scripts.run.drawing import Table, svg_of, tables_as_text
from scripts.run.files import write_json, write_text

_PLOTTED_METRICS = 4
_PLOTTED_TASKS = 24
#: Below this many standard errors a change says nothing.
_NOISE = 2.0


def write_report(folder: Path, report: dict[str, Any], rows: Sequence[Compared], about: Mapping[str, str]) -> None:
    """Write report.json and index.html; plots where matplotlib is installed."""
    write_json(folder / REPORT, report)
    compared = any(row.before is not None for row in rows)
    plot = ""
    if _headlines(rows) and importlib.util.find_spec("matplotlib"):  # what runs the harness need not have it
        plot = page.drawing(_plot(_headlines(rows)), "The scores, with a standard error.")
    write_text(
        folder / "index.html",
        page.page(
            f"{report['checkpoint']} by {report['backend']}",
            about=about,
            notes=report["warnings"],
            parts=[page.table(_columns(compared), [_cells(row, compared) for row in rows], left=2), plot],
        ),
    )


def _columns(compared: bool) -> tuple[str, ...]:
    return ("task", "metric", "score", "+/-", *(("before", "change", "") if compared else ()))


def as_text(rows: Sequence[Compared], *, title: str, warnings: Sequence[str]) -> str:
    """The scores that are no part of another, as a table for a terminal or a log."""
    compared = any(row.before is not None for row in rows)
    columns: dict[str, Any] = {
        name: "left" if name in ("task", "metric", "") else "right" for name in _columns(compared)
    }
    table = Table(title=title, columns=columns, rows=[_cells(row, compared) for row in _headlines(rows)])
    return tables_as_text([table], [f"warning: {warning}" for warning in warnings])


def _headlines(rows: Sequence[Compared]) -> list[Compared]:
    return [row for row in rows if row.score.headline]


def _cells(row: Compared, compared: bool) -> list[str]:
    score = row.score
    metric = score.metric if score.filter == "none" else f"{score.metric} ({score.filter})"
    cells = [score.task, metric, f"{score.value:.4f}", "" if score.stderr is None else f"{score.stderr:.4f}"]
    if not compared:
        return cells
    if row.before is None or row.change is None:
        return [*cells, "", "", ""]
    return [*cells, f"{row.before:.4f}", f"{row.change:+.4f}", verdict(row)]


def verdict(row: Compared) -> str:
    """A change in words: better, worse, or within what chance does; empty where nobody can tell."""
    if row.change is None or row.score.higher_is_better is None:
        return ""
    if row.change == 0:
        return "same"
    low, high = row.interval or (row.change, row.change)
    unpaired = row.interval is None and row.sigmas is not None and abs(row.sigmas) < _NOISE
    if unpaired or low < 0 < high:
        return "within noise"
    return "better" if (row.change > 0) == row.score.higher_is_better else "worse"


def _plot(rows: Sequence[Compared]) -> str:
    """Bars for each task, an axis for each metric: perplexities and shares have nothing in common."""
    from matplotlib.figure import Figure

    metrics = list(dict.fromkeys(row.score.metric for row in rows))[:_PLOTTED_METRICS]
    tallest = max(len(_of_metric(rows, metric)) for metric in metrics)
    figure = Figure(figsize=(4 * len(metrics), 1.5 + 0.35 * tallest), layout="constrained")
    for axes, metric in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True):
        _bars(axes, metric, _of_metric(rows, metric))
    if any(row.before is not None for row in rows):
        figure.legend(
            *figure.axes[0].get_legend_handles_labels(), fontsize=8, ncols=2, frameon=False, loc="outside lower center"
        )
    return svg_of(figure)


def _of_metric(rows: Sequence[Compared], metric: str) -> list[Compared]:
    return [row for row in rows if row.score.metric == metric][:_PLOTTED_TASKS][::-1]


def _bars(axes: Any, metric: str, rows: Sequence[Compared]) -> None:
    places, scores = range(len(rows)), [row.score for row in rows]
    before = [(place - 0.2, row.before) for place, row in enumerate(rows) if row.before is not None]
    after, errors = [score.value for score in scores], [score.stderr or 0.0 for score in scores]
    shift, height = (0.2, 0.38) if before else (0.0, 0.7)
    if before:
        axes.barh(*zip(*before, strict=True), height=height, label="before", color="0.7")
    axes.barh([place + shift for place in places], after, xerr=errors, height=height, label="now")
    labels = [score.task if score.filter == "none" else f"{score.task} ({score.filter})" for score in scores]
    axes.set_yticks(list(places), labels, fontsize=7)
    axes.set_title(metric, fontsize=9)
    if all(0 <= value <= 1 for value in (*after, *(value for _, value in before))):
        axes.set_xlim(0, 1)
