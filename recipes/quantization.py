"""The quantize families: one function per recipe, each a Partial over one file in configs/."""

from typing import TYPE_CHECKING

from recipes.family import Family
from scripts.args.quantize import QuantizeArgs, QuantizeModelOptArgs, QuantizeVlmArgs
from scripts.entrypoints import quantize as entrypoint

if TYPE_CHECKING:
    import nemo_run as run

QUANTIZE = Family(
    name="quantize",
    entrypoint=entrypoint,
    args=QuantizeArgs,
    also=("eval_results",),
    strategies=(
        "Hopper or Ada: begin with quantize_fp8.",
        "Blackwell: begin with quantize_nvfp4.",
        "A Hugging Face checkpoint is wanted: the hf engine writes one; after the script engine run export.",
        "Quality: calibrate on text like that of the task, and score before and after; tiny runs say nothing.",
    ),
    errors=(
        "unsupported_quant_recipe",
        "world_size_not_divisible",
        "source_checkpoint_overwritten",
        "tiny_calibration_used_as_quality_signal",
    ),
)
QUANTIZE_VLM = Family(
    name="quantize_vlm",
    entrypoint=entrypoint,
    args=QuantizeVlmArgs,
    strategies=(
        "The language model is quantized, the vision tower stays as it is.",
        "Without a network: use_random_calib=true and a test_image_path of your own.",
    ),
    errors=(
        "unsupported_quant_recipe",
        "world_size_not_divisible",
        "source_checkpoint_overwritten",
        "tiny_calibration_used_as_quality_signal",
    ),
)
QUANTIZE_MODELOPT = Family(
    name="quantize_modelopt",
    entrypoint=entrypoint,
    args=QuantizeModelOptArgs,
    strategies=(
        "A key/value cache in another format than FP8, or a ModelOpt recipe: this script has them.",
        "Export with export_modelopt, which knows what this script saves.",
    ),
    errors=(
        "unsupported_quant_recipe",
        "world_size_not_divisible",
        "source_checkpoint_overwritten",
        "tiny_calibration_used_as_quality_signal",
        "modelopt_package_drift",
    ),
)


def quantize() -> "run.Partial[None]":
    """FP8 with 512 calibration samples; the base that the others vary."""
    return QUANTIZE.recipe()


def quantize_fp8() -> "run.Partial[None]":
    """FP8 weights and activations, per tensor. For Hopper and Ada (sm >= 89)."""
    return QUANTIZE.recipe("fp8")


def quantize_nvfp4() -> "run.Partial[None]":
    """NVFP4 weights and activations in blocks of 16. Native on Blackwell."""
    return QUANTIZE.recipe("nvfp4")


def quantize_int8_sq() -> "run.Partial[None]":
    """INT8 weights and activations with SmoothQuant (arXiv:2211.10438)."""
    return QUANTIZE.recipe("int8_sq")


def quantize_fp8_blockwise() -> "run.Partial[None]":
    """FP8 weights in blocks of 128 x 128; activations stay as they are."""
    return QUANTIZE.recipe("fp8_blockwise")


def quantize_int4_awq() -> "run.Partial[None]":
    """INT4 weights in blocks of 128, scaled by activation (AWQ, arXiv:2306.00978)."""
    return QUANTIZE.recipe("int4_awq")


def quantize_w4a8_awq() -> "run.Partial[None]":
    """INT4 weights with AWQ, FP8 activations."""
    return QUANTIZE.recipe("w4a8_awq")


def quantize_mamba_moe_fp8_aggressive() -> "run.Partial[None]":
    """FP8 for hybrid Mamba MoE models (Nemotron 3): all but what breaks."""
    return QUANTIZE.recipe("mamba_moe_fp8_aggressive")


def quantize_mamba_moe_fp8_conservative() -> "run.Partial[None]":
    """FP8 for hybrid Mamba MoE models (Nemotron 3): sensitive layers stay in BF16."""
    return QUANTIZE.recipe("mamba_moe_fp8_conservative")


def quantize_mamba_moe_nvfp4_aggressive() -> "run.Partial[None]":
    """NVFP4 for hybrid Mamba MoE models (Nemotron 3): all but what breaks."""
    return QUANTIZE.recipe("mamba_moe_nvfp4_aggressive")


def quantize_mamba_moe_nvfp4_conservative() -> "run.Partial[None]":
    """NVFP4 for hybrid Mamba MoE models (Nemotron 3): sensitive layers stay in BF16."""
    return QUANTIZE.recipe("mamba_moe_nvfp4_conservative")


def quantize_tiny() -> "run.Partial[None]":
    """Smoke test on the built-in model: same command, few samples. Not a quality signal."""
    return QUANTIZE.recipe("tiny")


def quantize_vlm() -> "run.Partial[None]":
    """A vision-language model in FP8 (Qwen3-VL-8B)."""
    return QUANTIZE_VLM.recipe()


def quantize_vlm_qwen3_vl_30b() -> "run.Partial[None]":
    """Qwen3-VL-30B-A3B in FP8 on 8 GPUs: tp 4, etp 4, pp 2."""
    return QUANTIZE_VLM.recipe("qwen3_vl_30b")


def quantize_vlm_nvfp4() -> "run.Partial[None]":
    """A vision-language model in NVFP4, for Blackwell."""
    return QUANTIZE_VLM.recipe("nvfp4")


def quantize_vlm_tiny() -> "run.Partial[None]":
    """Smoke test: random images, one process. Not a quality signal."""
    return QUANTIZE_VLM.recipe("tiny")


def quantize_modelopt() -> "run.Partial[None]":
    """Model-Optimizer's own script: FP8, the key/value cache too."""
    return QUANTIZE_MODELOPT.recipe()


def quantize_modelopt_nvfp4() -> "run.Partial[None]":
    """Model-Optimizer's own script: NVFP4, the key/value cache in FP8."""
    return QUANTIZE_MODELOPT.recipe("nvfp4")


def quantize_modelopt_recipe() -> "run.Partial[None]":
    """Model-Optimizer's own script by a ModelOpt recipe instead of a format."""
    return QUANTIZE_MODELOPT.recipe("recipe")


def quantize_modelopt_tiny() -> "run.Partial[None]":
    """Smoke test: few short samples, one process. Not a quality signal."""
    return QUANTIZE_MODELOPT.recipe("tiny")
