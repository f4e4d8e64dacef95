"""Every architecture that transformers builds as a causal language model, tiny, through the hf engine, and read back.

    python -m tests.architectures          # make architectures: writes configs/models/architectures.yaml anew
    python -m tests.architectures --missing                  # goes on where it was stopped
    python -m tests.architectures --formats fp8 --kinds llama,bloom --print

A model of random weights is saved, then quantized and exported by the engine once for each format, in processes of
their own (a second or two each). What was exported is then read by the code below, which shares nothing with the engine
or with ModelOpt: dequantized, loaded into the same architecture, and compared with the source's file, tensor by tensor
and by the logits. The outcome is `right`, the name under which the engine refused (and that it did so before weights
were loaded), `wrong` with what differs, or `defect` for a traceback. Of a kind that cannot be built, the engine gets
config.json alone.
"""

import argparse
import fnmatch
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import textwrap
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from configs import CONFIGS

TABLE = CONFIGS / "models" / "architectures.yaml"
EARLY = " before the work"
FORMATS = ("fp8", "nvfp4", "int4_awq", "int8_sq", "fp8_blockwise")
_SECONDS = 120
_WORDS = 160
_VOCABULARY = 1024
#: What a field of a configuration is made, where an architecture has it: blocks of 128 fit all of them.
_WIDTHS = {
    128: "q_lora_rank kv_lora_rank time_step_rank mamba_dt_rank hidden_size_per_layer_input "
    "hidden_size n_embd n_embed d_model embed_dim dim word_embed_proj_dim embedding_size attention_hidden_size "
    "moe_intermediate_size shared_expert_intermediate_size moe_shared_expert_intermediate_size expert_ffn_hidden_size",
    256: "intermediate_size ffn_dim encoder_ffn_dim decoder_ffn_dim n_inner d_ff shared_intermediate_size",
    512: "max_position_embeddings n_positions n_ctx",
    32: "head_dim d_kv mamba_d_head linear_key_head_dim linear_value_head_dim index_head_dim v_head_dim",
    16: "qk_rope_head_dim qk_nope_head_dim state_size mamba_d_state mamba_head_dim ssm_state_size "
    "rotary_dim index_topk",
    8: "mamba_n_heads mamba_num_heads",
    4: "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads num_experts "
    "num_key_value_heads num_local_experts n_routed_experts moe_num_experts linear_num_value_heads",
    2: "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers num_decoder_layers "
    "num_experts_per_tok moe_topk moe_k linear_num_key_heads index_n_heads eos_token_id",
    1: "n_group topk_group n_groups mamba_n_groups first_k_dense_replace bos_token_id",
    0: "num_nextn_predict_layers",
    3: "pad_token_id",
    64: "sliding_window",
    _VOCABULARY: "vocab_size vocab_size_per_layer_input",
}
_FIELDS = {name: width for width, names in _WIDTHS.items() for name in names.split()}
_SMALL = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
_LOCAL = {**_SMALL, "num_key_value_heads": 4, "head_dim": 32, "hidden_size_global": 128}
#: What an architecture needs beside or instead of those.
_OWN: dict[str, dict[str, Any]] = {
    "blt": {
        "vocab_size": 260,
        "encoder_hash_byte_group_vocab": 512,
        **dict.fromkeys(("patcher_config", "encoder_config", "decoder_config", "global_config"), _LOCAL),
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 4, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {"hidden_size": 128, "ffn_hidden_size": 128, "moe_top_k": 2},
    },
    "deepseek_v3": {"head_dim": 16},
    "dots1": {"n_shared_experts": 1, "n_routed_experts": 4},
    "falcon_h1": {"mamba_d_ssm": 256, "mamba_n_heads": 8, "mamba_d_head": 32},
    "gemma3": {"vision_config": _SMALL},
    "gemma3n_text": {
        "layer_types": ["sliding_attention", "full_attention"],
        "intermediate_size": [256, 256],
        "num_kv_shared_layers": 0,
        "activation_sparsity_pattern": [0.0, 0.0],
        "laurel_rank": 32,
    },
    "git": {"vision_config": _SMALL},
    "glm4_moe_lite": {"head_dim": 16},
    "got_ocr2": {"vision_config": {**_SMALL, "output_channels": 32, "mlp_dim": 256}},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "longcat_flash": {"ffn_hidden_size": 256, "zero_expert_num": 2, "qk_head_dim": 32, "head_dim": 16, "num_layers": 1},
    "mamba2": {"num_heads": 8, "head_dim": 32},
    "mimo_v2_flash": {"num_key_value_heads": 2},
    "musicgen": {"text_encoder": {"model_type": "t5"}, "audio_encoder": {"model_type": "encodec"}, "decoder": {}},
    "reformer": {
        "is_decoder": True,
        "attn_layers": ["local", "lsh"],
        "axial_pos_shape": [16, 32],
        "axial_pos_embds_dim": [64, 64],
        "attention_head_size": 32,
        "feed_forward_size": 256,
    },
    "xmod": {"default_language": "en_XX"},
    "youtu": {"head_dim": 16},
    "zamba": {
        "use_mamba_kernels": False,
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "attention_head_dim": 64,
        "attention_hidden_size": 256,
    },
    "zamba2": {
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "hybrid_layer_ids": [1, 3],
        "attention_hidden_size": 256,
        "attention_head_dim": 64,
        "mamba_headdim": 32,
        "n_mamba_heads": 8,
        "num_query_groups": 4,
    },
    "zaya": {"num_experts_per_tok": 1},
}
_OWN["musicgen_melody"] = _OWN["musicgen"]
#: What a process says that has nothing to say; a dead one says less.
_NOTHING = "-"
#: Whose weights torch can initialize in 32 bits alone.
_ROUNDED_LATER = ("rwkv",)
#: What the exporter writes beside weights; some models have parameters of their own that are called scales.
_SCALE = re.compile(r".*(?:weight_scale|weight_scale_2|weight_scale_inv|input_scale|pre_quant_scale|\.[kv]_scale)$")
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
#: The most that a weight may differ from its source, as a part of its norm; smoothing moves weights, so logits decide.
_WEIGHT_ERROR = {"fp8": 0.04, "fp8_blockwise": 0.04, "nvfp4": 0.15, "int4_awq": None, "int8_sq": None}
#: The most that logits may: random models amplify what is right (measured: up to 38% in fp8, 75% in 4 bits), but never
#: to nonsense.
_LOGITS_ERROR = {"fp8": 0.7, "fp8_blockwise": 0.7, "int8_sq": 0.7, "nvfp4": 0.85, "int4_awq": 0.85}


class WrongError(Exception):
    """An export that is not what its source and its format make of it."""


def kinds() -> list[str]:
    """The model types, as config.json has them."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return sorted(set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))


def tiny_config(kind: str) -> Any:
    """A configuration of that type with two small layers."""
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    own = _OWN.get(kind, {})
    if kind.startswith("musicgen"):  # which has no values of its own
        return CONFIG_MAPPING[kind](**own)
    base = AutoConfig.for_model(kind)
    text = base.get_text_config()
    values = {
        name: value
        for name, value in _FIELDS.items()
        if hasattr(text, name) and not isinstance(getattr(type(text), name, None), property)
    }
    inner = [name for name in ("text_config", "llm_config", "decoder") if getattr(base, name, None) is text]
    return type(base)(**({inner[0]: values} if inner else values) | own)


def _built(kind: str, config: Any) -> Any:
    """That model, of random weights. Raises ValueError where it is large, and whatever transformers raises."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        size = sum(weight.numel() for weight in AutoModelForCausalLM.from_config(config).parameters())
    if size > 60e6:
        raise ValueError("it cannot be made small")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        model(input_ids=torch.tensor([[5, 6, 7, 8]]), use_cache=False)
    if kind in _ROUNDED_LATER:
        return model.to(torch.bfloat16)
    return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()


def write_model(kind: str, folder: Path) -> str:
    """A model of random weights, with a tokenizer and text for it; of one that cannot be built, all but the weights,
    and why."""
    from tests import hf_models

    folder.mkdir(parents=True)
    rows = [{"text": f"{number:04d} a sentence of some length, of no sense."} for number in range(20)]
    (folder / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    hf_models.tokenizer().save_pretrained(folder)
    config: Any = None
    try:
        config = tiny_config(kind)
        hf_models.save(_built(kind, config), folder)
    except Exception as error:
        (folder / "config.json").write_text(json.dumps({"model_type": kind}))
        if config is not None:
            config.save_pretrained(folder)
        return f"{type(error).__name__}: {error}"
    return ""


def outcome(folder: Path, fmt: str) -> str:
    """What becomes of the model of `write_model` there in that format: `right`, a problem's name, `wrong: ...`,
    `defect: ...`."""
    from scripts.args.quantize import QuantizeArgs
    from scripts.engines.hf.engine import quantize_checkpoint
    from scripts.run.problems import JobError
    from scripts.run.record import Record

    source, export = folder / "model", folder / fmt
    args = QuantizeArgs(
        hf_model_id=str(source),
        export_quant_cfg=fmt,
        calib_dataset=str(source / "text.jsonl"),
        calib_size=4,
        calib_seq_length=32,
        eval_size=0,
        prompts="",
        layer_noise="none",
        modelopt_save_path=None,
        export_dir=str(export),
    )
    record = Record.submit(folder / f"{fmt}.run")
    try:
        with record.running():
            quantize_checkpoint(args, record)
        compare(source, export, fmt)
    except JobError as error:
        when = "" if "load" in record.values.get("timings", {}) else EARLY
        cause = error.cause.removeprefix(f"{source}: ").replace(str(source), "it")
        return f"{error.name}{when}: {cause}"
    except WrongError as error:
        return f"wrong: {error}"
    except Exception as error:
        at = traceback.extract_tb(error.__traceback__)[-1]
        return f"defect: {type(error).__name__}: {error} ({Path(at.filename).name}:{at.lineno})"
    return "right"


def compare(source: Path, export: Path, fmt: str) -> None:
    """Hold an export against the files that it was made of. Raises WrongError."""
    import torch

    tensors = dict(_tensors(export))
    packed = {name for name, value in tensors.items() if value.dtype in (torch.uint8, torch.int8, torch.float8_e4m3fn)}
    packed = {name for name in packed if not _SCALE.fullmatch(name)}
    if not packed:
        raise WrongError("nothing is quantized")
    _compare_lists(export, packed)
    plain = {name: _plain(name, tensors) for name in tensors if not _SCALE.fullmatch(name)}
    before, after = _models(source, plain)
    limit = _WEIGHT_ERROR[fmt]
    for name, weight in before.state_dict().items():
        if limit is not None and weight.is_floating_point():
            found, due = after.state_dict()[name].float(), weight.to(torch.bfloat16).float()
            error = float((found - due).norm() / due.norm().clamp(min=1e-9))
            if not error <= limit:
                raise WrongError(f"{name} is off by {error:.1%}")
    tokens = torch.randint(4, 260, (2, 32), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        due, found = (model(input_ids=tokens, use_cache=False).logits for model in (before, after))
    error = float((found - due).norm() / (due - due.mean(-1, keepdim=True)).norm())
    if not error <= _LOGITS_ERROR[fmt]:
        raise WrongError(f"logits are off by {error:.1%}")


def _tensors(folder: Path) -> Iterator[tuple[str, Any]]:
    from safetensors import safe_open

    for shard in sorted(folder.glob("*.safetensors")):
        with safe_open(shard, framework="pt") as file:
            yield from ((name, file.get_tensor(name)) for name in file.keys())  # noqa: SIM118 - it is no mapping


def _plain(name: str, tensors: dict[str, Any]) -> Any:
    """A weight in float32, of what the file has under its name and beside it."""
    import torch

    value = tensors[name]
    stem = name.removesuffix("weight") if name.endswith("weight") else f"{name}_"
    scale = tensors.get(f"{stem}weight_scale")
    if scale is None:
        return value.float()
    stacked = value.ndim == 3 and value.dtype is torch.uint8  # experts in one tensor, with inputs before outputs
    if stacked:
        value, scale = value.mT, scale.mT
    if value.dtype is torch.uint8:
        low, high = value & 15, value >> 4
        if scale.dtype is torch.float8_e4m3fn:  # NVFP4: neighbours along the inputs share a byte
            codes = torch.stack([low, high], -1).flatten(-2)
            value = torch.tensor([*_E2M1, *(-one for one in _E2M1)])[codes.long()]
        else:  # INT4: neighbours along the outputs
            codes = torch.stack([low, high], 1).reshape(-1, value.shape[1]).to(torch.int8)
            value = torch.where(codes > 7, codes - 16, codes)
    grid = scale.float()
    if grid.numel() == 1 or grid.ndim == 1:
        grid = grid.reshape(-1, 1)
    elif grid.ndim == 4:  # one for each block, as [rows, 1, columns, 1]
        grid = grid[:, 0, :, 0]
    rows, columns = (-(-size // parts) for size, parts in zip(value.shape[-2:], grid.shape[-2:], strict=True))
    spread = grid.repeat_interleave(rows, -2).repeat_interleave(columns, -1)
    weight = value.float() * spread[..., : value.shape[-2], : value.shape[-1]]
    if scale.dtype is torch.float8_e4m3fn:
        weight = weight * tensors[f"{stem}weight_scale_2"].float()
    smoothed = tensors.get(f"{stem}pre_quant_scale")
    weight = weight if smoothed is None else weight * smoothed.float()
    return weight.mT if stacked else weight


def _models(source: Path, plain: dict[str, Any]) -> tuple[Any, Any]:
    """The source, and what was exported in its place, in float32. Raises WrongError where names or shapes differ."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        weights = {name: value.contiguous() for name, value in plain.items() if not name.endswith("pre_quant_scale")}
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        shutil.copy(source / "config.json", folder)
        before = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
        told: Any = {"output_loading_info": True, "ignore_mismatched_sizes": True}
        after, said = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **told)
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if said[what]:
            raise WrongError(f"{what}: {sorted(map(str, said[what]))[:3]}")
    return before, after.eval()


def _compare_lists(export: Path, packed: set[str]) -> None:
    said = json.loads((export / "hf_quant_config.json").read_text())["quantization"]
    config = json.loads((export / "config.json").read_text()).get("quantization_config") or {}
    if config.get("quant_algo") != said["quant_algo"]:
        raise WrongError(f"config.json says {config.get('quant_algo')}, hf_quant_config.json {said['quant_algo']}")
    listed = said.get("exclude_modules") or []

    def left_out(module: str) -> bool:
        return any(
            fnmatch.fnmatch(module, one) or module.startswith(f"{one.rstrip('*').rstrip('.')}.") for one in listed
        )

    for name in packed:
        if left_out(name.removesuffix(".weight")):
            raise WrongError(f"{name} is quantized, and on the list of what is not")


def apart(work: Callable[..., str], *values: Any) -> str:
    """What `work` says in a process of its own, so that whatever it does to transformers or to itself ends with it."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 1)
        os.dup2(nothing, 2)
        signal.alarm(_SECONDS)
        try:
            os.write(write, (work(*values) or _NOTHING).encode()[:1000])
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        said = pipe.read().decode(errors="replace")
    _, status = os.waitpid(child, 0)
    if said == _NOTHING:
        return ""
    return (
        textwrap.shorten(said, _WORDS, placeholder=" ...")
        or f"defect: it ended with {os.waitstatus_to_exitcode(status)}"
    )


def tried(kind: str, formats: Iterable[str]) -> Iterator[tuple[str, str]]:
    """What becomes of one architecture, by format."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        broken = apart(write_model, kind, folder / "model")
        for fmt in formats:
            said = apart(outcome, folder, fmt)
            yield fmt, f"not built: {broken}" if broken and EARLY not in said.partition(":")[0] else said
            shutil.rmtree(folder / fmt, ignore_errors=True)


def main() -> None:
    """Try what is asked for; write the table, or print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--formats", default=",".join(FORMATS))
    parser.add_argument("--kinds", help="model types; all of them")
    parser.add_argument("--only", help="pairs: llama:fp8,bloom:nvfp4")
    parser.add_argument("--missing", action="store_true", help="those that the table does not have")
    parser.add_argument("--print", action="store_true", help="write nothing")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    os.environ["HF_HUB_OFFLINE"] = "1"
    import modelopt
    import modelopt.torch.export
    import modelopt.torch.quantization
    import transformers

    import scripts.engines.hf.engine  # noqa: F401 - once for all processes
    import tests.hf_models  # noqa: F401

    table = yaml.safe_load(TABLE.read_text(encoding="utf-8")) if TABLE.is_file() else {"tried": {}}
    table |= {"transformers": transformers.__version__, "modelopt": modelopt.__version__}
    wanted: dict[str, list[str]] = {}
    names = options.kinds.split(",") if options.kinds else kinds()
    every = [f"{kind}:{fmt}" for kind in names for fmt in options.formats.split(",")]
    for kind, _, fmt in (pair.partition(":") for pair in (options.only.split(",") if options.only else every)):
        if not options.missing or fmt not in table["tried"].get(kind, {}):
            wanted.setdefault(kind, []).append(fmt)
    for kind, formats in wanted.items():
        for fmt, said in tried(kind, formats):
            print(kind, fmt, said, flush=True)
            table["tried"].setdefault(kind, {})[fmt] = said
        if not options.print:
            write(table)


def write(table: dict[str, Any]) -> None:
    """The table as it is committed: what is right, by name alone; of the rest, why."""
    head = "# Made by `make architectures`; do not edit. What became of each architecture, tiny, by format.\n"
    TABLE.write_text(head + yaml.safe_dump(table, sort_keys=True, width=200), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
