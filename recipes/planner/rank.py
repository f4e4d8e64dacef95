"""What fills one rank's memory, part by part, by what the rank does."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import ceil

from recipes.planner.activations import PerToken, Spread, cached
from recipes.planner.layout import Layout
from recipes.planner.stages import Anatomy, Held, LayerKind, Stage
from recipes.planner.work import Kind, Work

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

Part = tuple[str, float]

#: What each part is, and where its formula is from; in the order in which they are shown.
SOURCES: Mapping[str, str] = {
    "weights": "this rank's share, in bf16",
    "teacher": "this rank's share of its weights, in bf16",
    "gradients": "float32 (Megatron Core, distributed optimizer: 6 + 12/d bytes a parameter with the weights)",
    "optimizer": "weights and two moments in float32, over d copies (Megatron Core, distributed optimizer)",
    "activations": "Korthikanti et al. 2022 (arXiv:2205.05198), without dropout, with FlashAttention",
    "teacher's activations": "of one layer at a time",
    "attention mask": "a byte for each pair of tokens (ModelOpt's megatron_generate)",
    "logits": "bf16: this rank's, gathered, transposed (ModelOpt's megatron_generate)",
    "loss": "6 bytes a logit, with distillation 36 (counted in Megatron-Core and ModelOpt)",
    "quantized weights": "fake quantization multiplies with a copy",
    "importance scores": "activations of a layer in float32, and their magnitudes (ModelOpt's mcore_minitron)",
    "key/value cache": "bf16 keys and values of every token",
    "tensors on the way": "the largest one, as it is read and as it is written",
    "context": "CUDA, its libraries and NCCL; stated, not derived",
}


@dataclass(frozen=True, kw_only=True)
class Rank:
    """One rank of a layout that divides: its work, and the models that it has a share of."""

    work: Work
    layout: Layout
    model: Anatomy
    teacher: Anatomy | None = None

    def parts(self, stage: Stage) -> Iterator[Part]:
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
    def logits(self) -> float:
        """Of a forward pass, all of the vocabulary."""
        return self.tokens * (self.model.facts.vocab_size or 0)

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

    def layer(self, model: Anatomy, layers: tuple[int, ...], of: Callable[[LayerKind], tuple[PerToken, ...]]) -> float:
        """The most bytes that one of these layers takes for one pass, with one of what `of` it says."""
        spread = self.spread(model)
        present = (kind for kind, number in zip(model.kinds, layers, strict=True) if number)
        return self.tokens * max(one.on_rank(spread) for kind in present for one in of(kind))


def _calibration(rank: Rank, stage: Stage, held: Held) -> Iterator[Part]:
    yield "activations", rank.layer(rank.model, stage.layers, lambda kind: kind.alive)
    yield from _prompted(rank, stage)


def _scoring(rank: Rank, stage: Stage, held: Held) -> Iterator[Part]:
    yield from _calibration(rank, stage, held)
    widest = max(kind.scored for kind, number in zip(rank.model.kinds, stage.layers, strict=True) if number)
    yield "importance scores", 2 * _FLOAT * rank.tokens * widest


def _generation(rank: Rank, stage: Stage, held: Held) -> Iterator[Part]:
    yield from _calibration(rank, stage, held)
    layers = sum(n for kind, n in zip(rank.model.kinds, stage.layers, strict=True) if kind.attention)
    tokens = rank.tokens + rank.work.new_tokens * rank.work.batch
    yield "key/value cache", layers * tokens * cached(rank.model.facts).on_rank(rank.spread(rank.model))


def _transfer(rank: Rank, stage: Stage, held: Held) -> Iterator[Part]:
    """Megatron-Bridge gathers a tensor from the ranks that share it, or hands them its parts, one after the other."""
    largest = max(rank.model.embedding, *(kind.largest for kind in rank.model.kinds))
    yield "tensors on the way", 2 * _BF16 * largest


def _training(rank: Rank, stage: Stage, held: Held) -> Iterator[Part]:
    work, layout = rank.work, rank.layout
    yield from _teacher(rank, stage)
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
        yield "quantized weights", in_flight * _BF16 * _linear(rank, stage)
    if stage.has_head:
        yield "loss", rank.logits / layout.tp * (_DISTILLATION if work.teacher else _CROSS_ENTROPY)


def _kept(rank: Rank, stage: Stage) -> float:
    """Activations of one sample's pass through a stage: of each layer, or where they are recomputed the inputs of
    each chunk of layers and all of one chunk."""
    spread = rank.spread(rank.model)
    by_kind = [
        (rank.tokens * kind.kept.on_rank(spread), number)
        for kind, number in zip(rank.model.kinds, stage.layers, strict=True)
        if number
    ]
    chunk = rank.work.recompute
    if not chunk:
        return sum(number * size for size, number in by_kind)
    inputs = rank.tokens * PerToken(whole=_BF16 * (rank.model.facts.hidden_size or 0)).on_rank(spread)
    return ceil(sum(stage.layers) / chunk) * inputs + chunk * max(size for size, _ in by_kind)


def _teacher(rank: Rank, stage: Stage) -> Iterator[Part]:
    """Forward only: its logits count with the loss."""
    if rank.teacher is None or rank.teacher_stages is None:
        return
    own = rank.teacher_stages[stage.index]
    yield "teacher", _BF16 * rank.teacher.held(own, rank.layout).total
    yield "teacher's activations", rank.layer(rank.teacher, own.layers, lambda kind: kind.alive)


def _linear(rank: Rank, stage: Stage) -> float:
    """Elements of a stage's weights that are quantized: those that parallelism splits. Their copies wait for the
    backward pass."""
    kinds = zip(rank.model.kinds, stage.layers, strict=True)
    layout = rank.layout
    return sum(
        number * (kind.dense.split / layout.tp + kind.experts.split / (layout.ep * layout.etp))
        for kind, number in kinds
    )


def _prompted(rank: Rank, stage: Stage) -> Iterator[Part]:
    """What ModelOpt's forward pass takes beside a layer's activations.

    Every stage gets the logits that the last one has gathered.
    """
    work, layout = rank.work, rank.layout
    yield "attention mask", work.batch * work.tokens**2 if layout.cp == 1 else 0
    copies = 1.0 if not stage.has_head else 2.0 if layout.tp == 1 else 2 + 1 / layout.tp
    yield "logits", copies * _BF16 * rank.logits
    if work.fake_quantized:
        ranks, present = layout.ep * layout.etp, zip(rank.model.kinds, stage.layers, strict=True)
        largest = max(max(kind.largest / layout.tp, kind.expert_weights / ranks) for kind, n in present if n)
        yield "quantized weights", (_SEARCH_COPIES if work.searched else 1) * _BF16 * largest


_PARTS: Mapping[Kind, Callable[[Rank, Stage, Held], Iterator[Part]]] = {
    "calibration": _calibration,
    "scoring": _scoring,
    "training": _training,
    "generation": _generation,
    "transfer": _transfer,
}
