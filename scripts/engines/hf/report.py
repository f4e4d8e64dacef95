"""What a person reads after a quantization: report.json, plots, one HTML page, and a table for terminals.

report.json (schema 1): `model`, `format`, `calibration`, `evaluation` (null when skipped), `size`,
`layers` (name, weight_db, input_db, output_db), `generations`, `verified`, `warnings`.
"""

import base64
import io
import re
from pathlib import Path
from typing import Any

from scripts.run.files import write_json, write_text

SCHEMA = 1
_WORST = 12
_SIDES = (("weight_db", "weights"), ("input_db", "inputs"), ("output_db", "outputs"))


def write_report(folder: Path, report: dict[str, Any]) -> None:
    """Write report.json, the PNG plots and index.html into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "report.json", report)
    plots = {"sqnr_by_depth.png": _plot_depth(report["layers"]), "worst_layers.png": _plot_worst(report["layers"])}
    for name, png in plots.items():
        (folder / name).write_bytes(png)
    write_text(folder / "index.html", as_html(report, plots))


def as_html(report: dict[str, Any], plots: dict[str, bytes]) -> str:
    """One page without outside references; every value is escaped."""
    import jinja2

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(Path(__file__).with_name("report.html.j2").read_text(encoding="utf-8"))
    images = {name: base64.b64encode(png).decode("ascii") for name, png in plots.items()}
    return template.render(
        report=report, rows=summary_rows(report), images=images, worst=worst_layers(report["layers"])
    )


def as_text(report: dict[str, Any]) -> str:
    """The summary and the layers that suffer most, as a table for a terminal or a log."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{report['model']} in {report['format']}", box=box.SIMPLE, title_justify="left")
    for column in ("", "before", "after", "change"):
        table.add_column(column, justify="left" if not column else "right")
    for row in summary_rows(report):
        table.add_row(*row)
    layers = Table(title="layers that suffer most (signal to quantization noise)", box=box.SIMPLE, title_justify="left")
    for column in ("layer", *(f"{label} dB" for _, label in _SIDES)):
        layers.add_column(column, justify="left" if column == "layer" else "right")
    for layer in worst_layers(report["layers"])[:5]:
        layers.add_row(layer["name"], *(_db(layer[key]) for key, _ in _SIDES))
    console = Console(file=io.StringIO(), width=100, color_system=None)
    console.print(table)
    if report["layers"]:
        console.print(layers)
    for generation in report["generations"]:
        for key in ("prompt", "before", "after"):
            console.print(f"{key:6} {generation[key]!r}", markup=False, highlight=False, soft_wrap=True)
    for warning in report["warnings"]:
        console.print(f"warning: {warning}", markup=False, highlight=False)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().rstrip()


def summary_rows(report: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """The figures that decide: (what, before, after, change)."""
    rows = []
    scores = report["evaluation"]
    if scores:
        before, after = scores["perplexity_base"], scores["perplexity_quantized"]
        rows.append(("held-out perplexity", f"{before:.3f}", f"{after:.3f}", f"{(after / before - 1) * 100:+.2f}%"))
        rows.append(("KL divergence (nats/token)", "", f"{scores['kl_divergence']:.5f}", ""))
        rows.append(("top-1 agreement", "", f"{scores['top1_agreement'] * 100:.2f}%", ""))
    size = report["size"]
    if size["export_bytes"] is not None:
        ratio = f"{size['base_bytes'] / size['export_bytes']:.2f}x smaller"
        rows.append(
            ("weights on disk (MB)", f"{size['base_bytes'] / 1e6:.2f}", f"{size['export_bytes'] / 1e6:.2f}", ratio)
        )
    calibration = report["calibration"]
    rows.append(("calibration samples", "", f"{calibration['samples']}", f"{calibration['tokens']} tokens"))
    return rows


def worst_layers(layers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The layers with the least signal over noise at their outputs, worst first."""
    return sorted(layers, key=_severity)[:_WORST]


def _severity(layer: dict[str, Any]) -> float:
    known = [layer[key] for key in ("output_db", "weight_db", "input_db") if layer[key] is not None]
    return float(known[0]) if known else float("inf")


def _db(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _plot_depth(layers: list[dict[str, Any]]) -> bytes:
    """Output SQNR against depth, one line for each kind of layer."""
    kinds: dict[str, list[tuple[int, float]]] = {}
    for layer in layers:
        found = re.search(r"\.(\d+)\.", layer["name"])
        if found and _severity(layer) != float("inf"):
            kind = re.sub(r"^.*?\.\d+\.", "", layer["name"])
            kinds.setdefault(re.sub(r"\.\d+\.", ".*.", kind), []).append((int(found[1]), _severity(layer)))
    figure, axes = _figure()
    for kind, points in kinds.items():
        axes.plot(*zip(*sorted(points), strict=True), marker="o", markersize=3, linewidth=1, label=kind)
    axes.set(xlabel="layer", ylabel="output SQNR (dB)", title="Which layers suffer (lower is worse)")
    axes.xaxis.get_major_locator().set_params(integer=True)
    if kinds:
        figure.legend(fontsize=7, ncols=4, loc="outside lower center")
    return _png(figure)


def _plot_worst(layers: list[dict[str, Any]]) -> bytes:
    """Bars for the worst layers: weights, inputs, outputs."""
    worst = worst_layers(layers)[::-1]
    figure, axes = _figure()
    for offset, (key, label) in zip((-0.27, 0.0, 0.27), _SIDES, strict=True):
        axes.barh(
            [i + offset for i in range(len(worst))], [layer[key] or 0.0 for layer in worst], height=0.25, label=label
        )
    axes.set_yticks(range(len(worst)), [layer["name"].removeprefix("model.") for layer in worst], fontsize=7)
    axes.set(xlabel="SQNR (dB)", title="The worst layers")
    figure.legend(fontsize=7, ncols=3, loc="outside lower center")
    return _png(figure)


def _figure() -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    return figure, figure.subplots()


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
