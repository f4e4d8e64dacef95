"""Faults that a dry run lets pass and a real job breaks at: what `rehearse` is for.

Each was found by running it: its dry run ends with 0, and a rehearsal of it with an error that says `told`.
`found=False`: a rehearsal passes it too, since it is beyond what a small job reads; it is kept for the sum.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TINY = ("quantize_fp8", "executor=local", "engine=hf", "args.hf_model_id=tiny:qwen3")
OWN_MODEL = ("quantize_fp8", "executor=local", "engine=hf")
RANKS = ("quantize_fp8", "executor=local", "engine=bridge", "args.hf_model_id=tiny:qwen3", "args.tp=2")
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


def _variable(name: str, value: str, told: str, job: tuple[str, ...] = TINY) -> Fault:
    return Fault(name=f"{name}={value}", job=job, words=(f"executor.env.{name}={value}",), told=told)


def _trained(key: str, value: str, told: str) -> Fault:
    return Fault(name=f"{key}={value}", job=QAT, words=(f"args.config.{key}={value}",), told=told)


def _configured(key: str, value: Any, told: str) -> Fault:
    return Fault(name=f"{key}={value}", job=OWN_MODEL, config={key: value}, told=told)


_ROW = json.dumps({"text": "the quick brown fox jumps over the lazy dog " * 8}) + "\n"
