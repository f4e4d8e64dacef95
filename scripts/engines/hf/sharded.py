"""Quantize a model whose layers are sharded over the ranks (FSDP2): `args.fsdp`, for what one GPU cannot hold.

Each rank maps the files and keeps its share of every decoder layer's weights; a layer is gathered for the time of its
pass. Embeddings and head stay whole. ModelOpt gathers one layer's weight at a time for its maximum. Samples are shared
as in group.py, passes are made together. Then the first rank quantizes the files as by args.from_files, with the input
scales found: no rank ever has the model.
"""

import gc
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import asdict
from functools import partial
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.args.quantize import QuantizeArgs
from scripts.checkpoints.causal import FSDP_EXPERTS
from scripts.engines.hf import calibrate, evaluate, from_files, kept, load, packing, quantizers, report, sqnr
from scripts.engines.hf.group import Group, joined
from scripts.engines.hf.nvfp4 import cpu_kernels
from scripts.engines.hf.reference import quantized_linears
from scripts.engines.hf.samples import Samples, choose_samples
from scripts.engines.hf.streamed import Streamed, open_streamed
from scripts.engines.hf.weights import Selection, Source, select
from scripts.engines.inputs import of_model
from scripts.formats import FORMATS, OF_MAXIMA, resolve_format
from scripts.processor import bf16_products, give_memory_back
from scripts.run.content import content_of
from scripts.run.problems import JobError, Problem
from scripts.run.record import Record

if TYPE_CHECKING:
    import torch

_PROBE_TOKENS = 64


def troubles(args: QuantizeArgs, ranks: int) -> Iterator[Problem]:
    """What cannot be had of a model that is sharded over so many ranks, as far as the arguments tell."""
    ref = resolve_format(args.export_quant_cfg)
    rescales = ref.kind == "format" and not FORMATS[ref.value].of_maxima(args.weight_only)
    whole = "Use args.fsdp=false, where each rank has the whole model."
    cache, packed = args.export_kv_cache_quant != "none", "Use args.compress=false."
    rows = (
        ("fsdp", ranks < 2, "the layers are sharded over ranks, and there is one", "Set torchrun.nproc_per_node."),
        ("memory", args.memory is not None, "it goes layer by layer in one process", "Use one of them."),
        ("from_files", args.from_files, "it reads weights alone, and loads no model", "Use one of them."),
        ("export_quant_cfg", rescales, "it rescales weights", f"Use {', '.join(OF_MAXIMA)}, or args.fsdp=false."),
        ("export_kv_cache_quant", cache, "the cache is calibrated with the whole model on each rank alone", whole),
        ("layer_formats", bool(args.layer_formats), "formats of some layers are calibrated one after the other", whole),
        ("compress", args.compress, "args.fsdp writes the export alone, which is packed anyway", packed),
    )
    yield from from_files.troubles_of(args, "args.fsdp", "fsdp_unsupported", rows)


def quantize_sharded(args: QuantizeArgs, record: Record, folder: Path) -> None:
    """Calibrate, score, quantize and export the model in `folder`. Raises JobError for what is understood."""
    give_memory_back()
    with joined(args.device, record, in_step=True) as ranks:
        for problem in troubles(args, ranks.world):
            raise problem.as_error()
        source, config = from_files.open_source(args, folder), quantizers.build_config(args)
        with record.phase("load"):
            selection = select(source, config, args.trust_remote_code, calibrated=True)
            streamed, samples = _loaded(args, record, ranks, source, selection, config)
        with bf16_products(), cpu_kernels():
            figures, scales = _measured(args, record, ranks, streamed, samples, config)
        del streamed
        gc.collect()  # its parts refer to each other
    if ranks.leads:
        with record.phase("quantize"):
            shards = from_files.make_shards(args, record, source, selection, scales)
        expected = from_files.reference_of(source, selection, args.dtype)
        from_files.publish(args, record, source, selection, shards, figures, expected)


def _loaded(
    args: QuantizeArgs, record: Record, ranks: Group, source: Source, selection: Selection, config: dict[str, Any]
) -> tuple[Streamed, Samples]:
    """The model with its quantizers, of which this rank has its share, and the samples of all ranks."""
    import modelopt.torch.quantization as mtq
    import torch

    device, name = load.pick_device(args.device), str(source.folder)
    tokenizer = load.load_tokenizer(name, args.trust_remote_code)
    how: Any = {"device": device, "trust_remote_code": args.trust_remote_code}
    streamed = open_streamed(source, selection, dtype=getattr(torch, args.dtype), **how)
    mtq.quantize(streamed.model, {**config, "algorithm": None})
    _refuse_others(streamed, config)
    _shard(streamed, ranks)
    vocabulary = len(streamed.model.get_input_embeddings().weight)
    samples = ranks.same(choose_samples(args, tokenizer, vocabulary) if ranks.leads else None)
    assert samples is not None
    if ranks.leads:
        content = content_of(source.folder)
        of: Any = {"facts": content.facts, "digest": content.digest, "text": samples.calibration_source}
        record.update(inputs=of_model(args.hf_model_id, source.folder, **of), device=str(device))
    return streamed, samples


def _refuse_others(streamed: Streamed, config: dict[str, Any]) -> None:
    """Raise JobError('fsdp_unsupported') for a configuration of which files tell less than the whole model."""
    from modelopt.torch.quantization.nn import SequentialQuantizer

    method, ends = quantizers.algorithm_name(config), (".input_quantizer", ".weight_quantizer")
    used = [name for name, kind in quantizers.placed(streamed.model) if kind]
    strange = [name for name in used if not (name.startswith(f"{streamed.prefix}.") and name.endswith(ends))]
    two_steps = any(isinstance(module, SequentialQuantizer) for module in streamed.model.modules())
    for wrong, cause in (
        (method not in (None, "max"), f"{method} is done of the whole model alone"),
        (bool(streamed.joined), FSDP_EXPERTS),
        (bool(strange), f"{next(iter(strange), '')} belongs to no linear layer of a decoder layer"),
        (two_steps, "a quantizer of several steps is calibrated with the whole model alone"),
    ):
        if wrong:
            raise JobError("fsdp_unsupported", f"{cause}.", f"Use {', '.join(OF_MAXIMA)}, or args.fsdp=false.")


def _shard(streamed: Streamed, ranks: Group) -> None:
    """Give this rank its share of each layer. Raises JobError('weights_not_finite')."""
    import torch
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import distribute_tensor

    mesh = init_device_mesh(streamed.device.type, (ranks.world,))
    for parameter in streamed.model.parameters():
        parameter.requires_grad_(False)
    for layer in streamed.layers:
        fully_shard(layer, mesh=mesh)
    # Passes begin at the model without its head; as the root it gathers a layer while the one before it computes.
    # ModelOpt looks for a mesh there, which a root without any weight of its own has not.
    tables = {one.weight for one in (streamed.model.get_input_embeddings(), streamed.model.get_output_embeddings())}
    if {*streamed.backbone.parameters()} - {*streamed.layers.parameters()} - tables:
        fully_shard(streamed.backbone, mesh=mesh, ignored_params=tables)
    empty: dict[str, Any] = dict(streamed.layers.named_parameters(prefix=streamed.prefix))
    for name, placed in empty.items():
        wide = streamed.selection.stays_wide(name)
        whole = streamed.source.tensor(streamed.names[name]).to(torch.float32 if wide else streamed.dtype)
        share = distribute_tensor(whole.to(streamed.device), mesh, placed.placements, src_data_rank=None)
        broken = [] if load.is_finite(share.to_local()) else [name]
        load.refuse_not_finite(str(streamed.source.folder), broken, streamed.dtype)
        path, _, key = name.rpartition(".")
        setattr(streamed.model.get_submodule(path), key, torch.nn.Parameter(share, requires_grad=False))


def _measured(
    args: QuantizeArgs,
    record: Record,
    ranks: Group,
    streamed: Streamed,
    samples: Samples,
    config: dict[str, Any],
) -> "tuple[dict[str, Any], dict[str, torch.Tensor]]":
    """The report without sizes and verification, and the largest input of each quantized layer."""
    import modelopt.torch.quantization as mtq
    import torch

    model, algorithm = streamed.model, config.get("algorithm")
    limits: Any = {"batch_size": args.calib_batch_size, "max_tokens": packing.MAX_TOKENS, "ranks": ranks}
    counted, base = partial(ranks.counter, record), None
    probe = [max(samples.calibration, key=len)[:_PROBE_TOKENS]]
    with streamed.unquantized(model), torch.no_grad():
        load.refuse_numbers(packing.run(model, model, probe, streamed.device).logits, args.dtype)
    if held := samples.held_out:
        with record.phase("score before"), streamed.unquantized(model):
            states = evaluate.last_states(model, held, advance=counted(len(held)), **limits)
        base = evaluate.remember(model, held, states)
    with record.phase("calibrate"):
        advance = counted(len(samples.calibration))
        loop = calibrate.calibration_loop(samples.calibration, advance=advance, **limits)
        if algorithm is not None:
            with redirect_stdout(StringIO()), torch.no_grad():
                mtq.calibrate(model, algorithm, loop)
        quantizers.scale_zeros(model)
        kept.refuse_unequal(model, ranks)
    record.update(quantizers=quantizers.summary(kind for _, kind in quantizers.placed(model)))
    scores = None
    if base is None:
        with record.phase("layer noise"):
            noise = sqnr.layer_noise(model, samples.calibration[0], args.layer_noise)
    else:
        with record.phase("score after"), sqnr.watched(model, args.layer_noise) as noise:
            scores = evaluate.scores_of(evaluate.compared(model, base, advance=counted(len(held)), **limits))
    inputs = {name: one.input_quantizer.amax for name, one in quantized_linears(model)[0].items()}
    unsaid = ["No prompt was continued: the layers are sharded over ranks."] if args.prompts else []
    figures = report.of_export(args, samples, record.values["timings"]["calibrate"]) | {
        "evaluation": report.evaluation_figures(scores, samples),
        "layers": [{"name": name, **asdict(each)} for name, each in noise.items()],
        "warnings": [*report.warnings(args, samples), *unsaid],
    }
    return figures, {name: amax.cpu() for name, amax in inputs.items() if amax is not None}
