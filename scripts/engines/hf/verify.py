"""Reopen what was written and compare it with what should be there.

Weights are dequantized by the layout of the files, not with the exporter's code. Only safetensors are read.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from scripts.args.quantize import KvCacheQuant
from scripts.checkpoints.documents import read_json
from scripts.checkpoints.quantization import MIXED
from scripts.checkpoints.safetensors import read_header
from scripts.engines.hf.load import first_line
from scripts.engines.hf.nvfp4 import cpu_kernels
from scripts.engines.hf.reference import Reference, layer_of
from scripts.engines.hf.save import STATE, enable_checkpointing
from scripts.formats import CACHES, Format
from scripts.run.problems import JobError

if TYPE_CHECKING:
    import torch

Fact = tuple[str, str]
INDEX = "model.safetensors.index.json"
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
#: How the names of scales end; models have parameters of their own that are called scales.
SCALES = ("weight_scale", "weight_scale_2", "scale_inv", "input_scale", "pre_quant_scale", "k_scale", "v_scale")
#: Weights that are compared at a time, at least; and a multiple of the rows that any format has in a block.
COMPARED, _ROWS = 1 << 23, 128
#: The dtype of scales that are a power of two, of which the exponent is stored, 127 above; 255 is no number.
_EXPONENT, _NO_EXPONENT = "U8", 255
PLAIN = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
_PLAIN = PLAIN["bfloat16"]


def refuse(name: str, cause: str) -> NoReturn:
    """Raise the JobError of a check that found something wrong in what was just written."""
    raise JobError(name, cause, "Delete the folder and run again; if it happens again, it is a defect.")


class Export:
    """The tensors of an exported folder, by name, read from safetensors headers; never a pickle.

    Raises JobError('export_incomplete') where index, shards and headers disagree.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shard_of: dict[str, Path] = {}
        self.header: dict[str, tuple[str, tuple[int, ...]]] = {}
        self.shards = sorted(folder.glob("*.safetensors"))
        if not self.shards:
            refuse("export_incomplete", f"{folder} has no safetensors file.")
        try:
            for shard in self.shards:
                for name, entry in read_header(shard).items():
                    if name in self.shard_of:
                        first = self.shard_of[name].name
                        refuse("export_incomplete", f"{name} is both in {first} and in {shard.name}.")
                    self.shard_of[name] = shard
                    self.header[name] = (entry["dtype"], tuple(entry["shape"]))
            self._check_index(folder / INDEX)
        except JobError as error:
            refuse("export_incomplete", error.cause)

    @cached_property
    def _plain(self) -> str:
        """The dtype of what is not quantized, by config.json."""
        config = read_json(self.folder / "config.json")
        return PLAIN.get(str(config.get("dtype") or config.get("torch_dtype")), _PLAIN)

    def plain(self, dtype: str) -> str:
        """What a tensor is that has this dtype in an export of a model in bfloat16."""
        return self._plain if dtype == _PLAIN else dtype

    def _check_index(self, path: Path) -> None:
        if not path.is_file():
            if len(self.shards) > 1:
                refuse("export_incomplete", f"{self.folder} has {len(self.shards)} shards and no {INDEX}.")
            return
        listed = read_json(path).get("weight_map")
        if not isinstance(listed, dict):
            refuse("export_incomplete", f"{path} is not a weight index.")
        present = {name: shard.name for name, shard in self.shard_of.items()}
        wrong = sorted(name for name in {*listed, *present} if listed.get(name) != present.get(name))
        if wrong:
            name = wrong[0]
            where = f"in {listed.get(name) or 'no shard'} by the index, in {present.get(name) or 'none'} by the files"
            refuse("export_incomplete", f"{name} is {where} ({len(wrong)} tensors disagree).")

    def tensor(self, name: str) -> "torch.Tensor":
        """One tensor, read from its shard."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.shard_of[name], framework="pt") as file:
                tensor: torch.Tensor = file.get_tensor(name)
                return tensor
        except SafetensorError as error:
            refuse("export_incomplete", f"{name} cannot be read: {error}.")

    def of_module(self, module: str, beside: Iterable[str] = ()) -> "dict[str, torch.Tensor]":
        """The tensors of one module by their last name, such as weight and weight_scale, and those `beside` them."""
        parts = ((name, *name.rpartition(".")) for name in self.header)
        own = {last: self.tensor(name) for name, owner, _, last in parts if owner == module}
        return own | {name: self.tensor(f"{module}.{name}") for name in beside}


def _per_block(scale: "torch.Tensor", shape: tuple[int, int]) -> "torch.Tensor":
    """A scale of any of the stored shapes, spread over a weight of `shape` [out, in]."""
    if scale.numel() == 1:
        return scale.float().reshape(1, 1).expand(shape)
    if scale.ndim == 1:
        return scale.float()[:, None].expand(shape)
    grid = scale.float().reshape(scale.shape[0], -1)
    rows, columns = shape[0] // grid.shape[0], shape[1] // grid.shape[1]
    return grid.repeat_interleave(rows, 0).repeat_interleave(columns, 1)


def _unpacked(packed: "torch.Tensor", side: str | None) -> "torch.Tensor":
    """The values of weights of which a byte holds two neighbours along this side, the first in the low half."""
    import torch

    if side is None:
        return packed.float()
    halves = [packed & 0x0F, packed >> 4]
    if side == "input":  # NVFP4
        return torch.tensor(E2M1)[torch.stack(halves, -1).reshape(packed.shape[0], -1).long()]
    codes = torch.stack(halves, 1).reshape(-1, packed.shape[1]).to(torch.int8)  # INT4, two's complement
    return torch.where(codes > 7, codes - 16, codes).float()


def dequantize(facts: Format, tensors: "Mapping[str, torch.Tensor]") -> "torch.Tensor":
    """A module's weight [out, in] in float32.

    `tensors` are the module's own: weight, weight_scale, weight_scale_2, and the factors of what is added. The result
    applies to the module's input after pre_quant_scale, where there is one.
    """
    import torch

    values, scale = _unpacked(tensors["weight"], facts.packed), tensors["weight_scale"]
    if facts.scales["weight_scale"][0] == _EXPONENT:
        scale = torch.exp2(scale.float() - 127)
    weight = values * _per_block(scale, (values.shape[0], values.shape[1]))
    if facts.scales["weight_scale"][0] == "F8_E4M3":  # scales that are rounded themselves have a scale of their own
        weight = weight * tensors["weight_scale_2"].float()
    if facts.low_rank:
        first, second = (tensors[name].float() for name in facts.low_rank)
        weight = weight + second @ first
    return weight


def group_errors(weight: "torch.Tensor", original: "torch.Tensor", scale: "torch.Tensor") -> "torch.Tensor":
    """The relative error of each scale group of `weight` against `original`, both [out, in].

    Groups far smaller than the average are measured against a twentieth of the average, as their scale is at the
    lower end of its own format.
    """
    import torch

    difference, size = (weight - original).square(), original.square()
    if scale.numel() == 1:
        return (difference.sum() / size.sum().clamp(min=1e-30)).sqrt().reshape(1)
    rows = weight.shape[0] // scale.shape[0]
    columns = weight.shape[1] // (scale.reshape(scale.shape[0], -1).shape[1] if scale.ndim > 1 else 1)
    pooled = [
        part.reshape(weight.shape[0] // rows, rows, weight.shape[1] // columns, columns).sum((1, 3))
        for part in (difference, size)
    ]
    floor = pooled[1].sqrt().mean().clamp(min=1e-15) / 20
    return pooled[0].sqrt() / torch.maximum(pooled[1].sqrt(), floor)


def _check_module(
    export: Export, module: str, size: tuple[int, int], facts: Format, *, weight_only: bool, compressed: bool
) -> None:
    """Dtypes and shapes of one quantized linear of `size` [out, in]."""
    outputs, inputs = size
    rows, columns = outputs // facts.block[0], inputs // facts.block[1]
    shapes: dict[str, tuple[int, ...]] = {
        "scalar": (),
        "per_output": (outputs,),
        "per_block": (rows, columns),
        "per_block_4d": (rows, 1, columns, 1),
    }
    packed = {"input": (outputs, inputs // 2), "output": (outputs // 2, inputs)}
    scales = (compressed and facts.scales_compressed) or facts.scales
    scales = {**scales, **({} if weight_only else facts.input_scales)}
    wanted: dict[str, tuple[str, tuple[int, ...]]] = {
        "weight": (facts.weight_dtype, packed.get(facts.packed or "", size))
    }
    wanted |= {suffix: (dtype, shapes[shape]) for suffix, (dtype, shape) in scales.items()}
    wanted |= {
        name: (export.plain(dtype), (inputs,))
        for name, dtype in facts.optional.items()
        if f"{module}.{name}" in export.header
    }
    for suffix, expected in wanted.items():
        found = export.header.get(f"{module}.{suffix}")
        if found is None:
            refuse("export_incomplete", f"{module}.{suffix} is missing.")
        if suffix != "weight" and math.prod(expected[1]) == 1 and found[1] in ((), (1,)):
            found = (found[0], expected[1])  # ModelOpt drops the sides of a scale that is one number
        if found != expected:
            told = f"{found[0]} {list(found[1])}, not {expected[0]} {list(expected[1])}"
            refuse("export_wrong_type", f"{module}.{suffix} is {told}.")
    _check_low_rank(export, module, size, facts)


def _check_low_rank(export: Export, module: str, size: tuple[int, int], facts: Format) -> None:
    """The two factors of what is added to a weight: [rank, in] and [out, rank]."""
    found = [export.header.get(f"{module}.{suffix}") for suffix in facts.low_rank]
    for suffix, each in zip(facts.low_rank, found, strict=True):
        if each is None:
            refuse("export_incomplete", f"{module}.{suffix} is missing.")
    shapes = [(dtype, shape) for dtype, shape in filter(None, found)]
    if shapes:
        rank = shapes[0][1][0]
        dtypes = map(export.plain, facts.low_rank.values())
        wanted = list(zip(dtypes, ((rank, size[1]), (size[0], rank)), strict=True))
        if shapes != wanted:
            refuse("export_wrong_type", f"{module} has factors {shapes}, not {wanted}.")


def _check_scales(export: Export) -> Fact:
    import torch

    names = [name for name in export.header if name.endswith(SCALES)]
    for name in names:
        values = export.tensor(name).float()
        if export.header[name][0] == _EXPONENT:
            values = torch.where(values == _NO_EXPONENT, math.nan, torch.exp2(values - 127))
        if not bool(torch.isfinite(values).all()) or not bool((values > 0).all()):
            refuse("export_bad_scale", f"{name} has a scale that is not a positive number.")
    return "scales", f"{len(names)}, all finite and positive"


def _check_plain(export: Export, reference: Reference) -> Fact:
    """A head that is tied to the embedding is not stored."""
    stored = {module: dtype for module, dtype in reference.plain.items() if f"{module}.weight" in export.header}
    for module, dtype in stored.items():
        header = export.header[f"{module}.weight"][0]
        if header != PLAIN[dtype]:
            refuse("export_wrong_type", f"{module}.weight is {header}, but was to stay {PLAIN[dtype]}.")
    return "layers left alone", f"{len(stored)} in {' and '.join(sorted(set(stored.values()))) or 'none'}"


def _check_excluded(folder: Path, reference: Reference, export: Export) -> None:
    """Loaders take every linear layer for quantized that hf_quant_config.json does not exclude, or those it lists."""
    said = read_json(folder / "hf_quant_config.json")["quantization"]
    if isinstance(listed := said.get("quantized_layers"), dict) and listed:
        _check_listed(listed, reference, export)
        return
    patterns = said.get("exclude_modules") or []
    for module in (one for one in reference.plain if f"{one}.weight" in export.header):
        if not any(fnmatchcase(module, pattern) for pattern in patterns):
            refuse("export_wrong_config", f"{module} is not quantized, and hf_quant_config.json does not exclude it.")
    for module in reference.modules:
        if any(fnmatchcase(module, pattern) for pattern in patterns):
            refuse("export_wrong_config", f"{module} is quantized, and hf_quant_config.json excludes it.")


def _check_listed(listed: Mapping[str, Any], reference: Reference, export: Export) -> None:
    """Each layer by its own format; experts have names of the export's, and are not looked up."""
    for module in reference.modules:
        facts, said = reference.formats.get(module), listed.get(module)
        found = said.get("quant_algo") if isinstance(said, dict) else None
        if found is None or (facts is not None and found != facts.quant_algo):
            wanted = "nothing" if facts is None else facts.quant_algo
            refuse("export_wrong_config", f"hf_quant_config.json says {found} of {module}, not {wanted}.")
    for module in (one for one in reference.plain if one in listed and f"{one}.weight" in export.header):
        refuse("export_wrong_config", f"{module} is not quantized, and hf_quant_config.json lists it.")


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
        said = read_json(path)["quantization"]
        found_algo, found_kv = said.get("quant_algo"), said.get("kv_cache_quant_algo")
    except (JobError, KeyError, TypeError, AttributeError) as error:
        refuse("export_incomplete", f"{path} is not what ModelOpt writes: {error}.")
    if algo is not None and found_algo != algo:
        refuse("export_wrong_config", f"{path} says quant_algo {found_algo}, not {algo}.")
    wanted = CACHES[kv_cache].quant_algo if kv_cache and kv_cache != "none" else None
    if kv_cache is not None and found_kv != wanted:
        refuse("export_wrong_config", f"{path} says kv_cache_quant_algo {found_kv}, not {wanted}.")
    return "algorithm", f"{found_algo}, key/value cache {found_kv or 'not quantized'}"


def _check_kv(export: Export, kv_cache: KvCacheQuant) -> None:
    layers = {layer_of(name) for name in export.header if ".self_attn." in name}
    for part in ("k", "v") if kv_cache != "none" and not CACHES[kv_cache].cast else ():
        scaled = {layer_of(name) for name in export.header if name.endswith(f".{part}_scale")}
        missing = sorted(layers - scaled)
        if missing:
            refuse("export_incomplete", f"{missing[0]} has no {part}_scale for its key/value cache.")


def _folds(export: Export, reference: Reference, module: str) -> "list[torch.Tensor]":
    """Input scales that the exporter may have moved into a norm of the module's layer, or into the layer before."""
    folds = [reference.smooth[module]] if module in reference.smooth else []
    for name, before in reference.norms.items():
        inputs = reference.modules[module][1]
        if layer_of(name) != layer_of(module) or before.numel() != inputs or name not in export.header:
            continue
        after = export.tensor(name).float()
        # Gemma's norms multiply by one plus the stored weight.
        folds += [after / before, (1 + after) / (1 + before)]
    return folds


def _gains(export: Export, reference: Reference, module: str) -> "list[torch.Tensor]":
    """Input scales of other modules of its layer that the exporter may have moved into this one's outputs."""
    outputs = reference.modules[module][0]
    return [
        scale[:, None]
        for name, scale in reference.smooth.items()
        if layer_of(name) == layer_of(module) and scale.numel() == outputs
        if f"{name}.pre_quant_scale" not in export.header
    ]


def _unpacked_shape(facts: Format, weight: "torch.Tensor") -> "tuple[int, ...]":
    rows, columns = weight.shape
    return rows * (2 if facts.packed == "output" else 1), columns * (2 if facts.packed == "input" else 1)


def _blocks(
    facts: Format, tensors: "Mapping[str, torch.Tensor]", original: "torch.Tensor"
) -> "Iterator[tuple[dict[str, torch.Tensor], torch.Tensor]]":
    """A module and its original weight by rows, so that what is compared does not take many times a large one."""
    outputs, inputs = original.shape
    step = max(1, COMPARED // inputs // _ROWS) * _ROWS
    for begin in range(0, outputs, step):
        end = min(begin + step, outputs)
        own = {}
        for name, tensor in tensors.items():
            by_rows = name.startswith("weight") and tensor.numel() > 1 and name not in list(facts.low_rank)[:1]
            each = outputs // tensor.shape[0] if by_rows else 0
            own[name] = tensor[begin // each : -(-end // each)] if each else tensor
        yield own, original[begin:end]


def _worst(facts: Format, tensors: "Mapping[str, torch.Tensor]", original: "torch.Tensor") -> float:
    return float(group_errors(dequantize(facts, tensors), original, tensors["weight_scale"]).max())


def _check_weights(export: Export, reference: Reference, formats: Mapping[str, Format]) -> list[Fact]:
    """Dequantize the reference's modules; every scale group must agree with the original weights."""
    import torch

    worst, looked_at = ("", 0.0), 0
    for module, original in reference.weights.items():
        if (facts := formats.get(module)) is None:
            continue
        looked_at += 1
        tensors = export.of_module(module, facts.low_rank)
        if (found := _unpacked_shape(facts, tensors["weight"])) != original.shape:
            refuse(
                "export_wrong_values", f"{module}.weight is {list(found)}, and {list(original.shape)} in the source."
            )
        # Compared as quantized, after the input scale: there rounding has its bound, whatever the scale.
        given = tensors.pop("pre_quant_scale", None)
        scales = [given.float()] if given is not None else [torch.ones(1), *_folds(export, reference, module)]
        gains = [torch.ones(1), *_gains(export, reference, module)]
        errors = [
            max(_worst(facts, own, rows / scale) for own, rows in _blocks(facts, tensors, original * gain))
            for scale in scales
            for gain in gains
        ]
        error = min(one if math.isfinite(one) else math.inf for one in errors)
        if error > facts.group_error:
            cause = f"{module}: dequantized weights are off by {error:.0%} in a scale group; {facts.name} allows "
            refuse("export_wrong_values", f"{cause}{facts.group_error:.0%}.")
        worst = max(worst, (module, error), key=lambda pair: pair[1])
    if not looked_at:
        return []
    told = f"{looked_at} layers; largest error of a scale group {worst[1]:.1%} ({worst[0]})"
    return [("weights dequantized", told)]


def verify_export(
    folder: Path,
    facts: Format | None,
    reference: Reference,
    *,
    kv_cache: KvCacheQuant | None,
    weight_only: bool = False,
    compressed: bool = False,
) -> list[Fact]:
    """Check an exported folder; returns what was found, for the report.

    `facts` is None for a ModelOpt config or recipe: then shards, scales and plain layers are checked, not the format,
    unless `reference` knows that of each layer.
    `kv_cache` is None where a recipe decides. Raises JobError: export_incomplete, export_wrong_type,
    export_bad_scale, export_wrong_config, export_wrong_values.
    """
    export = Export(folder)
    reference = reference.as_in(export.header)
    formats = dict.fromkeys(reference.modules, facts) if facts is not None else reference.formats
    algo = None
    if facts is not None:
        special = (
            facts.quant_algo_weight_only if weight_only else None,
            facts.quant_algo_compressed if compressed else None,
        )
        algo = next(filter(None, special), facts.quant_algo)
    elif reference.modules and formats.keys() >= reference.modules.keys():
        several = {one.quant_algo for name, one in formats.items() if name not in reference.plain}  # experts, too
        algo = next(iter(several)) if len(several) == 1 else MIXED
    config = _check_config(folder, algo, kv_cache)
    for module, size in reference.modules.items():
        if own := formats.get(module):
            _check_module(export, module, size, own, weight_only=weight_only, compressed=compressed)
        elif f"{module}.weight" not in export.header:
            refuse("export_incomplete", f"{module}.weight is missing.")
    _check_experts(export, reference)
    plain = _check_plain(export, reference)
    _check_excluded(folder, reference, export)
    _check_kv(export, kv_cache or "none")
    scales = _check_scales(export)
    weights = _check_weights(export, reference, formats)
    return [
        ("shards", f"{len(export.shards)}, {len(export.header)} tensors, each in the shard that the index names"),
        config,
        ("quantized layers", f"{len(reference.modules) + reference.experts}, scales complete"),
        scales,
        plain,
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

    try:
        model = open_model(folder)
    except (OSError, RuntimeError, ValueError, KeyError, AttributeError, TypeError, AssertionError) as error:
        refuse("restore_failed", f"{folder} cannot be reopened: {first_line(error)}.")
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

    if not (folder / STATE).is_file():
        refuse("restore_failed", f"{folder} has no {STATE}.")
    enable_checkpointing()
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), use_safetensors=True, trust_remote_code=trust_remote_code
    )
    return model.to(device).eval()
