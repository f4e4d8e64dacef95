"""How a model is spread over GPUs: the sizes that a job names, and the one that is filled in where nobody said."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import gcd
from pathlib import Path
from typing import Any

from recipes.models import facts_of
from scripts.args.meaning import Torchrun

#: What the arguments of different scripts call the same size.
SIZES: Mapping[str, tuple[str, ...]] = {
    "tp": ("tp", "tp_size"),
    "pp": ("pp", "pp_size"),
    "cp": ("cp", "cp_size"),
    "ep": ("ep", "ep_size"),
    "etp": ("etp", "etp_size"),
}
#: Every mixture of experts that this is used with has a number of experts that divides by this.
_MOST = 8
#: Names that say how many parameters a token activates: Qwen3-30B-A3B, Nemotron-3-Super-120B-A12B.
_ACTIVE = re.compile(r"-A\d+(?:\.\d+)?B(?![a-z])", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Ranks and how a model is split over them, as Megatron-Core's parallel_state counts them.

    Attention, MLP and everything else but experts: tp x cp x dp x pp = world. Experts: etp x ep x edp x pp = world.
    """

    nodes: int
    processes: int  # on each node
    tp: int = 1
    pp: int = 1
    cp: int = 1
    ep: int = 1
    etp: int = 1

    def __str__(self) -> str:
        """The sizes that are not 1: `tp=2 ep=8`."""
        sizes = {size: getattr(self, size) for size in SIZES}
        return " ".join(f"{size}={value}" for size, value in sizes.items() if value != 1)

    @property
    def world(self) -> int:
        return self.nodes * self.processes

    @property
    def model(self) -> int:
        """Ranks that hold one copy of the model, experts left out."""
        return self.tp * self.pp * self.cp

    @property
    def expert_model(self) -> int:
        """Ranks that hold one copy of the experts."""
        return self.etp * self.ep * self.pp

    @property
    def is_possible(self) -> bool:
        """Whether every size is one."""
        return min(self.nodes, self.processes, self.tp, self.pp, self.cp, self.ep, self.etp) > 0

    @property
    def divides(self) -> bool:
        """Whether the world is made of whole copies of both; never where a size is none."""
        return self.is_possible and self.world % self.model == 0 and self.world % self.expert_model == 0

    @property
    def dp(self) -> int:
        """Copies of the model that work on different data. Only where it `divides`."""
        return self.world // self.model

    @property
    def copies(self) -> int | None:
        """The same; None where the ranks do not divide."""
        return self.dp if self.divides else None


def sizes_of(args: Any) -> dict[str, tuple[str, int]]:
    """By size (tp, pp, cp, ep, etp): the key that sets it, and its value."""
    found = {}
    for size, names in SIZES.items():
        for name in names:
            value = getattr(args, name, None)
            if value is not None:
                found[size] = (f"args.{name}", value)
    return found


def layout_of(args: Any, nodes: int, processes: int) -> Layout:
    """The layout that a job's arguments ask for; a size that it does not have is 1."""
    return Layout(nodes=nodes, processes=processes, **{size: value for size, (_, value) in sizes_of(args).items()})


def default_ep(args: Any, torchrun: Torchrun) -> int | None:
    """`args.ep` where it is null: 1 for a model without experts; None where the recipe has no such size.

    Megatron refuses expert parallelism for a model without experts, and holds every expert on every GPU
    without it: neither is a default for both.
    """
    if getattr(args, "ep", 1) is not None:
        return None
    return gcd(torchrun.nproc_per_node, _MOST) if has_experts(args.hf_model_id) else 1


def has_experts(model: str) -> bool:
    """Whether a model is a mixture of experts: by what is known of it, by its name else."""
    facts = facts_of(model)
    if facts is None or facts.experts is None:
        return _ACTIVE.search(Path(model).name) is not None
    return facts.experts > 1
