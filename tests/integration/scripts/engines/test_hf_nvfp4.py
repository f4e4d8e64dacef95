"""The CPU's NVFP4 against ModelOpt's own packing, bit for bit."""

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from scripts.engines.hf import nvfp4  # noqa: E402
from scripts.run.problems import JobError  # noqa: E402

pytestmark = pytest.mark.integration


def packed_and_back(values: Any, amax: Any) -> Any:
    from modelopt.torch.quantization.qtensor import NVFP4QTensor

    tensor_scale = amax.float() / (6.0 * 448.0)
    packed, scale, double = NVFP4QTensor.quantize(values.clone(), 16, weights_scaling_factor_2=tensor_scale)
    return packed.dequantize(dtype=values.dtype, scale=scale, double_scale=double, block_sizes={-1: 16})


def bits(values: Any) -> Any:
    return values.view(torch.int32 if values.dtype == torch.float32 else torch.int16)


KINDS: dict[str, Callable[[Any], Any]] = {
    "normal": lambda x: x,
    "huge": lambda x: x * 1e4,
    "very_huge": lambda x: x * 1e30,
    "denormal": lambda x: x * 1e-39,
    "small": lambda x: x * 1e-6,
    "wide": lambda x: x * 10.0 ** torch.randint(-8, 5, x.shape),
    "zero_blocks": lambda x: x * (torch.arange(x.numel()).reshape(x.shape) // 16 % 2),
    "sparse": lambda x: x * (torch.rand(x.shape) > 0.9),
    "ties": lambda x: ((x * 8).round() / 4).clamp(-6, 6).index_fill(-1, torch.arange(0, x.shape[-1], 16), 6.0),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float16"])
@pytest.mark.parametrize("shape", [(16,), (3, 32), (128, 256), (5, 7, 48), (700, 512)])
def test_bit_for_bit(kind: str, dtype: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(len(kind))
    values = KINDS[kind](torch.randn(shape)).to(getattr(torch, dtype))
    if not torch.isfinite(values).all() or float(values.abs().amax()) == 0:
        pytest.skip("beyond the range of the dtype")
    amax = values.abs().amax()
    if float(amax.float() / (6.0 * 448.0)) == 0:
        pytest.skip("ModelOpt's tensor scale underflows to zero and its packing gives NaN")
    expected = packed_and_back(values, amax)
    assert torch.equal(bits(nvfp4.fake_quantize(values, 16, amax)), bits(expected))
    # And with an amax from other data, which clamps.
    expected = packed_and_back(values, amax / 3)
    assert torch.equal(bits(nvfp4.fake_quantize(values, 16, amax / 3)), bits(expected))


@pytest.mark.parametrize("fours", [False, True])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_given_maxima_of_blocks_bit_for_bit(dtype: str, fours: bool) -> None:
    """As ModelOpt packs what a search of scales has left, blocks of zeros too."""
    from types import SimpleNamespace

    from modelopt.torch.quantization.qtensor import NVFP4QTensor

    torch.manual_seed(5)
    values = torch.randn(700, 256).to(getattr(torch, dtype))
    values[3] = 0
    amax = values.reshape(-1, 16).abs().amax(1).float() * torch.rand(700 * 16)
    largest = values.abs().amax().float()
    settled = SimpleNamespace(block_sizes={-1: 16, "four_over_six": fours}, global_amax=largest, _amax=amax)
    scale, double = NVFP4QTensor.get_weights_scaling_factor_from_quantizer(settled, values)
    packed, *_ = NVFP4QTensor.quantize(values.clone(), 16, scale, double)
    expected = packed.dequantize(dtype=values.dtype, scale=scale, double_scale=double, block_sizes={-1: 16})
    found = nvfp4.static_fake_quantize(values.reshape(-1, 16), amax, largest, True, 256.0 if fours else 448.0)
    assert torch.equal(found.reshape(values.shape), expected)


def test_every_tie_rounds_to_even() -> None:
    bounds = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
    values = torch.cat([bounds, -bounds, torch.tensor([6.0, 0.0])])[None]
    # amax 6 * 448 makes the tensor scale 1, and the largest value 6 makes the block scale 1.
    found = nvfp4.fake_quantize(values, 16, torch.tensor(6.0 * 448.0))[0]
    assert found[:7].tolist() == [0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0]
    assert found[7:14].tolist() == [-0.0, -1.0, -1.0, -2.0, -2.0, -4.0, -4.0]


def test_all_zero_stays_zero() -> None:
    assert torch.equal(nvfp4.fake_quantize(torch.zeros(4, 32), 16, torch.tensor(0.0)), torch.zeros(4, 32))


def test_padding_of_odd_sizes() -> None:
    values = torch.randn(3, 20)
    padded = torch.nn.functional.pad(values, (0, 12))
    expected = nvfp4.fake_quantize(padded, 16, values.abs().amax())[:, :20]
    assert torch.equal(nvfp4.fake_quantize(values, 16, values.abs().amax()), expected)


def test_rotation_is_orthogonal_and_its_own_inverse() -> None:
    values = torch.randn(5, 3, 192)
    rotated = nvfp4.rotate(values)
    assert torch.allclose(rotated.norm(dim=-1), values.norm(dim=-1), rtol=1e-5)
    assert torch.allclose(nvfp4.rotate(rotated), values, atol=1e-5)
    one = torch.zeros(64)
    one[0] = 8.0
    assert torch.equal(nvfp4.rotate(one), torch.ones(64))
    with pytest.raises(JobError, match="cannot be rotated"):
        nvfp4.rotate(torch.randn(2, 7))


def test_kernels_are_installed_for_the_block_only() -> None:
    import modelopt.torch.quantization.tensor_quant as quant

    before = quant.dynamic_block_quantize_op
    values = torch.randn(2, 32)
    with nvfp4.cpu_kernels():
        found = quant.dynamic_block_quantize_op(values, 16, values.abs().amax(), 4, 2, 8, 4)
        with nvfp4.cpu_kernels():
            assert torch.equal(quant.dynamic_block_quantize_op(values, 16, values.abs().amax(), 4, 2, 8, 4), found)
        with pytest.raises(JobError, match="CUDA kernel only"):
            quant.dynamic_block_quantize_op(values, 32, None, 4, 2, 8, 8)
    assert quant.dynamic_block_quantize_op is before
    assert torch.equal(found, packed_and_back(values, values.abs().amax()))
