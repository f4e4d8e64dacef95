"""What a person reads after a quantization: report.json, one HTML page with plots, and a table for terminals.

report.json (schema 1): `model`, `format`, `calibration`, `evaluation` (null when skipped), `baseline` (how: measured,
reused or partly, by which run, and its digest; null where nothing was, absent of other engines), `layerwise`
(true where one layer at a time was in memory), `size`,
`layers` (name, weight_db, input_db, output_db), `generations`, `verified`, `warnings`; of a search for formats also
`search` (method, effective_bits asked and reached, candidates with their bits, and of each group of layers its
`modules`, the chosen `format` or null, and the `scores` of each candidate: what it would lose); of one for the best
recipe `tried` (trials, front, winner, limits, and the groups of layers that a trial's formats are of); of a model with
experts that no sample was sent to `unreached` (their numbers, by layer).
"""

import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path, PurePath
from typing import Any

from scripts.args.quantize import MeasuredArgs, QuantizeArgs
from scripts.engines.hf import choice_of_formats
from scripts.engines.hf.best.page import tried_parts
from scripts.engines.hf.evaluate import Scores
from scripts.engines.hf.samples import Samples
from scripts.run import page
from scripts.run.drawing import Table, svg_of, tables_as_text
from scripts.run.files import weight_bytes, write_json, write_text
from scripts.run.record import Record

SCHEMA = 1
_WORST = 12
_QUALITY_SAMPLES = 128
_SCORED_SAMPLES = 16
#: More layers than this are a map.
_DRAWN_LAYERS = 20
_SIDES = (("weight_db", "weights"), ("input_db", "inputs"), ("output_db", "outputs"))


def format_name(args: QuantizeArgs) -> str:
    """The format and what was asked for besides it, in words."""
    others = [f"{len(patterns)} layers {name}" for name, patterns in args.layer_formats.items()]
    parts = [
        args.export_quant_cfg,
        *others,
        "weight-only" if args.weight_only else "",
        "compressed" if args.compress else "",
    ]
    if args.export_kv_cache_quant != "none":
        parts.append(f"key/value cache {args.export_kv_cache_quant}")
    return ", ".join(part for part in parts if part)


def of_export(args: QuantizeArgs, samples: Samples, seconds: float) -> dict[str, Any]:
    """The report of a quantization that writes the export alone, as far as every one of them has it."""
    return {
        "schema": SCHEMA,
        "model": args.hf_model_id,
        "format": format_name(args),
        "calibration": calibration_figures(samples, seconds),
        "evaluation": None,
        "layers": [],
        "generations": [],
        "warnings": [],
    }


def calibration_figures(samples: Samples, seconds: float) -> dict[str, Any]:
    """What was calibrated on; `seconds` include inserting the quantizers."""
    tokens = sum(map(len, samples.calibration))
    figures = {"source": samples.calibration_source, "samples": len(samples.calibration), "tokens": tokens}
    return figures | {"seconds": seconds, "tokens_per_second": round(tokens / max(seconds, 1e-9), 1)}


def evaluation_figures(scores: Scores | None, samples: Samples) -> dict[str, Any] | None:
    """Quality on text that was not calibrated on; null where there was none."""
    if scores is None:
        return None
    return {"source": samples.held_out_source, "samples": len(samples.held_out), **asdict(scores)}


def sizes(source: Path, export: Path | None) -> dict[str, int | None]:
    """Bytes of safetensors before and after."""
    return {"base_bytes": weight_bytes(source), "export_bytes": weight_bytes(export) if export else None}


def warnings(args: MeasuredArgs, samples: Samples) -> list[str]:
    """What a reader of the figures must know."""
    found = []
    count = len(samples.calibration)
    if count < args.calib_size:
        found.append(f"{args.calib_size} calibration samples were asked for; the text gave {count}.")
    if count < _QUALITY_SAMPLES:
        found.append(f"tiny_calibration_used_as_quality_signal: {count} samples are a smoke test, not a measurement.")
    if args.eval_size and len(samples.held_out) < _SCORED_SAMPLES:
        found.append(f"Only {len(samples.held_out)} samples were scored; the figures are rough.")
    return found


def record_figures(record: Record, results: Mapping[str, Any]) -> None:
    """The figures that are numbers, among the run's metrics."""
    for name, value in (results["evaluation"] or {}).items():
        if isinstance(value, float):
            record.metric(name, value)
    for layer in results["layers"]:
        if layer["output_db"] is not None:
            record.metric("output_sqnr_db", layer["output_db"], layer=layer["name"])


def write_report(folder: Path, report: dict[str, Any]) -> None:
    """Write report.json and index.html into `folder`, which lies in the directory of the run."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "report.json", report)
    write_text(folder / "index.html", as_html(report, page.about(folder.parent)))


def as_html(report: dict[str, Any], about: Mapping[str, str]) -> str:
    """One page without outside references."""
    layers, scores, calibration = report["layers"], report["evaluation"], report["calibration"]
    scored = "Not scored."
    if scores:
        scored = f"Scored on {scores['samples']} other samples ({scores['tokens']} tokens) from {scores['source']}."
    if report.get("layerwise"):
        scored = f"Layer by layer. {scored}"
    if (before := report.get("baseline")) and before["how"] != "measured":
        scored = f"{scored} The model before it was measured by {before['run']} ({before['how']})."
    measured = {layer["name"]: _severity(layer) for layer in layers if _severity(layer) != float("inf")}
    worst = [
        (layer["name"], *("-" if layer[key] is None else f"{layer[key]:.1f}" for key, _ in _SIDES))
        for layer in worst_layers(layers)
    ]
    drawn = []
    if layers:
        drawn.append(page.drawing(_plot_worst(layers), "The worst layers: signal over quantization noise, in dB."))
    if len(measured) > _DRAWN_LAYERS:
        said = "Signal over noise at the outputs of each layer, in dB; the stronger the colour, the less of it."
        drawn.append(page.heat({page.block_and_part(name): value for name, value in measured.items()}, said))
    elif measured:
        drawn.append(page.drawing(_plot_depth(layers), "Signal over noise at the outputs, by depth, in dB."))
    texts = [page.side_by_side(one["prompt"], one["before"], one["after"]) for one in report["generations"]]
    return page.page(
        title_of(report),
        about=about,
        notes=report["warnings"],
        parts=[
            page.table(("", "before", "after", "change"), summary_rows(report)),
            page.text(f"Calibrated on {calibration['samples']} samples from {calibration['source']}. {scored}"),
            *tried_parts(report.get("tried")),
            page.section("Formats", *choice_of_formats.parts(report.get("search"))),
            page.section("Layers", *drawn, page.table(("layer", *(f"{label} dB" for _, label in _SIDES)), worst)),
            page.section("Text before and after", *texts),
            page.section("Verified on disk", page.table(("", ""), report["verified"], left=2)),
        ],
    )


def title_of(report: Mapping[str, Any]) -> str:
    """The model as people call it: of a folder its name alone."""
    model = str(report["model"])
    return f"{PurePath(model).name if model.startswith(('/', '.', '~')) else model} in {report['format']}"


def as_text(report: dict[str, Any]) -> str:
    """The summary and the layers that suffer most, as tables for a terminal or a log."""
    title = title_of(report) + (", layer by layer" if report.get("layerwise") else "")
    columns: dict[str, Any] = {"": "left", "before": "right", "after": "right", "change": "right"}
    tables = [
        Table(title=title, columns=columns, rows=summary_rows(report)),
        *choice_of_formats.tables(report.get("search")),
    ]
    if report["layers"]:
        worst = [(each["name"], [each[key] for key, _ in _SIDES]) for each in worst_layers(report["layers"])[:5]]
        rows = [(name, *("-" if value is None else f"{value:.1f}" for value in values)) for name, values in worst]
        columns = {"layer": "left", **{f"{label} dB": "right" for _, label in _SIDES}}
        title = "layers that suffer most (signal to quantization noise)"
        tables.append(Table(title=title, columns=columns, rows=rows))
    said = [f"{key:6} {text[key]!r}" for text in report["generations"] for key in ("prompt", "before", "after")]
    return tables_as_text(tables, [*said, *(f"warning: {warning}" for warning in report["warnings"])], width=100)


def summary_rows(report: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """The figures that decide, and what was calibrated on: (what, before, after, change)."""
    calibration = report["calibration"]
    calibrated = ("calibration samples", "", f"{calibration['samples']}", f"{calibration['tokens']} tokens")
    return [*scored_rows(report), calibrated]


def scored_rows(report: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """The figures that decide: (what, before, after, change)."""
    rows = []
    scores = report["evaluation"]
    if scores:
        before, after = scores["perplexity_base"], scores["perplexity_quantized"]
        low, high = (scores.get("intervals") or {}).get("perplexity_increase") or (None, None)
        between = "" if low is None or high is None else f" ({low * 100:+.2f} to {high * 100:+.2f})"
        change = f"{(after / before - 1) * 100:+.2f}%{between}" if before else ""
        rows.append(("held-out perplexity", f"{before:.3f}", f"{after:.3f}", change))
        rows.append(("KL divergence (nats/token)", "", f"{scores['kl_divergence']:.5f}", ""))
        rows.append(("top-1 agreement", "", f"{scores['top1_agreement'] * 100:.2f}%", ""))
    rows += choice_of_formats.summary(report.get("search"))
    size = report["size"]
    if size["export_bytes"]:
        ratio = f"{size['base_bytes'] / size['export_bytes']:.2f}x smaller"
        before, after = f"{size['base_bytes'] / 1e6:.2f}", f"{size['export_bytes'] / 1e6:.2f}"
        rows.append(("weights on disk (MB)", before, after, ratio))
    return rows


def worst_layers(layers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The layers with the least signal over noise at their outputs, worst first."""
    return sorted(layers, key=_severity)[:_WORST]


def _severity(layer: dict[str, Any]) -> float:
    known = [layer[key] for key in ("output_db", "weight_db", "input_db") if layer[key] is not None]
    return float(known[0]) if known else float("inf")


def _plot_depth(layers: list[dict[str, Any]]) -> str:
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
    axes.set(xlabel="layer", ylabel="output SQNR (dB)", ylim=(0, None))
    axes.xaxis.get_major_locator().set_params(integer=True)
    if kinds:
        figure.legend(fontsize=8, ncols=2, frameon=False, loc="outside lower center")
    return svg_of(figure)


def _plot_worst(layers: list[dict[str, Any]]) -> str:
    """Bars for the worst layers: weights, inputs, outputs."""
    worst = worst_layers(layers)[::-1]
    figure, axes = _figure()
    for offset, (key, label) in zip((-0.27, 0.0, 0.27), _SIDES, strict=True):
        axes.barh(
            [i + offset for i in range(len(worst))], [layer[key] or 0.0 for layer in worst], height=0.25, label=label
        )
    axes.set_yticks(
        range(len(worst)), [layer["name"].removeprefix("model.").replace("$", r"\$") for layer in worst], fontsize=8
    )
    axes.set(xlabel="SQNR (dB)")
    figure.legend(fontsize=8, ncols=3, frameon=False, loc="outside lower center")
    return svg_of(figure)


def _figure() -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 4), layout="constrained")
    return figure, figure.subplots()
