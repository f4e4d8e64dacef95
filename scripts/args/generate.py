"""Arguments of `generate`: what a quantized checkpoint says."""

from dataclasses import dataclass
from typing import ClassVar

from scripts.args.meaning import ScriptArgs, doc


@dataclass(frozen=True, kw_only=True)
class GenerateArgs(ScriptArgs):
    """What `generate` does. Source: Megatron-Bridge examples/quantization/ptq_generate.py."""

    SCRIPTS: ClassVar[tuple[str, ...]] = ("Megatron-Bridge/examples/quantization/ptq_generate.py",)

    hf_model_id: str = doc("the model it was made of: a folder or a hub name (for its tokenizer)", "Qwen/Qwen3-8B")
    megatron_load_path: str | None = doc(
        "the quantized checkpoint", None, consumes="checkpoint_megatron", quantized=True, required=True
    )
    trust_remote_code: bool = doc("run Python code that the model's repository brings", False)
    prompts: str = doc("prompts to continue, separated by |", "Hello!|Born in California, Soyer trained as a")
    osl: int = doc("tokens of each continuation", 32)
    tp: int = doc("tensor parallel size", 1)
    pp: int = doc("pipeline parallel size", 1)
    ep: int = doc("expert parallel size", 1)
    etp: int = doc("expert tensor parallel size", 1)


@dataclass(frozen=True, kw_only=True)
class GenerateVlmArgs(ScriptArgs):
    """What `generate_vlm` does. Source: Megatron-Bridge examples/quantization/ptq_generate_vlm.py."""

    SCRIPTS: ClassVar[tuple[str, ...]] = ("Megatron-Bridge/examples/quantization/ptq_generate_vlm.py",)

    hf_model_id: str = doc("the model it was made of: a folder or a hub name", "Qwen/Qwen3-VL-8B-Instruct")
    megatron_load_path: str | None = doc(
        "the quantized checkpoint", None, consumes="checkpoint_megatron", quantized=True, required=True
    )
    trust_remote_code: bool = doc("run Python code that the model's repository brings", False)
    image_path: str | None = doc("the image that the prompt is about", None)
    prompts: str = doc("what to ask about it", "Describe this image.")
    osl: int = doc("tokens of the answer", 32)
    tp: int = doc("tensor parallel size", 1)
    pp: int = doc("pipeline parallel size", 1)
    ep: int = doc("expert parallel size", 1)
    etp: int = doc("expert tensor parallel size", 1)


@dataclass(frozen=True, kw_only=True)
class GenerateVllmArgs(ScriptArgs):
    """What `generate_vllm` does: an exported checkpoint in vLLM. Source: Model-Optimizer examples/megatron_bridge."""

    SCRIPTS: ClassVar[tuple[str, ...]] = ("Model-Optimizer/examples/megatron_bridge/generate_vllm.py",)
    RANKED: ClassVar[bool] = False  # vLLM starts its own workers

    model: str | None = doc("the exported checkpoint", None, consumes="checkpoint_hf", required=True)
    trust_remote_code: bool = doc("run Python code that the checkpoint brings", False)
    max_tokens: int = doc("tokens of each continuation", 64)
    max_model_len: int = doc("longest sequence, in tokens", 1024)
    tensor_parallel_size: int = doc("GPUs that share the model", 1)
    gpu_memory_utilization: float = doc("part of each GPU's memory that vLLM may take", 0.8)
