"""Exported weights back to float32, written from the layout of the files and not with the exporter's code."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    Tensors = Mapping[str, torch.Tensor]

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)


def _per_block(scale: "torch.Tensor", shape: tuple[int, int]) -> "torch.Tensor":
    """A scale of any of the stored shapes, spread over a weight of `shape` [out, in]."""
    if scale.numel() == 1:
        return scale.float().reshape(1, 1).expand(shape)
    if scale.ndim == 1:
        return scale.float()[:, None].expand(shape)
    grid = scale.float().reshape(scale.shape[0], -1)
    rows, columns = shape[0] // grid.shape[0], shape[1] // grid.shape[1]
    return grid.repeat_interleave(rows, 0).repeat_interleave(columns, 1)


def _unpack_columns(packed: "torch.Tensor") -> "torch.Tensor":
    """NVFP4: two neighbours along the input in one byte, the first in the low half."""
    import torch

    codes = torch.stack([packed & 0x0F, packed >> 4], -1).reshape(packed.shape[0], -1)
    return torch.tensor(E2M1)[codes.long()]


def _unpack_rows(packed: "torch.Tensor") -> "torch.Tensor":
    """INT4: two neighbours along the output in one byte, two's complement, the first in the low half."""
    import torch

    codes = torch.stack([packed & 0x0F, packed >> 4], 1).reshape(-1, packed.shape[1]).to(torch.int8)
    return torch.where(codes > 7, codes - 16, codes).float()


def dequantize(name: str, tensors: "Tensors") -> "torch.Tensor":
    """A module's weight [out, in] in float32, for the format called `name`.

    `tensors` are the module's own: weight, weight_scale, weight_scale_2. The result applies to the module's input
    after pre_quant_scale, where there is one.
    """
    stored = tensors["weight"]
    if name == "nvfp4":
        values = _unpack_columns(stored)
    elif name in ("int4_awq", "w4a8_awq"):
        values = _unpack_rows(stored)
    else:
        values = stored.float()
    weight = values * _per_block(tensors["weight_scale"], (values.shape[0], values.shape[1]))
    if name == "nvfp4":
        weight = weight * tensors["weight_scale_2"].float()
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
