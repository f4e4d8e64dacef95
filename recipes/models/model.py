"""Facts of a model that checks and the planner reason with. Plain data; where they come from is `lookup`'s."""

from dataclasses import dataclass
from typing import Literal

#: What one layer holds beside its norms. A transformer layer is attention and mlp (or experts); hybrids have one each.
Part = Literal["attention", "mlp", "experts", "mamba"]


@dataclass(frozen=True, kw_only=True)
class MultiLatent:
    """Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434); all figures are widths."""

    kv_lora_rank: int
    q_lora_rank: int | None  # None: queries are projected directly
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int


@dataclass(frozen=True, kw_only=True)
class Vision:
    """The vision tower and its projector, as far as its size is known."""

    parameters: int | None


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """A model's architecture. None is a fact that is not known: only what needs it is skipped, and that is said.

    Names are those of Hugging Face configurations where they have one; widths are in elements, and like counts
    they are of the whole model, not of a rank.
    """

    source: str  # where the facts are from, for a person: "/data/m/config.json", "configs/models/hub.yaml"
    model_type: str | None = None
    blocks: tuple[tuple[Part, ...], ...] | None = None  # a layer each
    hidden_size: int | None = None
    ffn_hidden_size: int | None = None  # of a dense mlp
    heads: int | None = None
    query_groups: int | None = None
    head_dim: int | None = None  # of query and key, where latent attention gives values another
    latent: MultiLatent | None = None
    vocab_size: int | None = None
    tied_embeddings: bool | None = None
    dtype: str | None = None  # of the checkpoint: bfloat16, float16, float32
    context: int | None = None  # positions
    experts: int | None = None  # of each layer that has some; 0: known to have none, as in all that follow
    experts_per_token: int | None = None
    expert_ffn_size: int | None = None
    shared_expert_ffn_size: int | None = None  # of all shared experts together; 0: none
    mamba_heads: int | None = None
    mamba_head_dim: int | None = None
    mamba_groups: int | None = None
    mamba_state: int | None = None
    mamba_conv: int | None = None
    gated_mlp: bool | None = None  # SwiGLU and its like have three matrices, others two
    attention_bias: bool | None = None  # of query, key and value
    attention_output_bias: bool | None = None
    mlp_bias: bool | None = None
    qk_norm: Literal["none", "head", "full"] | None = None  # that has weights; full: over all heads together
    attention_sinks: bool | None = None  # one learned logit for each head
    expert_bias: bool | None = None
    expert_latent_size: int | None = None  # width that routed experts read and write; 0: that of the model
    router_bias: bool | None = None
    shared_expert_gate: bool | None = None  # one logit that scales what the shared expert says
    mamba_bias: bool | None = None  # of both projections
    mamba_conv_bias: bool | None = None
    block_norms: int | None = None  # of the hidden width, in each layer
    norm_bias: bool | None = None  # LayerNorm has one, RMSNorm has none
    vision: Vision | None = None  # None: a language model only
    remote_code: bool | None = None  # the repository brings Python code that transformers lacks
    gated: bool | None = None  # the hub asks for a token of somebody who accepted its licence
    quantized: str | None = None  # the checkpoint is quantized already, in this format

    @property
    def layers(self) -> int | None:
        return None if self.blocks is None else len(self.blocks)

    def count_of(self, part: Part) -> int | None:
        """How many layers have such a part."""
        return None if self.blocks is None else sum(part in block for block in self.blocks)
