"""How a model is spread over GPUs: the sizes that a job names, the one that is filled in where nobody said, and what a
model's own numbers make of them.

Sources of the rules: Megatron-Core 0.16 to 0.19: transformer_config (heads, query groups, layers), core.utils.divide
(widths and vocabulary), moe_layer (experts), mamba_mixer (its heads and groups), hybrid_layer_allocation (layers of
hybrids).
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import gcd, lcm
from pathlib import Path
from typing import Any, Literal, get_args

from recipes.models import ModelFacts, facts_of
from scripts.args.meaning import Role, Torchrun, field_of, value_of

Size = Literal["tp", "pp", "cp", "ep", "etp"]
SIZES: tuple[Size, ...] = get_args(Size)
#: Layers in the first and the last pipeline stage, where somebody says so.
Stages = tuple[int | None, int | None]
ENDS: tuple[Role, Role] = ("first_stage", "last_stage")
EVEN: Stages = (None, None)
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
    def fewest(self) -> int:
        """The fewest ranks that are whole copies of both."""
        return lcm(self.model, self.expert_model)

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


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The layout that a job's values ask for, whether it can be or not, and the key that sets each size."""

    layout: Layout
    keys: Mapping[Size, str]
    stages: Stages = EVEN
    stage_keys: tuple[str, ...] = ()  # of the ends that have a number

    def key_of(self, size: Size) -> str:
        """What to change where a size is wrong."""
        return self.stage_keys[0] if size == "pp" and self.stage_keys else self.keys[size]

    def written(self, layout: Layout, named: Iterable[Size] = SIZES) -> str:
        """A layout in the script's own words: the sizes `named`, where there are several ranks, and what differs."""
        pairs = {size: (getattr(self.layout, size), getattr(layout, size)) for size in self.keys}
        used = [size for size, (old, new) in pairs.items() if old != new or (size in named and new > 1)]
        return " ".join(f"{self.keys[size].rpartition('.')[2]}={pairs[size][1]}" for size in used)


def default_ep(args: Any, torchrun: Torchrun) -> int | None:
    """The expert parallel size where it is null: 1 for a model without experts; None where it is not, or there is none.

    Megatron refuses expert parallelism for a model without experts, and holds every expert on every GPU
    without it: neither is a default for both.
    """
    if field_of(args, "ep") is None or value_of(args, "ep") is not None:
        return None
    return gcd(torchrun.nproc_per_node, _MOST) if has_experts(value_of(args, "model")) else 1


def fewest(args: Any) -> int:
    """The fewest ranks that the sizes of `args` divide."""
    return Layout(nodes=1, processes=1, **{size: int(value_of(args, size, 1)) for size in SIZES}).fewest


def has_experts(model: str) -> bool:
    """Whether a model is a mixture of experts: by what is known of it, by its name else."""
    facts = facts_of(model)
    if facts is None or facts.experts is None:
        return _ACTIVE.search(Path(model).name) is not None
    return facts.experts > 1


@dataclass(frozen=True, kw_only=True)
class Violation:
    """One size that does not suit a model."""

    size: Size
    name: str  # of the Problem
    cause: str


@dataclass(frozen=True)
class Rule:
    """A number of the model that the size of a layout by which weights are split must suit."""

    name: str
    fact: str  # the field of ModelFacts
    what: str  # the number, in words
    suits: Callable[[int, int], bool] = lambda count, size: count % size == 0
    ends: str = "do not divide by"

    def violation(self, size: Size, layout: Layout, facts: ModelFacts) -> Violation | None:
        """What is wrong; None where nothing is, or the fact is not known."""
        count, value = getattr(facts, self.fact), getattr(layout, size)
        if count is None or value == 1 or self.suits(count, value):
            return None
        return Violation(size=size, name=self.name, cause=f"{count} {self.what} {self.ends} {size} = {value}")


def _groups_suit(groups: int, size: int) -> bool:
    """Fewer groups than ranks are repeated; releases before 0.16 may refuse that."""
    return groups % size == 0 or (groups > 0 and size % groups == 0)


RULES: tuple[Rule, ...] = (
    Rule("heads_not_divisible", "heads", "attention heads"),
    Rule("query_groups_not_divisible", "query_groups", "query groups", _groups_suit, "neither divide by nor into"),
    Rule("mamba_heads_not_divisible", "mamba_heads", "Mamba heads"),
    Rule("mamba_groups_not_divisible", "mamba_groups", "Mamba groups"),
    Rule("ffn_not_divisible", "ffn_hidden_size", "channels of the MLP"),
    Rule("shared_expert_ffn_not_divisible", "shared_expert_ffn_size", "channels of the shared experts"),
    Rule("vocabulary_not_divisible", "vocab_size", "entries of the vocabulary"),
    Rule(
        "expert_parallel_without_experts", "experts", "experts", lambda experts, _: experts > 0, "cannot be spread over"
    ),
    Rule("experts_not_divisible", "experts", "experts"),
    Rule("expert_ffn_not_divisible", "expert_ffn_size", "channels of an expert"),
)


def rules_of(facts: ModelFacts, *, padded: bool = False) -> Iterator[tuple[Rule, Size]]:
    """The rules for what a model has, as far as is known, each with the size that it is about.

    `padded`: the vocabulary is filled up to what tensor parallelism needs, as Megatron-LM's own scripts do.
    Megatron-Bridge builds a model from Hugging Face with the vocabulary that it has.
    """
    splits = facts.architecture.splits
    for rule in RULES:
        if rule.fact in splits and not (padded and rule.fact == "vocab_size"):
            yield rule, splits[rule.fact]


def violations(
    layout: Layout, facts: ModelFacts, *, stages: Stages = EVEN, padded: bool = False
) -> Iterator[Violation]:
    """Everything in which the model does not suit the layout; facts that are not known are not judged."""
    yield from filter(None, (rule.violation(size, layout, facts) for rule, size in rules_of(facts, padded=padded)))
    if uneven := layers_violation(layout, facts, stages):
        yield uneven


def layers_violation(layout: Layout, facts: ModelFacts, stages: Stages = EVEN) -> Violation | None:
    """Layers that do not spread evenly over the pipeline stages for which no number is given."""
    if facts.layers is None or layers_fit(facts.layers, layout.pp, stages):
        return None
    cause = f"{facts.layers} layers do not divide by pp = {layout.pp}"
    if stages != EVEN:
        left, over = _rest(facts.layers, layout.pp, stages)
        first, last = stages
        given = " and ".join(f"{n} in the {which} stage" for n, which in ((first, "first"), (last, "last")) if n)
        cause = f"{facts.layers} layers less {given} leave {left} for {over} of pp = {layout.pp} stages"
    return Violation(size="pp", name="layers_not_divisible", cause=cause)


def layers_fit(layers: int, pp: int, stages: Stages = EVEN) -> bool:
    """Whether the layers that are left spread evenly over the stages that are left, at least one each."""
    if any(number is not None and number < 1 for number in stages):
        return False
    left, over = _rest(layers, pp, stages)
    return left == over == 0 or (left > 0 and over > 0 and left % over == 0)


def uneven_stages(layers: int, pp: int) -> tuple[int, int] | None:
    """Layers for the first and the last stage with which the others are even, the smoothest; None where there are none.

    The first stage has the embedding and the last one the head: neither should have more layers than the others.
    """
    if pp < 3:
        return None
    middle = -(-layers // pp)
    ends = layers - middle * (pp - 2)
    return (ends // 2, ends - ends // 2) if ends >= 2 else None


def _rest(layers: int, pp: int, stages: Stages) -> tuple[int, int]:
    given = [number for number in stages if number is not None]
    return layers - sum(given), pp - len(given)
