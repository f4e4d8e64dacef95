"""Arguments of `serve`: whether a server can load a checkpoint, and what it answers."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from scripts.args.meaning import ScriptArgs, doc
from scripts.args.shared import PROMPTS, hub_model, remote_code

ServerName = Literal["vllm", "trtllm", "sglang"]


@dataclass(frozen=True, kw_only=True)
class ServeArgs(ScriptArgs):
    """What `serve` does: start a server with the checkpoint, ask it, judge the answers, stop it."""

    RANKED: ClassVar[bool] = False  # the server starts its own workers

    checkpoint: str | None = hub_model(None, "a folder, a hub name or tiny:qwen3", required=True, role="checkpoint")
    server: ServerName = doc("vLLM, TensorRT-LLM or SGLang", "vllm")
    quantization: str = doc(
        "what the server is told of the format; auto: as the checkpoint says; none: nothing", "auto"
    )
    tensor_parallel_size: int = doc("GPUs that share the model", 1, role="server_gpus")
    max_length: int | None = doc("longest sequence, in tokens; null is the model's", None, least=1)
    trust_remote_code: bool = remote_code("the checkpoint")
    port: int | None = doc("where it listens, on this machine alone; null takes a free one", None, least=1, most=65535)
    prompts: str = doc("prompts to continue, separated by |", PROMPTS, role="prompts")
    max_tokens: int = doc("tokens of each continuation", 32, role="new_tokens")
    start_minutes: float = doc("how long it may take to start", 30.0, above=0)
    answer_minutes: float = doc("how long it may take to answer: the first time it may compile kernels", 10.0, above=0)
