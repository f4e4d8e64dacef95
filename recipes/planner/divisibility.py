"""What a model's own numbers make of a layout: which tensor, pipeline and expert sizes Megatron can build it in.

Sources: Megatron-Core 0.16 to 0.19: transformer_config (heads, query groups, layers), core.utils.divide (widths and
vocabulary), moe_layer (experts), mamba_mixer (its heads and groups), hybrid_layer_allocation (layers of hybrids).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from recipes.models import ModelFacts
from recipes.models.model import Part
from recipes.planner.layout import Layout

Size = Literal["tp", "pp", "ep", "etp"]
#: Layers in the first and the last pipeline stage, where somebody says so.
Stages = tuple[int | None, int | None]
EVEN: Stages = (None, None)
#: No job has a parallel size beyond this; nobody is offered one.
_MOST = 1024


@dataclass(frozen=True, kw_only=True)
class Violation:
    """One size that does not suit a model."""

    size: Size
    name: str  # of the Problem
    cause: str
    valid: tuple[int, ...]  # what the size could be: divisors of the world that suit the model in this respect


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A number of the model that a size must divide."""

    name: str
    size: Size
    fact: str  # the field of ModelFacts
    what: str  # the number, in words
    part: Part | None = None  # only of models that have such layers
    suits: Callable[[int, int], bool] = lambda count, size: count % size == 0
    ends: str = "do not divide by"

    def applies(self, facts: ModelFacts) -> bool:
        """Whether the model has what the rule is about, as far as is known."""
        return self.part is None or facts.count_of(self.part) != 0

    def violation(self, layout: Layout, facts: ModelFacts) -> Violation | None:
        """What is wrong; None where nothing is, or the fact is not known."""
        count, value = getattr(facts, self.fact), getattr(layout, self.size)
        if count is None or value == 1 or not self.applies(facts) or self.suits(count, value):
            return None
        cause = f"{count} {self.what} {self.ends} {self.size} = {value}"
        valid = tuple(size for size in _divisors(layout.world) if self.suits(count, size))
        return Violation(size=self.size, name=self.name, cause=cause, valid=valid)


def _groups_suit(groups: int, size: int) -> bool:
    """Fewer groups than ranks are repeated; releases before 0.16 may refuse that."""
    return groups % size == 0 or (groups > 0 and size % groups == 0)


VOCABULARY = Rule(name="vocabulary_not_divisible", size="tp", fact="vocab_size", what="entries of the vocabulary")
RULES: tuple[Rule, ...] = (
    Rule(name="heads_not_divisible", size="tp", fact="heads", what="attention heads", part="attention"),
    Rule(
        name="query_groups_not_divisible",
        size="tp",
        fact="query_groups",
        what="query groups",
        part="attention",
        suits=_groups_suit,
        ends="neither divide by nor into",
    ),
    Rule(name="mamba_heads_not_divisible", size="tp", fact="mamba_heads", what="Mamba heads", part="mamba"),
    Rule(name="mamba_groups_not_divisible", size="tp", fact="mamba_groups", what="Mamba groups", part="mamba"),
    Rule(name="ffn_not_divisible", size="tp", fact="ffn_hidden_size", what="channels of the MLP", part="mlp"),
    Rule(
        name="shared_expert_ffn_not_divisible",
        size="tp",
        fact="shared_expert_ffn_size",
        what="channels of the shared experts",
        part="experts",
    ),
    VOCABULARY,
    Rule(
        name="expert_parallel_without_experts",
        size="ep",
        fact="experts",
        what="experts",
        suits=lambda experts, _: experts > 0,
        ends="cannot be spread over",
    ),
    Rule(name="experts_not_divisible", size="ep", fact="experts", what="experts"),
    Rule(
        name="expert_ffn_not_divisible",
        size="etp",
        fact="expert_ffn_size",
        what="channels of an expert",
        part="experts",
    ),
)


def violations(
    layout: Layout, facts: ModelFacts, *, stages: Stages = EVEN, padded: bool = False
) -> Iterator[Violation]:
    """Everything in which the model does not suit the layout; facts that are not known are not judged.

    `padded`: the vocabulary is filled up to what tensor parallelism needs, as Megatron-LM's own scripts do.
    Megatron-Bridge builds a model from Hugging Face with the vocabulary that it has.
    """
    for rule in RULES:
        found = None if padded and rule is VOCABULARY else rule.violation(layout, facts)
        if found:
            yield found
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
    valid = tuple(size for size in _divisors(layout.world) if layers_fit(facts.layers, size, stages))
    return Violation(size="pp", name="layers_not_divisible", cause=cause, valid=valid)


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


def _divisors(world: int) -> Iterator[int]:
    return (size for size in range(1, min(world, _MOST) + 1) if world % size == 0)
