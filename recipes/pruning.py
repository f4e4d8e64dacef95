"""Recipes that remove the parameters that matter least (Minitron, arXiv:2407.14679)."""

from typing import TYPE_CHECKING

from recipes.family import Family
from scripts.args.prune import PruneArgs
from scripts.entrypoints import prune as entrypoint

if TYPE_CHECKING:
    import nemo_run as run

PRUNE = Family(
    name="prune",
    entrypoint=entrypoint,
    args=PruneArgs,
    strategies=(
        "A size is the goal: prune_target_params, or active parameters, or memory, and prune_export_config: null.",
        "An architecture is the goal: prune_export_config, and no target.",
        "Layers do not divide by stages: num_layers_in_first_pipeline_stage and num_layers_in_last_pipeline_stage.",
        "Prune before distill, never after; keep the BF16 source and its scores.",
    ),
    errors=(
        "target_and_export_config_both_set",
        "output_path_overlaps_input",
        "modelopt_package_drift",
        "invalid_parallel_divisibility",
    ),
)


def prune() -> "run.Partial[None]":
    """Search the best architecture of 6 billion parameters or fewer."""
    return PRUNE.recipe()


def prune_active() -> "run.Partial[None]":
    """Search by the parameters that a token activates, in a mixture of experts."""
    return PRUNE.recipe("active")


def prune_memory() -> "run.Partial[None]":
    """Search what fits into memory, the key/value cache included."""
    return PRUNE.recipe("memory")


def prune_fixed() -> "run.Partial[None]":
    """Prune to an architecture that is given; no evaluation data needed."""
    return PRUNE.recipe("fixed")


def prune_uneven() -> "run.Partial[None]":
    """Search with pipeline stages of different length."""
    return PRUNE.recipe("uneven")


def prune_tiny() -> "run.Partial[None]":
    """Smoke test: a small model, one process. Not a quality signal."""
    return PRUNE.recipe("tiny")
