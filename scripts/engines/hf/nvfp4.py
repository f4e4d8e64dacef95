"""NVFP4 and rotation on the CPU, where ModelOpt has only CUDA kernels.

`cpu_kernels()` installs pure-torch stand-ins for the time of a `with` block. CUDA tensors still take ModelOpt's own
kernels. The arithmetic is the one of ModelOpt's packing (NVFP4QTensor), so a fake-quantized weight equals, bit for
bit, what unpacking the exported weight gives.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from scripts.engines.hf.packing import replaced
from scripts.run.problems import JobError

if TYPE_CHECKING:
    import torch

E2M1_MAX = 6.0
E4M3_MAX = 448.0
E4M3_MIN = 2.0**-9
# Elements handled at a time: the float32 work areas of this size stay in the second-level cache of two cores.
CHUNK = 1 << 16
_ROUND = 1.5 * 2.0**23


def _round_e2m1_(scaled: "torch.Tensor", work: "torch.Tensor") -> None:
    """Round float32 `scaled` to the nearest E2M1 value in place, ties to the even mantissa.

    The spacing of E2M1 is 0.5 below 2, then half the power of two below. Adding and taking away 1.5 * 2**23 spacings
    makes float32 addition itself round to a multiple of the spacing. `work` is int32 scratch of the same shape.
    """
    import torch

    scaled.clamp_(-E2M1_MAX, E2M1_MAX)
    torch.bitwise_and(scaled.view(torch.int32), 0x7F800000, out=work)
    spacing = work.view(torch.float32)
    spacing.clamp_(min=1.0).mul_(_ROUND / 2)
    scaled.add_(spacing).sub_(spacing)


def block_scales(amax: "torch.Tensor", tensor_scale: "torch.Tensor") -> "torch.Tensor":
    """E4M3 block scales (as float32, tensor scale not applied) for float32 block maxima.

    As ModelOpt packs them: zero blocks get scale 1, others are kept within [2**-9, 448].
    """
    import torch

    # A tensor that is all zero has tensor scale 0; ModelOpt's packing makes NaN of it, here it stays zero.
    scales = (amax / (E2M1_MAX * tensor_scale)).nan_to_num_(nan=1.0, posinf=E4M3_MAX)
    scales.masked_fill_(scales == 0, 1.0)
    return scales.clamp_(E4M3_MIN, E4M3_MAX).to(torch.float8_e4m3fn).float()


def fake_quantize(inputs: "torch.Tensor", block_size: int, amax: "torch.Tensor") -> "torch.Tensor":
    """Quantize to NVFP4 and back along the last dimension; same shape and dtype.

    `amax` is the calibrated maximum of the whole tensor (its largest element if it has several). A last dimension that
    is not a multiple of `block_size` is padded with zeros, as in ModelOpt.
    """
    import torch

    size = inputs.shape[-1]
    padding = -size % block_size
    source = torch.nn.functional.pad(inputs, (0, padding)) if padding else inputs
    blocks = source.reshape(-1, block_size)
    tensor_scale = amax.detach().float().amax().to(inputs.device) / (E2M1_MAX * E4M3_MAX)
    result = torch.empty_like(blocks)
    rows = max(1, CHUNK // block_size)
    scaled = torch.empty((min(rows, len(blocks)), block_size), dtype=torch.float32)
    work = torch.empty_like(scaled, dtype=torch.int32)
    for start in range(0, len(blocks), rows):
        part = blocks[start : start + rows]
        values, scratch = scaled[: len(part)], work[: len(part)]
        values.copy_(part)
        # Without the sign bit floats order as integers do, and the integer maximum is the faster one.
        torch.bitwise_and(values.view(torch.int32), 0x7FFFFFFF, out=scratch)
        block_amax = scratch.amax(dim=1, keepdim=True).view(torch.float32)
        scale = block_scales(block_amax, tensor_scale) * tensor_scale
        # A scale that underflows to zero would divide by zero; the product with it is zero again.
        values.div_(torch.where(scale == 0, 1.0, scale))
        _round_e2m1_(values, scratch)
        result[start : start + rows] = values.mul_(scale)
    result = result.reshape(source.shape)
    return result[..., :size].contiguous() if padding else result


@functools.lru_cache(maxsize=8)
def _hadamard(size: int) -> "torch.Tensor":
    """The Sylvester matrix of a power-of-two size, entries 1 and -1, float32."""
    import torch

    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix


def rotate(inputs: "torch.Tensor", rotate_fp32: bool = False, block_size: int | None = None) -> "torch.Tensor":
    """The normalized Hadamard transform of the last dimension, in float32, returned in the dtype of `inputs`.

    Without `block_size` the largest power of two that divides the dimension is one block, as in ModelOpt. The
    parameters are those of ModelOpt's function; `rotate_fp32` is always true here.
    """
    size = inputs.shape[-1]
    block = block_size or size & -size
    if block < 2 or block & (block - 1) or size % block:
        cause = f"A dimension of {size} cannot be rotated in blocks of {block}."
        raise JobError("rotation_size", cause, "Take a key/value cache format without rotation.")
    rotated = inputs.float().reshape(-1, block) @ _hadamard(block)
    return rotated.mul_(block**-0.5).reshape(inputs.shape).to(inputs.dtype)


def _dynamic_block_op(original: Any) -> Any:
    def op(
        inputs: Any,
        block_size: int,
        amax: Any,
        num_bits: int,
        exponent_bits: int,
        scale_num_bits: int,
        scale_exponent_bits: int,
    ) -> Any:
        if inputs.device.type != "cpu":
            return original(inputs, block_size, amax, num_bits, exponent_bits, scale_num_bits, scale_exponent_bits)
        layout = (num_bits, exponent_bits, scale_num_bits, scale_exponent_bits)
        if layout != (4, 2, 8, 4):
            what = f"{num_bits}-bit values with {scale_num_bits}-bit scales of {scale_exponent_bits} exponent bits"
            cause = f"ModelOpt quantizes blocks of {what} (the MX formats) with a CUDA kernel only."
            remedy = "Use a machine with a CUDA GPU (device=cuda), or one of the named formats."
            raise JobError("format_needs_cuda", cause, remedy)
        return fake_quantize(inputs, block_size, amax)

    return op


@contextmanager
def cpu_kernels() -> Iterator[None]:
    """Let ModelOpt quantize CPU tensors to NVFP4 and rotate them while the block runs; may be nested."""
    import modelopt.torch.quantization.nn.modules.tensor_quantizer as quantizer_module
    import modelopt.torch.quantization.tensor_quant as quant_module

    block_op = quant_module.dynamic_block_quantize_op
    rotation = quantizer_module.normalized_hadamard_transform

    def dispatch_rotation(inputs: Any, rotate_fp32: bool = False, block_size: int | None = None) -> Any:
        chosen = rotate if inputs.device.type == "cpu" else rotation
        return chosen(inputs, rotate_fp32=rotate_fp32, block_size=block_size)

    with (
        replaced([quant_module], "dynamic_block_quantize_op", _dynamic_block_op(block_op)),
        replaced([quantizer_module], "normalized_hadamard_transform", dispatch_rotation),
    ):
        yield
