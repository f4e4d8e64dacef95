"""Recipes of the Megatron-LM family: examples/post_training/modelopt, by model card."""

from typing import TYPE_CHECKING

from recipes.family import Family
from scripts.args import megatron_lm as args
from scripts.entrypoints import convert, distill, evaluate, export, finetune, generate, prune, quantize, validate

if TYPE_CHECKING:
    import nemo_run as run

MLM_CONVERT = Family(
    name="mlm_convert",
    entrypoint=convert,
    args=args.MlmConvertArgs,
    strategies=("First of the family: everything else begins with its checkpoint.",),
    errors=(
        "unknown_model_card",
        "missing_input",
        "wrong_checkpoint_kind",
        "world_size_not_divisible",
        "pipeline_not_interleaved",
    ),
)
MLM_QUANTIZE = Family(
    name="mlm_quantize",
    entrypoint=quantize,
    args=args.MlmQuantizeArgs,
    strategies=("FP8 needs sm >= 89 to run, not to be made.",),
    errors=(
        "unsupported_quant_recipe",
        "unknown_model_card",
        "missing_input",
        "wrong_checkpoint_kind",
        "world_size_not_divisible",
        "pipeline_not_interleaved",
    ),
)
MLM_EXPORT = Family(
    name="mlm_export",
    entrypoint=export,
    args=args.MlmExportArgs,
    strategies=("Serve it: serve (vLLM), serve_trtllm or serve_sglang.",),
    errors=(
        "export_needs_tp1",
        "unknown_model_card",
        "missing_input",
        "wrong_checkpoint_kind",
        "world_size_not_divisible",
        "pipeline_not_interleaved",
    ),
)
MLM_GENERATE = Family(
    name="mlm_generate",
    entrypoint=generate,
    args=args.MlmGenerateArgs,
    strategies=("draft_length needs heads: mlm_convert_eagle3.",),
    errors=(
        "unknown_model_card",
        "missing_input",
        "wrong_checkpoint_kind",
        "world_size_not_divisible",
        "pipeline_not_interleaved",
    ),
)
MLM_MMLU = Family(
    name="mlm_mmlu",
    entrypoint=evaluate,
    args=args.MlmMmluArgs,
    strategies=("Before and after: the score of the source belongs beside it.",),
    errors=(
        "unknown_model_card",
        "missing_input",
        "wrong_checkpoint_kind",
        "world_size_not_divisible",
        "pipeline_not_interleaved",
    ),
)
MLM_PRUNE = Family(
    name="mlm_prune",
    entrypoint=prune,
    args=args.MlmPruneArgs,
    strategies=("Cores before 0.18 take sizes as flags: mlm_prune_targets.",),
    errors=(
        "output_path_overlaps_input",
        "unknown_model_card",
        "missing_input",
        "wrong_checkpoint_kind",
        "world_size_not_divisible",
        "pipeline_not_interleaved",
    ),
)
MLM_FINETUNE = Family(
    name="mlm_finetune",
    entrypoint=finetune,
    args=args.MlmFinetuneArgs,
    strategies=("A quantized checkpoint keeps its scales: then this is QAT.",),
    errors=(
        "unknown_model_card",
        "missing_input",
        "wrong_checkpoint_kind",
        "world_size_not_divisible",
        "pipeline_not_interleaved",
    ),
)
MLM_DISTILL = Family(
    name="mlm_distill",
    entrypoint=distill,
    args=args.MlmFinetuneArgs,
    strategies=("A quantized student makes it QAD.",),
    errors=(
        "kd_incompatible",
        "unknown_model_card",
        "missing_input",
        "wrong_checkpoint_kind",
        "world_size_not_divisible",
        "pipeline_not_interleaved",
    ),
)
MLM_VALIDATE = Family(
    name="mlm_validate",
    entrypoint=validate,
    args=args.MlmValidateArgs,
    strategies=("The longer the accepted drafts, the faster the model.",),
    errors=(
        "unknown_model_card",
        "missing_input",
        "wrong_checkpoint_kind",
        "world_size_not_divisible",
        "pipeline_not_interleaved",
    ),
)


def mlm_convert() -> "run.Partial[None]":
    """A Hugging Face model as Megatron-LM checkpoint."""
    return MLM_CONVERT.recipe()


def mlm_convert_eagle3() -> "run.Partial[None]":
    """Add EAGLE-3 heads for speculative decoding."""
    return MLM_CONVERT.recipe("eagle3")


def mlm_quantize() -> "run.Partial[None]":
    """FP8, with a sample of its text afterwards."""
    return MLM_QUANTIZE.recipe()


def mlm_quantize_nvfp4() -> "run.Partial[None]":
    """NVFP4, for Blackwell."""
    return MLM_QUANTIZE.recipe("nvfp4")


def mlm_quantize_tiny() -> "run.Partial[None]":
    """Smoke test: few samples. Not a quality signal."""
    return MLM_QUANTIZE.recipe("tiny")


def mlm_export() -> "run.Partial[None]":
    """A quantized Megatron-LM checkpoint as deployable Hugging Face one."""
    return MLM_EXPORT.recipe()


def mlm_generate() -> "run.Partial[None]":
    """Answers of a Megatron-LM checkpoint."""
    return MLM_GENERATE.recipe()


def mlm_generate_speculative() -> "run.Partial[None]":
    """Answers with draft tokens of its own heads."""
    return MLM_GENERATE.recipe("speculative")


def mlm_mmlu() -> "run.Partial[None]":
    """The MMLU score of a Megatron-LM checkpoint."""
    return MLM_MMLU.recipe()


def mlm_mmlu_tiny() -> "run.Partial[None]":
    """Smoke test: one question in a hundred. Not a score."""
    return MLM_MMLU.recipe("tiny")


def mlm_prune() -> "run.Partial[None]":
    """Prune to a fixed architecture (core 0.18 and later)."""
    return MLM_PRUNE.recipe()


def mlm_prune_targets() -> "run.Partial[None]":
    """Prune to a fixed architecture (cores before 0.18)."""
    return MLM_PRUNE.recipe("targets")


def mlm_finetune() -> "run.Partial[None]":
    """Train a Megatron-LM checkpoint on conversations."""
    return MLM_FINETUNE.recipe()


def mlm_distill() -> "run.Partial[None]":
    """Knowledge distillation in Megatron-LM, with its YAML."""
    return MLM_DISTILL.recipe()


def mlm_validate() -> "run.Partial[None]":
    """The acceptance length of speculative decoding."""
    return MLM_VALIDATE.recipe()
