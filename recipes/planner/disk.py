"""How many bytes a checkpoint has on disk, before and after it is quantized, and what a job is going to leave."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from math import ceil
from types import MappingProxyType
from typing import Any, Literal

from recipes.experiment.job import Job, written
from recipes.models import ModelFacts, facts_of
from recipes.planner.matrices import Matrices, Matrix, matrices_of, of_facts
from scripts.args.convert import HfToMegatronArgs, MegatronToHfArgs, MergeLoraArgs
from scripts.args.distill import DistillArgs
from scripts.args.export import ExportDistilledArgs
from scripts.args.interpolation import MODEL_FIELDS
from scripts.args.megatron_lm import MlmConvertArgs, MlmFinetuneArgs, MlmQuantizeArgs
from scripts.args.prune import PruneArgs
from scripts.args.quantize import QuantizeArgs, QuantizeModelOptArgs, QuantizeVlmArgs
from scripts.formats import FORMATS, Format

#: hf: as Transformers has it, deployable. modelopt: the model and its quantizers, to be reopened. megatron: torch_dist.
Kind = Literal["hf", "modelopt", "megatron"]

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
    reader = _READERS.get(type(job.resolved))
    sizes = {key: reader(job, kind) for key, kind, _ in written(job)} if reader else {}
    return {key: size for key, size in sizes.items() if size is not None}


def packed_bytes(matrix: Matrix, facts: Format) -> int:
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


def _elements(shape: str, matrix: Matrix, facts: Format) -> int:
    """How many scales one linear layer has."""
    blocks = ceil(matrix.outputs / facts.block[0]) * ceil(matrix.inputs / facts.block[1])
    return {"scalar": 1, "per_output": matrix.outputs}.get(shape, blocks)


def model_matrices(job: Job) -> Matrices | None:
    """The weights of the model that the outputs are made of."""
    return next((_matrices(job, field) for field in MODEL_FIELDS if hasattr(job.resolved, field)), None)


def _matrices(job: Job, field: str) -> Matrices | None:
    name = getattr(job.resolved, field)
    return matrices_of(name, _facts(job, field)) if isinstance(name, str) else None


def _facts(job: Job, field: str) -> ModelFacts | None:
    return job.models.get(field) or facts_of(getattr(job.resolved, field))


_Size = Callable[[Job, str], int | None]
_KINDS: Mapping[str, Kind] = MappingProxyType(
    {"checkpoint_hf": "hf", "checkpoint_modelopt": "modelopt", "checkpoint_megatron": "megatron"}
)


def _quantized(format_field: str) -> _Size:
    """In the format that a field names; a recipe's is not known."""

    def size(job: Job, kind: str) -> int | None:
        args, model = job.resolved, model_matrices(job)
        format_ = getattr(args, format_field)
        if model is None or format_ is None or getattr(args, "recipe", None):
            return None
        return checkpoint_bytes(
            model,
            format_,
            kind=_KINDS[kind],
            weight_only=args.weight_only,
            compress=args.compress,
            dtype=getattr(args, "dtype", DTYPE),
        )

    return size


def _plain(*dtype_fields: str, model: str | None = None) -> _Size:
    """The same model in another layout, in the precision that the first of the fields with a value names."""

    def size(job: Job, kind: str) -> int | None:
        matrices = _matrices(job, model) if model else model_matrices(job)
        said = (getattr(job.resolved, field) for field in dtype_fields)
        dtype = next(filter(None, said), DTYPE)
        return checkpoint_bytes(matrices, None, kind=_KINDS[kind], dtype=dtype) if matrices else None

    return size


def _converted_mlm(job: Job, kind: str) -> int | None:
    """Heads for speculative decoding have an architecture of their own."""
    return None if job.resolved.algorithm else _plain()(job, kind)


def _pruned(job: Job, kind: str) -> int | None:
    """As many parameters as asked for, or those of the architecture asked for."""
    args, model = job.resolved, model_matrices(job)
    if args.prune_export_config and model is not None:
        facts = _facts(job, "hf_model_name_or_path")
        left = _cut(facts, args.prune_export_config) if facts else None
        pruned = of_facts(left) if left else None
        whole = replace(pruned, tokenizer=model.tokenizer) if pruned else None
        return checkpoint_bytes(whole, None, kind=_KINDS[kind]) if whole else None
    if model is None or not args.prune_target_params:
        return None
    kept = replace(model, packable=(), others=int(args.prune_target_params))
    return checkpoint_bytes(kept, None, kind=_KINDS[kind])


#: What Megatron calls the sizes that pruning changes.
_SIZES = MappingProxyType(
    {
        "hidden_size": "hidden_size",
        "ffn_hidden_size": "ffn_hidden_size",
        "num_attention_heads": "heads",
        "num_query_groups": "query_groups",
        "num_moe_experts": "experts",
        "moe_ffn_hidden_size": "expert_ffn_size",
        "moe_shared_expert_intermediate_size": "shared_expert_ffn_size",
        "mamba_num_heads": "mamba_heads",
        "mamba_head_dim": "mamba_head_dim",
    }
)


def _cut(facts: ModelFacts, sizes: Mapping[str, Any]) -> ModelFacts | None:
    """An architecture with other sizes; None where that says too little: of unlike layers it is not known which go."""
    changes = {_SIZES[name]: value for name, value in sizes.items() if name in _SIZES}
    layers = sizes.get("num_layers")
    if not all(isinstance(value, int) for value in (*changes.values(), layers or 0)):
        return None
    if layers is not None:
        if facts.blocks is None or len(set(facts.blocks)) != 1:
            return None
        changes["blocks"] = facts.blocks[:layers]
    return replace(facts, **changes)


def _distilled(job: Job, kind: str) -> int | None:
    """Every checkpoint of the training that is kept, or the student that is exported at its end."""
    args, model = job.resolved, model_matrices(job)
    if model is None:
        return None
    if kind == "checkpoint_hf":
        return checkpoint_bytes(model, None, kind="hf")
    saves = _saves(args.train_iters, args.save_interval or args.eval_interval)
    limit = _KEPT if args.checkpoint_keep_last is None else args.checkpoint_keep_last
    kept = min(saves, limit) if saves and limit > 0 else saves  # -1 keeps them all
    return kept and _training_bytes(model, kept)


def _finetuned(job: Job, _: str) -> int | None:
    args, model = job.resolved, model_matrices(job)
    iterations = args.train_iters or (args.train_samples or 0) // args.global_batch_size
    saves = _saves(iterations, args.save_interval)
    return None if model is None or saves is None else _training_bytes(model, saves)


def _saves(iterations: int | None, interval: int) -> int | None:
    """Checkpoints of a training: one at each interval, and one at the end."""
    return ceil(iterations / interval) if iterations and interval > 0 else None


def _training_bytes(model: Matrices, saves: int) -> int:
    one = checkpoint_bytes(model, None, kind="megatron", training=True)
    assert one is not None, "a size is known of every model that is not quantized"
    return saves * one


_READERS: Mapping[type, _Size] = MappingProxyType(
    {
        QuantizeArgs: _quantized("export_quant_cfg"),
        QuantizeVlmArgs: _quantized("export_quant_cfg"),
        QuantizeModelOptArgs: _quantized("quant_cfg"),
        MlmQuantizeArgs: _quantized("export_quant_cfg"),
        PruneArgs: _pruned,
        DistillArgs: _distilled,
        MlmFinetuneArgs: _finetuned,
        HfToMegatronArgs: _plain("torch_dtype"),
        MegatronToHfArgs: _plain("export_weight_dtype", "torch_dtype"),
        MergeLoraArgs: _plain(model="hf_model_path"),
        ExportDistilledArgs: _plain(),
        MlmConvertArgs: _converted_mlm,
    }
)
