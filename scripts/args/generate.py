"""Arguments of `generate`: what a quantized checkpoint says."""

from dataclasses import dataclass
from typing import ClassVar

from scripts.args.meaning import ScriptArgs, Work, doc


@dataclass(frozen=True, kw_only=True)
class GenerateArgs(ScriptArgs):
    """What `generate` does. Source: Megatron-Bridge examples/quantization/ptq_generate.py."""

    SCRIPTS: ClassVar[tuple[str, ...]] = ("Megatron-Bridge/examples/quantization/ptq_generate.py",)
    WORK: ClassVar[Work | None] = "generation"

    hf_model_id: str = doc(
        "the model it was made of: a folder or a hub name (for its tokenizer)", "Qwen/Qwen3-8B", role="model"
    )
    megatron_load_path: str | None = doc(
        "the quantized checkpoint",
        None,
        consumes="checkpoint_megatron",
        quantized=True,
        required=True,
        role="checkpoint",
    )
    trust_remote_code: bool = doc("run Python code that the model's repository brings", False, role="remote_code")
    prompts: str = doc(
        "prompts to continue, separated by |", "Hello!|Born in California, Soyer trained as a", role="prompts"
    )
    osl: int = doc("tokens of each continuation", 32, role="new_tokens")
    tp: int = doc("tensor parallel size", 1, role="tp")
    pp: int = doc("pipeline parallel size", 1, role="pp")
    ep: int = doc("expert parallel size", 1, role="ep")
    etp: int = doc("expert tensor parallel size", 1, role="etp")


@dataclass(frozen=True, kw_only=True)
class GenerateVlmArgs(ScriptArgs):
    """What `generate_vlm` does. Source: Megatron-Bridge examples/quantization/ptq_generate_vlm.py."""

    SCRIPTS: ClassVar[tuple[str, ...]] = ("Megatron-Bridge/examples/quantization/ptq_generate_vlm.py",)
    IMAGES: ClassVar[bool] = True
    WORK: ClassVar[Work | None] = "generation"

    hf_model_id: str = doc(
        "the model it was made of: a folder or a hub name", "Qwen/Qwen3-VL-8B-Instruct", role="model"
    )
    megatron_load_path: str | None = doc(
        "the quantized checkpoint",
        None,
        consumes="checkpoint_megatron",
        quantized=True,
        required=True,
        role="checkpoint",
    )
    trust_remote_code: bool = doc("run Python code that the model's repository brings", False, role="remote_code")
    image_path: str | None = doc("the image that the prompt is about", None, path="read")
    prompts: str = doc("what to ask about it", "Describe this image.", role="prompts")
    osl: int = doc("tokens of the answer", 32, role="new_tokens")
    tp: int = doc("tensor parallel size", 1, role="tp")
    pp: int = doc("pipeline parallel size", 1, role="pp")
    ep: int = doc("expert parallel size", 1, role="ep")
    etp: int = doc("expert tensor parallel size", 1, role="etp")


@dataclass(frozen=True, kw_only=True)
class GenerateVllmArgs(ScriptArgs):
    """What `generate_vllm` does: an exported checkpoint in vLLM. Source: Model-Optimizer examples/megatron_bridge."""

    SCRIPTS: ClassVar[tuple[str, ...]] = ("Model-Optimizer/examples/megatron_bridge/generate_vllm.py",)
    RANKED: ClassVar[bool] = False  # vLLM starts its own workers

    model: str | None = doc("the exported checkpoint", None, consumes="checkpoint_hf", required=True, role="model")
    trust_remote_code: bool = doc("run Python code that the checkpoint brings", False, role="remote_code")
    max_tokens: int = doc("tokens of each continuation", 64, role="new_tokens")
    max_model_len: int = doc("longest sequence, in tokens", 1024)
    tensor_parallel_size: int = doc("GPUs that share the model", 1, role="server_gpus")
    gpu_memory_utilization: float = doc("part of each GPU's memory that vLLM may take", 0.8)
