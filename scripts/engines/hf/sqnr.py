"""Signal-to-quantization-noise of every quantized layer, in decibels."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from scripts.args.quantize import NoiseOf
from scripts.engines.hf import packing
from scripts.engines.hf.nvfp4 import cpu_kernels
from scripts.engines.hf.packing import Tokens
from scripts.engines.hf.reference import is_packed, layer_of, quantized_linears

if TYPE_CHECKING:
    import torch

#: Noise-free layers are reported as this, so that tables and plots stay finite.
CEILING_DB = 150.0
#: Of the layers of a model, so many are looked at where not all are.
SAMPLED_LAYERS = 4


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
        if not math.isfinite(ratio):  # of NaN and infinity nothing is signal
            return -CEILING_DB
        return CEILING_DB if ratio <= 0 else min(CEILING_DB, -10 * math.log10(ratio))


def _watch_layer(sums: _Sums, rows: int) -> Any:
    """A hook that looks at the first pass through a layer."""
    import torch

    def watch(module: Any, inputs: Any, output: Any) -> None:
        if "output" in sums.signal:
            return
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


def _add_weight(sums: _Sums, module: Any, weight: "torch.Tensor", quantized: "torch.Tensor") -> None:
    """The weight as the layer's input sees it: SmoothQuant and AWQ divided it by pre_quant_scale."""
    scale = getattr(module.input_quantizer, "pre_quant_scale", None)
    factor = 1.0 if scale is None else scale.float()
    sums.add("weight", weight.float() * factor, quantized.float() * factor)


def _watch_weight(sums: _Sums, module: Any) -> Any:
    """A hook on its quantizer: a pass quantizes the weight in any case."""

    def watch(_: Any, inputs: Any, output: Any) -> None:
        if "weight" not in sums.signal:
            _add_weight(sums, module, inputs[0].detach(), output.detach())

    return watch


def _expert_weights(model: Any, chosen: Callable[[str], bool]) -> dict[str, _Sums]:
    """Experts that share one tensor: each expert's weight, by the name of its quantizer."""
    found: dict[str, _Sums] = {}
    for name, module in model.named_modules():
        if not any("weight_quantizers" in child for child, _ in module.named_children()) or not chosen(name):
            continue
        names = {id(q): f"{name}.{child}".replace("_weight_quantizers", "") for child, q in module.named_modules()}
        for weight, quantizer in module.iter_weights_for_calibration():
            if quantizer.is_enabled:
                sums = found.setdefault(names[id(quantizer)], _Sums())
                sums.add("weight", weight.detach(), quantizer(weight.detach()))
    return found


def chosen_layers(model: Any, which: NoiseOf) -> Callable[[str], bool]:
    """Whether a module of this name is looked at."""
    every = list(dict.fromkeys(filter(None, (layer_of(name) for name, _ in model.named_modules()))))
    if which == "all" or len(every) <= SAMPLED_LAYERS:
        return lambda name: which != "none"
    step = (len(every) - 1) / (SAMPLED_LAYERS - 1)
    picked = {every[round(number * step)] for number in range(SAMPLED_LAYERS)}
    return lambda name: which != "none" and layer_of(name) in {*picked, ""}


@contextmanager
def watched(model: Any, which: NoiseOf = "all", *, rows: int = 512) -> Iterator[dict[str, LayerNoise]]:
    """Measure the noise of quantized layers in the passes that the block makes; call it before mtq.compress.

    The noise by module name, in the order of the model, is there when the block ends. Weights: against themselves
    unquantized. Inputs and outputs: over at most `rows` tokens of the first pass, against the same layer computed in
    float32 on the same input, so noise from earlier layers does not count. `sampled` looks at SAMPLED_LAYERS of the
    model's layers, the first and the last among them.
    """
    import torch

    chosen = chosen_layers(model, which)
    linears = quantized_linears(model)[0].items()
    layers = {name: module for name, module in linears if chosen(name) and not is_packed(module)}
    sums = {name: _Sums() for name in layers}
    handles = [module.register_forward_hook(_watch_layer(sums[name], rows)) for name, module in layers.items()]
    handles += [
        module.weight_quantizer.register_forward_hook(_watch_weight(sums[name], module))
        for name, module in layers.items()
    ]
    found: dict[str, LayerNoise] = {}
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
    with torch.no_grad(), cpu_kernels():
        for name, module in layers.items():
            if "weight" not in sums[name].signal:  # no token has reached it
                weight = module.weight.detach()
                _add_weight(sums[name], module, weight, module.weight_quantizer(weight))
        sums.update(_expert_weights(model, chosen))
    for name, each in sums.items():
        found[name] = LayerNoise(weight_db=each.db("weight"), input_db=each.db("input"), output_db=each.db("output"))


def layer_noise(model: Any, sample: Tokens, which: NoiseOf = "all") -> dict[str, LayerNoise]:
    """The same in a pass of its own over one sample."""
    import torch

    device = model.get_input_embeddings().weight.device
    with torch.no_grad(), cpu_kernels(), watched(model, which) as found:
        if which != "none":
            packing.run(model, model.base_model, [sample], device)
    return found
