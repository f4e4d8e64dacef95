"""The MX formats on the CPU, where ModelOpt has only a CUDA kernel: blocks that share a power of two.

MXFP8 and MXFP4 are rounded as ModelOpt packs them (MXFP8QTensor, MXFP4QTensor), so a fake-quantized weight equals, bit
for bit, what unpacking the exported one gives. Of MXFP4 that packing rounds a value halfway between two down, where
its CUDA kernel rounds to even. MXFP6 and MXINT8, which ModelOpt packs nowhere, are rounded as by that kernel.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

#: Bits of a scale, and how many of them are its exponent's, in ModelOpt's count: with a sign that it does not store.
SCALE = (9, 8)
#: The exponents that a scale can hold.
_LEAST, _MOST = -127.0, 127.0
#: Elements handled at a time.
_CHUNK = 1 << 16
_ROUND = 1.5 * 2.0**23


@dataclass(frozen=True, kw_only=True)
class Element:
    """A number of a block: the largest, and of floats the mantissa's bits and the exponent of the least normal one."""

    largest: float
    mantissa: int | None = None
    least: int = 0


#: By bits and bits of the exponent.
ELEMENTS = {
    (8, 4): Element(largest=448.0, mantissa=3, least=-6),
    (8, 5): Element(largest=57344.0, mantissa=2, least=-14),
    (6, 3): Element(largest=28.0, mantissa=2, least=-2),
    (6, 2): Element(largest=7.5, mantissa=3, least=0),
    (4, 2): Element(largest=6.0, mantissa=1, least=0),
    (8, 0): Element(largest=127.0),
}
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def fake_quantize(inputs: "torch.Tensor", block_size: int, bits: tuple[int, int]) -> "torch.Tensor":
    """Quantize to `ELEMENTS[bits]` and back along the last dimension; same shape and dtype.

    A last dimension that is not a multiple of `block_size` is padded with zeros, as in ModelOpt.
    """
    import torch

    size, element = inputs.shape[-1], ELEMENTS[bits]
    padding = -size % block_size
    source = torch.nn.functional.pad(inputs, (0, padding)) if padding else inputs
    blocks = source.reshape(-1, block_size)
    result = torch.empty_like(blocks)
    rows = max(1, _CHUNK // block_size)
    for start in range(0, len(blocks), rows):
        values = blocks[start : start + rows].float()
        scale = torch.exp2(exponents(values.abs().amax(dim=1, keepdim=True), element))
        values = values / scale
        work = torch.empty_like(values, dtype=torch.int32)
        result[start : start + rows] = (_to_e2m1(values) if bits == (4, 2) else round_(values, work, element)) * scale
    result = result.reshape(source.shape)
    return result[..., :size].contiguous() if padding else result


def exponents(amax: "torch.Tensor", element: Element) -> "torch.Tensor":
    """The least powers of two with which blocks of these float32 maxima fit an element; float32."""
    import torch

    return torch.log2(amax / element.largest).ceil_().clamp_(_LEAST, _MOST)


def round_(values: "torch.Tensor", work: "torch.Tensor", element: Element) -> "torch.Tensor":
    """Round float32 `values` to the nearest element in place, ties to even.

    The spacing of floats is that of their power of two. Adding and taking away 1.5 * 2**23 spacings makes float32
    addition itself round to a multiple of the spacing. `work` is int32 scratch of the same shape.
    """
    import torch

    values.clamp_(-element.largest, element.largest)
    if element.mantissa is None:
        return values.round_()
    torch.bitwise_and(values.view(torch.int32), 0x7F800000, out=work)
    spacing = work.view(torch.float32).clamp_(min=2.0**element.least).mul_(_ROUND * 2.0**-element.mantissa)
    return values.add_(spacing).sub_(spacing)


def _to_e2m1(values: "torch.Tensor") -> "torch.Tensor":
    """To the nearest E2M1, ties towards zero."""
    import torch

    numbers = torch.tensor(_E2M1)
    return numbers[torch.bucketize(values.abs(), (numbers[1:] + numbers[:-1]) / 2)].copysign(values)
