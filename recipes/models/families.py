"""What each architecture always has, and what its configuration leaves out: a row for each `model_type`.

Source: the configuration and modeling files of transformers 5.14, one folder for each type; kimi_k2 is the code of
moonshotai's repositories, which is that of deepseek_v3.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from recipes.models import blocks
from recipes.models.blocks import Blocks
from recipes.models.values import Values


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

    blocks: Callable[[Values], Blocks | None] = blocks.dense
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
_QWEN3_MOE = replace(_QWEN3, blocks=blocks.stepped, absent={"decoder_sparse_step": 1})
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
    blocks=blocks.dense_first,
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
    blocks=blocks.interleaved,
    absent={"head_dim": 128, "interleave_moe_layer_step": 1},
    ffn="intermediate_size_mlp",
    expert_ffn="intermediate_size",
    shared_ffn=lambda values: values.count("intermediate_size"),
    attention_bias=_SAID_BIAS,
    output_bias=_SAID_BIAS,
)
_NEMOTRON_H = Family(
    blocks=blocks.hybrid,
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
    "mixtral": Family(blocks=blocks.sparse, expert_ffn="intermediate_size"),
    "phi3": Family(absent=_HEADS),
    "olmo2": replace(_LLAMA, mlp_bias=False, qk_norm="full"),
    "qwen2": Family(attention_bias=True),
    "qwen2_moe": Family(
        blocks=blocks.stepped,
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
        blocks=blocks.sparse,
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
