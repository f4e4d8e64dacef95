"""What of a checkpoint's files a format quantizes, and the arithmetic on them: no model is built, no text is read.

For formats that need nothing but weights, or besides them largest inputs that are known. ModelOpt's own functions are
given one linear layer at a time, or those that servers fuse (q, k and v; gate and up), which share a scale; what is in
memory is their weights. What is quantized is what ModelOpt quantizes of the model as transformers would build it; of an
architecture that transformers does not know, every matrix in the files that the format's rules take and that is no
embedding.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, field
from functools import cached_property
from io import StringIO
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.checkpoints.safetensors import read_header
from scripts.engines.hf import load, quantizers
from scripts.engines.hf.nvfp4 import cpu_kernels
from scripts.engines.hf.reference import names_in_memory, quantized_linears, split_names
from scripts.formats import WEIGHTS_ALONE
from scripts.run.problems import JobError

if TYPE_CHECKING:
    import torch
    from torch import nn

#: What servers compute as one matrix, by the last parts of the names, where a model does not tell (`_given_the_same`).
FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("w1", "w3"), ("q_a_proj", "kv_a_proj_with_mqa"))
#: How the names of what is quantized end.
WEIGHT = ".weight"
#: One of several experts, as files name it.
_EXPERT = re.compile(r"\bexperts\.\d+\.")
_NO_LINEAR = re.compile(r"embed|\bwte\b|\bwpe\b|norm|router|\bmlp\.gate\.|conv", re.IGNORECASE)
#: Formats of ModelOpt whose scales its exporter leaves apart, but for experts.
_APART = ("fp8", "fp8_pb_real")
#: What a quantizer says that has no scale, finds it anew each time, or has one for all.
_OF_NO_TEXT = ("is_mx_format", "_dynamic", "_use_constant_amax")
#: Weights that are quantized at a time.
AT_A_TIME = 1 << 23
#: Bytes that each takes: amax, its float32 steps and what is packed of it, with what glibc keeps (measured).
_WORK = 40
#: In rows that are a multiple of these: two blocks of any format, as ModelOpt takes the sides off a scale of one.
_ROWS = 256


def memory_of(largest: int) -> dict[str, int]:
    """Bytes in memory, and in no file, while matrices of at most so many weights are quantized: two that share a scale,
    of which some rows are worked on."""
    return {"packed weights": 2 * largest, "work": _WORK * min(largest, AT_A_TIME)}


@dataclass(frozen=True, kw_only=True)
class Source:
    """The tensors of a folder of safetensors, by name; their data is mapped where it is used, never read whole."""

    folder: Path

    @cached_property
    def shards(self) -> dict[str, dict[str, Any]]:
        """The header of each file, by its name."""
        return {file.name: read_header(file) for file in sorted(self.folder.glob("*.safetensors"))}

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(row["shape"]) for shard in self.shards.values() for name, row in shard.items()}

    @cached_property
    def _shard_of(self) -> dict[str, str]:
        return {name: shard for shard, header in self.shards.items() for name in header}

    def tensor(self, name: str) -> "torch.Tensor":
        """One tensor, mapped from its file. Raises JobError('damaged_weights')."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.folder / self._shard_of[name], framework="pt") as file:
                tensor: torch.Tensor = file.get_tensor(name)
        except SafetensorError as error:
            raise load.damaged(str(self.folder), error) from error
        return tensor


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The linear layers of some files: those that a format quantizes and those that stay, by their names there.

    `said`: what hf_quant_config.json says. `in_float32`: parts of the names of tensors that stay in 32 bits. `groups`:
    layers that are given the same tensor, by each of them. `left_over`: what no model is made of, nor any export.
    """

    quantized: frozenset[str]
    plain: frozenset[str]
    said: Mapping[str, Any]
    in_float32: frozenset[str] = frozenset()
    groups: Mapping[str, Sequence[str]] = field(default_factory=dict)
    left_over: frozenset[str] = frozenset()

    def stays_wide(self, name: str) -> bool:
        """Whether transformers keeps a tensor in 32 bits, whatever the others are loaded in."""
        return any(part in name for part in self.in_float32)

    def sharing(self, name: str) -> tuple[str, ...]:
        """The layers that share a scale with one, in order; itself alone where none does."""
        if name in self.groups:
            return tuple(one for one in self.groups[name] if one in self.quantized)
        owner, _, last = name.rpartition(".")
        group = next((group for group in FUSED if last in group), (last,))
        return tuple(one for part in group if (one := f"{owner}.{part}" if owner else part) in self.quantized)


def select(
    source: Source, config: Mapping[str, Any], trust_remote_code: bool, *, calibrated: bool = False
) -> Selection:
    """What a format takes of the files; `calibrated`: what goes through the layers is found by other means.

    Raises JobError as `quantizers.rehearse`, `needs_calibration` and `weights_do_not_match`.
    """
    from modelopt.torch.export.quant_utils import get_quant_config

    try:
        bare = load.without_weights(str(source.folder), trust_remote_code)
    except JobError as error:
        if calibrated or error.name != "unknown_model":
            raise
        return _by_names(source, config)
    names = list(names_in_memory(bare, source.shapes))
    _refuse_other_weights(source, bare, names)
    held = bare.state_dict()
    given = _given_the_same(bare)
    quantizers.rehearse(bare, dict(config), exported=True)
    quantized, plain = quantized_linears(bare)
    if calibrated:
        _mark(quantized.values(), config)
    else:
        _refuse_calibration(bare, config)
    found: dict[bool, set[str]] = {True: set(), False: set()}
    for stored, now, joined in names:
        module = now.removesuffix(WEIGHT)
        if experts := _weight_quantizers(bare, now):
            enabled = all(one.is_enabled for one in experts)
            if enabled and not joined:
                cause = f"{stored} holds all experts of a layer in one tensor, which only a whole model gets quantized."
                raise JobError("unsupported_model", cause, "Use args.from_files=false and args.memory=null.")
            found[enabled].add(stored.removesuffix(WEIGHT))
        elif not joined and module in (quantized | plain) and stored.endswith(WEIGHT):
            found[module in quantized].add(stored.removesuffix(WEIGHT))
    said = get_quant_config(bare)
    _rename(bare, said)
    strict = frozenset(getattr(bare, "_keep_in_fp32_modules_strict", None) or ())
    files = {now: stored.removesuffix(WEIGHT) for stored, now, joined in names if not joined}
    groups = [[files[one + WEIGHT] for one in group if one + WEIGHT in files] for group in given]
    return Selection(
        quantized=frozenset(found[True]),
        plain=frozenset(found[False]),
        said=said,
        in_float32=strict,
        groups={one: group for group in reversed(groups) for one in group},
        left_over=frozenset(stored for stored, now, _ in names if now not in held),
    )


def _mark(linears: Iterable[Any], config: Mapping[str, Any]) -> None:
    """Let ModelOpt's exporter call their format what it does once they are calibrated: of NVFP4 that depends on it."""
    method = quantizers.algorithm_name(dict(config))
    for linear in linears if method in ("awq_lite", "svdquant") else ():
        linear.fused_with_prequant = True
        if method == "svdquant":
            linear.weight_quantizer.svdquant_lora_a = None


def _given_the_same(bare: Any) -> list[list[str]]:
    """Linear layers by the tensor that they are given: ModelOpt's exporter has those of one share a scale, such as all
    of a layer whose attention and MLP are side by side (Cohere). None where a model does not run without weights."""
    import torch
    from torch import nn

    given: dict[int, tuple[torch.Tensor, list[str]]] = {}

    def note(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            if inputs and isinstance(inputs[0], torch.Tensor):
                given.setdefault(id(inputs[0]), (inputs[0], []))[1].append(name)

        return hook

    linear = ((name, module) for name, module in bare.named_modules() if isinstance(module, nn.Linear))
    handles = [module.register_forward_pre_hook(note(name)) for name, module in linear]
    tokens = torch.ones(1, 2, dtype=torch.long, device="meta")
    # A whole mask, so that none has to be made of values; of what takes no such mask, none.
    masks = (torch.ones(1, 1, 2, 2, dtype=torch.bool, device="meta"), None)
    experts = [module for name, module in bare.named_modules() if name.endswith("experts")]
    for module in experts:
        module.forward = lambda states, *_, **__: states  # they go by values
    try:
        for mask in masks:
            given.clear()
            with torch.no_grad(), suppress(Exception):  # each architecture has errors of its own
                bare(tokens, attention_mask=mask, use_cache=False)
                return [list(dict.fromkeys(names)) for _, names in given.values()]
        return []
    finally:
        for handle in handles:
            handle.remove()
        for module in experts:
            del module.forward


def _refuse_other_weights(source: Source, bare: Any, names: Iterable[tuple[str, str, bool]]) -> None:
    """Raise JobError('weights_do_not_match') as `load.load_model` for what is missing, or is of another shape."""
    wanted, there, misshapen = bare.state_dict(keep_vars=True), set(), []
    joint: Counter[str] = Counter()
    for stored, now, joined in names:
        there.add(now)
        shape = source.shapes[stored]
        if joined:
            joint[now] += prod(shape)
        elif now in wanted and shape != wanted[now].shape:
            misshapen.append(f"{stored} {list(shape)} for {list(wanted[now].shape)}")
    for now, size in joint.items():
        parts = {now, *(now.replace(first, one) for first, others in split_names(bare) for one in others)}
        there |= parts
        needed = sum(wanted[part].numel() for part in parts if part in wanted)
        if needed and size != needed:  # a layer that predicts further tokens is left over
            misshapen.append(f"{now}, of {size} weights for {needed},")
    tied = {id(wanted[name]) for name in there if name in wanted}  # one of those that are the same is enough
    computed = bare._keys_to_ignore_on_load_missing or ()
    missing = [name for name, one in wanted.items() if id(one) not in tied]
    missing = [name for name in missing if not any(re.search(pattern, name) for pattern in computed)]
    load.refuse_other_weights(str(source.folder), missing=missing, misshapen=misshapen)


def fused_by_name(layers: Iterable[str]) -> list[list[str]]:
    """The layers that share an input or are fused, by how the parts of attention and of an MLP are called."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for layer in layers:
        owner, _, last = layer.rpartition(".")
        groups.setdefault((owner, *next((group for group in FUSED if last in group), (last,))), []).append(layer)
    return list(groups.values())


def _by_names(source: Source, config: Mapping[str, Any]) -> Selection:
    from modelopt.torch.export.quant_utils import get_quant_config

    matrices = {name: shape for name, shape in source.shapes.items() if len(shape) == 2 and name.endswith(WEIGHT)}
    shapes = {name: shape for name, shape in matrices.items() if not _NO_LINEAR.search(name)}
    load.refuse_other_weights(str(source.folder), empty=[name for name, shape in shapes.items() if not prod(shape)])
    layers = linears(shapes)
    quantizers.rehearse(layers, dict(config), exported=False)
    _refuse_calibration(layers, config)
    quantized, plain = quantized_linears(layers)
    return Selection(quantized=frozenset(quantized), plain=frozenset(plain), said=get_quant_config(layers))


def _refuse_calibration(model: "nn.Module", config: Mapping[str, Any]) -> None:
    """Raise JobError `needs_calibration` for scales that follow from what goes through a layer."""
    from modelopt.torch.quantization.nn import SequentialQuantizer, TensorQuantizer

    method = quantizers.algorithm_name(dict(config))
    static = [
        name
        for name, one in model.named_modules()
        if isinstance(one, TensorQuantizer | SequentialQuantizer) and "weight_quantizer" not in name
        if one.is_enabled and not any(getattr(one, key, False) for key in _OF_NO_TEXT)
    ]
    if method not in (None, "max") or static:
        why = f"{static[0]} has a scale of its own" if static else f"its method is {method}"
        cause = f"this format calibrates on text ({why}), and args.from_files reads weights alone"
        raise JobError("needs_calibration", cause, WEIGHTS_ALONE)


def _weight_quantizers(model: "nn.Module", tensor: str) -> "list[Any]":
    """Of a tensor that holds all experts': of each, or one for all of them."""
    owner, _, last = tensor.rpartition(".")
    try:
        named = dict(model.get_submodule(owner).named_children())
    except AttributeError:  # files may hold what a model has no use for
        return []
    each, whole = named.get(f"{last}_weight_quantizers"), named.get(f"{last}_weight_quantizer")
    return list(each.children()) if each is not None else [] if whole is None else [whole]


def _rename(model: "nn.Module", said: dict[str, Any]) -> None:
    """Give layers the names that the hub's files have, as the exporter does."""
    from modelopt.torch.export.quant_aware_conversion import build_reverse_name_mapper, revert_quant_config_names

    if (mapper := build_reverse_name_mapper(model)) is not None:
        revert_quant_config_names(said["quantization"], mapper)


def linears(shapes: Mapping[str, Sequence[int]]) -> "nn.Module":
    """Linear layers under their whole names, which the rules of a format go by; without weights."""
    import torch
    from torch import nn

    root = nn.Module()
    for name, (outputs, inputs) in shapes.items():
        *path, last = name.removesuffix(WEIGHT).split(".")
        at = root
        for part in path:
            if part not in dict(at.named_children()):
                at.add_module(part, nn.Module())
            at = at.get_submodule(part)
        with torch.device("meta"):
            at.add_module(last, nn.Linear(inputs, outputs, bias=False))
    return root


def packed(
    names: Sequence[str],
    source: Source,
    config: Mapping[str, Any],
    dtype: "torch.dtype",
    device: "torch.device",
    inputs: "Mapping[str, torch.Tensor]",
) -> "dict[str, torch.Tensor]":
    """What an export has of layers that share a scale: weights and scales, by their whole names.

    `inputs`: the largest magnitude of a layer's inputs, where it was calibrated. Raises JobError('weights_not_finite').
    """
    import torch
    from modelopt.torch.export.quant_utils import (
        _postprocess_single_tensor,
        get_quantization_format,
        preprocess_linear_fusion,
    )
    from torch import nn

    config, found = dict(config), {}
    parts = {name: _parts(source.shapes[name + WEIGHT]) for name in names}
    layers = linears({f"{name}.{at}": shape for name in names for at, shape in enumerate(parts[name])})
    for name in names:
        weight = source.tensor(name + WEIGHT)
        for at, rows in enumerate(torch.split(weight, [shape[0] for shape in parts[name]])):
            part = rows.to(device).to(dtype)
            load.refuse_not_finite(str(source.folder), [] if load.is_finite(part) else [name + WEIGHT], dtype)
            layers.get_submodule(f"{name}.{at}").weight = nn.Parameter(part, requires_grad=False)
    with redirect_stdout(StringIO()), cpu_kernels():
        quantizers.quantize(layers, config, None)
        each = {name: list(layers.get_submodule(name).children()) for name in names}
        for name in names:
            for linear in each[name] if name in inputs else ():
                quantizer: Any = linear.input_quantizer
                quantizer.amax = inputs[name].to(device)
        leading: Any = each[names[0]][0]
        one_scale = _has_one_scale(leading.weight_quantizer)
        for own in each.values() if one_scale else ():
            preprocess_linear_fusion(own)
        powers = leading.weight_quantizer.is_mx_format  # of which each block has its own, and no other scale
        # Of experts the exporter has one tensor with gate and up, whose blocks it takes apart.
        expert = _EXPERT.search(names[0]) is not None
        shared = not powers and (one_scale if expert else get_quantization_format(leading) not in _APART)
        for own in each.values() if expert and len(names) > 1 and not (powers or one_scale) else ():
            for linear in own:
                quantizer = linear.weight_quantizer
                if quantizer.amax.numel() == 1:  # cut out of a scale of two blocks, with its sides
                    quantizer._amax = quantizer.amax.view(1, 1, 1, 1)
        if shared and (one_scale or all(len(own) == 1 for own in each.values())):
            try:
                preprocess_linear_fusion([linear for own in each.values() for linear in own])
            except RuntimeError as error:  # scales of other shapes, as of a matrix that is one block beside one of two
                cause = f"ModelOpt's exporter finds no scale for {', '.join(names)}: {load.first_line(error)}"
                raise JobError("export_failed", cause, "Take another format.") from error
        for name, own in each.items():
            made = [_exported(linear, dtype) for linear in own]
            for key, first in made[0].items():
                value = torch.cat([one[key] for one in made]) if first.ndim else first
                kept, tensor = _postprocess_single_tensor(f"{name}.{key}", value, 448, None)
                if kept is not None and tensor is not None:
                    found[kept] = tensor
    return found


def _has_one_scale(quantizer: Any) -> bool:
    """Whether a matrix has a scale for all of it, be it of the scales of blocks: parts of one must agree on that."""
    blocks = quantizer.block_sizes
    if quantizer.is_mx_format:
        return False
    return bool(blocks.get("type") == "dynamic") if blocks else quantizer.axis is None


def _parts(shape: Sequence[int]) -> list[tuple[int, int]]:
    """Rows of a matrix that are quantized at a time, so that what is in memory does not grow with it."""
    outputs, inputs = shape
    rows = max(_ROWS, AT_A_TIME // inputs // _ROWS * _ROWS)
    count = max(1, outputs // rows)
    return [(rows, inputs)] * (count - 1) + [(outputs - rows * (count - 1), inputs)]


def _exported(linear: "nn.Module", dtype: "torch.dtype") -> "dict[str, torch.Tensor]":
    from modelopt.torch.export.unified_export_hf import _export_quantized_weight

    _export_quantized_weight(linear, dtype)
    made = {key: value.detach().cpu() for key, value in linear.state_dict().items()}
    for key in list(dict(linear.named_parameters())):
        linear.register_parameter(key, None)
    return made
