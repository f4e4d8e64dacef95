"""Recipes that show what a quantized checkpoint says."""

from typing import TYPE_CHECKING

from recipes.family import Family
from scripts.args.generate import GenerateArgs, GenerateVllmArgs, GenerateVlmArgs
from scripts.entrypoints import generate as entrypoint

if TYPE_CHECKING:
    import nemo_run as run

GENERATE = Family(
    name="generate",
    entrypoint=entrypoint,
    args=GenerateArgs,
    strategies=("After quantize: does the checkpoint load, and does it still speak?",),
    errors=(
        "missing_input",
        "wrong_checkpoint_kind",
        "world_size_not_divisible",
    ),
)
GENERATE_VLM = Family(
    name="generate_vlm",
    entrypoint=entrypoint,
    args=GenerateVlmArgs,
    strategies=("Name an image_path: the script's own default is a file of its container.",),
    errors=(
        "missing_input",
        "wrong_checkpoint_kind",
        "world_size_not_divisible",
    ),
)
GENERATE_VLLM = Family(
    name="generate_vllm",
    entrypoint=entrypoint,
    args=GenerateVllmArgs,
    strategies=("After export: does vLLM load the checkpoint?",),
    errors=(
        "missing_input",
        "wrong_checkpoint_kind",
    ),
)


def generate() -> "run.Partial[None]":
    """Continue prompts with a quantized Megatron checkpoint."""
    return GENERATE.recipe()


def generate_vlm() -> "run.Partial[None]":
    """Ask a quantized vision-language checkpoint about an image."""
    return GENERATE_VLM.recipe()


def generate_vllm() -> "run.Partial[None]":
    """Continue prompts with an exported checkpoint in vLLM."""
    return GENERATE_VLLM.recipe()
