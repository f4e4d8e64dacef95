"""Memory of the fullest rank of a Megatron job, part by part. Sizes of tensors: what an allocator leaves unused is not
in it.

A model is cut into pipeline stages; a rank of a stage holds its share of the weights, and by what the job does,
activations, gradients, an optimizer's state, logits.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate
from math import ceil

import yaml

from configs import CONFIGS
from recipes.experiment.job import Job
from recipes.models import ModelFacts
from recipes.models.architecture import Weight
from recipes.planner.activations import PerToken, Spread, alive, cached, kept
from recipes.planner.layout import EVEN, Layout, Stages, layers_fit
from recipes.planner.workload import Workload, workload_of
from scripts.args.meaning import MEGATRON, Work

_BF16, _FLOAT = 2, 4
#: The CUDA context, kernels of the libraries and cuBLAS's workspace; and NCCL's buffers for the groups that Megatron
#: makes, where there are others to talk to. Stated, not derived: what nvidia-smi shows beside PyTorch's own count.
_CONTEXT, _GROUPS = 1 << 30, 3 << 29
#: Experts are never visited evenly: the fullest rank gets so many times its share. Stated; 1 where it has all of them.
_UNEVEN = 1.5
#: Bytes for each logit at the fullest moment, counted over PyTorch's allocations in the real functions, forward and
#: backward: Megatron-Core 0.16's vocab_parallel_cross_entropy (logits and a float32 copy); ModelOpt 0.47's LogitsKLLoss
#: (both models' logits, float32 copies, logarithms and gradients; 32 without tensor parallelism).
_CROSS_ENTROPY, _DISTILLATION = 6, 36
#: awq_lite scales a layer's weights before it quantizes them: one more copy.
_SEARCH_COPIES = 2

#: What each part is, and where its formula is from; in the order in which they are shown.
SOURCES: Mapping[str, str] = yaml.safe_load((CONFIGS / "memory.yaml").read_text("utf-8"))["megatron"]


_Sized = tuple[str, float]


@dataclass(frozen=True, kw_only=True)
class RankMemory:
    """Bytes of the fullest rank, by part. Where facts are `unknown` there are no parts."""

    stage: str
    parts: Mapping[str, int]
    unknown: tuple[str, ...] = ()  # model.vocab_size, teacher.blocks

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    @property
    def sources(self) -> Mapping[str, str]:
        """What each part is, and where its formula is from."""
        return {part: SOURCES[part] for part in self.parts}


def memory_of(job: Job) -> RankMemory | None:
    """What a job of Megatron needs of each GPU.

    None where it needs none, its layout does not divide, or nothing at all is known of its model.
    """
    work = workload_of(job) if job.engine in MEGATRON else None
    return None if work is None else rank_memory(work, job.layout)


def rank_memory(work: Workload, layout: Layout) -> RankMemory | None:
    """The fullest rank of a layout, or the facts that are unknown; None where ranks or layers do not divide.

    A teacher is cut as the student is.
    """
    if unknown := unknown_of(work):
        return RankMemory(stage="", parts={}, unknown=unknown)
    model = anatomy(work.model, quantized=work.fake_quantized)
    teacher = anatomy(work.teacher, quantized=False) if work.teacher else None
    stages = model.stages(layout.pp, work.stages) if layout.divides else None
    rank = _Rank(work=work, layout=layout, model=model, teacher=teacher)
    if stages is None or (teacher and rank.teacher_stages is None):
        return None
    found = [(stage, dict(rank.parts(stage))) for stage in stages]
    stage, parts = max(found, key=lambda one: sum(one[1].values()))
    return RankMemory(stage=str(stage), parts={name: round(parts[name]) for name in SOURCES if parts.get(name)})


def unknown_of(work: Workload) -> tuple[str, ...]:
    """The facts without which nothing can be said of a job's memory."""
    teacher = work.teacher.architecture.missing if work.teacher else ()
    return (*(f"model.{name}" for name in work.model.architecture.missing), *(f"teacher.{name}" for name in teacher))


@dataclass(frozen=True, kw_only=True)
class Share:
    """Parameters that parallelism splits over ranks, and those that every rank holds."""

    split: int
    whole: int

    @property
    def total(self) -> int:
        return self.split + self.whole


def share(rows: Iterable[Weight]) -> Share:
    """What of these rows is split and what is not."""
    rows = tuple(rows)
    split = sum(row.parameters for row in rows if row.split != "none")
    return Share(split=split, whole=sum(row.parameters for row in rows) - split)


def largest(rows: Iterable[Weight]) -> int:
    """Elements of the largest tensor that tensor parallelism splits, experts left out. Megatron-Core has one tensor for
    queries, keys and values, and one for an MLP's gate and what it gates."""
    modules: Counter[str] = Counter()
    for row in rows:
        if row.packed and row.split != "none" and not row.experts:
            modules[row.module] += row.parameters
    return max(modules.values(), default=0)


@dataclass(frozen=True, kw_only=True)
class LayerKind:
    """One kind of layer: the parameters of one, and what one token leaves in it."""

    dense: Share
    experts: Share
    kept: PerToken  # until its backward pass
    alive: tuple[PerToken, ...]  # of each part, where there is none
    largest: int
    expert_weights: int  # elements of all experts' first weights: one product (GroupedLinear), copied at once
    attention: bool


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of the pipeline: its layers, counted from 1, and how many there are of each kind."""

    index: int
    count: int
    first: int
    last: int
    layers: tuple[int, ...]  # by kind, in the order of Anatomy.kinds
    has_embedding: bool
    has_head: bool

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
    ends: Mapping[str, int]  # parameters outside of layers, by section

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
                has_embedding=index == 0,
                has_head=index == pp - 1,
            )
            for index, (size, end) in enumerate(zip(sizes, ends, strict=True))
        )

    def present(self, stage: Stage) -> list[tuple[LayerKind, int]]:
        """The kinds of layers that a stage has, and how many of each."""
        return [(kind, number) for kind, number in zip(self.kinds, stage.layers, strict=True) if number]

    def held(self, stage: Stage, layout: Layout) -> Held:
        """What a rank of a stage holds: column and row parallel weights, embedding and head split by tensor
        parallelism, the rest of a layer on each rank, experts split by expert parallelism of both kinds.

        A tied head is a copy of the embedding where both are not on one stage (Megatron-Core, LanguageModule).
        The vocabulary is as it is: Megatron-Bridge does not pad it.
        """
        dense: float = 0
        experts: float = 0
        for kind, number in self.present(stage):
            dense += number * (kind.dense.split / layout.tp + kind.dense.whole)
            experts += number * (kind.experts.split / layout.etp + kind.experts.whole) / layout.ep
        tied = "output" not in self.ends
        tables = stage.has_embedding + (stage.has_head and not (tied and stage.has_embedding))
        dense += tables * self.ends["embeddings"] / layout.tp
        dense += self.ends["norms"] if stage.has_head else 0
        dense += self.ends.get("vision", 0) if stage.has_embedding else 0
        return Held(dense=dense, experts=experts)


def layers_of_stages(layers: int, pp: int, given: Stages = EVEN) -> tuple[int, ...] | None:
    """How many layers each stage has (Megatron-Core, get_num_layers_to_build); None where they do not divide."""
    if not layers_fit(layers, pp, given):
        return None
    first, last = ([] if number is None else [number] for number in given)
    over = pp - len(first) - len(last)
    return (*first, *([(layers - sum(first) - sum(last)) // over] * over if over else []), *last)


@lru_cache(maxsize=64)
def anatomy(facts: ModelFacts, *, quantized: bool) -> Anatomy:
    """The anatomy of a model of which nothing is missing."""
    layers, blocks = facts.architecture.layers, facts.blocks
    assert blocks is not None
    kinds = tuple(
        LayerKind(
            dense=share(row for row in rows if not row.experts),
            experts=share(row for row in rows if row.experts),
            kept=sum((kept(facts, part, quantized=quantized) for part in block), start=PerToken()),
            alive=tuple(alive(facts, part, quantized=quantized) for part in block),
            largest=largest(rows),
            expert_weights=sum(row.parameters for row in rows if row.experts and row.module == "linear_fc1"),
            attention="attention" in block,
        )
        for block, rows in layers.items()
    )
    return Anatomy(
        facts=facts,
        kinds=kinds,
        cumulated=tuple((0, *accumulate(block == kind for block in blocks)) for kind in layers),
        ends={row.section: row.parameters for row in facts.architecture.ends},
    )


@dataclass(frozen=True, kw_only=True)
class _Rank:
    """One rank of a layout that divides: its work, and the models that it has a share of."""

    work: Workload
    layout: Layout
    model: Anatomy
    teacher: Anatomy | None = None

    def parts(self, stage: Stage) -> Iterator[_Sized]:
        """Bytes by part, for a rank of a stage; parts of nothing among them."""
        held = self.model.held(stage, self.layout)
        yield "weights", _BF16 * held.total
        yield from _PARTS[self.work.kind](self, stage, held)
        yield "context", _CONTEXT + (_GROUPS if self.layout.world > 1 else 0)

    @cached_property
    def tokens(self) -> float:
        """Of a forward pass, on one rank."""
        return self.work.tokens * self.work.batch / self.layout.cp

    @cached_property
    def teacher_stages(self) -> tuple[Stage, ...] | None:
        return self.teacher.stages(self.layout.pp) if self.teacher else None

    def spread(self, model: Anatomy) -> Spread:
        visits: float = (model.facts.experts if self.work.every_expert else model.facts.experts_per_token) or 0
        even = self.layout.ep == 1 or self.work.every_expert
        return Spread(
            tp=self.layout.tp,
            etp=self.layout.etp,
            sequence_parallel=self.work.sequence_parallel,
            visits=visits if even else visits * _UNEVEN,
        )

    def layer(self, model: Anatomy, stage: Stage) -> float:
        """The most bytes that one of a stage's layers takes for one pass."""
        spread = self.spread(model)
        return self.tokens * max(one.on_rank(spread) for kind, _ in model.present(stage) for one in kind.alive)


def _calibration(rank: _Rank, stage: Stage, held: Held) -> Iterator[_Sized]:
    """ModelOpt's forward pass: beside a layer's activations, every stage gets the logits that the last one has
    gathered."""
    work, layout = rank.work, rank.layout
    yield "activations", rank.layer(rank.model, stage)
    yield "attention mask", work.batch * work.tokens**2 if layout.cp == 1 else 0
    copies = 1.0 if not stage.has_head else 2.0 if layout.tp == 1 else 2 + 1 / layout.tp
    yield "logits", copies * _BF16 * rank.tokens * (rank.model.facts.vocab_size or 0)
    if work.fake_quantized:
        ranks, kinds = layout.ep * layout.etp, rank.model.present(stage)
        copied = max(max(kind.largest / layout.tp, kind.expert_weights / ranks) for kind, _ in kinds)
        yield "quantized weights", (_SEARCH_COPIES if work.searched else 1) * _BF16 * copied


def _scoring(rank: _Rank, stage: Stage, held: Held) -> Iterator[_Sized]:
    yield from _calibration(rank, stage, held)
    facts = rank.model.facts
    hooked = max(facts.hidden_size or 0, facts.ffn_hidden_size or 0, (facts.heads or 0) * (facts.head_dim or 0))
    yield "importance scores", 2 * _FLOAT * rank.tokens * hooked


def _generation(rank: _Rank, stage: Stage, held: Held) -> Iterator[_Sized]:
    yield from _calibration(rank, stage, held)
    layers = sum(number for kind, number in rank.model.present(stage) if kind.attention)
    tokens = rank.tokens + rank.work.new_tokens * rank.work.batch
    yield "key/value cache", layers * tokens * cached(rank.model.facts).on_rank(rank.spread(rank.model))


def _transfer(rank: _Rank, stage: Stage, held: Held) -> Iterator[_Sized]:
    """Megatron-Bridge gathers a tensor from the ranks that share it, or hands them its parts, one after the other."""
    tensor = max(rank.model.ends["embeddings"], *(kind.largest for kind in rank.model.kinds))
    yield "tensors on the way", 2 * _BF16 * tensor


def _training(rank: _Rank, stage: Stage, held: Held) -> Iterator[_Sized]:
    work, layout = rank.work, rank.layout
    if rank.teacher is not None and rank.teacher_stages is not None:  # forward only: its logits count with the loss
        own = rank.teacher_stages[stage.index]
        yield "teacher", _BF16 * rank.teacher.held(own, layout).total
        yield "teacher's activations", rank.layer(rank.teacher, own)
    yield "gradients", _FLOAT * held.total
    # The optimizer is spread over all copies, and those that see other parts of a sequence are copies too.
    dense, experts = (
        (layout.dp * layout.cp, layout.world // layout.expert_model) if work.distributed_optimizer else (1, 1)
    )
    yield "optimizer", 3 * _FLOAT * (held.dense / dense + held.experts / experts)
    microbatches = max(1, work.global_batch // (work.batch * layout.dp))
    in_flight = min(stage.count - stage.index, microbatches)  # one forward, one backward (arXiv:2104.04473)
    yield "activations", in_flight * _kept(rank, stage)
    if work.fake_quantized:
        # Of what parallelism splits; the copies wait for the backward pass.
        experts_ranks, present = layout.ep * layout.etp, rank.model.present(stage)
        linear = sum(n * (kind.dense.split / layout.tp + kind.experts.split / experts_ranks) for kind, n in present)
        yield "quantized weights", in_flight * _BF16 * linear
    if stage.has_head:
        yield (
            "loss",
            rank.tokens
            * (rank.model.facts.vocab_size or 0)
            / layout.tp
            * (_DISTILLATION if work.teacher else _CROSS_ENTROPY),
        )


def _kept(rank: _Rank, stage: Stage) -> float:
    """Activations of one sample's pass through a stage: of each layer, or where they are recomputed the inputs of
    each chunk of layers and all of one chunk."""
    spread = rank.spread(rank.model)
    by_kind = [(rank.tokens * kind.kept.on_rank(spread), number) for kind, number in rank.model.present(stage)]
    chunk = rank.work.recompute
    if not chunk:
        return sum(number * size for size, number in by_kind)
    inputs = rank.tokens * PerToken(whole=_BF16 * (rank.model.facts.hidden_size or 0)).on_rank(spread)
    return ceil(sum(stage.layers) / chunk) * inputs + chunk * max(size for size, _ in by_kind)


_PARTS: Mapping[Work, Callable[[_Rank, Stage, Held], Iterator[_Sized]]] = {
    "calibration": _calibration,
    "scoring": _scoring,
    "training": _training,
    "generation": _generation,
    "transfer": _transfer,
}
