"""Recipes from a Megatron checkpoint to a deployable Hugging Face one."""

from typing import TYPE_CHECKING

from recipes.family import Family
from scripts.args.export import ExportArgs, ExportDistilledArgs, ExportModelOptArgs
from scripts.entrypoints import export as entrypoint

if TYPE_CHECKING:
    import nemo_run as run

EXPORT = Family(
    name="export",
    entrypoint=entrypoint,
    args=ExportArgs,
    strategies=(
        "The checkpoint is quantized: this; it is plain: megatron_to_hf.",
        "It does not fit one GPU: more pipeline stages, never tensor parallelism.",
    ),
    errors=(
        "export_needs_tp1",
        "missing_input",
        "wrong_checkpoint_kind",
        "world_size_not_divisible",
    ),
)
EXPORT_MODELOPT = Family(
    name="export_modelopt",
    entrypoint=entrypoint,
    args=ExportModelOptArgs,
    strategies=("For what quantize_modelopt and qad left.",),
    errors=(
        "export_needs_tp1",
        "missing_input",
        "wrong_checkpoint_kind",
        "world_size_not_divisible",
        "modelopt_package_drift",
    ),
)
EXPORT_DISTILLED = Family(
    name="export_distilled",
    entrypoint=entrypoint,
    args=ExportDistilledArgs,
    strategies=("After distill; a QAD checkpoint needs export_modelopt, which keeps its scales.",),
    errors=(
        "missing_input",
        "wrong_checkpoint_kind",
        "modelopt_package_drift",
    ),
)


def export() -> "run.Partial[None]":
    """A quantized Megatron checkpoint as deployable Hugging Face one."""
    return EXPORT.recipe()


def export_modelopt() -> "run.Partial[None]":
    """The same by Model-Optimizer's own script."""
    return EXPORT_MODELOPT.recipe()


def export_distilled() -> "run.Partial[None]":
    """A distilled Megatron checkpoint as Hugging Face model."""
    return EXPORT_DISTILLED.recipe()
