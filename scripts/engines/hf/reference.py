"""What an export must agree with, taken from the model in memory before the exporter spends it."""

import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from scripts.checkpoints.safetensors import read_header
from scripts.formats import Format

if TYPE_CHECKING:
    import torch

_T = TypeVar("_T")
#: So many weights are compared, value by value.
_LOOKED_AT = 24
LAYER = re.compile(r"^(.*?\.\d+)\.")


@dataclass(frozen=True, kw_only=True)
class Reference:
    """`modules`: the linear layers with quantized weights. `experts`: how many linear layers of experts besides them,
    whose names the export chooses. `plain`: linear layers left alone, by name, with the type of their weights, which
    some models keep in 32 bits. `weights`: original weights [out, in] in float32 of a few of `modules`. `norms`: the
    norms of the same layers, which may take up scales, and `smooth` those scales, by the module whose inputs they
    multiply. `hub`: tensors' names in the source's files by those in memory, where they differ. `formats`: of each of
    `modules`, as far as they are known, where they are not all the same.
    """

    modules: dict[str, tuple[int, int]]
    experts: int
    plain: dict[str, str]
    weights: "dict[str, torch.Tensor]"
    norms: "dict[str, torch.Tensor]"
    smooth: "dict[str, torch.Tensor]" = field(default_factory=dict)
    hub: dict[str, str] = field(default_factory=dict)
    formats: Mapping[str, Format] = field(default_factory=dict)

    def as_in(self, names: Container[str]) -> "Reference":
        """The same under the names of an export, which are the source's where those are among `names`."""

        def renamed(values: Mapping[str, _T], end: str = ".weight") -> dict[str, _T]:
            others = {name: self.hub.get(name + end, "") for name in values}
            return {
                (other.removesuffix(end) if (other := others[name]) in names else name): value
                for name, value in values.items()
            }

        return replace(
            self,
            modules=renamed(self.modules),
            plain=renamed(self.plain),
            weights=renamed(self.weights),
            norms=renamed(self.norms, ""),
            smooth=renamed(self.smooth),
            formats=renamed(self.formats),
        )


def layer_of(name: str) -> str:
    """`model.layers.3` of any name inside that layer; '' outside the layers."""
    found = LAYER.match(name)
    return found.group(1) if found else ""


def original_weight(module: Any) -> "torch.Tensor":
    """The weight before SmoothQuant or AWQ divided it by the input scale, and before SVDQuant took its largest
    directions out of it; float32, exact to a bf16 rounding."""
    weight: torch.Tensor = module.weight.detach().float()
    if (first := getattr(module.weight_quantizer, "svdquant_lora_a", None)) is not None:
        weight = weight + module.weight_quantizer.svdquant_lora_b.float() @ first.float()
    scale = getattr(module.input_quantizer, "pre_quant_scale", None)
    return weight if scale is None else weight * scale.float()


def is_packed(module: Any) -> bool:
    """Whether mtq.compress replaced this layer's weight."""
    from modelopt.torch.quantization.qtensor import QTensorWrapper

    return isinstance(module._parameters.get("weight"), QTensorWrapper)


def quantized_linears(model: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Linear layers by name: those with an enabled weight quantizer, and all others."""
    from torch import nn

    quantized, plain = {}, {}
    for name, module in model.named_modules():
        weight_quantizer = getattr(module, "weight_quantizer", None)
        if getattr(weight_quantizer, "is_enabled", False):
            if hasattr(module, "out_features"):  # embeddings can be quantized too
                quantized[name] = module
        elif isinstance(module, nn.Linear):
            plain[name] = module
    return quantized, plain


def quantized_experts(model: Any) -> dict[str, int]:
    """Tensors that experts share, by name: how many of them are quantized."""
    ends = ("up_proj_weight_quantizers", "down_proj_weight_quantizers")
    every = ((name, module) for name, module in model.named_modules() if name.endswith(ends))
    counts = {name.removesuffix("_weight_quantizers"): sum(one.is_enabled for one in module) for name, module in every}
    return {name: count for name, count in counts.items() if count}


def _experts(model: Any) -> int:
    """Linear layers that the export packs of experts kept as one tensor: gate, up and down of each."""
    return sum((2 if name.endswith("gate_up_proj") else 1) * count for name, count in quantized_experts(model).items())


def _stored(folder: Path) -> dict[str, Path]:
    """The shard of each tensor in a folder of safetensors."""
    return {name: file for file in sorted(folder.glob("*.safetensors")) for name in read_header(file)}


def _rules(model: Any) -> tuple[list[Any], list[Any]] | None:
    """How transformers renames a model's tensors when it loads them, and what it makes of several: None before 5."""
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter
    except ImportError:
        return None
    rules = getattr(model, "_weight_conversions", None)
    rules = (get_model_conversion_mapping(model, add_legacy=False) if rules is None else rules) or []
    makers = [rule for rule in rules if isinstance(rule, WeightConverter)]
    return [rule for rule in rules if rule not in makers], makers


def joined_names(model: Any) -> tuple[str, ...] | None:
    """How the names of those tensors end that transformers makes of several; None where it makes none of any model."""
    rules = _rules(model)
    return None if rules is None else tuple(name for rule in rules[1] for name in rule.target_patterns)


def names_in_memory(model: Any, stored: Iterable[str]) -> Iterator[tuple[str, str, bool]]:
    """Of each stored tensor its name, what transformers calls it, and whether it becomes one with others.

    Of a tensor that becomes several, the first of those.
    """
    rules, held = _rules(model), model.state_dict()
    for name in stored:
        if rules is None:
            yield name, name, False
            continue
        from transformers.core_model_loading import rename_source_key

        now, made = rename_source_key(name, *rules, model.base_model_prefix, held)
        if now not in held and name in held:  # as transformers does: what has the model's own name is not renamed
            now, made = name, None
        yield name, now, made is not None


def join(model: Any, name: str, stored: Iterable[str], tensor: "Callable[[str], torch.Tensor]") -> "torch.Tensor":
    """The tensor that transformers makes of several stored ones, as it makes it."""
    from transformers.core_model_loading import dot_natural_key, rename_source_key

    rules, held = _rules(model), model.state_dict()
    assert rules is not None
    made = None
    for one in sorted(stored, key=dot_natural_key):
        now, pattern = rename_source_key(one, *rules, model.base_model_prefix, held)
        if made is None:
            made = deepcopy(next(rule for rule in rules[1] if pattern in rule.source_patterns))
        made.add_tensor(now, one, pattern, partial(tensor, one))
    assert made is not None
    joined: torch.Tensor = made.convert(name, model=model, config=model.config)[name]
    return joined


def split_names(model: Any) -> Iterator[tuple[str, Sequence[str]]]:
    """Parts of names of which transformers makes several tensors of one: of the first, and of the others."""
    for rule in (_rules(model) or ((), ()))[1]:
        first, *others = rule.target_patterns
        if others:
            yield first, others


def _hub_names(model: Any, stored: Iterable[str]) -> dict[str, str]:
    """By name in memory, for the tensors that are as they were stored: several that became one are left out."""
    return {now: name for name, now, joined in names_in_memory(model, stored) if not joined}


def _source_weight(file: Path, name: str, dtype: "torch.dtype") -> "torch.Tensor | None":
    """A weight as it is stored, rounded as it was when it was loaded; None where it is packed."""
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        weight: torch.Tensor = opened.get_tensor(name)
    return weight.to(dtype).float() if weight.is_floating_point() and weight.element_size() > 1 else None


def some_layers(names: Sequence[str], limit: int = _LOOKED_AT) -> list[str]:
    """Those of the first, the last and the middle layer in turn, `limit` at most."""
    every = list(dict.fromkeys(map(layer_of, names)))
    picked = dict.fromkeys((every[0], every[-1], every[len(every) // 2])) if every else {}
    return [name for layer in picked for name in names if layer_of(name) == layer][:limit]


def norms_of(model: Any, layers: Container[str]) -> "dict[str, torch.Tensor]":
    """The norms in these layers, by name, in float32."""
    return {
        name: weight.detach().float().cpu().clone()
        for name, weight in model.named_parameters()
        if weight.ndim == 1 and "norm" in name and layer_of(name) in layers
    }


def smooth_of(model: Any, layers: Container[str]) -> "dict[str, torch.Tensor]":
    """What multiplies inputs in these layers, by the module that is given them, in float32."""
    every = quantized_linears(model)[0].items()
    scales = {name: getattr(module.input_quantizer, "pre_quant_scale", None) for name, module in every}
    return {
        name: scale.detach().float().cpu().clone()
        for name, scale in scales.items()
        if scale is not None and layer_of(name) in layers
    }


def reference(model: Any, source: Path | None = None, limit: int = _LOOKED_AT, *, settled: bool = False) -> Reference:
    """Take the reference; call it before export_hf (and before compress).

    Copies about `limit` weights to host memory: of the first, the last and the middle layer in turn; from the files of
    the model in `source`, so that a mistake in memory is seen; from memory where calibration `settled` others.
    """
    quantized, plain = quantized_linears(model)
    whole = [name for name, module in quantized.items() if not is_packed(module)]
    names = some_layers(whole, limit)
    layers = {layer_of(name) for name in names}
    stored = _stored(source) if source else {}
    hub = _hub_names(model, stored)

    def weight(name: str) -> "torch.Tensor":
        module, key = quantized[name], hub.get(f"{name}.weight")
        found = _source_weight(stored[key], key, module.weight.dtype) if key and not settled else None
        return original_weight(module).cpu().clone() if found is None else found

    return Reference(
        modules={name: (module.out_features, module.in_features) for name, module in quantized.items()},
        experts=_experts(model),
        plain={name: str(module.weight.dtype).removeprefix("torch.") for name, module in plain.items()},
        weights={name: weight(name) for name in names},
        norms=norms_of(model, layers),
        smooth=smooth_of(model, layers),
        hub={now: name for now, name in hub.items() if now != name},
    )
