"""Copies of weights that fake quantization makes while it multiplies with them. Counts are of elements."""

from recipes.models import ModelFacts
from recipes.models.model import Part


def largest_weight(facts: ModelFacts, part: Part) -> int:
    """The largest weight of a part that tensor parallelism splits; each is copied and dropped, one at a time."""
    hidden, gates = _known(facts.hidden_size), _gates(facts)
    if part == "mamba":
        heads = _known(facts.mamba_heads)
        state = 2 * _known(facts.mamba_groups) * _known(facts.mamba_state)
        return hidden * (heads * (2 * _known(facts.mamba_head_dim) + 1) + state)
    if part == "attention" and facts.latent is not None:
        latent = facts.latent
        return latent.kv_lora_rank * _known(facts.heads) * (latent.qk_nope_head_dim + latent.v_head_dim)
    if part == "attention":
        return hidden * (_known(facts.heads) + 2 * _known(facts.query_groups)) * _known(facts.head_dim)
    return hidden * gates * (_known(facts.ffn_hidden_size) if part == "mlp" else facts.shared_expert_ffn_size or 0)


def expert_weights(facts: ModelFacts, part: Part) -> int:
    """The first weights of all experts of a layer: one product (GroupedLinear), whose copies are there at once."""
    if part != "experts":
        return 0
    reads = facts.expert_latent_size or _known(facts.hidden_size)
    return _known(facts.experts) * reads * _gates(facts) * _known(facts.expert_ffn_size)


def _gates(facts: ModelFacts) -> int:
    return 1 if facts.gated_mlp is False else 2


def _known(value: int | None) -> int:
    assert value is not None, "only asked of models whose parameters are known"
    return value
