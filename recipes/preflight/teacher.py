"""What Megatron-LM reads of the file that describes a teacher, whose fields are NeMo's.

Source: megatron/post_training/model_builder.py of Megatron-LM, which translates ten fields to Megatron-Core's and takes
any other as it is, whether Megatron-Core has it or not.
"""

import posixpath
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from recipes.experiment.job import Job
from recipes.preflight.paths import path_here
from scripts.args.megatron_lm import MlmFinetuneArgs
from scripts.run.files import is_file, is_folder, read_limited
from scripts.run.problems import Problem
from scripts.run.registry import check

#: Beside the teacher's weights, where no argument names another.
_BESIDE = "model_config.yaml"
_REQUIRED = ("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads")
_OTHER_NUMBERS = ("encoder_seq_length", "seq_length", "kv_channels", "num_query_groups", "max_position_embeddings")
#: Of NeMo's values, what is not translated: by field, those that are, and what to write for another.
_TRANSLATED: Mapping[str, tuple[tuple[str, ...], str]] = {
    "activation": (("swiglu", "gelu"), "Write `activation: swiglu`, or Megatron-Core's own field beside it."),
    "normalization": (("layernorm1p", "LayerNorm", "RMSNorm"), "Write LayerNorm, RMSNorm or layernorm1p."),
    "precision": (("bf16", "fp16"), "Write bf16 or fp16."),
}
_LARGEST = 1 << 20


@check(
    "teacher_config_unreadable",
    args=MlmFinetuneArgs,
    applies=lambda job: job.get("teacher_checkpoint") is not None,
)
def teacher_config(job: Job) -> Iterator[Problem]:
    """The file is there, and says what the teacher's builder needs, in words that it understands."""
    given = job.resolved.export_kd_teacher_model_config
    folder = str(job.get("teacher_checkpoint"))
    key = "args.export_kd_teacher_model_config" if given else job.key("teacher_checkpoint") or ""
    path = path_here(job, given or posixpath.join(folder, _BESIDE))
    there = path_here(job, folder)
    if path is None or (not given and (there is None or not is_folder(there))):
        return  # elsewhere, or nothing to look into
    if not is_file(path):
        if not given:  # a path that is given and not there is told as any other
            cause = f"it has no {_BESIDE}, and without it the teacher cannot be built"
            remedy = "Set args.export_kd_teacher_model_config to the teacher's configuration, in NeMo's fields."
            yield Problem(key=key, value=folder, cause=cause, remedy=remedy)
        return
    for cause, remedy in _troubles(path):
        yield Problem(key=key, value=given or folder, cause=f"{path.name}: {cause}", remedy=remedy)


def _troubles(path: Path) -> Iterator[tuple[str, str]]:
    """What is wrong with the file, as cause and remedy."""
    try:
        config: Any = yaml.safe_load(read_limited(path, _LARGEST).decode())
    except (OSError, ValueError, yaml.YAMLError) as error:
        yield f"it cannot be read: {str(error).splitlines()[0]}", "Write it anew, as YAML."
        return
    if not isinstance(config, dict):
        yield "it is no mapping of fields to values", "Write one field a line: num_layers: 32."
        return
    if missing := [name for name in _REQUIRED if name not in config]:
        yield f"it does not say {', '.join(missing)}", "Say all of " + ", ".join(_REQUIRED) + "."
    stated = [name for name in _REQUIRED if name in config]
    stated += [name for name in _OTHER_NUMBERS if config.get(name) is not None]
    for name in stated:
        value = config[name]
        if type(value) is not int or value < 1:
            yield f"{name} is {value!r}, and no number above 0", "Write the number itself: references are not resolved."
    for name, (known, remedy) in _TRANSLATED.items():
        if (value := config.get(name)) is not None and str(value) not in known:
            yield f"{name} {value!r} is not translated, and would be left out unsaid", remedy
    tokenizer = config.get("tokenizer")
    if tokenizer is not None and not (isinstance(tokenizer, dict) and {"type", "model"} <= tokenizer.keys()):
        yield "tokenizer has no type and model", "Say both, or leave tokenizer out."
