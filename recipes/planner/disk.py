"""How many bytes a checkpoint has on disk, before and after it is quantized, and what a job is going to leave."""

from collections.abc import Mapping
from dataclasses import replace
from math import ceil
from types import MappingProxyType
from typing import Any, Literal

from recipes.experiment.job import Job
from recipes.models import ModelFacts
from recipes.models.architecture import MEGATRON_SIZES, Weight
from recipes.models.weights import Matrices, matrices_of, of_facts
from recipes.planner.workload import facts_in
from scripts.args.best import BestArgs
from scripts.args.meaning import meanings
from scripts.engines.hf.calibrate import PASSES
from scripts.formats import FORMATS, Format, formats_named, most_bits

#: hf: as Transformers has it, deployable. modelopt: the model and its quantizers, to be reopened. megatron: torch_dist.
Kind = Literal["hf", "modelopt", "megatron"]

_KINDS: Mapping[str, Kind] = MappingProxyType(
    {"checkpoint_hf": "hf", "checkpoint_modelopt": "modelopt", "checkpoint_megatron": "megatron"}
)
#: What checkpoints are written in where a job does not say.
DTYPE = "bfloat16"
WIDTHS: Mapping[str, int] = MappingProxyType({"bfloat16": 2, "float16": 2, "float32": 4})
#: Checkpoints that distill.py keeps where nothing is said: its default since Model-Optimizer 0.46, fixed in it before.
_KEPT = 5
#: Bytes of an element by its name in a safetensors header.
_STORED = {"F8_E4M3": 1, "U8": 1, "I8": 1, "BF16": 2, "F16": 2, "F32": 4}
#: A tensor's entry in the header of a safetensors file: name, dtype, shape and offsets (measured: 100 to 116 bytes).
_ENTRY = 108
#: config.json, generation_config.json, hf_quant_config.json.
_SETTINGS = 2500
#: What modelopt_state.pth has for each linear layer with quantizers (measured with ModelOpt 0.47: 1.35 to 2.9 kB).
_STATE = 1600
#: Of a parameter in training: the weight in float32 and Adam's two moments, all of which Megatron-Core's
#: DistributedOptimizer and Float16OptimizerWithFloat16Params save in float32.
_OPTIMIZER = 12


def checkpoint_bytes(
    model: Matrices,
    format_: str | None,
    *,
    kind: Kind,
    weight_only: bool = False,
    compress: bool = False,
    dtype: str = DTYPE,
    training: bool = False,
) -> int | None:
    """Bytes of a checkpoint's files; None for a format whose layout is not in configs/formats.yaml.

    `format_` None is a model that is not quantized; `dtype` that of what is not packed; `training` adds the state of
    the optimizer. A Megatron checkpoint and ModelOpt's own are packed only with `compress`, an export always.
    """
    width = WIDTHS[dtype]
    beside = 0 if kind == "megatron" else model.tokenizer + _SETTINGS
    beside += model.total * _OPTIMIZER if training else 0
    if format_ is None:
        return model.total * width + model.tensors * _ENTRY + beside
    facts = FORMATS.get(format_)
    if facts is None:
        return None
    if kind == "hf":
        return _exported(model, facts, width, weight_only=weight_only) + beside
    return _restorable(model, facts, width, compress=compress) + beside


def outputs_bytes(job: Job) -> dict[str, int]:
    """Bytes of what a job is going to leave, by the key that names each output; what cannot be told is absent."""
    quantized = {f"args.{field.name}" for field, meaning in meanings(job.resolved) if meaning.quantized}
    sizes = {key: _output(job, _KINDS.get(type_), key in quantized) for key, type_, _ in job.outputs}
    return {key: size for key, size in sizes.items() if size is not None}


def hidden_states_bytes(job: Job) -> int:
    """Of a job that goes layer by layer, in its run folder until it ends, at most: what a layer is given and what it
    makes of the text that is calibrated on, in each pass of the algorithm, and that is scored before and after
    (scripts/engines/hf/layerwise.py)."""
    facts = facts_in(job, "model")
    if job.get("memory") is None or facts is None or facts.hidden_size is None:
        return 0
    method = FORMATS[name].method if (name := job.get("format")) in FORMATS else None
    of_methods = [len(one) for known, one in PASSES.items() if method in (None, known.partition("+")[0])]
    samples = max(of_methods) * job.get("samples", 0) + 2 * job.get("eval_samples", 0)
    tokens: int = samples * job.get("sequence", 0)
    return 2 * tokens * facts.hidden_size * WIDTHS[job.get("precision", DTYPE)]


def packed_bytes(matrix: Weight, facts: Format) -> int:
    """Bytes of the packed weight of each of a matrix's copies, without scales."""
    return matrix.outputs * matrix.inputs * _STORED[facts.weight_dtype] // (2 if facts.packed else 1)


def _exported(model: Matrices, facts: Format, width: int, *, weight_only: bool) -> int:
    """Packed weights and scales as configs/formats.yaml has them; what is optional counts as being there."""
    scales = {**facts.scales, **({} if weight_only else facts.input_scales)}
    total = model.others * width + (model.tensors + model.modules * (len(scales) + len(facts.optional))) * _ENTRY
    for matrix in model.packable:
        one = packed_bytes(matrix, facts) + sum(_STORED[dtype] * matrix.inputs for dtype in facts.optional.values())
        one += sum(_STORED[dtype] * _elements(shape, matrix, facts) for dtype, shape in scales.values())
        total += matrix.copies * one
    return total


def _restorable(model: Matrices, facts: Format, width: int, *, compress: bool) -> int:
    """Weights as they are, or packed, and for each a maximum for every scale that is not computed on the fly.

    NVFP4 computes its block scales on the fly, and keeps them where the weight is packed. Measured with ModelOpt 0.47.
    """
    total = model.others * width + (model.tensors + model.modules * len(facts.scales)) * _ENTRY + model.modules * _STATE
    dtype, shape = facts.scales["weight_scale"]
    kept = [] if dtype != "F32" else [4]
    for matrix in model.packable:
        if compress:
            kept, weight = [_STORED[dtype]] * 2 if dtype == "F32" else [_STORED[dtype]], packed_bytes(matrix, facts)
        else:
            weight = matrix.outputs * matrix.inputs * width
        smooth = sum(_STORED[kind] * matrix.inputs for kind in facts.optional.values())
        total += matrix.copies * (weight + sum(kept) * _elements(shape, matrix, facts) + smooth)
    return total


def _elements(shape: str, matrix: Weight, facts: Format) -> int:
    """How many scales one linear layer has."""
    blocks = ceil(matrix.outputs / facts.block[0]) * ceil(matrix.inputs / facts.block[1])
    return {"scalar": 1, "per_output": matrix.outputs}.get(shape, blocks)


def model_matrices(job: Job) -> Matrices | None:
    """The weights of the model that the outputs are made of."""
    name = job.get("model")
    return matrices_of(name, facts_in(job, "model")) if isinstance(name, str) else None


def _output(job: Job, kind: Kind | None, quantized: bool) -> int | None:
    """Of one checkpoint, or of all that a training keeps. Heads for speculative decoding have an architecture of their
    own, a ModelOpt recipe does not say its format, and what is only exported was quantized by another job."""
    model = None if kind is None or job.get("draft_heads") is not None else model_matrices(job)
    if kind is None or model is None:
        return None
    dtype = job.get("file_precision", job.get("precision", DTYPE))
    if job.key("format") is not None:
        format_ = None if job.get("format_recipe") else job.get("format")
        packing = {"weight_only": job.get("weight_only", False), "compress": job.get("compress", False)}
        return checkpoint_bytes(model, format_, kind=kind, dtype=dtype, **packing) if format_ else None
    if isinstance(job.resolved, BestArgs):  # at most: any layer may stay as it is
        size = checkpoint_bytes(model, None, kind=kind, dtype=dtype)
        share = job.resolved.target_size if kind == "hf" else None
        return size if size is None or share is None else int(size * share)
    if job.key("formats") is not None:  # at most: each layer in the largest of them
        facts, bits = most_bits(formats_named(job.resolved.makes())), job.get("effective_bits")
        size = checkpoint_bytes(model, facts.name, kind=kind, dtype=dtype) if facts else None
        if size is None or facts is None or bits is None or kind != "hf":
            return size
        fewer = max(0.0, (facts.search_bits or bits) - bits)
        return size - int(fewer / 8 * sum(matrix.parameters for matrix in model.packable))
    if quantized:
        return None
    if job.resolved.WORK == "scoring":
        return _pruned(job, model, kind)
    if job.resolved.WORK == "training" and kind == "megatron":
        one, kept = checkpoint_bytes(model, None, kind=kind, training=True), _kept(job)
        return one * kept if one and kept else None
    return checkpoint_bytes(model, None, kind=kind, dtype=dtype)


def _pruned(job: Job, model: Matrices, kind: Kind) -> int | None:
    """As many parameters as asked for, or those of the architecture asked for."""
    if sizes := job.get("pruned_sizes"):
        facts = facts_in(job, "model")
        left = _cut(facts, sizes) if facts else None
        pruned = of_facts(left) if left else None
        return checkpoint_bytes(replace(pruned, tokenizer=model.tokenizer), None, kind=kind) if pruned else None
    kept = job.get("kept_parameters")
    return checkpoint_bytes(replace(model, packable=(), others=int(kept)), None, kind=kind) if kept else None


def _kept(job: Job) -> int | None:
    """Checkpoints that a training leaves: one at each interval and one at the end, as far as they are kept."""
    iterations = job.get("iterations") or job.get("train_samples", 0) // job.get("global_batch", 1)
    interval = job.get("save_interval", 0)
    saves = ceil(iterations / interval) if iterations and interval > 0 else None
    limit = job.get("checkpoints_kept", _KEPT) if job.key("checkpoints_kept") else -1
    return min(saves, limit) if saves and limit > 0 else saves  # -1 keeps them all


def _cut(facts: ModelFacts, sizes: Mapping[str, Any]) -> ModelFacts | None:
    """An architecture with other sizes; None where that says too little: of unlike layers it is not known which go."""
    changes = {MEGATRON_SIZES[name]: value for name, value in sizes.items() if name in MEGATRON_SIZES}
    if not all(isinstance(value, int) for value in changes.values()):
        return None
    layers = changes.pop("layers", None)
    if layers is not None:
        if facts.blocks is None or len(set(facts.blocks)) != 1:
            return None
        changes["blocks"] = facts.blocks[:layers]
    return replace(facts, **changes)
