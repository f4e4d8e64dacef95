"""Recipes between Hugging Face and Megatron checkpoints, and from an adapter to a model."""

from typing import TYPE_CHECKING

from recipes.family import Family
from scripts.args.convert import HfToMegatronArgs, MegatronToHfArgs, MergeLoraArgs
from scripts.entrypoints import convert as entrypoint

if TYPE_CHECKING:
    import nemo_run as run

HF_TO_MEGATRON = Family(
    name="hf_to_megatron",
    entrypoint=entrypoint,
    args=HfToMegatronArgs,
    strategies=("Begin with a clean checkpoint, not with the state of a training.",),
    errors=(
        "missing_input",
        "wrong_checkpoint_kind",
        "source_checkpoint_overwritten",
        "world_size_not_divisible",
    ),
)
MEGATRON_TO_HF = Family(
    name="megatron_to_hf",
    entrypoint=entrypoint,
    args=MegatronToHfArgs,
    strategies=(
        "A concrete iter_* folder, or the one above it: then the latest.",
        "A checkpoint that carries ModelOpt state needs export: this would drop it.",
    ),
    errors=(
        "missing_input",
        "wrong_checkpoint_kind",
        "source_checkpoint_overwritten",
        "world_size_not_divisible",
    ),
)
MERGE_LORA = Family(
    name="merge_lora",
    entrypoint=entrypoint,
    args=MergeLoraArgs,
    strategies=("Merge before quantize, prune or distill, and only into the exact base of the adapter.",),
    errors=(
        "missing_input",
        "wrong_checkpoint_kind",
        "source_checkpoint_overwritten",
        "world_size_not_divisible",
    ),
)


def hf_to_megatron() -> "run.Partial[None]":
    """A Hugging Face model as Megatron checkpoint."""
    return HF_TO_MEGATRON.recipe()


def megatron_to_hf() -> "run.Partial[None]":
    """A Megatron checkpoint, not quantized, as Hugging Face model."""
    return MEGATRON_TO_HF.recipe()


def merge_lora() -> "run.Partial[None]":
    """A LoRA adapter merged into its base model."""
    return MERGE_LORA.recipe()
