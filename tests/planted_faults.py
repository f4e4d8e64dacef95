"""Faults that a dry run lets pass and a real job breaks at: what `rehearse` is for.

Each was found by running it: its dry run ends with 0, and a rehearsal of it with an error that says `told`.
`found=False`: a rehearsal passes it too, since it is beyond what a small job reads; it is kept for the sum.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

TINY = ("quantize_fp8", "executor=local", "engine=hf", "args.hf_model_id=tiny:qwen3")
OWN_MODEL = ("quantize_fp8", "executor=local", "engine=hf")
QAT = (
    *("qat", "executor=slurm", "engine=bridge", "args.hf_path=Qwen/Qwen3-8B", "executor.mounts=[/lustre:/lustre]"),
    *("args.pretrained_checkpoint=/lustre/megatron", "args.output_dir=/lustre/trained"),
)


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A job with one thing wrong."""

    name: str
    job: tuple[str, ...]
    told: str  # part of what a rehearsal says of it
    words: tuple[str, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)  # over a model's config.json
    files: Mapping[str, str] = field(default_factory=dict)  # in a model's folder
    tokenizer: Mapping[str, Any] = field(default_factory=dict)  # over its tokenizer_config.json
    data: str = ""  # a file of rows to calibrate on
    found: bool = True

    @property
    def engine(self) -> str:
        return next(word.partition("=")[2] for word in self.job if word.startswith("engine="))

    def command(self, folder: Path, model: Path) -> list[str]:
        """The words of the job, whose files are written to `folder`; `model`: a small sound one."""
        words = [*self.job, *self.words]
        if self.data:
            (folder / "data.jsonl").write_text(self.data, encoding="utf-8")
            words.append(f"args.calib_dataset={folder / 'data.jsonl'}")
        if self.job is OWN_MODEL:
            own = folder / "model"
            shutil.copytree(model, own)
            for name, values in (("config.json", self.config), ("tokenizer_config.json", self.tokenizer)):
                said = json.loads((own / name).read_text(encoding="utf-8"))
                (own / name).write_text(json.dumps(said | values), encoding="utf-8")
            for name, text in self.files.items():
                (own / name).write_text(text, encoding="utf-8")
            words.append(f"args.hf_model_id={own}")
        return words


def _variable(name: str, value: str, told: str) -> Fault:
    return Fault(name=f"{name}={value}", job=TINY, words=(f"executor.env.{name}={value}",), told=told)


def _trained(key: str, value: str, told: str) -> Fault:
    return Fault(name=f"{key}={value}", job=QAT, words=(f"args.config.{key}={value}",), told=told)


def _configured(key: str, value: Any, told: str) -> Fault:
    return Fault(name=f"{key}={value}", job=OWN_MODEL, config={key: value}, told=told)


_ROW = json.dumps({"text": "the quick brown fox jumps over the lazy dog " * 8}) + "\n"


def _conversation(role: str) -> str:
    return json.dumps({"messages": [{"role": role, "content": "x"}]}) + "\n"


FAULTS: tuple[Fault, ...] = (
    # What is calibrated on.
    Fault(name="little text", job=TINY, data='{"text": "a"}\n' * 2, told="too_little_text"),
    Fault(name="no role of the template", job=TINY, data=_conversation("foo") * 20, told="too_little_text"),
    Fault(name="control characters", job=TINY, data='{"text": "\\u0000\\u0000"}\n' * 20, told="too_little_text"),
    Fault(name="half a character", job=TINY, data='{"text": "\\ud800 x"}\n' * 20, told="TextEncodeInput must be"),
    Fault(name="a broken row", job=TINY, data=_ROW * 300 + '{"text": "x\n', told="line 301 is not JSON"),
    # The environment of the job, as a profile's `env` has it.
    _variable("PYTHONHASHSEED", "abc", "config_init_hash_seed"),
    _variable("PYTHONHOME", "/nowhere", "No module named 'encodings'"),
    _variable("PYTHONIOENCODING", "utf-99", "unknown encoding: utf-99"),
    _variable("PYTHONUTF8", "2", "invalid PYTHONUTF8"),
    _variable("PYTHONMALLOC", "jemalloc", "unknown allocator"),
    _variable("PYTHONINTMAXSTRDIGITS", "1", "invalid limit"),
    _variable("PYTHONTRACEMALLOC", "x", "invalid number of frames"),
    _variable("PYTHONPLATLIBDIR", "lib99", "No module named 'encodings'"),
    _variable("PATH", "/nowhere", "nemo_run"),
    _variable("TORCH_LOGS", "inductr", "inductr"),
    _variable("TORCH_LOGS_OUT", "/nowhere/x", "/nowhere/x"),
    _variable("PYTORCH_JIT", "x", "Unknown setting of PYTORCH_JIT"),
    _variable("TQDM_MININTERVAL", "often", "could not convert string to float: 'often'"),
    _variable("HF_HUB_DOWNLOAD_TIMEOUT", "soon", "invalid literal for int() with base 10: 'soon'"),
    _variable("HF_HUB_ETAG_TIMEOUT", "soon", "invalid literal for int() with base 10: 'soon'"),
    # A model that nobody can build.
    _configured("hidden_act", "siluu", "siluu"),
    _configured("rope_parameters", {"rope_type": "yarnn", "rope_theta": 1e4}, "yarnn"),
    _configured("rope_scaling", {"type": "linear"}, "'factor'"),
    _configured("pad_token_id", 5_000_000, "Padding_idx must be within"),
    _configured("max_position_embeddings", "40k", "max_position_embeddings"),
    _configured("attention_dropout", "x", "attention_dropout"),
    Fault(
        name="half a tokenizer", job=OWN_MODEL, files={"tokenizer.json": '{"version": "1.0"}'}, told="no usable token"
    ),
    Fault(name="a token that is no text", job=OWN_MODEL, tokenizer={"eos_token": 5}, told="eos_token has to be"),
    # The configuration of a training.
    _trained("optimizer.optimizer", "adamm", "adamm"),
    _trained("optimizer.lrr", "1.0e-4", "unknown_key"),
    _trained("optimiser.lr", "1.0e-4", "unknown_key"),
    _trained("optimizer.lr", "fast", "TypeError"),
    _trained("scheduler.lr_decay_style", "cosin", "cosin decay style is not supported"),
    _trained("checkpoint.ckpt_format", "zarrr", "'zarrr' is not supported"),
    _trained("model.recompute_granularity", "fulll", "fulll"),
    _trained("model.normalization", "RMSNom", "Only LayerNorm, RMSNorm"),
    _trained("model.num_moe_experts", "3", "mlp.router.weight"),
    _trained("mixed_precision", "bf17_mixed", "bf17_mixed"),
    _trained("tokenizer.tokenizer_type", "Nope", "Nope is not supported"),
    _trained("dataset.dataloader_type", "bath", "bath dataloader type is not supported"),
    _trained("rng.seed", "abc", "TypeError"),
    # What Megatron-Core takes for a value of its own, and answers with another model than was meant.
    replace(_trained("model.position_embedding_type", "ropee", ""), found=False),
    replace(_trained("model.gated_linear_unit", "maybe", ""), found=False),
    replace(_trained("checkpoint.save_optim", "maybe", ""), found=False),
)
