"""Reopen what was written and compare it with what should be there."""

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.args.quantize import KvCacheQuant
from scripts.engines.hf.dequantize import dequantize, group_errors
from scripts.engines.hf.exported import Export, refuse
from scripts.engines.hf.reference import Reference, layer_of
from scripts.formats import Format

if TYPE_CHECKING:
    import torch

Fact = tuple[str, str]
PLAIN = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
KV_ALGO: dict[str, str | None] = {
    "none": None,
    "fp8": "FP8",
    "fp8_affine": "FP8",
    "nvfp4": "NVFP4",
    "nvfp4_affine": "NVFP4_AFFINE",
    "nvfp4_rotate": "NVFP4",
}


def _scale_shape(shape: str, facts: Format, size: tuple[int, int]) -> tuple[int, ...]:
    rows, columns = size[0] // facts.block[0], size[1] // facts.block[1]
    return {"scalar": (), "per_output": (size[0],), "per_block": (rows, columns)}.get(shape, (rows, 1, columns, 1))


def _weight_shape(facts: Format, size: tuple[int, int]) -> tuple[int, int]:
    if facts.packed == "input":
        return (size[0], size[1] // 2)
    return (size[0] // 2, size[1]) if facts.packed == "output" else size


def _check_module(
    export: Export, module: str, size: tuple[int, int], facts: Format, *, weight_only: bool, compressed: bool
) -> int:
    """Dtypes and shapes of one quantized linear; returns how many scale tensors it has."""
    scales = dict(facts.scales_compressed if compressed and facts.scales_compressed else facts.scales)
    if not weight_only:
        scales.update(facts.input_scales)
    wanted: dict[str, tuple[str, tuple[int, ...]]] = {"weight": (facts.weight_dtype, _weight_shape(facts, size))}
    wanted.update({suffix: (dtype, _scale_shape(shape, facts, size)) for suffix, (dtype, shape) in scales.items()})
    for suffix, dtype in facts.optional.items():
        if f"{module}.{suffix}" in export.header:
            wanted[suffix] = (dtype, (size[1],))
    for suffix, expected in wanted.items():
        found = export.header.get(f"{module}.{suffix}")
        if found is None:
            refuse("export_incomplete", f"{module}.{suffix} is missing.")
        if suffix != "weight" and expected[1] == () and found[1] == (1,):
            found = (found[0], ())
        if found != expected:
            told = f"{found[0]} {list(found[1])}, not {expected[0]} {list(expected[1])}"
            refuse("export_wrong_type", f"{module}.{suffix} is {told}.")
    return len(wanted) - 1


def _check_values(export: Export, names: Iterable[str]) -> int:
    import torch

    count = 0
    for name in names:
        values = export.tensor(name).float()
        if not bool(torch.isfinite(values).all()) or not bool((values > 0).all()):
            refuse("export_bad_scale", f"{name} has a scale that is not a positive number.")
        count += 1
    return count


def _scale_names(export: Export) -> list[str]:
    endings = ("scale", "scale_2", "scale_inv")
    return [name for name in export.header if name.rpartition(".")[2].endswith(endings)]


def _check_plain(export: Export, reference: Reference, dtype: str) -> int:
    count = 0
    for module in reference.plain:
        header = export.header.get(f"{module}.weight")
        if header is not None:  # a head tied to the embedding is not stored
            count += 1
            if header[0] != PLAIN[dtype]:
                refuse("export_wrong_type", f"{module}.weight is {header[0]}, but was to stay {PLAIN[dtype]}.")
    return count


def _check_experts(export: Export, reference: Reference) -> None:
    found = sum(
        name.endswith(".weight_scale")
        and ".experts." in name
        and name.removesuffix(".weight_scale") not in reference.modules
        for name in export.header
    )
    if found != reference.experts:
        refuse("export_incomplete", f"{found} layers of experts have scales, not {reference.experts}.")


def _check_config(folder: Path, algo: str | None, kv_cache: KvCacheQuant | None) -> Fact:
    path = folder / "hf_quant_config.json"
    if not path.is_file():
        refuse("export_incomplete", f"{folder} has no hf_quant_config.json.")
    try:
        said = json.loads(path.read_text(encoding="utf-8"))["quantization"]
        found_algo, found_kv = said.get("quant_algo"), said.get("kv_cache_quant_algo")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        refuse("export_incomplete", f"{path} is not what ModelOpt writes: {error}.")
    if algo is not None and found_algo != algo:
        refuse("export_wrong_config", f"{path} says quant_algo {found_algo}, not {algo}.")
    if kv_cache is not None and found_kv != KV_ALGO[kv_cache]:
        refuse("export_wrong_config", f"{path} says kv_cache_quant_algo {found_kv}, not {KV_ALGO[kv_cache]}.")
    return "algorithm", f"{found_algo}, key/value cache {found_kv or 'not quantized'}"


def _check_kv(export: Export, kv_cache: KvCacheQuant) -> None:
    layers = {layer_of(name) for name in export.header if ".self_attn." in name}
    for part in ("k", "v") if kv_cache != "none" else ():
        scaled = {layer_of(name) for name in export.header if name.endswith(f".{part}_scale")}
        missing = sorted(layers - scaled)
        if missing:
            refuse("export_incomplete", f"{missing[0]} has no {part}_scale for its key/value cache.")


def _folds(export: Export, reference: Reference, module: str) -> "list[torch.Tensor]":
    """Input scales that the exporter may have moved into a norm of the module's layer."""
    folds = []
    for name, before in reference.norms.items():
        inputs = reference.modules[module][1]
        if layer_of(name) != layer_of(module) or before.numel() != inputs or name not in export.header:
            continue
        after = export.tensor(name).float()
        # Gemma's norms multiply by one plus the stored weight.
        folds += [after / before, (1 + after) / (1 + before)]
    return folds


def _check_weights(export: Export, reference: Reference, facts: Format) -> list[Fact]:
    """Dequantize the reference's modules; every scale group must agree with the original weights."""
    import torch

    worst = ("", 0.0)
    for module, original in reference.weights.items():
        tensors = export.of_module(module)
        weight = dequantize(facts.name, tensors)
        # Compared as quantized, after the input scale: there rounding has its bound, whatever the scale.
        given = tensors.get("pre_quant_scale")
        scales = [given.float()] if given is not None else [torch.ones(1), *_folds(export, reference, module)]
        error = min(_largest(group_errors(weight, original / scale, tensors["weight_scale"])) for scale in scales)
        if error > facts.group_error:
            cause = f"{module}: dequantized weights are off by {error:.0%} in a scale group; {facts.name} allows "
            refuse("export_wrong_values", f"{cause}{facts.group_error:.0%}.")
        worst = max(worst, (module, error), key=lambda pair: pair[1])
    if not reference.weights:
        return []
    told = f"{len(reference.weights)} layers; largest error of a scale group {worst[1]:.1%} ({worst[0]})"
    return [("weights dequantized", told)]


def _largest(errors: "torch.Tensor") -> float:
    error = float(errors.max())
    return error if math.isfinite(error) else math.inf


def verify_export(
    folder: Path,
    facts: Format | None,
    reference: Reference,
    *,
    kv_cache: KvCacheQuant | None,
    weight_only: bool = False,
    compressed: bool = False,
    dtype: str = "bfloat16",
) -> list[Fact]:
    """Check an exported folder; returns what was found, for the report.

    `facts` is None for a ModelOpt config or recipe: then shards, scales and plain layers are checked, not the format.
    `kv_cache` is None where a recipe decides. Raises JobError: export_incomplete, export_wrong_type,
    export_bad_scale, export_wrong_config, export_wrong_values.
    """
    export = Export(folder)
    algo = None
    if facts is not None:
        algo = facts.quant_algo
        if weight_only and facts.quant_algo_weight_only:
            algo = facts.quant_algo_weight_only
        elif compressed and facts.quant_algo_compressed:
            algo = facts.quant_algo_compressed
    config = _check_config(folder, algo, kv_cache)
    for module, size in reference.modules.items():
        if facts is not None:
            _check_module(export, module, size, facts, weight_only=weight_only, compressed=compressed)
        elif f"{module}.weight" not in export.header:
            refuse("export_incomplete", f"{module}.weight is missing.")
    _check_experts(export, reference)
    plain = _check_plain(export, reference, dtype)
    _check_kv(export, kv_cache or "none")
    scales = _check_values(export, _scale_names(export))
    weights = _check_weights(export, reference, facts) if facts is not None else []
    return [
        ("shards", f"{export.shards}, {len(export.header)} tensors, each in the shard that the index names"),
        config,
        ("quantized layers", f"{len(reference.modules) + reference.experts}, scales complete"),
        ("scales", f"{scales}, all finite and positive"),
        ("layers left alone", f"{plain} in {dtype}"),
        *weights,
    ]


def verify_restorable(
    folder: Path, logits: "torch.Tensor", probe: "torch.Tensor", open_model: Callable[[Path], Any]
) -> list[Fact]:
    """Reopen a ModelOpt checkpoint and compare its logits on `probe` with those of the model in memory.

    `logits` is what the model gave before saving. They must be equal bit for bit: the same weights, scales and
    kernels on the same device. Raises JobError('restore_failed' or 'restore_differs').
    """
    import torch

    from scripts.engines.hf.nvfp4 import cpu_kernels

    try:
        model = open_model(folder)
    except (OSError, RuntimeError, ValueError, KeyError, AttributeError, TypeError, AssertionError) as error:
        text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        refuse("restore_failed", f"{folder} cannot be reopened: {text}.")
    with torch.no_grad(), cpu_kernels():
        again = model(input_ids=probe.to(model.device), use_cache=False).logits
    if not torch.equal(again.cpu(), logits.cpu()):
        difference = float((again.cpu().float() - logits.cpu().float()).abs().max())
        refuse("restore_differs", f"{folder}, reopened, gives other logits (by up to {difference:.3g}).")
    return [("reopened", f"logits of {probe.numel()} tokens equal bit for bit")]


def open_restorable(folder: Path, *, dtype: str, device: "torch.device", trust_remote_code: bool = False) -> Any:
    """A model with its quantizers from a folder that save_restorable wrote."""
    import torch
    from transformers import AutoModelForCausalLM

    from scripts.engines.hf.save import huggingface_checkpointing

    if not (folder / "modelopt_state.pth").is_file():
        refuse("restore_failed", f"{folder} has no modelopt_state.pth.")
    with huggingface_checkpointing():
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, dtype), use_safetensors=True, trust_remote_code=trust_remote_code
        )
    return model.to(device).eval()
