"""A model as checks and the planner reason with it: the facts that are known, and its weights, row by row.

Whatever is counted of a model is a sum or a choice over these rows: parameters, what a format packs, the share of a
rank, activations, widths that blocks must divide. Plain data; where the facts come from is `lookup`'s.

The parts are those of transformers' modeling files, of which each architecture that is counted here is one; names, and
what is split over ranks, are Megatron-Core's. Buffers that a checkpoint keeps beside the weights, such as the bias that
balances DeepSeek-V3's router, are no parameters, and layers that only predict further tokens are left out, as
transformers leaves them out.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import nan
from typing import Any, Literal, get_args

#: What one layer holds beside its norms. A transformer layer is attention and mlp (or experts); hybrids have one each.
Part = Literal["attention", "mlp", "experts", "mamba"]
#: What parameters are counted as: `mlp` has the shared experts too, which every token passes; `router` is all that
#: sends tokens to experts.
Section = Literal["attention", "mlp", "experts", "router", "mamba", "embeddings", "output", "norms", "vision"]
#: The side of a weight that tensor parallelism splits: column-parallel, row-parallel, or on every rank whole.
Split = Literal["outputs", "inputs", "none"]
Side = Literal["outputs", "inputs"]
Block = tuple[Part, ...]
PARTS: tuple[Part, ...] = get_args(Part)
#: What Megatron-Core calls sizes that can be pruned, and what they are called here.
MEGATRON_SIZES: Mapping[str, str] = {
    "hidden_size": "hidden_size",
    "ffn_hidden_size": "ffn_hidden_size",
    "num_attention_heads": "heads",
    "num_query_groups": "query_groups",
    "mamba_num_heads": "mamba_heads",
    "mamba_head_dim": "mamba_head_dim",
    "moe_ffn_hidden_size": "expert_ffn_size",
    "moe_shared_expert_intermediate_size": "shared_expert_ffn_size",
    "num_moe_experts": "experts",
    "num_layers": "layers",
}
SECTIONS: tuple[str, ...] = get_args(Section)


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
class Weight:
    """`copies` tensors of one shape, as torch.nn.Linear has them; a vector has one input.

    Rows of a layer with one `module` are one tensor in Megatron-Core. What is split by outputs or inputs is so over
    tensor parallelism, or with `experts`, which expert parallelism spreads, over their own.
    """

    outputs: int
    inputs: int = 1
    copies: int = 1  # in a layer, in all experts together
    section: Section = "mlp"
    module: str = ""
    split: Split = "none"
    experts: int = 0  # that have as many of the copies each
    packed: bool = False  # by quantization formats
    what: str = ""  # its width on the split side, in words; empty: left to ModelOpt
    units: tuple[str, ...] = ()  # the facts whose numbers the split side is made of, as wholes

    @property
    def parameters(self) -> int:
        return self.outputs * self.inputs * self.copies

    def width(self, side: Side, ranks: int) -> int | None:
        """Of one side where `ranks` split it; None where they do not do so evenly, or it is not known."""
        whole: int = getattr(self, side)
        each, over = divmod(whole, ranks if side == self.split else 1)
        return None if over or whole != whole else each


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """How many a whole model has. Where the embeddings serve as the output layer too, there is no `output`."""

    sections: Mapping[str, int]  # those that the model has, in the order of SECTIONS
    active: int  # what one token passes, embeddings and vision included

    @property
    def total(self) -> int:
        return sum(self.sections.values())

    def of(self, section: Section) -> int:
        return self.sections.get(section, 0)


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """A model's architecture. None is a fact that is not known: only what needs it is skipped, and that is said.

    Names are those of Hugging Face configurations where they have one; widths are in elements, and like counts
    they are of the whole model, not of a rank.
    """

    source: str  # where the facts are from, for a person: "/data/m/config.json", "configs/models/hub.yaml"
    model_type: str | None = None
    blocks: tuple[Block, ...] | None = None  # a layer each
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

    def __hash__(self) -> int:
        """Of what tells models apart: to hash a hundred layers takes longer than to look at what is cached by them."""
        return hash((self.source, self.model_type, self.hidden_size, self.vocab_size))

    @property
    def layers(self) -> int | None:
        return None if self.blocks is None else len(self.blocks)

    def count_of(self, part: Part) -> int | None:
        """How many layers have such a part."""
        return None if self.blocks is None else sum(part in block for block in self.blocks)

    @cached_property
    def architecture(self) -> "Architecture":
        """Its weights."""
        return Architecture(self)


class Architecture:
    """The weights of a model, from its facts alone.

    Widths that depend on a fact that is not known are NaN; nothing is summed where one is `missing`.
    """

    def __init__(self, facts: ModelFacts) -> None:
        self.facts = facts
        self.known = _Known(facts)  # the facts as numbers
        self._parts: dict[Part, tuple[Weight, ...]] = {}
        blocks = self.known.blocks if facts.blocks is None else facts.blocks
        self.ends = tuple(_ends(self.known))
        width = self.known.hidden_size * (2 if self.known.norm_bias else 1)
        norms = (_vector("norms", "layernorm", width, copies=self.known.block_norms),)
        kinds = {} if facts.blocks is None else Counter(blocks)
        #: Of one layer of each kind, and how many layers are of it.
        self.layers = {block: (*(row for part in block for row in self.of(part)), *norms) for block in kinds}
        self.counts: Mapping[Block, int] = kinds
        self._layers_missing = tuple(self.known.unknown)

    def of(self, part: Part) -> tuple[Weight, ...]:
        """The rows of one layer's part, with the router and the shared experts where it is experts."""
        if part not in self._parts:
            self._parts[part] = tuple(_PARTS[part](self.known))
        return self._parts[part]

    @property
    def missing(self) -> tuple[str, ...]:
        """The facts that are not known, and without which it cannot be counted."""
        vision = self.facts.vision
        return (*self._layers_missing, *(("vision.parameters",) if vision and vision.parameters is None else ()))

    @cached_property
    def splits(self) -> Mapping[str, Literal["tp", "ep", "etp"]]:
        """Facts that are numbers of wholes, and the size of a layout that each is split by; of parts that are known not
        to be there, none."""
        parts = [part for part in PARTS if self.facts.count_of(part) != 0]
        rows = (*(row for part in parts for row in self.of(part)), *self.ends)
        return {unit: "etp" if row.experts else "tp" for row in rows for unit in row.units} | {"experts": "ep"}

    @property
    def has_layers(self) -> bool:
        """Whether every row of the language model is known."""
        return not self._layers_missing

    def rows(self) -> Iterator[tuple[Weight, int]]:
        """All weights, each with the number of layers that have it."""
        for row in self.ends:
            yield row, 1
        for block, rows in self.layers.items():
            for row in rows:
                yield row, self.counts[block]

    @cached_property
    def parameters(self) -> Parameters | None:
        """None where a fact is `missing`."""
        if self.missing:
            return None
        found: Counter[str] = Counter()
        idle = 0  # in the experts that one token does not visit
        for row, layers in self.rows():
            found[row.section] += row.parameters * layers
            if row.experts:
                visited = self.facts.experts_per_token or 0
                idle += row.parameters // row.experts * max(row.experts - visited, 0) * layers
        sections = {section: found[section] for section in SECTIONS if found[section]}
        return Parameters(sections=sections, active=sum(found.values()) - idle)


class _Known:
    """Facts as numbers. One that is not known is NaN, which makes NaN of whatever it is added to, and is noted."""

    def __init__(self, facts: ModelFacts) -> None:
        self._facts = facts
        self.unknown: dict[str, None] = {}

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._facts, name)
        if value is None and name not in ("latent", "vision"):
            self.unknown[name] = None
            return nan
        return value


def _matrix(section: Section, module: str, outputs: int, inputs: int, split: Split = "none", **more: Any) -> Weight:
    """The weight of a linear layer, which formats pack."""
    return Weight(section=section, module=module, outputs=outputs, inputs=inputs, split=split, packed=True, **more)


def _vector(section: Section, module: str, size: int, split: Split = "none", **more: Any) -> Weight:
    return Weight(section=section, module=module, outputs=size, split=split, **more)


def _ends(known: _Known) -> Iterator[Weight]:
    """What is on the first and the last stage of a pipeline only."""
    size, hidden = known.vocab_size, known.hidden_size
    yield Weight(
        section="embeddings",
        module="word_embeddings",
        outputs=size,
        inputs=hidden,
        split="outputs",
        units=("vocab_size",),
    )
    if not known.tied_embeddings:
        yield Weight(section="output", module="output_layer", outputs=size, inputs=hidden, split="outputs")
    yield _vector("norms", "final_layernorm", hidden * (2 if known.norm_bias else 1))
    if known.vision and known.vision.parameters:
        yield _vector("vision", "vision_model", known.vision.parameters)


def _attention(known: _Known) -> Iterator[Weight]:
    """Queries, keys and values by columns, the output by rows. Source: Megatron-Core SelfAttention."""
    hidden, heads = known.hidden_size, known.heads
    if known.latent is not None:
        yield from _latent_attention(known, known.latent, hidden, heads)
    else:
        queries, keys = heads * known.head_dim, known.query_groups * known.head_dim
        yield _matrix("attention", "linear_qkv", queries, hidden, "outputs", units=("heads",))
        yield _matrix("attention", "linear_qkv", keys, hidden, "outputs", copies=2, units=("query_groups",))
        yield _matrix("attention", "linear_proj", hidden, queries, "inputs", what="the heads")
        if known.attention_bias:
            yield _vector("attention", "linear_qkv.bias", queries + 2 * keys, "outputs")
        if known.attention_sinks:
            yield _vector("attention", "softmax_offset", heads, "outputs")
        norms = {"head": 2 * known.head_dim, "full": queries + keys}.get(known.qk_norm)
        if norms:
            yield _vector("attention", "qk_layernorm", norms)
    if known.attention_output_bias:
        yield _vector("attention", "linear_proj.bias", hidden)


def _latent_attention(known: _Known, latent: MultiLatent, hidden: int, heads: int) -> Iterator[Weight]:
    """What projects down to a latent is on every rank, with its norm. Source: Megatron-Core MLASelfAttention."""
    queries, down = heads * (latent.qk_nope_head_dim + latent.qk_rope_head_dim), latent.kv_lora_rank
    if latent.q_lora_rank is None:
        yield _matrix("attention", "linear_q_proj", queries, hidden, "outputs")
    else:
        down += latent.q_lora_rank
        yield _matrix("attention", "linear_q_down_proj", latent.q_lora_rank, hidden)
        yield _matrix("attention", "linear_q_up_proj", queries, latent.q_lora_rank, "outputs")
    key_values = heads * (latent.qk_nope_head_dim + latent.v_head_dim)
    yield _matrix("attention", "linear_kv_down_proj", latent.kv_lora_rank + latent.qk_rope_head_dim, hidden)
    yield _matrix("attention", "linear_kv_up_proj", key_values, latent.kv_lora_rank, "outputs")
    yield _matrix("attention", "linear_proj", hidden, heads * latent.v_head_dim, "inputs", units=("heads",))
    yield _vector("attention", "latent_layernorms", down)
    if known.attention_bias:
        yield _vector("attention", "down_proj.bias", down + latent.qk_rope_head_dim)


def _mlp(known: _Known) -> Iterator[Weight]:
    yield from _mlp_rows(known, "mlp", "ffn_hidden_size", known.hidden_size, known.mlp_bias, what="the MLP")


def _mlp_rows(
    known: _Known, section: Section, fact: str, hidden: int, bias: bool, *, what: str, experts: int = 0
) -> Iterator[Weight]:
    """One or two matrices by columns, one by rows, as wide as a fact says. Source: Megatron-Core MLP, GroupedMLP."""
    width, gates, each = getattr(known, fact), 2 if known.gated_mlp else 1, experts or 1
    more = {"experts": experts, "what": what, "units": (fact,)}
    yield _matrix(section, "linear_fc1", width, hidden, "outputs", copies=gates * each, **more)
    yield _matrix(section, "linear_fc2", hidden, width, "inputs", copies=each, **more)
    if bias:
        yield _vector(section, "linear_fc1.bias", gates * width, "outputs", copies=each, experts=experts)
        yield _vector(section, "linear_fc2.bias", hidden, copies=each, experts=experts)


def _experts(known: _Known) -> Iterator[Weight]:
    """A logit for each expert and for the shared one, and the way to the experts' width and back, are on every rank.

    Source: Megatron-Core TopKRouter and MoELayer.
    """
    hidden, number, latent, _ = known.hidden_size, known.experts, known.expert_latent_size, known.experts_per_token
    yield Weight(section="router", module="router", outputs=number, inputs=hidden)
    if known.router_bias:
        yield _vector("router", "router.bias", number)
    if known.shared_expert_gate:
        yield _vector("router", "shared_experts.gate", hidden)
    if latent:
        yield _matrix("router", "fc1_latent_proj", latent, hidden)
        yield _matrix("router", "fc2_latent_proj", hidden, latent)
        if known.mlp_bias:
            yield _vector("router", "latent_proj.bias", hidden + latent)
    yield from _mlp_rows(
        known, "experts", "expert_ffn_size", latent or hidden, known.expert_bias, what="an expert", experts=number
    )
    if known.shared_expert_ffn_size:
        shared = "shared_expert_ffn_size"
        yield from _mlp_rows(known, "mlp", shared, hidden, known.mlp_bias, what="the shared experts")


def _mamba(known: _Known) -> Iterator[Weight]:
    """Mamba-2 (arXiv:2405.21060): all is split by heads and groups but the output's bias.

    Source: Megatron-Core MambaMixer.
    """
    hidden, heads = known.hidden_size, known.mamba_heads
    inner = heads * known.mamba_head_dim
    convolved = inner + 2 * known.mamba_groups * known.mamba_state
    projected = inner + convolved + heads
    yield _matrix("mamba", "in_proj", projected, hidden, "outputs", units=("mamba_heads", "mamba_groups"))
    yield _matrix("mamba", "out_proj", hidden, inner, "inputs", what="Mamba's heads")
    yield Weight(section="mamba", module="conv1d", outputs=convolved, inputs=known.mamba_conv, split="outputs")
    if known.mamba_conv_bias:
        yield _vector("mamba", "conv1d.bias", convolved, "outputs")
    # Each head has a step, a decay and a skip; the gated norm is as wide as the heads together.
    yield _vector("mamba", "scalars", 3 * heads + inner, "outputs")
    if known.mamba_bias:
        yield _vector("mamba", "in_proj.bias", projected, "outputs")
        yield _vector("mamba", "out_proj.bias", hidden)


_PARTS = {"attention": _attention, "mlp": _mlp, "experts": _experts, "mamba": _mamba}
