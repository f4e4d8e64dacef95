"""Arguments of `export`: from a quantized or distilled Megatron checkpoint to a Hugging Face one."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from scripts.args.meaning import ScriptArgs, Work, doc
from scripts.formats import NOT_EXPORTABLE

_EXAMPLES = "Model-Optimizer/examples/megatron_bridge"


@dataclass(frozen=True, kw_only=True)
class ExportArgs(ScriptArgs):
    """What `export` does. Source: Megatron-Bridge examples/quantization/export.py."""

    SCRIPTS: ClassVar[tuple[str, ...]] = ("Megatron-Bridge/examples/quantization/export.py",)
    WORK: ClassVar[Work | None] = "transfer"
    DATA_PARALLEL: ClassVar[bool] = False

    hf_model_id: str = doc("the model it was made of: a folder or a hub name", "Qwen/Qwen3-8B", role="model")
    megatron_load_path: str | None = doc(
        "the quantized checkpoint",
        None,
        consumes="checkpoint_megatron",
        quantized=True,
        refuses=NOT_EXPORTABLE,
        required=True,
        role="checkpoint",
    )
    export_dir: str | None = doc(
        "deployable Hugging Face checkpoint",
        None,
        produces="checkpoint_hf",
        quantized=True,
        required=True,
        role="output",
    )
    trust_remote_code: bool = doc(
        "run Python code that the model's repository brings", False, optional=True, role="remote_code"
    )
    dtype: Literal["bfloat16", "float16", "float32"] = doc(
        "precision of what is not quantized", "bfloat16", role="precision"
    )
    export_extra_modules: bool = doc("export Medusa or EAGLE heads as well", False)
    tp: int = doc("tensor parallel size; the exporter gathers no shards, so it must be 1", 1, role="tp")
    pp: int = doc("pipeline parallel size", 1, role="pp")
    ep: int = doc("expert parallel size", 1, role="ep")
    etp: int = doc("expert tensor parallel size", 1, role="etp")


@dataclass(frozen=True, kw_only=True)
class ExportModelOptArgs(ScriptArgs):
    """What `export_modelopt` does. Source: Model-Optimizer examples/megatron_bridge; export.py before 0.46."""

    SCRIPTS: ClassVar[tuple[str, ...]] = (f"{_EXAMPLES}/export_quantized_megatron_to_hf.py", f"{_EXAMPLES}/export.py")
    WORK: ClassVar[Work | None] = "transfer"
    DATA_PARALLEL: ClassVar[bool] = False

    hf_model_name_or_path: str = doc("the model it was made of: a folder or a hub name", "Qwen/Qwen3-8B", role="model")
    megatron_path: str | None = doc(
        "the quantized checkpoint",
        None,
        consumes="checkpoint_megatron",
        quantized=True,
        refuses=NOT_EXPORTABLE,
        required=True,
        role="checkpoint",
    )
    export_unified_hf_path: str | None = doc(
        "deployable Hugging Face checkpoint",
        None,
        produces="checkpoint_hf",
        quantized=True,
        required=True,
        role="output",
    )
    trust_remote_code: bool = doc("run Python code that the model's repository brings", False, role="remote_code")
    export_extra_modules: bool = doc("export Medusa or EAGLE heads as well", False)
    pp_size: int = doc("pipeline parallel size", 1, role="pp")
    num_layers_in_first_pipeline_stage: int | None = doc(
        "where layers do not divide by stages", None, role="first_stage"
    )
    num_layers_in_last_pipeline_stage: int | None = doc("where layers do not divide by stages", None, role="last_stage")


@dataclass(frozen=True, kw_only=True)
class ExportDistilledArgs(ScriptArgs):
    """What `export_distilled` does. Source: Model-Optimizer examples/megatron_bridge, since 0.46."""

    SCRIPTS: ClassVar[tuple[str, ...]] = (f"{_EXAMPLES}/export_distilled_megatron_to_hf.py",)
    WORK: ClassVar[Work | None] = "transfer"
    DATA_PARALLEL: ClassVar[bool] = False

    student_hf_path: str = doc("the student that was distilled: a folder or a hub name", "Qwen/Qwen3-4B", role="model")
    megatron_path: str | None = doc(
        "where distill left its checkpoints",
        None,
        consumes="checkpoint_megatron",
        quantized=False,
        required=True,
        role="checkpoint",
    )
    hf_export_path: str | None = doc(
        "Hugging Face checkpoint", None, produces="checkpoint_hf", required=True, role="output"
    )
    export_iterations: list[int] | None = doc("which iterations; null takes the latest", None)
    student_hf_model: str | None = doc(
        "whose configuration and tokenizer to write; null is the student's", None, role="reference"
    )
    trust_remote_code: bool = doc("run Python code that the model's repository brings", False, role="remote_code")
    tp_size: int = doc("tensor parallel size", 1, role="tp")
    pp_size: int = doc("pipeline parallel size", 1, role="pp")
    ep_size: int = doc("expert parallel size", 1, role="ep")
    cp_size: int = doc("context parallel size", 1, role="cp")
