"""What a report says of a search for the format of each layer: rows, a map, a plot."""

from collections.abc import Iterator, Mapping
from typing import Any

from scripts.run import page
from scripts.run.drawing import Table, svg_of

Search = Mapping[str, Any]
#: Of a layer that stays as it is.
_PLAIN = "as it is"


def summary(search: Search | None) -> Iterator[tuple[str, str, str, str]]:
    """The bits that were asked for and those that came of it: (what, before, after, change)."""
    if search:
        bits = search["effective_bits"]
        yield "bits of a weight, searched layers", "", f"{bits['reached']:.3f}", f"{bits['asked']:g} asked for, at most"


def _shares(search: Search) -> Iterator[tuple[str, str, str, str]]:
    """Of each format: its bits, how many layers got it, and their part of the weights that count."""
    counted = [row for row in search["layers"] if row["scores"]]
    every = sum(row["weights"] for row in counted) or 1.0
    for name, bits in [*search["candidates"].items(), (None, 16.0)]:
        chosen = [row for row in counted if row["format"] == name]
        layers = sum(len(row["modules"]) for row in chosen)
        share = sum(row["weights"] for row in chosen) / every
        yield name or _PLAIN, f"{bits:g}", f"{layers}", f"{share * 100:.1f}%"


def tables(search: Search | None) -> Iterator[Table]:
    """For a terminal: the formats that were chosen, and the layers that lose most in the smallest one."""
    if search:
        columns: Any = {"format": "left", "bits": "right", "layers": "right", "weights": "right"}
        yield Table(title="formats that layers got", columns=columns, rows=list(_shares(search)))


def parts(search: Search | None) -> Iterator[str]:
    """For a page."""
    if not search:
        return
    rows = [row for row in search["layers"] if row["scores"]]
    yield page.table(("format", "bits", "layers", "weights"), _shares(search))
    chosen = {page.block_and_part(name): row["format"] or _PLAIN for row in rows for name in row["modules"]}
    yield page.grid(chosen, "The format of each layer.")
    said = f"What each layer would lose in each format ({search['method']}, {search['samples_scored']} samples)"
    yield page.drawing(_plot_scores(search, rows), f"{said}; filled: what it got.")
    names = list(search["candidates"])
    scores = ((*(f"{row['scores'][name]:.3g}" if name in row["scores"] else "" for name in names),) for row in rows)
    told = ((_called(row), row["format"] or _PLAIN, *score) for row, score in zip(rows, scores, strict=True))
    yield page.table(("layers", "format", *(f"loss in {name}" for name in names)), told, left=2)
    if left := [name for row in search["layers"] if not row["scores"] for name in row["modules"]]:
        yield page.text(f"Not searched: {', '.join(left[:12])}{f' and {len(left) - 12} more' if left[12:] else ''}.")


def _called(row: Mapping[str, Any]) -> str:
    """Layers that get one format together, by the first and the ends of the others."""
    first, *others = row["modules"]
    ends = [name.rpartition(".")[2] for name in others]
    return " ".join([first.removeprefix("model."), *ends[:3], *([f"... {len(ends)}"] if ends[3:] else [])])


def _plot_scores(search: Search, rows: list[Mapping[str, Any]]) -> str:
    """Scores by depth, a colour for each format, filled where it was chosen."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 4), layout="constrained")
    axes = figure.subplots()
    for at, name in enumerate(search["candidates"]):
        points = [
            (place, row["scores"][name], row["format"] == name)
            for place, row in enumerate(rows)
            if name in row["scores"]
        ]
        colour = f"C{at}"
        axes.scatter(
            [place for place, _, _ in points],
            [max(score, 1e-12) for _, score, _ in points],
            s=16,
            edgecolors=colour,
            facecolors=[colour if got else "none" for _, _, got in points],
            label=name,
        )
    axes.set(xlabel="layers, in the order of the model", ylabel="loss", yscale="log")
    figure.legend(fontsize=8, ncols=3, frameon=False, loc="outside lower center")
    return svg_of(figure)
