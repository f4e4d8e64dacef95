"""Experts while a model is calibrated: which of them no token has reached, and every token through all of them.

For those that transformers keeps in one tensor, of which ModelOpt calibrates the inputs together. Its own argument of
the kind, moe_calib_experts_ratio, is for experts that are layers of their own.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from typing import TYPE_CHECKING, Any

from scripts.run.problems import JobError

if TYPE_CHECKING:
    import torch


def _layers(model: Any) -> "dict[str, Any]":
    """The quantized ones by name, but such as Llama 4's, which are given tokens alone: each of them gets all."""
    found = ((name, one) for name, one in model.named_modules() if hasattr(one, "down_proj_input_quantizer"))
    return {name: one for name, one in found if len(signature(one.forward).parameters) > 1}


def refuse_none(model: Any) -> None:
    """Raise JobError `no_experts` for a model, quantized, whose tokens cannot be sent through every expert."""
    if not _layers(model):
        cause = f"{type(model).__name__} has no experts that transformers keeps in one tensor and ModelOpt quantizes."
        raise JobError("no_experts", cause, "Set args.force_all_expert_routing=false.")


@contextmanager
def watched(model: Any, *, every: bool) -> Iterator[dict[str, "torch.Tensor"]]:
    """Which experts of each layer the router has sent a token to: [experts], by the layer's name.

    `every`: what the quantizers see is every token in all experts; what the layer passes on stays as it is.
    """
    import torch

    reached = {}
    handles = []
    for name, module in _layers(model).items():
        place = next(module.parameters()).device
        reached[name] = torch.zeros(module.num_experts, dtype=torch.bool, device=place)
        handles.append(module.register_forward_pre_hook(_watch(reached[name], every)))
    try:
        yield reached
    finally:
        for handle in handles:
            handle.remove()


def _watch(reached: "torch.Tensor", every: bool) -> Any:
    """A hook on the layer, which is given tokens [tokens, width], their experts and weights [tokens, chosen]."""
    import torch

    def watch(module: Any, given: tuple[Any, ...]) -> None:
        tokens, chosen, weights = given
        reached[chosen.flatten()] = True
        if every and len(tokens):
            everywhere = torch.arange(len(reached), device=chosen.device).expand(len(tokens), -1)
            module.forward(tokens, everywhere, torch.zeros_like(everywhere, dtype=weights.dtype))

    return watch


def unreached(reached: "dict[str, torch.Tensor]") -> dict[str, list[int]]:
    """Their numbers, by layer, of what `watched` gave."""
    found = {name: [number for number, one in enumerate(each.tolist()) if not one] for name, each in reached.items()}
    return {name: numbers for name, numbers in found.items() if numbers}


def told(unreached: dict[str, list[int]]) -> list[str]:
    """Experts by their numbers, of each layer, as a reader of a report has to know of them."""
    if not unreached:
        return []
    name, numbers = max(unreached.items(), key=lambda one: len(one[1]))
    count = sum(map(len, unreached.values()))
    listed = ", ".join(map(str, numbers[:8])) + (f" and {len(numbers) - 8} more" if len(numbers) > 8 else "")
    return [f"{count} experts were sent no token of the calibration, such as {listed} of {name}."]
