"""What each architecture of transformers always has, and what its configuration leaves out, by `model_type`.

Source: the configuration and modeling files of transformers 5.14, one folder for each type; kimi_k2 is the code of
moonshotai's repositories, which is that of deepseek_v3.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import yaml

from configs import CONFIGS
from recipes.models.architecture import Block

#: Larger than any figure of a model, and small enough that products of a few fit a float.
_MOST = 1 << 31


class Values:
    """A section of config.json whose keys may be absent or of any kind.

    A key that is absent or null takes what `absent` has for it: what the model's class in transformers gives it.
    One that is there and cannot be what is asked for is None, and never its default.
    """

    def __init__(self, section: Mapping[str, Any], absent: Mapping[str, int | str] | None = None) -> None:
        self._section = section
        self._absent = absent or {}

    def count(self, *keys: str, least: int = 1) -> int | None:
        """The whole number under the first of `keys` that is there; an absent one can name another key."""
        for key in keys:
            value = self._section.get(key)
            if value is not None:
                return value if type(value) is int and least <= value < _MOST else None
        for key in keys:
            default = self._absent.get(key)
            if default is not None:
                return self.count(default, least=least) if isinstance(default, str) else default
        return None

    def flag(self, key: str, *, absent: bool | None = None) -> bool | None:
        value = self._section.get(key)
        return absent if value is None else value if isinstance(value, bool) else None

    def word(self, *keys: str) -> str | None:
        """The text under the first of `keys` that is there."""
        value = next((value for key in keys if (value := self._section.get(key)) is not None), None)
        return value if isinstance(value, str) else None

    def list(self, key: str) -> list[Any] | None:
        """The list under `key`; of an absent one, an empty list."""
        value = self._section.get(key)
        return [] if value is None else value if isinstance(value, list) else None

    def has(self, key: str) -> bool:
        """Whether there is something under `key`."""
        return self._section.get(key) is not None

    def mentions(self, key: str) -> bool:
        """Whether `key` is there, be it null."""
        return key in self._section

    def section(self, key: str) -> dict[str, Any] | None:
        value = self._section.get(key)
        return value if isinstance(value, dict) else None


# Layers: which parts each has, by what the configuration says.

Blocks = tuple[Block, ...]
#: More layers than any model has; a figure beyond is damage, and must not fill the memory here.
_MOST_LAYERS = 4096
_DENSE: Block = ("attention", "mlp")
_SPARSE: Block = ("attention", "experts")
#: One letter for each layer, and the words of newer configurations.
_HYBRID: dict[str, Block] = {
    **dict.fromkeys(("M", "mamba", "linear_attention"), ("mamba",)),
    **dict.fromkeys(("*", "attention", "full_attention"), ("attention",)),
    **dict.fromkeys(("-", "mlp"), ("mlp",)),
    **dict.fromkeys(("E", "moe"), ("experts",)),
}


def dense(values: Values) -> Blocks | None:
    """Every layer has an MLP."""
    return _mixed(values, ())


def sparse(values: Values) -> Blocks | None:
    """Every layer has experts."""
    return _mixed(values, range(_MOST_LAYERS))


def stepped(values: Values) -> Blocks | None:
    """Experts in every `decoder_sparse_step`-th layer not in `mlp_only_layers`. Source: Qwen2MoeDecoderLayer."""
    step, listed = values.count("decoder_sparse_step"), _indices(values, "mlp_only_layers")
    if step is None or listed is None:
        return None
    return _mixed(values, set(range(step - 1, _MOST_LAYERS, step)) - listed)


def dense_first(values: Values) -> Blocks | None:
    """Experts after the first `first_k_dense_replace` layers. Source: DeepseekV3DecoderLayer."""
    first = values.count("first_k_dense_replace", least=0)
    return None if first is None else _mixed(values, range(first, _MOST_LAYERS))


def interleaved(values: Values) -> Blocks | None:
    """Experts in `moe_layers`, else in every `interleave_moe_layer_step`-th layer. Source: Llama4TextConfig."""
    step, listed = values.count("interleave_moe_layer_step"), _indices(values, "moe_layers")
    if step is None or listed is None:
        return None
    return _mixed(values, listed if values.has("moe_layers") else range(step - 1, _MOST_LAYERS, step))


def hybrid(values: Values) -> Blocks | None:
    """One part in each layer, as a list of words or a pattern of letters. Source: NemotronHConfig."""
    listed: list[object] | str | None = next(
        (values.list(key) for key in ("layers_block_type", "layer_types") if values.has(key)),
        values.word("hybrid_override_pattern"),
    )
    known = listed and all(isinstance(word, str) and word in _HYBRID for word in listed)
    if not listed or len(listed) > _MOST_LAYERS or not known:
        return None
    return tuple(_HYBRID[str(word)] for word in listed)


def _mixed(values: Values, with_experts: Collection[int]) -> Blocks | None:
    layers = values.count("num_hidden_layers")
    if layers is None or layers > _MOST_LAYERS:
        return None
    return tuple(_SPARSE if layer in with_experts else _DENSE for layer in range(layers))


def _indices(values: Values, key: str) -> set[int] | None:
    listed = values.list(key)
    return set(listed) if listed is not None and all(type(layer) is int for layer in listed) else None


# Families.


@dataclass(frozen=True)
class Said:
    """A flag that the configuration has under `key`, and what it is where the key is absent."""

    key: str
    absent: bool


Flag = bool | Said


@dataclass(frozen=True, kw_only=True)
class Family:
    """An architecture; the fields have the meaning that they have in ModelFacts.

    `absent` has what transformers takes for a key that is not there, as a figure or the name of another key.
    """

    blocks: Callable[[Values], Blocks | None] = dense
    absent: Mapping[str, int | str] = field(default_factory=dict)
    ffn: str = "intermediate_size"
    expert_ffn: str = "moe_intermediate_size"
    shared_ffn: Callable[[Values], int | None] = lambda _: 0
    latent: bool = False
    gated_mlp: bool = True
    attention_bias: Flag = False
    output_bias: Flag = False
    mlp_bias: Flag = False
    qk_norm: Literal["none", "head", "full"] = "none"
    sinks: bool = False
    expert_bias: bool = False
    router_bias: bool = False
    shared_gate: bool = False
    norms: int = 2
    norm_bias: bool = False
    tied: bool = False  # where tie_word_embeddings is absent
    native: bool = True  # transformers has had it for long: nobody needs the repository's own code


def _shared_in_units(values: Values) -> int | None:
    """So many experts of the usual width, as one. Source: DeepseekV3MoE."""
    number, width = values.count("n_shared_experts", least=0), values.count("moe_intermediate_size")
    return None if number is None or width is None else number * width


_HEADS: Mapping[str, int | str] = {"num_key_value_heads": "num_attention_heads"}
_SAID_BIAS = Said("attention_bias", False)

_LLAMA = Family(absent=_HEADS, attention_bias=_SAID_BIAS, output_bias=_SAID_BIAS, mlp_bias=Said("mlp_bias", False))
_QWEN3 = Family(absent={"head_dim": 128}, qk_norm="head", attention_bias=_SAID_BIAS, output_bias=_SAID_BIAS)
_QWEN3_MOE = replace(_QWEN3, blocks=stepped, absent={"decoder_sparse_step": 1})
_GEMMA = Family(absent={"head_dim": 256}, attention_bias=_SAID_BIAS, output_bias=_SAID_BIAS, tied=True)
_GEMMA3 = replace(
    _GEMMA,
    absent={
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "vocab_size": 262208,
        "max_position_embeddings": 131072,
    },
    qk_norm="head",
    norms=4,
)
_DEEPSEEK_V2 = Family(
    blocks=dense_first,
    absent={**_HEADS, "first_k_dense_replace": 0, "n_shared_experts": 2},
    shared_ffn=_shared_in_units,
    latent=True,
    output_bias=_SAID_BIAS,
    attention_bias=_SAID_BIAS,
    mlp_bias=Said("mlp_bias", False),
)
_DEEPSEEK_V3 = replace(
    _DEEPSEEK_V2, absent={**_HEADS, "first_k_dense_replace": 3, "n_shared_experts": 1}, mlp_bias=False
)
_LLAMA4 = Family(
    blocks=interleaved,
    absent={"head_dim": 128, "interleave_moe_layer_step": 1},
    ffn="intermediate_size_mlp",
    expert_ffn="intermediate_size",
    shared_ffn=lambda values: values.count("intermediate_size"),
    attention_bias=_SAID_BIAS,
    output_bias=_SAID_BIAS,
)
_NEMOTRON_H = Family(
    blocks=hybrid,
    absent={
        "head_dim": 128,
        "n_groups": 8,
        "conv_kernel": 4,
        "ssm_state_size": 128,
        "mamba_num_heads": 128,
        "mamba_head_dim": 64,
    },
    shared_ffn=lambda values: values.count("moe_shared_expert_intermediate_size"),
    gated_mlp=False,
    mlp_bias=Said("mlp_bias", False),
    norms=1,
    native=False,
)

FAMILIES: Mapping[str, Family] = {
    "llama": _LLAMA,
    "mistral": Family(),
    "mixtral": Family(blocks=sparse, expert_ffn="intermediate_size"),
    "phi3": Family(absent=_HEADS),
    "olmo2": replace(_LLAMA, mlp_bias=False, qk_norm="full"),
    "qwen2": Family(attention_bias=True),
    "qwen2_moe": Family(
        blocks=stepped,
        absent={"decoder_sparse_step": 1},
        shared_ffn=lambda values: values.count("shared_expert_intermediate_size"),
        attention_bias=Said("qkv_bias", True),
        shared_gate=True,
    ),
    "qwen3": _QWEN3,
    "qwen3_moe": _QWEN3_MOE,
    "qwen3_vl_text": _QWEN3,
    "qwen3_vl_moe_text": _QWEN3_MOE,
    "gemma": _GEMMA,
    "gemma2": replace(_GEMMA, norms=4),
    "gemma3_text": _GEMMA3,
    "gpt_oss": Family(
        blocks=sparse,
        absent={"head_dim": 64},
        expert_ffn="intermediate_size",
        attention_bias=Said("attention_bias", True),
        output_bias=Said("attention_bias", True),
        sinks=True,
        expert_bias=True,
        router_bias=True,
    ),
    "nemotron": Family(
        gated_mlp=False,
        attention_bias=_SAID_BIAS,
        output_bias=_SAID_BIAS,
        mlp_bias=Said("mlp_bias", False),
        norm_bias=True,
    ),
    "nemotron_h": _NEMOTRON_H,
    "deepseek_v2": _DEEPSEEK_V2,
    "deepseek_v3": _DEEPSEEK_V3,
    "kimi_k2": replace(_DEEPSEEK_V3, native=False),
    "llama4_text": _LLAMA4,
}
#: Types that hold a language model and more, where the section of the language model does not say its own.
TEXT_OF: Mapping[str, str] = {
    "qwen3_vl": "qwen3_vl_text",
    "qwen3_vl_moe": "qwen3_vl_moe_text",
    "gemma3": "gemma3_text",
    "llama4": "llama4_text",
}


# Vision towers and their projectors.

#: What transformers takes for keys that are absent, by the type of the whole model.
_ABSENT: Mapping[str, Mapping[str, int | str]] = yaml.safe_load((CONFIGS / "models" / "vision.yaml").read_text("utf-8"))


def vision_parameters(model_type: str | None, section: Mapping[str, object], hidden: int | None) -> int | None:
    """The parameters of the tower that `section` describes, and of what brings its output to the width `hidden`.

    None for a type that is not known here, or where a figure cannot be read.
    """
    if model_type is None or model_type not in _TOWERS or hidden is None:
        return None
    kind = "qwen3_vl" if model_type == "qwen3_vl_moe" else model_type
    return _TOWERS[model_type](Values(section, _ABSENT[kind]), hidden)


def _qwen3_vl(values: Values, _: int) -> int | None:
    """Source: Qwen3VLVisionModel."""
    sizes = _all(values, *_ABSENT["qwen3_vl"])
    indices = values.list("deepstack_visual_indexes") if values.has("deepstack_visual_indexes") else [8, 16, 24]
    if sizes is None or indices is None:
        return None
    depth, width, ffn, channels, patch, merge, frames, out, positions = sizes
    merged = width * merge**2
    projection = merged * (merged + 1) + (merged + 1) * out
    patches = width * (channels * frames * patch**2 + 1)
    # One merger normalizes before it merges, those of deepstack after it.
    mergers = projection + 2 * width + len(indices) * (projection + 2 * merged)
    return patches + positions * width + depth * _encoder_layer(width, ffn) + mergers


def _llama4(values: Values, hidden: int) -> int | None:
    """Source: Llama4VisionModel and Llama4MultiModalProjector."""
    sizes = _all(values, *_ABSENT["llama4"])
    if sizes is None:
        return None
    width, layers, channels, ffn, out, image, patch, projector_in, projector_out = sizes
    positions = (image // patch) ** 2 + 1
    tower = width * channels * patch**2 + width + positions * width + 4 * width + layers * _encoder_layer(width, ffn)
    return tower + ffn * projector_in + projector_out**2 + out * hidden


def _gemma3(values: Values, hidden: int) -> int | None:
    """Source: SiglipVisionModel and Gemma3MultiModalProjector."""
    sizes = _all(values, *_ABSENT["gemma3"])
    with_head = values.flag("vision_use_head", absent=True)
    if sizes is None or with_head is None:
        return None
    width, ffn, layers, channels, image, patch = sizes
    positions = (image // patch) ** 2
    tower = width * (channels * patch**2 + 1) + positions * width + 2 * width + layers * _encoder_layer(width, ffn)
    head = width + _encoder_layer(width, ffn) - 2 * width if with_head else 0
    return tower + head + width * hidden + width


def _encoder_layer(width: int, ffn: int) -> int:
    """Attention and an MLP of two matrices, all with biases, and two LayerNorms."""
    return 4 * width * (width + 1) + width * ffn * 2 + ffn + width + 4 * width


def _all(values: Values, *keys: str) -> tuple[int, ...] | None:
    found = [value for key in keys if (value := values.count(key)) is not None]
    return tuple(found) if len(found) == len(keys) else None


_TOWERS: Mapping[str, Callable[[Values, int], int | None]] = {
    "qwen3_vl": _qwen3_vl,
    "qwen3_vl_moe": _qwen3_vl,
    "llama4": _llama4,
    "gemma3": _gemma3,
}
