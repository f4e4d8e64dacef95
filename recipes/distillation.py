"""Recipes that train: distillation, quantization-aware distillation (QAD) and training (QAT)."""

from typing import TYPE_CHECKING

from recipes.family import Family
from scripts.args.distill import DistillArgs, DistillBridgeArgs, QatArgs
from scripts.entrypoints import distill as entrypoint
from scripts.entrypoints import qat as qat_entrypoint

if TYPE_CHECKING:
    import nemo_run as run

DISTILL = Family(
    name="distill",
    entrypoint=entrypoint,
    args=DistillArgs,
    strategies=(
        "After prune or quantize: the model it was is the teacher, the optimized one the student.",
        "A smoke test: distill_tiny or distill_mock; their losses mean nothing.",
        "A Hugging Face result: hf_export_path, or export_distilled of one iteration later.",
    ),
    errors=(
        "mock_data_used_as_quality_signal",
        "teacher_student_or_tokenizer_mismatch",
        "output_dir_overlaps_checkpoint_roots",
        "wandb_not_inherited",
        "modelopt_package_drift",
        "world_size_not_divisible",
    ),
)
QAD = Family(
    name="qad",
    entrypoint=entrypoint,
    args=DistillArgs,
    strategies=(
        "After quantize_modelopt, when FP8 or NVFP4 costs too much quality.",
        "Export with export_modelopt on the checkpoints folder: it keeps the scales.",
    ),
    errors=(
        "mock_data_used_as_quality_signal",
        "teacher_student_or_tokenizer_mismatch",
        "output_dir_overlaps_checkpoint_roots",
        "wandb_not_inherited",
        "modelopt_package_drift",
        "world_size_not_divisible",
        "missing_input",
    ),
)
DISTILL_LLAMA = Family(
    name="distill_llama",
    entrypoint=entrypoint,
    args=DistillBridgeArgs,
    strategies=("Megatron-Bridge's own example; change it with config sections or words after --.",),
    errors=("output_dir_overlaps_checkpoint_roots",),
)
QAT = Family(
    name="qat",
    entrypoint=qat_entrypoint,
    args=QatArgs,
    strategies=(
        "Full-precision checkpoint, then quantize, then this, with a learning rate of about 1e-5.",
        "The checkpoint must be a quantized one: a plain one would be trained unquantized.",
    ),
    errors=(
        "missing_input",
        "wrong_checkpoint_kind",
        "output_dir_overlaps_checkpoint_roots",
    ),
)


def distill() -> "run.Partial[None]":
    """Qwen3-8B teaches Qwen3-4B, on real data."""
    return DISTILL.recipe()


def distill_mock() -> "run.Partial[None]":
    """The plumbing of distill on random tokens. Not a quality signal."""
    return DISTILL.recipe("mock")


def distill_tiny() -> "run.Partial[None]":
    """Smoke test: small models, random tokens, one process. Not a quality signal."""
    return DISTILL.recipe("tiny")


def distill_pruned() -> "run.Partial[None]":
    """Quality recovery: the model it was teaches the pruned one."""
    return DISTILL.recipe("pruned")


def qad() -> "run.Partial[None]":
    """A quantized student learns from the model it was."""
    return QAD.recipe()


def qad_tiny() -> "run.Partial[None]":
    """Smoke test of qad on random tokens, one process. Not a quality signal."""
    return QAD.recipe("tiny")


def distill_llama() -> "run.Partial[None]":
    """Llama-3.2-3B teaches Llama-3.2-1B."""
    return DISTILL_LLAMA.recipe()


def qat() -> "run.Partial[None]":
    """Train a quantized checkpoint on, scales frozen, with a small learning rate."""
    return QAT.recipe()


def qat_tiny() -> "run.Partial[None]":
    """Smoke test of qat: 20 iterations. Not a quality signal."""
    return QAT.recipe("tiny")
