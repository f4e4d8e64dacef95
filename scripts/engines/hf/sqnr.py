"""Signal-to-quantization-noise of every quantized layer, in decibels."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from scripts.engines.hf import packing
from scripts.engines.hf.nvfp4 import cpu_kernels
from scripts.engines.hf.packing import Tokens
from scripts.engines.hf.reference import is_packed, quantized_linears

if TYPE_CHECKING:
    import torch

#: Noise-free layers are reported as this, so that tables and plots stay finite.
CEILING_DB = 150.0


@dataclass(frozen=True, kw_only=True)
class LayerNoise:
    """Decibels; higher is better. None where a part is not quantized or was not reached by the samples."""

    weight_db: float | None
    input_db: float | None
    output_db: float | None


@dataclass
class _Sums:
    signal: dict[str, float] = field(default_factory=dict)
    noise: dict[str, float] = field(default_factory=dict)

    def add(self, part: str, clean: "torch.Tensor", noisy: "torch.Tensor") -> None:
        clean = clean.float()
        difference = noisy.float() - clean
        self.signal[part] = self.signal.get(part, 0.0) + float(clean.square().sum())
        self.noise[part] = self.noise.get(part, 0.0) + float(difference.square().sum())

    def db(self, part: str) -> float | None:
        if part not in self.signal or self.signal[part] <= 0:
            return None
        ratio = self.noise[part] / self.signal[part]
        return CEILING_DB if ratio <= 0 else min(CEILING_DB, -10 * math.log10(ratio))


def _hook(sums: _Sums, rows: int) -> Any:
    import torch

    def watch(module: Any, inputs: Any, output: Any) -> None:
        values = inputs[0].detach().reshape(-1, inputs[0].shape[-1])[:rows]
        scale = getattr(module.input_quantizer, "pre_quant_scale", None)
        clean = values if scale is None else values * scale
        if module.input_quantizer.is_enabled:
            sums.add("input", clean, module.input_quantizer(values))
        exact = torch.nn.functional.linear(clean.float(), module.weight.detach().float())
        if module.bias is not None:
            exact = exact + module.bias.float()
        sums.add("output", exact, output.detach().reshape(-1, output.shape[-1])[:rows])

    return watch


def _expert_weights(model: Any) -> dict[str, _Sums]:
    """Experts that share one tensor: each expert's weight, by the name of its quantizer."""
    found: dict[str, _Sums] = {}
    for name, module in model.named_modules():
        if not any("weight_quantizers" in child for child, _ in module.named_children()):
            continue
        names = {id(q): f"{name}.{child}".replace("_weight_quantizers", "") for child, q in module.named_modules()}
        for weight, quantizer in module.iter_weights_for_calibration():
            if quantizer.is_enabled:
                sums = found.setdefault(names[id(quantizer)], _Sums())
                sums.add("weight", weight.detach(), quantizer(weight.detach()))
    return found


def layer_noise(model: Any, samples: Sequence[Tokens], *, rows: int = 512) -> dict[str, LayerNoise]:
    """The noise of each quantized layer by module name, in the order of the model; call it before mtq.compress.

    Weights: against themselves unquantized. Inputs and outputs: over at most `rows` tokens of each of `samples`,
    against the same layer computed in float32 on the same input, so noise from earlier layers does not count.
    """
    import torch

    layers = {name: module for name, module in quantized_linears(model)[0].items() if not is_packed(module)}
    sums = {name: _Sums() for name in layers}
    handles = [module.register_forward_hook(_hook(sums[name], rows)) for name, module in layers.items()]
    device = model.get_input_embeddings().weight.device
    try:
        with torch.no_grad(), cpu_kernels():
            for sample in samples:
                packing.run(model, model.base_model, [sample], device)
    finally:
        for handle in handles:
            handle.remove()
    with torch.no_grad(), cpu_kernels():
        for name, module in layers.items():
            # The weight as the layer's input sees it: SmoothQuant and AWQ divided it by pre_quant_scale.
            weight, scale = module.weight.detach(), getattr(module.input_quantizer, "pre_quant_scale", None)
            factor = 1.0 if scale is None else scale.float()
            sums[name].add("weight", weight.float() * factor, module.weight_quantizer(weight).float() * factor)
        sums.update(_expert_weights(model))
    return {
        name: LayerNoise(weight_db=each.db("weight"), input_db=each.db("input"), output_db=each.db("output"))
        for name, each in sums.items()
    }
