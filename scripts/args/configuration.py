"""Values that a script takes from a configuration instead of from flags: Megatron-Bridge's training recipes."""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeVar

from scripts.args.meaning import Role

Value = TypeVar("Value", int, bool, str)
#: Where Megatron-Bridge's ConfigContainer has what arguments of other scripts are for, and a value of its type.
KEYS: Mapping[Role, tuple[str, int | str]] = MappingProxyType(
    {
        "tp": ("model.tensor_model_parallel_size", 0),
        "pp": ("model.pipeline_model_parallel_size", 0),
        "cp": ("model.context_parallel_size", 0),
        "ep": ("model.expert_model_parallel_size", 0),
        "etp": ("model.expert_tensor_parallel_size", 0),
        "sequence": ("model.seq_length", 0),
        "micro_batch": ("train.micro_batch_size", 0),
        "global_batch": ("train.global_batch_size", 0),
        "iterations": ("train.train_iters", 0),
        "sequence_parallel": ("model.sequence_parallel", False),
        "recompute": ("model.recompute_granularity", ""),
        "recompute_layers": ("model.recompute_num_layers", 0),
        "distributed_optimizer": ("ddp.use_distributed_optimizer", False),
    }
)

#: Others that people set, and a value of the type of each.
_OTHERS: Mapping[str, int | float | str] = {
    **dict.fromkeys(("train.eval_iters", "train.eval_interval", "logger.log_interval", "checkpoint.save_interval"), 0),
    **dict.fromkeys(("scheduler.lr_warmup_iters", "scheduler.lr_decay_iters", "rng.seed", "dataset.num_workers"), 0),
    **dict.fromkeys(("optimizer.lr", "optimizer.min_lr", "optimizer.weight_decay", "optimizer.clip_grad"), 0.0),
    **dict.fromkeys(("checkpoint.save", "checkpoint.load", "checkpoint.pretrained_checkpoint"), ""),
    **{"checkpoint.finetune": False, "model.gradient_accumulation_fusion": False},
}
_TYPES = {**dict(KEYS.values()), **_OTHERS}
_EXPECTED = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}

#: The sections of Megatron-Bridge's ConfigContainer, of any release up to 0.6.
SECTIONS = frozenset({
    "checkpoint", "comm_overlap", "dataset", "ddp", "dist", "ft", "inprocess_restart", "logger", "mixed_precision",
    "model", "nvrx_straggler", "optimizer", "optimizer_config_override_provider", "peft", "profiling",
    "rerun_state_machine", "rng", "scheduler", "straggler", "tensor_inspect", "tokenizer", "train", "validation",
})  # fmt: skip
#: How like a key that is known another one is that is a slip of it: train_iter, seq_lenght.
_SLIP = 0.9


def misspelled(config: Mapping[str, Any], words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Dotted keys of a configuration and of `a.b=c` words that nothing reads, each with the nearest that is read."""
    stated = [f"{section}.{name}" for section, values in config.items() if isinstance(values, dict) for name in values]
    said = [word.partition("=")[0].lstrip("+~") for word in words if "=" in word and not word.startswith("-")]
    known = [*_TYPES]
    stray = [section for section, values in config.items() if section not in SECTIONS and not isinstance(values, dict)]
    for key in [*stray, *stated, *(one for one in said if "." in one)]:
        section, _, name = key.partition(".")
        if section not in SECTIONS:
            yield key, next(iter(difflib.get_close_matches(section, sorted(SECTIONS), n=1)), "")
        elif key not in known:
            names = [one.partition(".")[2] for one in known if one.startswith(f"{section}.")]
            for near in difflib.get_close_matches(name, names, n=1, cutoff=_SLIP):
                yield key, f"{section}.{near}"


def mistyped(config: Mapping[str, Any], words: Sequence[str]) -> Iterator[tuple[str, Any, str]]:
    """Keys of a configuration and of `a.b=c` words whose value is of another type, with what is expected."""
    for section, values in config.items():
        if section in SECTIONS and values is not None and not isinstance(values, dict):
            yield section, values, "a section with keys below it"
    said = [word.lstrip("+").partition("=") for word in words if "=" in word and not word.startswith("-")]
    for key, like in _TYPES.items():
        section, _, name = key.partition(".")
        held = config.get(section)
        stated = [held[name]] if isinstance(held, dict) and name in held else []
        for value in stated:
            fits = type(value) is type(like) or (type(like) is float and type(value) is int)
            if value is not None and not fits and "${" not in str(value):
                yield key, value, _EXPECTED[type(like)]
        for text in (text for one, _, text in said if one == key and text not in ("null", "None") and "${" not in text):
            if _parsed(text, type(like)) is None:
                yield key, text, _EXPECTED[type(like)]


def of_role(config: Mapping[str, Any], words: Sequence[str], role: Role) -> Any:
    """What a configuration, and the words after it, say in a role; None where they say nothing that can be."""
    key, like = KEYS.get(role, ("", 0))
    return _found(config, words, key, type(like)) if key else None


def configured(config: Mapping[str, Any], words: Sequence[str], key: str, default: Value) -> Value:
    """A dotted key as the script reads it: `a.b=c` among its words, else the configuration, else `default`.

    A value of another type than the default's is the script's to refuse, and counts as the default here.
    """
    value = _found(config, words, key, type(default))
    return default if value is None else value


def _found(config: Mapping[str, Any], words: Sequence[str], key: str, kind: type) -> Any:
    section, _, name = key.partition(".")
    values = config.get(section)
    value = values.get(name) if isinstance(values, dict) else None
    for word in words:
        said, equals, text = word.partition("=")
        if equals and said == key:
            value = _parsed(text, kind)
    return value if type(value) is kind else None


def _parsed(text: str, kind: type) -> Any:
    if kind is bool:
        return {"true": True, "false": False}.get(text.lower())
    if kind is float:
        return float(text) if re.fullmatch(r"-?(\d+\.?\d*|\.\d+)(e[+-]?\d{1,3})?", text, re.IGNORECASE) else None
    if kind is int:
        return int(text) if re.fullmatch(r"-?[0-9]{1,18}", text) else None
    return text
