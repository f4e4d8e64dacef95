"""Arguments of `evaluate`: what to score, on which tasks, by which library."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from scripts.args.meaning import ScriptArgs, doc
from scripts.args.shared import hub_model, limits, remote_code

Backend = Literal["hf", "vllm"]


@dataclass(frozen=True, kw_only=True)
class EvaluateArgs(ScriptArgs):
    """What `evaluate` does: scores of EleutherAI's lm-evaluation-harness, 0.4.9 or later, before and after.

    The harness's own words are made of these on the node, where the checkpoint can be looked at: see
    scripts.evaluation.harness.
    """

    TOOL: ClassVar[tuple[str, str] | None] = ("lm_eval", "eval")
    RANKED: ClassVar[bool] = False  # the harness spreads a model over GPUs by itself

    checkpoint: str = hub_model(
        "tiny:qwen3",
        "a folder, a hub name, tiny:qwen3 or tiny:llama",
        accepts=("checkpoint_modelopt",),
        role="checkpoint",
    )
    backend: Literal["auto", "hf", "vllm"] = doc(
        "what loads it: Transformers or vLLM; auto is vLLM for a ModelOpt export, which Transformers cannot load",
        "auto",
    )
    tasks: list[str] = doc("tasks or groups of the harness, or YAML files", ["tiny_text", "tiny_choice"])
    include_path: str | None = doc("folder of your own tasks; null offers the built-in models'", None, path="read")
    num_fewshot: int | None = doc("examples before each question; null is the task's own number", None)
    limit: float | None = doc(
        "questions of each task; below 1 a share of them; null asks all", None, role="limit", above=0
    )
    batch_size: int | str = doc("questions at a time, or auto", "auto", least=1)
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = doc(
        "precision; auto is the checkpoint's, or float32 on a CPU that is slow in bfloat16", "auto", role="precision"
    )
    max_length: int | None = doc("longest sequence, in tokens; null is the model's", None, least=1)
    tensor_parallel_size: int = doc("vllm: GPUs that share the model", 1, role="server_gpus")
    parallelize: bool = doc("hf: spread the layers over all GPUs", False)
    trust_remote_code: bool = remote_code("the checkpoint")
    model_args: dict[str, Any] = doc("more for what loads the model, such as {gpu_memory_utilization: 0.8}", {})
    gen_kwargs: dict[str, Any] | None = doc("how answers are generated, such as {temperature: 0}", None)
    apply_chat_template: bool = doc("ask as in a chat: for instruct models", False)
    fewshot_as_multiturn: bool = doc("with it: each example is a turn of the chat", False)
    system_instruction: str | None = doc("what the chat begins with", None)
    seed: int | None = doc("of everything random; null is the harness's own", None)
    log_samples: bool = doc("keep every question and answer in the run directory", False)
    confirm_run_unsafe_code: bool = doc("run code that the model writes, which some tasks score by", False)
    baseline: str | None = doc(
        "report of an earlier evaluate run, to show the difference to", None, consumes="eval_results", role="baseline"
    )
    gate: dict[str, float | str] | None = limits("any")
