"""The quantize family: one function per recipe, each a Partial over one file in configs/quantize."""

from typing import TYPE_CHECKING

from recipes.base import partial_from
from scripts.quantize import quantize as entrypoint
from scripts.types import QuantizeArgs

if TYPE_CHECKING:
    import nemo_run as run


def _recipe(name: str, config: str) -> "run.Partial[None]":
    return partial_from(entrypoint, QuantizeArgs, recipe=name, algorithm="quantize", config=config)


def quantize() -> "run.Partial[None]":
    """FP8 with 512 calibration samples; the base that the others vary."""
    return _recipe("quantize", "default")


def quantize_fp8() -> "run.Partial[None]":
    """FP8 weights and activations, per tensor. For Hopper and Ada (sm >= 89)."""
    return _recipe("quantize_fp8", "fp8")


def quantize_nvfp4() -> "run.Partial[None]":
    """NVFP4 weights and activations in blocks of 16. Native on Blackwell."""
    return _recipe("quantize_nvfp4", "nvfp4")


def quantize_int8_sq() -> "run.Partial[None]":
    """INT8 weights and activations with SmoothQuant (arXiv:2211.10438)."""
    return _recipe("quantize_int8_sq", "int8_sq")


def quantize_fp8_blockwise() -> "run.Partial[None]":
    """FP8 weights in blocks of 128 x 128; activations stay as they are."""
    return _recipe("quantize_fp8_blockwise", "fp8_blockwise")


def quantize_int4_awq() -> "run.Partial[None]":
    """INT4 weights in blocks of 128, scaled by activation (AWQ, arXiv:2306.00978)."""
    return _recipe("quantize_int4_awq", "int4_awq")


def quantize_w4a8_awq() -> "run.Partial[None]":
    """INT4 weights with AWQ, FP8 activations."""
    return _recipe("quantize_w4a8_awq", "w4a8_awq")


def quantize_tiny() -> "run.Partial[None]":
    """Smoke test on the built-in model: same command, few samples. Not a quality signal."""
    return _recipe("quantize_tiny", "tiny")
