"""How a model is spread over GPUs where nobody said: experts over the processes of a machine."""

import re
from math import gcd
from pathlib import Path
from typing import Any

from recipes import hub
from recipes.model_facts import read_config
from scripts.types import Torchrun

#: Every mixture of experts that this is used with has a number of experts that divides by this.
_MOST = 8
#: Names that say how many parameters a token activates: Qwen3-30B-A3B, Nemotron-3-Super-120B-A12B.
_ACTIVE = re.compile(r"-A\d+(?:\.\d+)?B(?![a-z])", re.IGNORECASE)
_EXPERT_KEYS = ("num_experts", "num_local_experts", "n_routed_experts")


def default_ep(args: Any, torchrun: Torchrun) -> int | None:
    """`args.ep` where it is null: 1 for a model without experts; None where the recipe has no such size.

    Megatron refuses expert parallelism for a model without experts, and holds every expert on every GPU
    without it: neither is a default for both.
    """
    if getattr(args, "ep", 1) is not None:
        return None
    return gcd(torchrun.nproc_per_node, _MOST) if has_experts(args.hf_model_id) else 1


def has_experts(model: str) -> bool:
    """Whether a model is a mixture of experts: by its config.json where that is here, by its name else."""
    folder = Path(model).expanduser()
    here = folder if folder.is_dir() else hub.cached_model(model)
    config = read_config(here) if here else None
    if config is None:
        return _ACTIVE.search(folder.name) is not None
    text = config["text_config"] if isinstance(config.get("text_config"), dict) else config
    return any(isinstance(text.get(key), int) and text[key] > 1 for key in _EXPERT_KEYS)
