"""The typed values of a job: what a recipe holds, what travels to the node, what an engine receives.

Plain data: no torch, no ModelOpt. Each field's meaning stands in its metadata, so that
`nemo experiment recipes NAME` can print it.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

Engine = Literal["auto", "hf"]
KvCacheQuant = Literal["none", "fp8", "fp8_affine", "nvfp4", "nvfp4_affine", "nvfp4_rotate"]
FlagStyle = Literal["hyphen", "underscore"]


def doc(meaning: str, default: Any) -> Any:
    """A dataclass field with a default and a one-line meaning."""
    return field(default=default, metadata={"doc": meaning})


@dataclass(frozen=True, kw_only=True)
class ScriptSpec:
    """Which upstream script the script engine runs, and how it spells its flags."""

    path: str | None = doc("the script's file; null takes the container's own copy", None)
    flag_style: FlagStyle = doc("how the script spells flags: hyphen or underscore", "hyphen")


@dataclass(frozen=True, kw_only=True)
class Torchrun:
    """The launch shape, one source for every executor. The hf engine runs as one process."""

    nnodes: int = doc("machines", 1)
    nproc_per_node: int = doc("processes on each machine", 1)
    node_rank: int | None = doc("this machine's rank, where no scheduler sets it", None)
    master_addr: str | None = doc("rendezvous host, where no scheduler sets it", None)
    master_port: int | None = doc("rendezvous port, where no scheduler sets it", None)


@dataclass(frozen=True, kw_only=True)
class ProbeArgs:
    """What `probe` does: the cheapest job that goes all the way, to try an executor with."""

    message: str = doc("text that comes back in report/probe.json exactly as it was given", "hello")
    seconds: float = doc("how long every rank stays, to watch, follow or cancel it", 0.0)
    exit_code: int = doc("0 succeeds; anything else fails with it, on `fail_rank`", 0)
    fail_rank: int = doc("the rank that fails", 0)
    fail_attempts: int = doc("fail only in this many attempts, then succeed; 0 fails in every one", 0)
    communicate: bool = doc("with several ranks: add their numbers up (NCCL with GPUs, else Gloo)", True)


@dataclass(frozen=True, kw_only=True)
class QuantizeArgs:
    """What `quantize` does. Sources: Megatron-Bridge examples/quantization/quantize.py for the names it has."""

    hf_model_id: str = doc("a folder, a hub name, tiny:qwen3 or tiny:llama", "tiny:qwen3")
    trust_remote_code: bool = doc("run Python code that the model's repository brings", False)
    export_quant_cfg: str = doc(
        "a format name, a ModelOpt config name (FP8_DEFAULT_CFG) or a ModelOpt recipe YAML", "fp8"
    )
    weight_only: bool = doc("quantize weights, leave activations alone", False)
    export_kv_cache_quant: KvCacheQuant = doc("format of the key/value cache", "none")
    compress: bool = doc("store real low-precision weights in the ModelOpt checkpoint", False)
    calib_size: int = doc("calibration samples", 512)
    calib_dataset: str | None = doc(
        "JSONL or text file, data set folder or hub name; null is cnn_dailymail, or a tiny model's own text", None
    )
    calib_text_key: str | None = doc("the field of each row that holds the text; null finds it", None)
    calib_seq_length: int = doc("tokens per calibration sample, at most", 512)
    calib_batch_size: int = doc("samples per forward pass, at most", 8)
    eval_dataset: str | None = doc("text to score on; null keeps part of the calibration text aside", None)
    eval_size: int = doc("samples scored before and after; 0 skips the comparison", 64)
    prompts: str = doc(
        "prompts to continue before and after, separated by |", "Hello!|Born in California, Soyer trained as a"
    )
    dtype: Literal["bfloat16", "float16", "float32"] = doc("precision the model is loaded and exported in", "bfloat16")
    device: Literal["auto", "cpu", "cuda"] = doc("where the hf engine runs", "auto")
    modelopt_save_path: str | None = doc("hf engine: ModelOpt-restorable checkpoint; null skips it", None)
    export_dir: str | None = doc("hf engine: deployable Hugging Face checkpoint; null skips it", None)
    megatron_save_path: str | None = doc("script and bridge engines: Megatron checkpoint", None)
    tp: int = doc("tensor parallel size (script and bridge engines)", 1)
    pp: int = doc("pipeline parallel size (script and bridge engines)", 1)
    ep: int = doc("expert parallel size (script and bridge engines)", 1)
    etp: int = doc("expert tensor parallel size (script and bridge engines)", 1)
