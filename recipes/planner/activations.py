"""Bytes of activations that one token leaves in a layer, in bf16, by what splits them over ranks.

What a layer keeps for its backward pass, operation by operation as in Korthikanti et al. 2022 (arXiv:2205.05198,
section 4), for what models have since: no dropout (theirs keeps two masks, one byte each), attention that keeps no
scores (FlashAttention, arXiv:2205.14135), norms and gates in one kernel each (Transformer Engine), grouped queries,
experts, Mamba. For their layer (MLP of 4 h, as many key heads as heads) it is s b h (8 + 24/t): theirs without masks.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from recipes.models import ModelFacts
from recipes.models.model import Part

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
    """What a part of a layer keeps until its backward pass.

    `quantized`: fake quantization copies the input of every linear layer, and both are kept: one for the
    product, one to tell what was clipped (straight-through estimator).
    """
    hidden = _BF16 * _known(facts.hidden_size)
    held, inputs = _KEPT[part](facts)
    held += PerToken(whole=2 * hidden)  # the norm's input and output
    return held + inputs + PerToken(whole=hidden) if quantized else held


def alive(facts: ModelFacts, part: Part, *, quantized: bool) -> PerToken:
    """What is alive at most while a part of a layer is computed and nothing is kept for later: all that and the output.

    Each expert has an output of its own.
    """
    output = _BF16 * _known(facts.hidden_size)
    return kept(facts, part, quantized=quantized) + PerToken(whole=output, routed=output if part == "experts" else 0)


def cached(facts: ModelFacts) -> PerToken:
    """Keys and values of one attention layer; latent attention caches what they are computed from."""
    if facts.latent is not None:
        return PerToken(whole=_BF16 * (facts.latent.kv_lora_rank + facts.latent.qk_rope_head_dim))
    return PerToken(split=_BF16 * 2 * _known(facts.query_groups) * _known(facts.head_dim))


def _attention(facts: ModelFacts) -> tuple[PerToken, PerToken]:
    heads = _known(facts.heads)
    if facts.latent is not None:
        latent = facts.latent
        key = heads * (latent.qk_nope_head_dim + latent.qk_rope_head_dim)
        value = heads * latent.v_head_dim
        ranks = latent.kv_lora_rank + (latent.q_lora_rank or 0)
        held = PerToken(whole=_BF16 * 2 * ranks, split=_BF16 * (2 * key + 2 * value) + _FLOAT * heads)
        return held, PerToken(whole=_BF16 * ranks, split=_BF16 * value)
    query, key = heads * _known(facts.head_dim), _known(facts.query_groups) * _known(facts.head_dim)
    norms = query + key if facts.qk_norm in ("head", "full") else 0
    # Query, key, value and result, and the logarithm of each head's sum, which FlashAttention keeps in float32.
    held = PerToken(split=_BF16 * (2 * query + 2 * key + norms) + _FLOAT * heads)
    return held, PerToken(split=_BF16 * query)


def _mlp(facts: ModelFacts) -> tuple[PerToken, PerToken]:
    width = _known(facts.ffn_hidden_size)
    return PerToken(split=_BF16 * _gated(facts) * width), PerToken(split=_BF16 * width)


def _experts(facts: ModelFacts) -> tuple[PerToken, PerToken]:
    """Of each expert visited: its input, and what is between its products; the router's logits are float32."""
    width, shared = _known(facts.expert_ffn_size), facts.shared_expert_ffn_size or 0
    reads = facts.expert_latent_size or _known(facts.hidden_size)
    held = PerToken(
        whole=_FLOAT * 2 * _known(facts.experts),
        split=_BF16 * _gated(facts) * shared,
        routed=_BF16 * (reads + _gated(facts) * width),
    )
    return held, PerToken(split=_BF16 * shared, routed=_BF16 * (reads + width))


def _mamba(facts: ModelFacts) -> tuple[PerToken, PerToken]:
    """The kernel of Mamba-2 (arXiv:2405.21060) keeps what the input projection says, and computes the rest again."""
    heads = _known(facts.mamba_heads)
    inner = heads * _known(facts.mamba_head_dim)
    projected = 2 * inner + 2 * _known(facts.mamba_groups) * _known(facts.mamba_state) + heads
    return PerToken(split=_BF16 * (projected + 2 * inner)), PerToken(split=_BF16 * inner)


#: What a part keeps beside its norm, and the inputs of its further linear layers, which fake quantization copies.
_KEPT: Mapping[Part, Callable[[ModelFacts], tuple[PerToken, PerToken]]] = {
    "attention": _attention,
    "mlp": _mlp,
    "experts": _experts,
    "mamba": _mamba,
}


def _gated(facts: ModelFacts) -> int:
    """Widths between the two products of an MLP: a gate, what it is for and the result; or a function's in and out."""
    return 2 if facts.gated_mlp is False else 3


def _known(value: int | None) -> int:
    assert value is not None, "only asked of models whose parameters are known"
    return value
