"""Arguments of `convert`: between Hugging Face and Megatron checkpoints, and from a LoRA adapter to a whole model."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from scripts.args.meaning import ScriptArgs, Work, doc
from scripts.args.shared import Precision, Sizes, hub_model, made_of, megatron_checkpoint, remote_code, written

_WORKER = "Megatron-Bridge/scripts/conversion/run_conversion.py"  # since v0.6
_SEVERAL = "Megatron-Bridge/examples/conversion/convert_checkpoints_multi_gpu.py"  # v0.4 and v0.5
_ONE = "Megatron-Bridge/examples/conversion/convert_checkpoints.py"  # to v0.5


@dataclass(frozen=True, kw_only=True)
class _ConversionArgs(ScriptArgs):
    """What both directions have."""

    SCRIPTS: ClassVar[tuple[str, ...]] = (_WORKER, _SEVERAL, _ONE)
    WORK: ClassVar[Work | None] = "transfer"
    ONE_PROCESS: ClassVar[frozenset[str]] = frozenset({_ONE})

    hf_model: str = made_of("Qwen/Qwen3-8B")
    hf_revision: str | None = doc("a commit, branch or tag of the hub", None)
    megatron_path: str | None = written("Megatron checkpoint", "checkpoint_megatron", required=True)
    torch_dtype: Precision = doc("precision of the checkpoint", "bfloat16", role="precision")
    trust_remote_code: bool = remote_code()
    device: Literal["gpu", "cpu"] = doc(
        "since v0.6: where it is done; cpu is one process", "gpu", optional=True, role="device"
    )
    distributed_timeout_minutes: int | None = doc("how long a rank waits for the others", None, least=1)


@dataclass(frozen=True, kw_only=True)
class HfToMegatronArgs(Sizes, _ConversionArgs):
    """What `hf_to_megatron` does. Source: Megatron-Bridge scripts/conversion, before v0.6 examples/conversion."""

    COMMANDS: ClassVar[dict[str, tuple[str, ...]]] = dict.fromkeys(_ConversionArgs.SCRIPTS, ("import",))
    BRIDGE: ClassVar[str] = "scripts.engines.bridge.transfer:hf_to_megatron"

    hf_model: str = hub_model("Qwen/Qwen3-8B")
    low_memory_save: bool = doc("save with less memory, slower", False)


@dataclass(frozen=True, kw_only=True)
class MegatronToHfArgs(Sizes, _ConversionArgs):
    """What `megatron_to_hf` does, for a checkpoint that is not quantized. Sources: as for `hf_to_megatron`."""

    COMMANDS: ClassVar[dict[str, tuple[str, ...]]] = dict.fromkeys(_ConversionArgs.SCRIPTS, ("export",))
    BRIDGE: ClassVar[str] = "scripts.engines.bridge.transfer:megatron_to_hf"

    megatron_path: str | None = megatron_checkpoint(
        "one iteration (iter_0001000), or the folder above: then the latest",
        quantized=False,
        concrete=True,
        required=True,
    )
    torch_dtype: Precision = doc("precision of the model", "bfloat16", optional=True, role="precision")
    hf_path: str | None = written("Hugging Face checkpoint", "checkpoint_hf", required=True)
    export_weight_dtype: Precision | None = doc("precision of the files", None, role="file_precision")
    no_progress: bool = doc("no progress bar", False)
    not_strict: bool = doc("leave tensors out that the model does not know", False)
    distributed_save: bool | None = doc("every rank writes its part", None)
    save_every_n_ranks: int | None = doc("with distributed_save: one rank of so many writes", None, least=1)


@dataclass(frozen=True, kw_only=True)
class MergeLoraArgs(ScriptArgs):
    """What `merge_lora` does. Source: Megatron-Bridge examples/peft/merge_lora.py. The base must be the exact one."""

    SCRIPTS: ClassVar[tuple[str, ...]] = ("Megatron-Bridge/examples/peft/merge_lora.py",)
    BRIDGE: ClassVar[str] = "scripts.engines.bridge.lora:merge"
    WORK: ClassVar[Work | None] = "transfer"

    lora_checkpoint: str | None = doc(
        "one iteration of the adapter's checkpoint, or the folder above: then the latest",
        None,
        consumes="checkpoint_lora",
        concrete=True,
        required=True,
        role="adapter",
    )
    hf_model_path: str = doc("the base model: a folder or a hub name", "Qwen/Qwen3-8B", role="model")
    pretrained: str | None = megatron_checkpoint("the base as a Megatron checkpoint; null is what the adapter says")
    output: str | None = written("the merged model", "checkpoint_megatron", required=True)
    tp: int = doc("tensor parallel size", 1, role="tp")
    pp: int = doc("pipeline parallel size", 1, role="pp")
    ep: int = doc("expert parallel size", 1, role="ep")
    cpu: bool = doc("without GPUs", False, role="cpu")
    debug: bool = doc("log more", False)
