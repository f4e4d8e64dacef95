"""What an export must agree with, taken from the model in memory before the exporter spends it."""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

LAYER = re.compile(r"^(.*?\.\d+)\.")


@dataclass(frozen=True, kw_only=True)
class Reference:
    """`modules`: the linear layers with quantized weights. `experts`: how many linear layers of experts besides them,
    whose names the export chooses. `plain`: linear layers left alone, by name, with their shape. `weights`: original
    weights [out, in] in float32 of a few of `modules`. `norms`: the norms of the same layers, which may take up scales.
    """

    modules: dict[str, tuple[int, int]]
    experts: int
    plain: dict[str, tuple[int, int]]
    weights: "dict[str, torch.Tensor]"
    norms: "dict[str, torch.Tensor]"


def layer_of(name: str) -> str:
    """`model.layers.3` of any name inside that layer; '' outside the layers."""
    found = LAYER.match(name)
    return found.group(1) if found else ""


def original_weight(module: Any) -> "torch.Tensor":
    """The weight before SmoothQuant or AWQ divided it by the input scale, float32; exact to a bf16 rounding."""
    weight: torch.Tensor = module.weight.detach().float()
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
        if weight_quantizer is not None and getattr(weight_quantizer, "is_enabled", False):
            quantized[name] = module
        elif isinstance(module, nn.Linear):
            plain[name] = module
    return quantized, plain


def _experts(model: Any) -> int:
    """Linear layers that the export makes of experts kept as one tensor: gate, up and down of each."""
    count = 0
    for name, module in model.named_modules():
        if name.endswith("gate_up_proj_weight_quantizers"):
            count += 2 * len(module)
        elif name.endswith("down_proj_weight_quantizers"):
            count += len(module)
    return count


def reference(model: Any, limit: int = 24) -> Reference:
    """Take the reference; call it before export_hf (and before compress).

    Copies about `limit` weights to host memory: of the first, the last and the middle layer in turn.
    """
    quantized, plain = quantized_linears(model)
    whole = [name for name, module in quantized.items() if not is_packed(module)]
    every = list(dict.fromkeys(map(layer_of, whole)))
    picked = dict.fromkeys((every[0], every[-1], every[len(every) // 2])) if every else {}
    names = [name for layer in picked for name in whole if layer_of(name) == layer][:limit]
    layers = {layer_of(name) for name in names}
    norms = {
        name: weight.detach().float().cpu().clone()
        for name, weight in model.named_parameters()
        if weight.ndim == 1 and "norm" in name and layer_of(name) in layers
    }
    return Reference(
        modules={name: (module.out_features, module.in_features) for name, module in quantized.items()},
        experts=_experts(model),
        plain={name: (module.out_features, module.in_features) for name, module in plain.items()},
        weights={name: original_weight(quantized[name]).cpu().clone() for name in names},
        norms=norms,
    )
