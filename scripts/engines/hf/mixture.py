"""Several formats in one model: which layer gets which, the ModelOpt configuration of that, and its calibration.

Layers are named as in the model, experts that share a tensor by that tensor. Those that servers fuse have one format.
"""

import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from scripts.formats import LayerFormats, format_of
from scripts.run.problems import JobError, near_miss

if TYPE_CHECKING:
    from torch import nn

Loop = Callable[["nn.Module"], None]
_PARTS = ("weight_quantizer", "input_quantizer")
_EXPERTS = r"^(.*experts)\.[^.]+$"


def mixed_config(configs: Mapping[str, dict[str, Any]], layer_formats: LayerFormats) -> dict[str, Any]:
    """ModelOpt's configuration of several formats; `configs` has that of each, first the one of all other layers.

    `steps` say who is calibrated how: ModelOpt's own algorithm goes through every layer, whatever its format.
    """
    base = next(iter(configs))
    rules = configs[base]["quant_cfg"]
    end = max(at for at, rule in enumerate(rules) if rule["quantizer_name"].lstrip("*") in _PARTS) + 1
    own = [rule for name, patterns in layer_formats.items() for one in patterns for rule in _rules(one, configs, name)]
    return {
        "quant_cfg": [*rules[:end], *own, *rules[end:]],
        "algorithm": [config["algorithm"] for config in configs.values()],
        "steps": {name: config["algorithm"] for name, config in configs.items()},
        "layers": {name: list(patterns) for name, patterns in layer_formats.items()},
    }


def _rules(pattern: str, configs: Mapping[str, dict[str, Any]], name: str) -> Iterator[dict[str, Any]]:
    """Those of one format, for the layers that a pattern names: a layer's own quantizers, or those of its experts."""
    given = {rule["quantizer_name"].lstrip("*"): rule for rule in configs[name]["quant_cfg"]} if name in configs else {}
    for part in _PARTS:
        rule = given.get(part, {"enable": False})
        for between in (".", "_"):
            yield {**rule, "quantizer_name": f"{pattern}{between}{part}"}


def calibrate_mixed(model: "nn.Module", config: Mapping[str, Any], loop_of: Callable[[Any], Loop]) -> None:
    """Calibrate the inserted quantizers, each format by itself: what one does to its layers no other one sees.

    Those of keys and values, which are of no linear layer, are calibrated with the first format, whatever is named.
    """
    import modelopt.torch.quantization as mtq

    base = next(iter(config["steps"]))
    caches = {name.rpartition(".")[0] for name, _ in model.named_modules() if name.endswith("_bmm_quantizer")}
    layers = {layer for layer, _ in quantizers_by_layer(model)}
    given = {one: base if one in caches else format_of(one, base, config["layers"]) for one in layers}
    for name, algorithm in config["steps"].items():
        own = {layer for layer, asked in given.items() if asked == name}
        with _alone(model, own):
            mtq.calibrate(model, algorithm, loop_of(algorithm))


def quantizers_by_layer(model: "nn.Module") -> Iterator[tuple[str, Any]]:
    """Each quantizer, with the name of the layer that it belongs to."""
    from modelopt.torch.quantization.nn import TensorQuantizer

    for name, module in model.named_modules():
        if isinstance(module, TensorQuantizer):
            parts = name.split(".")
            at = next(at for at, part in enumerate(parts) if "quantizer" in part)
            own = parts[at].partition("weight_quantizer")[0].partition("input_quantizer")[0].rstrip("_")
            yield ".".join([*parts[:at], *([own] if own and "quantizer" not in own else [])]), module


@contextmanager
def _alone(model: "nn.Module", layers: Container[str]) -> Iterator[None]:
    """With the quantizers of these layers, and no others, while the block runs."""
    others = [one for layer, one in quantizers_by_layer(model) if one.is_enabled and layer not in layers]
    for one in others:
        one.disable()
    try:
        yield
    finally:
        for one in others:
            one.enable()


def fused(layers: Iterable[str]) -> list[list[str]]:
    """The layers in groups that servers fuse, or whose inputs are the same: by the rules of ModelOpt's AutoQuantize.

    So are all tensors of a layer's experts, of which a checkpoint says one format.
    """
    from modelopt.torch.quantization.algorithms import AutoQuantizeGradientSearcher

    rules = [*AutoQuantizeGradientSearcher.quant_grouping_rules, _EXPERTS]
    groups: dict[str, list[str]] = {}
    for layer in layers:
        keys = (rule(None, layer) if callable(rule) else (re.match(rule, layer) or [None, None])[1] for rule in rules)
        found = next(((at, key) for at, key in enumerate(keys) if key is not None), (-1, layer))
        groups.setdefault(repr(found), []).append(layer)
    return list(groups.values())


def refuse_layers(layers: Sequence[str], otherwise: str, layer_formats: LayerFormats) -> None:
    """Raise JobError `unmatched_layers` for a pattern that names none of the layers, and `fused_layers_differ`."""
    for name, patterns in layer_formats.items():
        for pattern in patterns:
            if not any(fnmatchcase(layer, pattern) for layer in layers):
                cause = f"args.layer_formats: {name}: {pattern!r} is the name of no layer that is quantized."
                raise JobError("unmatched_layers", cause, near_miss(pattern, layers, f"They are such as {layers[0]}."))
    refuse_different(fused(layers), otherwise, layer_formats)


def refuse_different(groups: Iterable[Sequence[str]], otherwise: str, layer_formats: LayerFormats) -> None:
    """Raise JobError `fused_layers_differ` for a group of layers that servers fuse, and that have several formats."""
    for group in groups:
        found = {format_of(layer, otherwise, layer_formats): layer for layer in group}
        if len(found) > 1:
            said = ", ".join(f"{layer} in {name}" for name, layer in found.items())
            cause = f"args.layer_formats: servers fuse layers that it gives different formats: {said}."
            raise JobError("fused_layers_differ", cause, "Give all of them one format.")
