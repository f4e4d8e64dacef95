"""Arguments of `generate`: what a quantized checkpoint says."""

from dataclasses import dataclass
from typing import ClassVar

from scripts.args.meaning import ScriptArgs, Work, doc
from scripts.args.shared import PROMPTS, Sizes, hub_model, made_of, quantized_checkpoint, remote_code


@dataclass(frozen=True, kw_only=True)
class _FromMegatron(ScriptArgs):
    """What both of Megatron-Bridge's scripts have."""

    WORK: ClassVar[Work | None] = "generation"

    hf_model_id: str = made_of("Qwen/Qwen3-8B", " (for its tokenizer)")
    megatron_load_path: str | None = quantized_checkpoint()
    trust_remote_code: bool = remote_code()
    prompts: str = doc("prompts to continue, separated by |", PROMPTS, role="prompts")
    osl: int = doc("tokens of each continuation", 32, role="new_tokens")


@dataclass(frozen=True, kw_only=True)
class GenerateArgs(Sizes, _FromMegatron):
    """What `generate` does. Source: Megatron-Bridge examples/quantization/ptq_generate.py."""

    SCRIPTS: ClassVar[tuple[str, ...]] = ("Megatron-Bridge/examples/quantization/ptq_generate.py",)
    BRIDGE: ClassVar[str] = "scripts.engines.bridge.transfer:generate"


@dataclass(frozen=True, kw_only=True)
class GenerateVlmArgs(Sizes, _FromMegatron):
    """What `generate_vlm` does. Source: Megatron-Bridge examples/quantization/ptq_generate_vlm.py."""

    SCRIPTS: ClassVar[tuple[str, ...]] = ("Megatron-Bridge/examples/quantization/ptq_generate_vlm.py",)
    IMAGES: ClassVar[bool] = True

    hf_model_id: str = made_of("Qwen/Qwen3-VL-8B-Instruct")
    image_path: str | None = doc("the image that the prompt is about", None, path="read")
    prompts: str = doc("what to ask about it", "Describe this image.", role="prompts")
    osl: int = doc("tokens of the answer", 32, role="new_tokens")


@dataclass(frozen=True, kw_only=True)
class GenerateVllmArgs(ScriptArgs):
    """What `generate_vllm` does: an exported checkpoint in vLLM. Source: Model-Optimizer examples/megatron_bridge."""

    SCRIPTS: ClassVar[tuple[str, ...]] = ("Model-Optimizer/examples/megatron_bridge/generate_vllm.py",)
    RANKED: ClassVar[bool] = False  # vLLM starts its own workers

    model: str | None = hub_model(None, "the exported checkpoint", required=True)
    trust_remote_code: bool = remote_code("the checkpoint")
    max_tokens: int = doc("tokens of each continuation", 64, role="new_tokens")
    max_model_len: int = doc("longest sequence, in tokens", 1024, least=1)
    tensor_parallel_size: int = doc("GPUs that share the model", 1, role="server_gpus")
    gpu_memory_utilization: float = doc("part of each GPU's memory that vLLM may take", 0.8, above=0, most=1)
