"""What the arguments of several scripts have in common, declared once.

A dataclass tells the fields of its last base first: `class X(Sizes, Y)` has those of Y, then the sizes, then its own.
"""

from dataclasses import dataclass
from typing import Any, Literal

from scripts.args.meaning import Role, ScriptArgs, doc

PROMPTS = "Hello!|Born in California, Soyer trained as a"
Precision = Literal["bfloat16", "float16", "float32"]


def hub_model(default: str | None, meaning: str = "a folder or a hub name", **facts: Any) -> Any:
    """The model that a script reads."""
    return doc(meaning, default, **{"consumes": "checkpoint_hf", "role": "model", **facts})


def made_of(default: str, more: str = "") -> Any:
    """The model that a checkpoint was made of: for its configuration and tokenizer, not for its weights."""
    return doc(f"the model it was made of: a folder or a hub name{more}", default, role="model")


def remote_code(holder: str = "the model's repository", **facts: Any) -> Any:
    """Whether code that is not ours is run."""
    return doc(f"run Python code that {holder} brings", False, role="remote_code", **facts)


def megatron_checkpoint(meaning: str, **facts: Any) -> Any:
    """A Megatron checkpoint to begin with."""
    return doc(meaning, None, consumes="checkpoint_megatron", role="checkpoint", **facts)


def quantized_checkpoint(meaning: str = "the quantized checkpoint", **facts: Any) -> Any:
    """One with ModelOpt's state, without which nothing can be done."""
    return megatron_checkpoint(meaning, quantized=True, required=True, **facts)


def written(meaning: str, produces: str, **facts: Any) -> Any:
    """A checkpoint that is written; null where it is not wanted."""
    return doc(meaning, None, produces=produces, role="output", **facts)


def limits(engine: str = "ours") -> Any:
    """The gate of an algorithm that measures what it made."""
    return doc(
        "limits that the result must keep, else the job fails and keeps what it made: {max_increase: 1%, max_kl: 0.02}",
        None,
        role="gate",
        engine=engine,
    )


def kv_cache() -> Any:
    """The format that keys and values are kept in."""
    return doc("format of the key/value cache; NVIDIA's scripts know fp8 only", "none", role="kv_format")


def calibrated_on() -> Any:
    """How much text scales are taken from."""
    return doc("calibration samples", 512, role="samples")


def uneven(role: Role) -> Any:
    """Layers of the first or the last stage of a pipeline."""
    return doc("where layers do not divide by stages", None, role=role)


@dataclass(frozen=True, kw_only=True)
class Sizes(ScriptArgs):
    """How Megatron-Bridge's scripts split a model."""

    tp: int = doc("tensor parallel size", 1, role="tp")
    pp: int = doc("pipeline parallel size", 1, role="pp")
    ep: int = doc("expert parallel size", 1, role="ep")
    etp: int = doc("expert tensor parallel size", 1, role="etp")
