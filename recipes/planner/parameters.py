"""How many parameters a model has, by part and by layer, from its facts alone.

The parts are those of transformers' modeling files, of which each architecture that is counted here is one; what
tensor parallelism splits is what Megatron-Core splits. Buffers that a checkpoint keeps beside the weights, such as the
bias that balances DeepSeek-V3's router, are no parameters, and layers that only predict further tokens are left out, as
transformers leaves them out.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from recipes.models.model import ModelFacts, MultiLatent, Part
from scripts.run.problems import JobError

_Fact = TypeVar("_Fact")


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Parameters of one part: those that tensor parallelism splits over ranks, and those that every rank holds."""

    split: int = 0
    whole: int = 0

    @property
    def total(self) -> int:
        return self.split + self.whole

    def on_rank(self, ranks: int) -> int:
        """What one of `ranks` holds; the fullest, where it does not divide."""
        return -(-self.split // ranks) + self.whole

    def __add__(self, other: "Weights") -> "Weights":
        return Weights(split=self.split + other.split, whole=self.whole + other.whole)


@dataclass(frozen=True, kw_only=True)
class LayerParameters:
    """One layer, whole.

    `experts` are the routed ones, all of them: expert parallelism spreads them, expert tensor parallelism splits them.
    `mlp` has the shared experts too, which every token passes; `router` is all that sends tokens to experts.
    """

    attention: Weights = Weights()
    mlp: Weights = Weights()
    experts: Weights = Weights()
    router: Weights = Weights()
    mamba: Weights = Weights()
    norms: Weights = Weights()

    @property
    def total(self) -> int:
        return sum(part.total for part in (self.attention, self.mlp, self.experts, self.router, self.mamba, self.norms))


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """A whole model. `output` is 0 where the embeddings serve as the output layer too; both are split by vocabulary."""

    attention: int
    mlp: int
    experts: int
    router: int
    mamba: int
    embeddings: int
    output: int
    norms: int
    vision: int
    idle: int  # in the experts that one token does not visit

    @property
    def total(self) -> int:
        parts = (self.attention, self.mlp, self.experts, self.router, self.mamba, self.norms)
        return sum(parts) + self.embeddings + self.output + self.vision

    @property
    def active(self) -> int:
        """What one token passes, embeddings and vision included."""
        return self.total - self.idle


#: Fields of ModelFacts that the size of each part depends on.
_NEEDS: dict[Part, tuple[str, ...]] = {
    "attention": ("heads", "head_dim", "attention_bias", "attention_output_bias", "qk_norm", "attention_sinks"),
    "mlp": ("ffn_hidden_size", "gated_mlp", "mlp_bias"),
    "experts": (
        *("experts", "experts_per_token", "expert_ffn_size", "shared_expert_ffn_size", "gated_mlp", "mlp_bias"),
        *("expert_bias", "expert_latent_size", "router_bias", "shared_expert_gate"),
    ),
    "mamba": (
        *("mamba_heads", "mamba_head_dim", "mamba_groups", "mamba_state", "mamba_conv", "mamba_bias"),
        "mamba_conv_bias",
    ),
}
_ALWAYS = ("blocks", "hidden_size", "vocab_size", "tied_embeddings", "block_norms", "norm_bias")


def missing(facts: ModelFacts) -> tuple[str, ...]:
    """The facts that `count` needs and that are not known."""
    unknown = tuple(dict.fromkeys(name for name in _needed(facts) if getattr(facts, name) is None))
    blind = facts.vision is not None and facts.vision.parameters is None
    return (*unknown, "vision.parameters") if blind else unknown


def _needed(facts: ModelFacts) -> Iterator[str]:
    yield from _ALWAYS
    for part in dict.fromkeys(part for block in facts.blocks or () for part in block):
        yield from _NEEDS[part]
        if part == "attention" and facts.latent is None:
            yield "query_groups"


def count(facts: ModelFacts) -> Parameters | None:
    """The parameters of a model; None where a fact is `missing`."""
    by_layer = layer_parameters(facts)
    if by_layer is None or missing(facts):
        return None
    hidden, table = _known(facts.hidden_size), _known(facts.vocab_size) * _known(facts.hidden_size)
    return Parameters(
        attention=sum(layer.attention.total for layer in by_layer),
        mlp=sum(layer.mlp.total for layer in by_layer),
        experts=sum(layer.experts.total for layer in by_layer),
        router=sum(layer.router.total for layer in by_layer),
        mamba=sum(layer.mamba.total for layer in by_layer),
        embeddings=table,
        output=0 if facts.tied_embeddings else table,
        norms=sum(layer.norms.total for layer in by_layer) + _norm(facts, hidden),
        vision=_known(facts.vision.parameters) if facts.vision else 0,
        idle=sum(_idle(facts, layer) for layer in by_layer),
    )


def layer_parameters(facts: ModelFacts) -> tuple[LayerParameters, ...] | None:
    """The parameters of each layer of the language model; None where a fact is `missing` that is not of vision."""
    if any(getattr(facts, name) is None for name in _needed(facts)):
        return None
    kinds = {block: _layer(facts, block) for block in dict.fromkeys(_known(facts.blocks))}
    return tuple(kinds[block] for block in _known(facts.blocks))


def exact_total(folder: Path) -> int | None:
    """The weights in a folder's safetensors, by their headers; None where they are not whole or packed unreadably.

    A tied output layer that was saved all the same is counted, and so are the buffers that are saved with weights.
    """
    from scripts.checkpoints.huggingface import is_model, look_model

    try:
        return look_model(folder).parameters if is_model(folder) else None
    except (JobError, OSError):
        return None


def _layer(facts: ModelFacts, block: tuple[Part, ...]) -> LayerParameters:
    return LayerParameters(
        attention=_attention(facts) if "attention" in block else Weights(),
        mlp=_mlps(facts, block),
        experts=_experts(facts) if "experts" in block else Weights(),
        router=_router(facts) if "experts" in block else Weights(),
        mamba=_mamba(facts) if "mamba" in block else Weights(),
        norms=Weights(whole=_known(facts.block_norms) * _norm(facts, _known(facts.hidden_size))),
    )


def _attention(facts: ModelFacts) -> Weights:
    """Queries, keys and values by columns, the output by rows. Source: Megatron-Core SelfAttention."""
    if facts.latent is not None:
        return _latent_attention(facts, facts.latent)
    hidden, heads, width = _known(facts.hidden_size), _known(facts.heads), _known(facts.head_dim)
    queries, keys = heads * width, _known(facts.query_groups) * width
    inner = queries + 2 * keys
    norms = {"none": 0, "head": 2 * width, "full": queries + keys}[_known(facts.qk_norm)]
    biases = _known(facts.attention_bias) * inner + _known(facts.attention_sinks) * heads
    split = hidden * inner + queries * hidden + biases
    return Weights(split=split, whole=_known(facts.attention_output_bias) * hidden + norms)


def _latent_attention(facts: ModelFacts, latent: MultiLatent) -> Weights:
    """What projects down to a latent is on every rank, with its norm. Source: Megatron-Core MLASelfAttention."""
    hidden, heads = _known(facts.hidden_size), _known(facts.heads)
    rank = latent.q_lora_rank or 0
    down = rank + latent.kv_lora_rank + latent.qk_rope_head_dim
    queries = heads * (latent.qk_nope_head_dim + latent.qk_rope_head_dim)
    key_values = heads * (latent.qk_nope_head_dim + latent.v_head_dim)
    split = (rank or hidden) * queries + latent.kv_lora_rank * key_values + heads * latent.v_head_dim * hidden
    biases = _known(facts.attention_bias) * down + _known(facts.attention_output_bias) * hidden
    return Weights(split=split, whole=hidden * down + biases + rank + latent.kv_lora_rank)


def _mlps(facts: ModelFacts, block: tuple[Part, ...]) -> Weights:
    hidden = _known(facts.hidden_size)
    found = Weights()
    if "mlp" in block:
        found += _mlp(facts, hidden, _known(facts.ffn_hidden_size), _known(facts.mlp_bias))
    if "experts" in block and facts.shared_expert_ffn_size:
        found += _mlp(facts, hidden, facts.shared_expert_ffn_size, _known(facts.mlp_bias))
    return found


def _mlp(facts: ModelFacts, hidden: int, width: int, bias: bool) -> Weights:
    """One or two matrices by columns, one by rows. Source: Megatron-Core MLP."""
    inner = (2 if facts.gated_mlp else 1) * width
    return Weights(split=hidden * (inner + width) + bias * inner, whole=bias * hidden)


def _experts(facts: ModelFacts) -> Weights:
    hidden = facts.expert_latent_size or _known(facts.hidden_size)
    one = _mlp(facts, hidden, _known(facts.expert_ffn_size), _known(facts.expert_bias))
    number = _known(facts.experts)
    return Weights(split=number * one.split, whole=number * one.whole)


def _router(facts: ModelFacts) -> Weights:
    """A logit for each expert and for the shared one, and the way to the experts' width and back; on every rank.

    Source: Megatron-Core TopKRouter and MoELayer.
    """
    hidden, number = _known(facts.hidden_size), _known(facts.experts)
    latent = _known(facts.expert_latent_size)
    projections = 2 * hidden * latent + _known(facts.mlp_bias) * (hidden + latent) if latent else 0
    gates = number * hidden + _known(facts.router_bias) * number + _known(facts.shared_expert_gate) * hidden
    return Weights(whole=gates + projections)


def _mamba(facts: ModelFacts) -> Weights:
    """Mamba-2 (arXiv:2405.21060): all is split by heads and groups but the output's bias.

    Source: Megatron-Core MambaMixer.
    """
    hidden, heads = _known(facts.hidden_size), _known(facts.mamba_heads)
    inner = heads * _known(facts.mamba_head_dim)
    convolved = inner + 2 * _known(facts.mamba_groups) * _known(facts.mamba_state)
    projected = inner + convolved + heads
    convolution = convolved * (_known(facts.mamba_conv) + _known(facts.mamba_conv_bias))
    # Each head has a step, a decay and a skip; the gated norm is as wide as the heads together.
    scalars = 3 * heads + inner
    split = hidden * projected + _known(facts.mamba_bias) * projected + convolution + scalars + inner * hidden
    return Weights(split=split, whole=_known(facts.mamba_bias) * hidden)


def _norm(facts: ModelFacts, width: int) -> int:
    return width * (2 if facts.norm_bias else 1)


def _idle(facts: ModelFacts, layer: LayerParameters) -> int:
    if not layer.experts.total:
        return 0
    number = _known(facts.experts)
    return layer.experts.total // number * max(number - _known(facts.experts_per_token), 0)


def _known(value: _Fact | None) -> _Fact:
    assert value is not None
    return value
