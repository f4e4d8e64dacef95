"""Bytes of activations that one token leaves in a layer, in bf16, by what splits them over ranks.

What a layer keeps for its backward pass, operation by operation as in Korthikanti et al. 2022 (arXiv:2205.05198,
section 4), for what models have since: no dropout (theirs keeps two masks, one byte each), attention that keeps no
scores (FlashAttention, arXiv:2205.14135), norms and gates in one kernel each (Transformer Engine), grouped queries,
experts, Mamba. For their layer (MLP of 4 h, as many key heads as heads) it is s b h (8 + 24/t): theirs without masks.
"""

from dataclasses import dataclass

from recipes.models import ModelFacts
from recipes.models.architecture import Part

_BF16, _FLOAT = 2, 4


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Over how many ranks activations are split, and how many experts a token visits on the fullest of them."""

    tp: int = 1
    etp: int = 1
    sequence_parallel: bool = False
    visits: float = 0


@dataclass(frozen=True, kw_only=True)
class PerToken:
    """Bytes of one token.

    `whole` is the same on every rank of tensor parallelism, and split where the sequence is, too; `split` always
    is; `routed` is in each expert that the token visits.
    """

    whole: float = 0
    split: float = 0
    routed: float = 0

    def __add__(self, other: "PerToken") -> "PerToken":
        whole, split, routed = self.whole + other.whole, self.split + other.split, self.routed + other.routed
        return PerToken(whole=whole, split=split, routed=routed)

    def on_rank(self, spread: Spread) -> float:
        """Bytes on one rank. With sequence parallelism, experts that are not split get a part of the tokens each."""
        sequence = spread.tp if spread.sequence_parallel else 1
        routed = self.routed * spread.visits / max(spread.etp, sequence)
        return self.whole / sequence + self.split / spread.tp + routed


def kept(facts: ModelFacts, part: Part, *, quantized: bool) -> PerToken:
    """What a part of a layer keeps until its backward pass: beside its norm's input and output, what a column-parallel
    weight puts out and a row-parallel one takes in, and what the kernels between them keep.

    `quantized`: fake quantization copies the input of every linear layer, and both are kept: one for the
    product, one to tell what was clipped (straight-through estimator).
    """
    hidden, latent = facts.architecture.known.hidden_size, facts.latent
    ranks = latent.kv_lora_rank + (latent.q_lora_rank or 0) if latent and part == "attention" else 0
    rows = [row for row in facts.architecture.of(part) if row.packed]
    dense = [row for row in rows if not row.experts]
    outputs = sum(row.outputs * row.copies for row in dense if row.split == "outputs")
    inputs = sum(row.inputs for row in dense if row.split == "inputs")
    read = sum({row.module: row.inputs for row in rows if row.experts}.values())  # by one expert
    made = sum(row.outputs * row.copies // row.experts for row in rows if row.experts and row.split == "outputs")
    copies = 2 if quantized else 1  # of what a linear layer reads
    return _of_kernels(facts, part) + PerToken(
        whole=_BF16 * (copies + 1) * (hidden + ranks),
        split=_BF16 * (outputs + copies * inputs),
        routed=_BF16 * (copies * read + made),
    )


def alive(facts: ModelFacts, part: Part, *, quantized: bool) -> PerToken:
    """What is alive at most while a part of a layer is computed and nothing is kept for later: all that and the output.

    Each expert has an output of its own.
    """
    output = _BF16 * facts.architecture.known.hidden_size
    return kept(facts, part, quantized=quantized) + PerToken(whole=output, routed=output if part == "experts" else 0)


def cached(facts: ModelFacts) -> PerToken:
    """Keys and values of one attention layer; latent attention caches what they are computed from."""
    known = facts.architecture.known
    if facts.latent is not None:
        return PerToken(whole=_BF16 * (facts.latent.kv_lora_rank + facts.latent.qk_rope_head_dim))
    return PerToken(split=_BF16 * 2 * known.query_groups * known.head_dim)


def _of_kernels(facts: ModelFacts, part: Part) -> PerToken:
    """FlashAttention keeps the logarithm of each head's sum in float32, norms of queries and keys what they read,
    latent attention the rotated part of each head's key; routers have logits in float32; the kernel of Mamba-2
    (arXiv:2405.21060) keeps what the input projection says, and computes the rest again.
    """
    known = facts.architecture.known
    if part == "attention":
        heads, width = known.heads, known.head_dim
        normed = (heads + known.query_groups) * width if facts.qk_norm in ("head", "full") else 0
        own = heads * facts.latent.qk_rope_head_dim if facts.latent else normed
        return PerToken(split=_BF16 * own + _FLOAT * heads)
    if part == "mamba":
        return PerToken(split=_BF16 * known.mamba_heads * known.mamba_head_dim)
    return PerToken(whole=_FLOAT * 2 * known.experts) if part == "experts" else PerToken()
