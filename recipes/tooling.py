"""Recipes around the models: data to train on, scores, and whether a server can load what came out."""

from typing import TYPE_CHECKING

from recipes.family import Family
from scripts.args.data import PrepareDataArgs
from scripts.args.evaluate import EvaluateArgs
from scripts.args.serve import ServeArgs
from scripts.entrypoints import evaluate as evaluate_entrypoint
from scripts.entrypoints import prepare_data as prepare_entrypoint
from scripts.entrypoints import serve as serve_entrypoint

if TYPE_CHECKING:
    import nemo_run as run

PREPARE_DATA = Family(
    name="prepare_data",
    entrypoint=prepare_entrypoint,
    args=PrepareDataArgs,
    strategies=(
        "Once for each tokenizer: data of one model's family serves all of its members.",
        "Training text needs append_eod; conversations do not, their template ends them.",
    ),
    errors=(
        "one_data_source",
        "missing_data",
        "unknown_data",
        "unreadable_data",
        "no_text",
        "megatron_core_missing",
        "data_left_out",
        "no_documents",
    ),
)
EVALUATE = Family(
    name="evaluate",
    entrypoint=evaluate_entrypoint,
    args=EvaluateArgs,
    also=("eval_results",),
    strategies=(
        "Before and after: score the source first, and give its report as baseline.",
        "Tasks like what the model is for, not what it was calibrated on.",
        "An export needs vLLM; without it, score the ModelOpt-restorable checkpoint of the same run.",
    ),
    errors=(
        "no_tasks",
        "not_of_this_backend",
        "unreadable_baseline",
        "harness_not_installed",
        "unscorable_checkpoint",
        "backend_cannot_load",
        "backend_not_installed",
        "eval_results_missing",
        "no_scores",
        "limited_run_used_as_quality_signal",
        "baseline_not_comparable",
    ),
)
SERVE = Family(
    name="serve",
    entrypoint=serve_entrypoint,
    args=ServeArgs,
    also=("eval_results",),
    strategies=(
        "After export: does the server that you deploy load the checkpoint, and is what it says text?",
        "FP8 needs sm >= 89 (Ada, Hopper), NVFP4 is native on Blackwell.",
    ),
    errors=(
        "unservable_checkpoint",
        "gpu_too_old",
        "too_few_gpus",
        "port_in_use",
        "server_not_installed",
        "server_died",
        "server_not_ready",
        "server_answer_wrong",
        "server_answer_empty",
        "server_answer_degenerate",
    ),
)


def prepare_data() -> "run.Partial[None]":
    """Text or JSONL as the binary data that Megatron trains on (bin/idx)."""
    return PREPARE_DATA.recipe()


def prepare_data_chat() -> "run.Partial[None]":
    """Conversations in JSONL as bin/idx, by the tokenizer's chat template."""
    return PREPARE_DATA.recipe("chat")


def prepare_data_tiny() -> "run.Partial[None]":
    """Smoke test on the built-in models' own text and tokenizer."""
    return PREPARE_DATA.recipe("tiny")


def evaluate() -> "run.Partial[None]":
    """Scores on common tasks of EleutherAI's lm-evaluation-harness."""
    return EVALUATE.recipe()


def evaluate_chat() -> "run.Partial[None]":
    """Scores of an instruct model, asked as in a chat."""
    return EVALUATE.recipe("chat")


def evaluate_tiny() -> "run.Partial[None]":
    """Smoke test on a built-in model and its own text. Not a quality signal."""
    return EVALUATE.recipe("tiny")


def serve() -> "run.Partial[None]":
    """Load a checkpoint in vLLM, ask it, and judge the answers."""
    return SERVE.recipe()


def serve_trtllm() -> "run.Partial[None]":
    """Load a checkpoint in TensorRT-LLM, ask it, and judge the answers."""
    return SERVE.recipe("trtllm")


def serve_sglang() -> "run.Partial[None]":
    """Load a checkpoint in SGLang, ask it, and judge the answers."""
    return SERVE.recipe("sglang")


def serve_tiny() -> "run.Partial[None]":
    """Smoke test of serve with a built-in model."""
    return SERVE.recipe("tiny")
