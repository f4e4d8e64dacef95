"""A model cut into pipeline stages: the kinds of layers that it has, what a rank of each stage holds of them."""

from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

from recipes.models import ModelFacts
from recipes.models.model import Part
from recipes.planner.activations import PerToken, alive, kept
from recipes.planner.copies import expert_weights, largest_weight
from recipes.planner.divisibility import EVEN, Stages, layers_fit
from recipes.planner.layout import Layout
from recipes.planner.parameters import LayerParameters, Weights, count, layer_parameters


@dataclass(frozen=True, kw_only=True)
class LayerKind:
    """One kind of layer: the parameters of one, and what one token leaves in it."""

    dense: Weights
    experts: Weights
    kept: PerToken  # until its backward pass
    alive: tuple[PerToken, ...]  # of each part, where there is none
    largest: int  # elements of its largest weight, experts left out
    expert_weights: int  # elements of all experts' first weights
    scored: int  # width of what importance hooks look at
    attention: bool


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of the pipeline: its layers, counted from 1, and how many there are of each kind."""

    index: int
    count: int
    first: int
    last: int
    layers: tuple[int, ...]  # by kind, in the order of Anatomy.kinds

    @property
    def has_embedding(self) -> bool:
        return self.index == 0

    @property
    def has_head(self) -> bool:
        return self.index == self.count - 1

    def __str__(self) -> str:
        ends = [word for word, has in (("embedding", self.has_embedding), ("head", self.has_head)) if has]
        return f"stage {self.index + 1} of {self.count}: {', '.join([*ends, f'layers {self.first}-{self.last}'])}"


@dataclass(frozen=True, kw_only=True)
class Held:
    """Parameters of one rank. Experts apart: other ranks have copies of them than of the rest."""

    dense: float
    experts: float

    @property
    def total(self) -> float:
        return self.dense + self.experts


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """A model as far as its layout is concerned."""

    facts: ModelFacts
    kinds: tuple[LayerKind, ...]
    cumulated: tuple[tuple[int, ...], ...]  # by kind, how many of it are among the first 0, 1, 2 ... layers
    embedding: int
    tied: bool
    final_norm: int
    vision: int

    def stages(self, pp: int, given: Stages = EVEN) -> tuple[Stage, ...] | None:
        """The stages; None where the layers do not divide."""
        sizes = layers_of_stages(len(self.cumulated[0]) - 1, pp, given)
        if sizes is None:
            return None
        ends = list(accumulate(sizes))
        return tuple(
            Stage(
                index=index,
                count=pp,
                first=end - size + 1,
                last=end,
                layers=tuple(of[end] - of[end - size] for of in self.cumulated),
            )
            for index, (size, end) in enumerate(zip(sizes, ends, strict=True))
        )

    def held(self, stage: Stage, layout: Layout) -> Held:
        """What a rank of a stage holds: column and row parallel weights, embedding and head split by tensor
        parallelism, the rest of a layer on each rank, experts split by expert parallelism of both kinds.

        A tied head is a copy of the embedding where both are not on one stage (Megatron-Core, LanguageModule).
        The vocabulary is as it is: Megatron-Bridge does not pad it.
        """
        dense: float = 0
        experts: float = 0
        for kind, number in zip(self.kinds, stage.layers, strict=True):
            dense += number * (kind.dense.split / layout.tp + kind.dense.whole)
            experts += number * (kind.experts.split / layout.etp + kind.experts.whole) / layout.ep
        tables = stage.has_embedding + (stage.has_head and not (self.tied and stage.has_embedding))
        dense += tables * self.embedding / layout.tp
        dense += self.final_norm if stage.has_head else 0
        dense += self.vision if stage.has_embedding else 0
        return Held(dense=dense, experts=experts)


def layers_of_stages(layers: int, pp: int, given: Stages = EVEN) -> tuple[int, ...] | None:
    """How many layers each stage has (Megatron-Core, get_num_layers_to_build); None where they do not divide."""
    if not layers_fit(layers, pp, given):
        return None
    first, last = ([] if number is None else [number] for number in given)
    over = pp - len(first) - len(last)
    return (*first, *([(layers - sum(first) - sum(last)) // over] * over if over else []), *last)


@lru_cache(maxsize=64)
def anatomy(facts: ModelFacts, *, quantized: bool) -> Anatomy | None:
    """The anatomy of a model; None where a fact that its parameters need is not known."""
    parameters, layers = count(facts), layer_parameters(facts)
    if parameters is None or layers is None or facts.blocks is None:
        return None
    kinds = dict(zip(facts.blocks, layers, strict=True))
    return Anatomy(
        facts=facts,
        kinds=tuple(_kind(facts, block, layer, quantized=quantized) for block, layer in kinds.items()),
        cumulated=tuple((0, *accumulate(block == kind for block in facts.blocks)) for kind in kinds),
        embedding=parameters.embeddings,
        tied=parameters.output == 0,
        final_norm=parameters.norms - sum(layer.norms.total for layer in layers),
        vision=parameters.vision,
    )


def _kind(facts: ModelFacts, block: tuple[Part, ...], layer: LayerParameters, *, quantized: bool) -> LayerKind:
    return LayerKind(
        dense=sum((layer.mlp, layer.router, layer.mamba, layer.norms), start=layer.attention),
        experts=layer.experts,
        kept=sum((kept(facts, part, quantized=quantized) for part in block), start=PerToken()),
        alive=tuple(alive(facts, part, quantized=quantized) for part in block),
        largest=max(largest_weight(facts, part) for part in block),
        expert_weights=max(expert_weights(facts, part) for part in block),
        scored=max(facts.hidden_size or 0, facts.ffn_hidden_size or 0, (facts.heads or 0) * (facts.head_dim or 0)),
        attention="attention" in block,
    )
