"""Tensors by name, type and size, and what they amount to."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

_FLOATING = ("float", "bfloat")
_SCALES = ("scale", "scale_2", "scale_inv")
_CACHE_OFFSETS = ("k_bias", "v_bias")
_MOST_ELEMENTS = 1 << 62


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor; `dtype` in PyTorch's spelling, such as bfloat16."""

    name: str
    dtype: str
    elements: int
    dimensions: int

    @property
    def of_export(self) -> bool:
        """Whether a quantized export has it beside the weights: x.weight_scale, x.k_scale, a cache's x.k_bias."""
        last = self.name.rpartition(".")[2]
        return last.endswith(_SCALES) or last in _CACHE_OFFSETS

    @property
    def of_quantizer(self) -> bool:
        """Whether it is a buffer of one of ModelOpt's quantizers, such as x.weight_quantizer._amax."""
        return "_quantizer." in self.name or "_quantizers." in self.name


def tensor(name: str, dtype: str, shape: Iterable[object]) -> Tensor:
    """A tensor of this shape. Raises ValueError for a shape that none can have."""
    sides = []
    for side in shape:
        if not isinstance(side, int) or not 0 <= side < _MOST_ELEMENTS:
            raise ValueError(f"{name} has a side that is no length")
        sides.append(side)
    if len(sides) > 64 or (elements := math.prod(sides)) >= _MOST_ELEMENTS:
        raise ValueError(f"{name} is larger than a tensor can be")
    return Tensor(name, dtype, elements, len(sides))


def stored(tensors: Iterable[Tensor]) -> dict[str, int]:
    """Elements by dtype as stored, the most frequent first."""
    found: dict[str, int] = {}
    for one in tensors:
        found[one.dtype] = found.get(one.dtype, 0) + one.elements
    return dict(sorted(found.items(), key=lambda pair: (-pair[1], pair[0])))


def parameters(tensors: Iterable[Tensor], *, quantized: bool, by_modelopt: bool) -> int | None:
    """How many weights the model has; None where integers pack them in a way that is not ModelOpt's.

    ModelOpt's exporter and its compressed weights put two 4-bit values into a uint8. Scales, quantizers' buffers and
    integers that are no weights (positions, counters) do not count.
    """
    total = 0
    for one in tensors:
        if one.of_quantizer or "_extra_state" in one.name or (quantized and one.of_export):
            continue
        if one.dtype.startswith(_FLOATING):
            total += one.elements
        elif quantized and one.dimensions >= 2:
            if not by_modelopt:
                return None
            total += one.elements * (2 if one.dtype == "uint8" else 1)
    return total
