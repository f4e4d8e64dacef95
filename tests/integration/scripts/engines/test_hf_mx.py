"""The CPU's MX formats against ModelOpt's own packing, bit for bit, and against all numbers that an element has."""

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from scripts.engines.hf import mx  # noqa: E402

pytestmark = pytest.mark.integration


def packed_and_back(values: Any, bits: tuple[int, int]) -> Any:
    from modelopt.torch.quantization.qtensor.mxfp4_tensor import MXFP4QTensor
    from modelopt.torch.quantization.qtensor.mxfp8_tensor import MXFP8QTensor

    if bits == (8, 4):
        packed, scale = MXFP8QTensor.quantize(values)
        return packed.dequantize(scale=scale)
    packed, scale = MXFP4QTensor.quantize(values, 32)
    return packed.dequantize(scale=scale, block_sizes={-1: 32})


@pytest.mark.parametrize("size", [1.0, 1e-4, 3e2, 1e-30])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float16"])
@pytest.mark.parametrize("bits", [(8, 4), (4, 2)])
def test_bit_for_bit(bits: tuple[int, int], dtype: str, size: float) -> None:
    torch.manual_seed(1)
    values = (torch.randn(700, 256) * size).to(getattr(torch, dtype))
    values[0], values[1, :32] = 0, 0
    assert torch.equal(mx.fake_quantize(values, 32, bits), packed_and_back(values, bits))


def numbers(element: mx.Element) -> Any:
    """All that are not negative, smallest first."""
    if element.mantissa is None:
        return torch.arange(element.largest + 1)
    steps = 2**element.mantissa
    found = {mantissa * 2.0 ** (element.least - element.mantissa) for mantissa in range(steps)}
    for exponent in range(element.least, 16):
        found |= {(1 + mantissa / steps) * 2.0**exponent for mantissa in range(steps)}
    return torch.tensor(sorted(number for number in found if number <= element.largest))


@pytest.mark.parametrize("bits", mx.ELEMENTS)
def test_the_nearest_number_and_of_two_the_even_one(bits: tuple[int, int]) -> None:
    element = mx.ELEMENTS[bits]
    every = numbers(element)
    assert every[-1] == element.largest and len(every) <= 2 ** (bits[0] - 1)
    between = (every[1:] + every[:-1]) / 2
    even = torch.where(torch.arange(len(between)) % 2 == 0, every[:-1], every[1:])
    found = mx.round_(between.clone(), torch.empty_like(between, dtype=torch.int32), element)
    assert torch.equal(found, even)
    values = torch.rand(20000) * element.largest * 1.1
    nearest = every[(values[:, None] - every).abs().argmin(1)]
    assert torch.equal(mx.round_(values.clone(), torch.empty_like(values, dtype=torch.int32), element), nearest)


def test_padding_of_odd_sizes_and_a_power_of_two_for_each_block() -> None:
    values = torch.randn(3, 40)
    padded = torch.nn.functional.pad(values, (0, 24))
    assert torch.equal(mx.fake_quantize(values, 32, (8, 4)), mx.fake_quantize(padded, 32, (8, 4))[:, :40])
    found = mx.exponents(torch.tensor([127.0, 127.1, 63.4, 0.0]), mx.ELEMENTS[8, 0])
    assert found.tolist() == [0.0, 1.0, -1.0 + 1.0 * (63.4 > 63.5), -127.0]
