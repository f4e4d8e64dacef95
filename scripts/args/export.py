"""Arguments of `export`: from a quantized or distilled Megatron checkpoint to a Hugging Face one."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from scripts.args.meaning import ScriptArgs, Work, doc
from scripts.args.shared import (
    Precision,
    made_of,
    megatron_checkpoint,
    quantized_checkpoint,
    remote_code,
    uneven,
    written,
)
from scripts.formats import NOT_EXPORTABLE

_EXAMPLES = "Model-Optimizer/examples/megatron_bridge"
_DEPLOYABLE = "deployable Hugging Face checkpoint"


@dataclass(frozen=True, kw_only=True)
class _ExportingArgs(ScriptArgs):
    """No exporter has anything to do for a second copy of the model."""

    WORK: ClassVar[Work | None] = "transfer"
    DATA_PARALLEL: ClassVar[bool] = False


@dataclass(frozen=True, kw_only=True)
class ExportArgs(_ExportingArgs):
    """What `export` does. Source: Megatron-Bridge examples/quantization/export.py."""

    SCRIPTS: ClassVar[tuple[str, ...]] = ("Megatron-Bridge/examples/quantization/export.py",)
    BRIDGE: ClassVar[str] = "scripts.engines.bridge.transfer:export"

    hf_model_id: str = made_of("Qwen/Qwen3-8B")
    megatron_load_path: str | None = quantized_checkpoint(refuses=NOT_EXPORTABLE)
    export_dir: str | None = written(_DEPLOYABLE, "checkpoint_hf", quantized=True, required=True)
    trust_remote_code: bool = remote_code(optional=True)
    dtype: Precision = doc("precision of what is not quantized", "bfloat16", role="precision")
    export_extra_modules: bool = doc("export Medusa or EAGLE heads as well", False)
    tp: int = doc("tensor parallel size; the exporter gathers no shards, so it must be 1", 1, role="tp")
    pp: int = doc("pipeline parallel size", 1, role="pp")
    ep: int = doc("expert parallel size", 1, role="ep")
    etp: int = doc("expert tensor parallel size", 1, role="etp")


@dataclass(frozen=True, kw_only=True)
class ExportModelOptArgs(_ExportingArgs):
    """What `export_modelopt` does. Source: Model-Optimizer examples/megatron_bridge; export.py before 0.46."""

    SCRIPTS: ClassVar[tuple[str, ...]] = (f"{_EXAMPLES}/export_quantized_megatron_to_hf.py", f"{_EXAMPLES}/export.py")
    BRIDGE: ClassVar[str] = ExportArgs.BRIDGE

    hf_model_name_or_path: str = made_of("Qwen/Qwen3-8B")
    megatron_path: str | None = quantized_checkpoint(refuses=NOT_EXPORTABLE)
    export_unified_hf_path: str | None = written(_DEPLOYABLE, "checkpoint_hf", quantized=True, required=True)
    trust_remote_code: bool = remote_code()
    export_extra_modules: bool = doc("export Medusa or EAGLE heads as well", False)
    pp_size: int = doc("pipeline parallel size", 1, role="pp")
    num_layers_in_first_pipeline_stage: int | None = uneven("first_stage")
    num_layers_in_last_pipeline_stage: int | None = uneven("last_stage")


@dataclass(frozen=True, kw_only=True)
class ExportDistilledArgs(_ExportingArgs):
    """What `export_distilled` does. Source: Model-Optimizer examples/megatron_bridge, since 0.46."""

    SCRIPTS: ClassVar[tuple[str, ...]] = (f"{_EXAMPLES}/export_distilled_megatron_to_hf.py",)
    BRIDGE: ClassVar[str] = "scripts.engines.bridge.transfer:export_distilled"

    student_hf_path: str = doc("the student that was distilled: a folder or a hub name", "Qwen/Qwen3-4B", role="model")
    megatron_path: str | None = megatron_checkpoint(
        "where distill left its checkpoints", quantized=False, required=True
    )
    hf_export_path: str | None = written("Hugging Face checkpoint", "checkpoint_hf", required=True)
    export_iterations: list[int] | Literal["all"] | None = doc(
        "which iterations, or all; null takes the latest", None, engine="nvidia"
    )
    student_hf_model: str | None = doc(
        "whose configuration and tokenizer to write; null is the student's", None, role="reference"
    )
    trust_remote_code: bool = remote_code()
    tp_size: int = doc("tensor parallel size", 1, role="tp")
    pp_size: int = doc("pipeline parallel size", 1, role="pp")
    ep_size: int = doc("expert parallel size", 1, role="ep")
    cp_size: int = doc("context parallel size", 1, role="cp")
