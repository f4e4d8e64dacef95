"""Arguments of `quantize`: by the scripts of Megatron-Bridge or Model-Optimizer, or by ModelOpt itself."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from scripts.args.meaning import AS_STORED, ScriptArgs, Work, doc
from scripts.args.shared import (
    PROMPTS,
    Precision,
    Sizes,
    calibrated_on,
    hub_model,
    kv_cache,
    limits,
    remote_code,
    written,
)
from scripts.formats import CONFIG_NAMES, FORMATS, LEFT, format_of

KvCacheQuant = Literal["none", "fp8", "fp8_cast", "fp8_affine", "nvfp4", "nvfp4_cast", "nvfp4_affine", "nvfp4_rotate"]
NoiseOf = Literal["none", "sampled", "all"]
_FORMATS = ", ".join(FORMATS)


@dataclass(frozen=True, kw_only=True)
class _BridgeArgs(ScriptArgs):
    """What both of Megatron-Bridge's scripts have."""

    EXPORTER: ClassVar[str] = "export"
    WORK: ClassVar[Work | None] = "calibration"

    hf_model_id: str = hub_model("Qwen/Qwen3-VL-8B-Instruct")
    trust_remote_code: bool = remote_code()
    export_quant_cfg: str = doc(f"a format name: {_FORMATS}", "fp8", role="format")
    weight_only: bool = doc("quantize weights, leave activations alone", False, role="weight_only")
    export_kv_cache_quant: KvCacheQuant = kv_cache()
    compress: bool = doc("store real low-precision weights in the checkpoint", False, role="compress")
    calib_size: int = calibrated_on()


@dataclass(frozen=True, kw_only=True)
class MeasuredArgs(ScriptArgs):
    """What the hf engine calibrates on, compares with, and writes, whatever decides on the formats."""

    HF_ENGINE: ClassVar[bool] = True
    WORK: ClassVar[Work | None] = "calibration"

    hf_model_id: str = hub_model("tiny:qwen3", "a folder, a hub name, tiny:qwen3 or tiny:llama (hf and bridge engines)")
    trust_remote_code: bool = remote_code()
    export_kv_cache_quant: KvCacheQuant = kv_cache()
    calib_size: int = calibrated_on()
    calib_dataset: str | None = doc(
        "JSONL or text file, data set folder or hub name; null is cnn_dailymail, or a tiny model's own text",
        None,
        optional=True,
        consumes="training_jsonl",
        role="data",
    )
    calib_text_key: str | None = doc("the field of each row that holds the text; null finds it", None, engine="ours")
    calib_seq_length: int = doc("tokens per calibration sample, at most", 512, optional=True, role="sequence", least=8)
    calib_batch_size: int = doc("samples per forward pass, at most", 8, optional=True, role="batch")
    eval_dataset: str | None = doc(
        "text to score on; null keeps part of the calibration text aside", None, engine="ours", role="eval_data"
    )
    eval_size: int = doc(
        "samples scored before and after; 0 skips the comparison", 64, engine="ours", role="eval_samples"
    )
    gate: dict[str, float | str] | None = limits()
    layer_noise: NoiseOf = doc(
        "layers whose signal-to-noise ratio is measured; sampled: four, with the first and the last",
        "sampled",
        engine="hf",
    )
    prompts: str = doc("prompts to continue before and after, separated by |", PROMPTS, role="prompts")
    dtype: Precision = doc("precision the model is loaded and exported in", "bfloat16", engine="ours", role="precision")
    device: Literal["auto", "cpu", "cuda"] = doc("where the hf engine runs", "auto", engine="hf", role="device")
    modelopt_save_path: str | None = written(
        "hf engine: ModelOpt-restorable checkpoint; null skips it",
        "checkpoint_modelopt",
        engine="hf",
        unless=AS_STORED,
    )
    export_dir: str | None = written(
        "hf engine: deployable Hugging Face checkpoint; null skips it", "checkpoint_hf", engine="hf"
    )


@dataclass(frozen=True, kw_only=True)
class QuantizeArgs(MeasuredArgs, _BridgeArgs):
    """What `quantize` does. Names: Megatron-Bridge examples/quantization/quantize.py, as far as it has them."""

    SCRIPTS: ClassVar[tuple[str, ...]] = ("Megatron-Bridge/examples/quantization/quantize.py",)
    BRIDGE: ClassVar[str] = "scripts.engines.bridge.quantize:quantize"

    export_quant_cfg: str = doc(
        f"a format name ({_FORMATS}); hf engine: also a ModelOpt config name (FP8_DEFAULT_CFG) or recipe YAML",
        "fp8",
        role="format",
    )
    layer_formats: dict[str, list[str]] = doc(
        "formats of some layers, by patterns of their names; the last that matches counts: {int4_awq: ['*.down_proj'], "
        "none: ['*.layers.0.*']}",
        {},
        engine="hf",
        role="layer_formats",
    )
    from_files: bool = doc(
        "quantize the weights file by file, without the model: for formats that need no text; nothing is scored",
        False,
        engine="hf",
        role="from_files",
    )
    processes: int | None = doc(
        "processes that convert files at a time, of args.from_files on a CPU; null: as many as cores, files and memory "
        "allow",
        None,
        engine="hf",
        role="processes",
    )
    memory: str | None = doc(
        "quantize layer by layer in this much memory, as 16GiB, or auto, what the device has: weights stay in files, "
        "the export and the scores are the same, no other checkpoint is written; null: the whole model, if it fits",
        None,
        engine="hf",
        role="memory",
    )
    fsdp: bool = doc(
        "shard the layers over the ranks (FSDP2), where one GPU cannot hold the model: the export and the scores are "
        "the same, no other checkpoint is written",
        False,
        engine="hf",
        role="fsdp",
    )
    megatron_save_path: str | None = written(
        "script and bridge engine: Megatron checkpoint", "checkpoint_megatron", engine="script", quantized=True
    )
    tp: int = doc("tensor parallel size", 1, engine="script", role="tp")
    pp: int = doc("pipeline parallel size", 1, engine="script", role="pp")
    ep: int | None = doc(
        "expert parallel size; null: the processes of a machine, up to 8, for a model with experts",
        None,
        engine="script",
        role="ep",
    )
    etp: int = doc("expert tensor parallel size", 1, engine="script", role="etp")
    disable_hf_datasets_file_lock: bool = doc("for file systems without locks", False, engine="script", optional=True)
    force_all_expert_routing: bool = doc("send every token through every expert", False, role="every_expert")

    def format_of(self, layer: str) -> str:
        """What a layer of that name gets; `none` is no format."""
        return format_of(layer, self.export_quant_cfg, self.layer_formats)

    def makes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys([self.export_quant_cfg, *(one for one in self.layer_formats if one != LEFT)]))


@dataclass(frozen=True, kw_only=True)
class QuantizeVlmArgs(Sizes, _BridgeArgs):
    """What `quantize_vlm` does. Source: Megatron-Bridge examples/quantization/quantize_vlm.py."""

    SCRIPTS: ClassVar[tuple[str, ...]] = ("Megatron-Bridge/examples/quantization/quantize_vlm.py",)
    IMAGES: ClassVar[bool] = True

    use_random_calib: bool = doc("calibrate on random images and text: for plumbing only", False, role="mock_data")
    skip_quantization: bool = doc("convert only, to compare with", False, role="unquantized")
    prompts: str = doc("what to ask about the test image", "Describe this image.", role="prompts")
    test_image_path: str | None = doc("an image to try the quantized model on", None, path="read")
    megatron_save_path: str | None = written(
        "Megatron checkpoint", "checkpoint_megatron", quantized=True, required=True
    )

    def work(self) -> dict[str, Any]:
        return {"fake_quantized": not self.skip_quantization}


@dataclass(frozen=True, kw_only=True)
class QuantizeModelOptArgs(ScriptArgs):
    """What `quantize_modelopt` does. Source: Model-Optimizer examples/megatron_bridge/quantize.py."""

    SCRIPTS: ClassVar[tuple[str, ...]] = ("Model-Optimizer/examples/megatron_bridge/quantize.py",)
    BRIDGE: ClassVar[str] = "scripts.engines.bridge.quantize:quantize_modelopt"
    EXPORTER: ClassVar[str] = "export_modelopt"
    WORK: ClassVar[Work | None] = "calibration"

    hf_model_name_or_path: str = hub_model("Qwen/Qwen3-8B")
    trust_remote_code: bool = remote_code()
    export_megatron_path: str | None = written(
        "Megatron checkpoint", "checkpoint_megatron", quantized=True, required=True
    )
    recipe: str | None = doc(
        "a ModelOpt recipe: general/ptq/fp8_default-kv_fp8, or a YAML file", None, role="format_recipe"
    )
    quant_cfg: str | None = doc(
        f"a format name, where no recipe is given: {_FORMATS}", None, aliases=CONFIG_NAMES, role="format"
    )
    kv_cache_quant: str = doc("format of the key/value cache, or none", "none", role="kv_format")
    weight_only: bool = doc("quantize weights, leave activations alone", False, role="weight_only")
    compress: bool = doc("store real low-precision weights in the checkpoint", False, role="compress")
    moe_calib_experts_ratio: float | None = doc(
        "part of the experts that every calibration token visits", None, above=0, most=1, engine="nvidia"
    )
    calib_dataset_name: str | None = doc(
        "a data set that ModelOpt knows, or a path; null is its own mixture", None, role="data"
    )
    calib_num_samples: int = doc("calibration samples", 1024, role="samples")
    calib_batch_size: int = doc("samples per forward pass", 1, role="batch")
    seq_length: int = doc("tokens per calibration sample", 4096, role="sequence")
    prompts: str = doc("prompts to continue afterwards, separated by |", PROMPTS, role="prompts")
    osl: int = doc("tokens of each continuation", 32, role="new_tokens")
    skip_generate: bool = doc("do not continue the prompts", False)
    tp_size: int = doc("tensor parallel size", 1, role="tp")
    pp_size: int = doc("pipeline parallel size", 1, role="pp")
    ep_size: int = doc("expert parallel size", 1, role="ep")
    cp_size: int = doc("context parallel size", 1, optional=True, role="cp", engine="nvidia")
