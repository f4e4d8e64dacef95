"""NVFP4 and rotation on the CPU, where ModelOpt has only CUDA kernels.

`cpu_kernels()` installs pure-torch stand-ins for the time of a `with` block, those of the MX formats (mx.py) too. CUDA
tensors still take ModelOpt's own kernels. The arithmetic is the one of ModelOpt's packing (NVFP4QTensor), so a
fake-quantized weight equals, bit for bit, what unpacking the exported weight gives.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from scripts.engines.hf import mx
from scripts.engines.hf.packing import replaced
from scripts.run.problems import JobError

if TYPE_CHECKING:
    import torch

E2M1_MAX = 6.0
E4M3_MAX = 448.0
E4M3_MIN = 2.0**-9
# Elements handled at a time: the float32 work areas of this size stay in the second-level cache of two cores.
CHUNK = 1 << 16


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
    tensor_scale = amax.detach().float().amax().to(inputs.device) / (E2M1_MAX * E4M3_MAX)

    def scales(start: int, values: torch.Tensor, scratch: torch.Tensor) -> torch.Tensor:
        # Without the sign bit floats order as integers do, and the integer maximum is the faster one.
        torch.bitwise_and(values.view(torch.int32), 0x7FFFFFFF, out=scratch)
        block_amax = scratch.amax(dim=1, keepdim=True).view(torch.float32)
        return block_scales(block_amax, tensor_scale) * tensor_scale

    result = _by_blocks(source.reshape(-1, block_size), scales, inputs.dtype).reshape(source.shape)
    return result[..., :size].contiguous() if padding else result


def static_fake_quantize(
    inputs: "torch.Tensor",
    amax: "torch.Tensor",
    global_amax: "torch.Tensor | None" = None,
    quantize_block_scales: bool = True,
    fp8_max_for_normalization: float = E4M3_MAX,
    out_dtype: "torch.dtype | None" = None,
) -> "torch.Tensor":
    """The same by given maxima of blocks, as a search leaves them; the parameters are those of ModelOpt's kernel.

    `fp8_max_for_normalization`: what the largest scale of a block becomes; 256 for four-over-six.
    """
    import torch

    amax = amax.detach().float().reshape(-1, 1)
    block_size = inputs.numel() // len(amax)
    largest = amax.amax() if global_amax is None else global_amax.detach().float()
    scale = amax / E2M1_MAX
    if quantize_block_scales:
        scale.masked_fill_(scale == 0, 1.0)
        scale = (scale * fp8_max_for_normalization / (largest / E2M1_MAX)).clamp_(E4M3_MIN, E4M3_MAX)
        scale = scale.to(torch.float8_e4m3fn).float() * (largest / (E2M1_MAX * fp8_max_for_normalization))
    blocks = inputs.reshape(-1, block_size)
    result = _by_blocks(blocks, lambda start, values, _: scale[start : start + len(values)], out_dtype or inputs.dtype)
    return result.reshape(inputs.shape)


def _by_blocks(
    blocks: "torch.Tensor",
    scales: "Callable[[int, torch.Tensor, torch.Tensor], torch.Tensor]",
    dtype: "torch.dtype",
) -> "torch.Tensor":
    """Round blocks [count, size], a few at a time; `scales` gives those [n, 1] of `n` blocks from the first on."""
    import torch

    result = torch.empty_like(blocks, dtype=dtype)
    rows = max(1, CHUNK // blocks.shape[1])
    scaled = torch.empty((min(rows, len(blocks)), blocks.shape[1]), dtype=torch.float32)
    work = torch.empty_like(scaled, dtype=torch.int32)
    for start in range(0, len(blocks), rows):
        part = blocks[start : start + rows]
        values, scratch = scaled[: len(part)], work[: len(part)]
        values.copy_(part)
        scale = scales(start, values, scratch)
        # A scale that underflows to zero would divide by zero; the product with it is zero again.
        values.div_(torch.where(scale == 0, 1.0, scale))
        mx.round_(values, scratch, mx.ELEMENTS[4, 2])
        result[start : start + rows] = values.mul_(scale)
    return result


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
        if (scale_num_bits, scale_exponent_bits) == mx.SCALE and (num_bits, exponent_bits) in mx.ELEMENTS:
            return mx.fake_quantize(inputs, block_size, (num_bits, exponent_bits))
        layout = (num_bits, exponent_bits, scale_num_bits, scale_exponent_bits)
        if layout != (4, 2, 8, 4):
            what = f"{num_bits}-bit values with {scale_num_bits}-bit scales of {scale_exponent_bits} exponent bits"
            cause = f"ModelOpt quantizes blocks of {what} with a CUDA kernel only."
            remedy = "Use a machine with a CUDA GPU (device=cuda), or one of the named formats."
            raise JobError("format_needs_cuda", cause, remedy)
        return fake_quantize(inputs, block_size, amax)

    return op


class _Kernels:
    """ModelOpt's module of Triton kernels, which are there where Triton and a GPU are, and the stand-in."""

    IS_AVAILABLE = True

    def __init__(self, original: Any) -> None:
        self._original = original

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)

    def static_blockwise_fp4_fake_quant(self, inputs: Any, *given: Any) -> Any:
        on_cpu = inputs.device.type == "cpu"
        return (static_fake_quantize if on_cpu else self._original.static_blockwise_fp4_fake_quant)(inputs, *given)


@contextmanager
def cpu_kernels() -> Iterator[None]:
    """Let ModelOpt quantize CPU tensors to NVFP4 and MX and rotate them while the block runs; may be nested."""
    import modelopt.torch.quantization.nn.modules.tensor_quantizer as quantizer_module
    import modelopt.torch.quantization.tensor_quant as quant_module

    block_op = quant_module.dynamic_block_quantize_op
    rotation = quantizer_module.normalized_hadamard_transform

    def dispatch_rotation(inputs: Any, rotate_fp32: bool = False, block_size: int | None = None) -> Any:
        chosen = rotate if inputs.device.type == "cpu" else rotation
        return chosen(inputs, rotate_fp32=rotate_fp32, block_size=block_size)

    with (
        replaced([quant_module], "dynamic_block_quantize_op", _dynamic_block_op(block_op)),
        replaced([quant_module], "triton_kernel", _Kernels(quant_module.triton_kernel)),
        replaced([quantizer_module], "normalized_hadamard_transform", dispatch_rotation),
    ):
        yield
