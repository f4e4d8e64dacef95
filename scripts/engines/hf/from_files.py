"""Quantize a folder of safetensors file by file, from the source's shards to the export's.

What of them is quantized, and how, is in scripts/engines/hf/weights.py; a file, in shards.py; by whom, in workers.py.
A file that was made waits in the run directory until all are there, so that a killed job goes on from it.
"""

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.args.quantize import QuantizeArgs
from scripts.checkpoints import causal
from scripts.checkpoints.documents import read_json
from scripts.checkpoints.huggingface import exported_format
from scripts.checkpoints.model import weights_problem
from scripts.checkpoints.safetensors import read_header
from scripts.engines.card import write_card
from scripts.engines.hf import load, quantizers, report, save, verify, workers
from scripts.engines.hf.reference import Reference, some_layers
from scripts.engines.hf.samples import Samples
from scripts.engines.hf.shards import Conversion
from scripts.engines.hf.weights import WEIGHT, Selection, Source, select
from scripts.engines.inputs import made_by, with_commits
from scripts.formats import known_format
from scripts.run.content import Content, reading, written
from scripts.run.files import is_folder, refuse_existing, staged, write_json
from scripts.run.problems import JobError, Problem
from scripts.run.record import Record

if TYPE_CHECKING:
    import torch

#: Where files wait for the others, in the run directory; beside each, what it was made of.
FOLDER = "shards"
_MIB = 1 << 20
_NO_TEXT = "no text: the format follows from the weights"


def quantize_files(args: QuantizeArgs, record: Record, folder: Path) -> None:
    """Quantize the weights of `folder`; outputs and figures go into `record`. Raises JobError."""
    source, config = open_source(args, folder), quantizers.build_config(args)
    device = load.pick_device(args.device)
    with record.phase("select"):
        selection = select(source, config, args.trust_remote_code)
        _refuse_cache(args, selection)
        record.update(device=str(device), quantizers={"weights": len(selection.quantized)})
    with reading() as measure:  # beside the work: what is read for one is in memory for the other
        content = measure(folder)
        with record.phase("quantize"):
            shards = make_shards(args, record, source, selection, {})
        measured = content.result()
    model = {"type": "checkpoint_hf", "name": args.hf_model_id, "path": str(folder), **measured.facts}
    record.update(inputs=with_commits([model | made_by(folder, measured.digest)]))
    none = Samples(calibration=[], held_out=[], calibration_source=_NO_TEXT, held_out_source="")
    figures = report.of_export(args, none, record.values["timings"]["quantize"])
    publish(args, record, source, selection, shards, figures, reference_of(source, selection, args.dtype))


def troubles_of(
    args: QuantizeArgs, way: str, name: str, rows: Iterable[tuple[str, bool, str, str]]
) -> Iterator[Problem]:
    """What cannot be had by a way to quantize that writes the export alone.

    `rows`: an argument, whether it is in the way, why, and what to use instead.
    """
    for key, wrong, cause, remedy in rows:
        if wrong:
            yield Problem(name=name, key=f"args.{key}", value=getattr(args, key), cause=cause, remedy=remedy)
    if not args.export_dir:
        cause = f"{way} writes nothing else"
        yield Problem(name="no_output", key="args.export_dir", value=None, cause=cause, remedy="Name a folder.")


def open_source(args: QuantizeArgs, folder: Path) -> Source:
    """The files of a model that are quantized as they are. Raises JobError."""
    if not args.export_dir:
        cause = (
            f"{'args.from_files' if args.from_files else 'args.memory'} writes args.export_dir alone, and it is null."
        )
        raise JobError("no_output", cause, "Name one.")
    refuse_existing(args.export_dir)
    trouble = weights_problem(folder) or causal.packed(exported_format(folder), loaded=False) or causal.unscaled(folder)
    if trouble is not None:
        raise JobError(trouble[0], f"{folder}: {trouble[1]}.", trouble[2])
    return Source(folder=folder)


def publish(
    args: QuantizeArgs,
    record: Record,
    source: Source,
    selection: Selection,
    shards: Mapping[Path, str],
    figures: dict[str, Any],
    expected: Reference,
) -> None:
    """Make a checkpoint of the shards, verify it against `expected`, and report it with `figures`. Raises JobError.

    `shards`: with the SHA-256 of each, '' where it is not known.
    """
    export, known = Path(args.export_dir or ""), {written(shard): digest for shard, digest in shards.items()}
    with staged(export) as made:
        with record.phase("export"):
            for shard in shards:
                _place(shard, made / shard.name)
            _describe(args, source, selection, made)
            sized = figures | {"size": report.sizes(source.folder, made)}
            write_card(made, args, record.values, sized)
        with record.phase("verify"):
            save.exclude_left(made, expected)
            facts = known_format(args.export_quant_cfg)
            cache = args.export_kv_cache_quant if facts else None
            verified = verify.verify_export(made, facts, expected, kv_cache=cache, weight_only=args.weight_only)
    with record.phase("report"):
        results = figures | {"size": report.sizes(source.folder, export), "verified": verified}
        report.record_figures(record, results)
        report.write_report(record.dir / "report", results)
        parents = [record.values["inputs"][0]["digest"]]
        record.artifact("checkpoint_hf", export, known, parents=parents, format=figures["format"])
        record.artifact("eval_results", record.dir / "report")
        for attempt in (record.dir, *record.earlier):
            shutil.rmtree(attempt / FOLDER, ignore_errors=True)
        record.line(report.as_text(results))


def _place(shard: Path, path: Path) -> None:
    """Put a file where it is to be, and leave it where it waits: what comes now may fail."""
    try:
        os.link(shard, path)
    except OSError:  # another disk, or one without links
        shutil.copyfile(shard, path)


def _refuse_cache(args: QuantizeArgs, selection: Selection) -> None:
    """Raise JobError where no attention was found of which a cache would be quantized."""
    asked = args.export_kv_cache_quant
    if asked != "none" and not selection.said["quantization"].get("kv_cache_quant_algo"):
        cause = "no attention is found whose keys and values it would be: transformers does not know this architecture"
        raise JobError("nothing_quantized", f"args.export_kv_cache_quant={asked}: {cause}.", "Use none.")


def make_shards(
    args: QuantizeArgs,
    record: Record,
    source: Source,
    selection: Selection,
    inputs: "Mapping[str, torch.Tensor]",
) -> dict[Path, str]:
    """A file for each of the source's, of the same name, with its SHA-256; those of an ended attempt are kept where
    they fit.

    `inputs`: see `weights.packed`. Raises JobError as `workers.made`.
    """
    place = record.dir / FOLDER
    for left in (attempt / FOLDER for attempt in record.earlier if is_folder(str(attempt / FOLDER))):
        if not place.exists():
            left.rename(place)
    place.mkdir(exist_ok=True)
    conversion = Conversion(args=args, source=source, selection=selection, place=place, inputs=inputs)
    sizes = {name: (source.folder / name).stat().st_size for name in source.shards}
    stand = [name for name in sizes if conversion.stands(name)]
    missing = {name: size for name, size in sizes.items() if name not in stand}
    count = workers.number(conversion, missing)
    if count > 1:
        record.line(f"{count} processes convert {len(missing)} files")
    digests: dict[Path, Future[Content]] = {}
    with reading() as measure, closing(workers.made(conversion, list(missing), count, record.dir / "logs")) as made:
        for name in stand:
            record.line(f"made by an earlier attempt: {name}")
        for name in chain(stand, made):
            digests[place / name] = measure(place / name)
            done = sum(sizes[file.name] for file in digests)
            record.progress(done // _MIB, sum(sizes.values()) // _MIB, "MiB")
        return {place / name: digests[place / name].result().listing[name] for name in sizes}


def _describe(args: QuantizeArgs, source: Source, selection: Selection, made: Path) -> None:
    """The index, config.json, hf_quant_config.json, tokenizer and licence."""
    from modelopt.torch.export.convert_hf_config import convert_hf_quant_config_format

    if len(shards := sorted(made.glob("*.safetensors"))) > 1:
        names = {name: shard.name for shard in shards for name in read_header(shard)}
        index = {"metadata": {"total_size": report.sizes(made, None)["base_bytes"]}, "weight_map": names}
        write_json(made / verify.INDEX, index)
    config = read_json(source.folder / "config.json")
    precision = "torch_dtype" if "torch_dtype" in config and "dtype" not in config else "dtype"
    said = dict(selection.said)
    config |= {precision: args.dtype, "quantization_config": convert_hf_quant_config_format(said)}
    write_json(made / "config.json", config)
    write_json(made / "hf_quant_config.json", said)
    save.keep_source_files(source.folder, made)


def reference_of(source: Source, selection: Selection, dtype: str) -> Reference:
    """What the export must agree with; of a few layers also the weights."""
    import torch

    precision = getattr(torch, dtype)
    return Reference(
        modules={name: (shape[0], shape[1]) for name in selection.quantized if (shape := source.shapes[name + WEIGHT])},
        experts=0,
        plain={name: "float32" if selection.stays_wide(name) else dtype for name in selection.plain},
        weights={name: source.tensor(name + WEIGHT).to(precision) for name in some_layers(sorted(selection.quantized))},
        norms={},
    )
