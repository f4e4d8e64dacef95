"""The configuration of a small model of the same architecture.

What kernels, formats and layouts ask of a figure is kept: the ratio of heads to query groups, each kind of layer in its
order, and the powers of two that a width divides by, so that one which does not fill blocks of 128 does not do so here.
"""

from collections.abc import Mapping
from math import lcm
from typing import Any

from recipes.models.model_types import TEXT_OF

#: Of the tokenizer that is built in.
VOCABULARY = 1024
_SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_LAYERS = 4
_CONTEXT = 2048
#: The widest blocks of any format.
_BLOCK = 128
#: What the width of something is made, by the words that configurations have for it.
_WIDTHS: Mapping[str, int] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "shared_expert_intermediate_size"), 256),
    **dict.fromkeys(("intermediate_size", "intermediate_size_mlp", "n_inner", "ffn_dim"), 512),
    **dict.fromkeys(("moe_intermediate_size", "moe_shared_expert_intermediate_size", "moe_latent_size"), 128),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 128),
}
#: What a number is at most.
_MOST: Mapping[str, int] = {
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 8),
    **dict.fromkeys(("num_experts_per_tok", "n_shared_experts", "mamba_n_groups", "n_groups"), 2),
    **dict.fromkeys(("n_group", "topk_group", "first_k_dense_replace"), 1),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), _CONTEXT),
    **dict.fromkeys(("qk_nope_head_dim", "v_head_dim", "qk_rope_head_dim", "mamba_head_dim"), 32),
    **{"num_nextn_predict_layers": 0, "mamba_num_heads": 16, "ssm_state_size": 16},
}
#: Lists with an entry for each layer.
_LISTS = ("layer_types", "layers_block_type", "hybrid_override_pattern")
#: Code of a repository, and what a quantized one says of itself.
_LEFT_OUT = ("auto_map", "quantization_config", "compression_config")
_HEAD = 64


def smaller(config: Mapping[str, Any], *, vocabulary: int | None = VOCABULARY) -> dict[str, Any]:
    """The keys of a config.json, with figures of some million parameters.

    `vocabulary`: entries, and the special tokens of the tokenizer that is built in; None leaves both as they are.
    Raises ValueError for a model that takes images, and for one whose figures cannot be read.
    """
    if "vision_config" in config or config.get("model_type") in TEXT_OF:
        raise ValueError("it takes images, and no small model of that kind is built here")
    small = {key: value for key, value in config.items() if key not in _LEFT_OUT}
    for key, value in config.items():
        if type(value) is int and key in _WIDTHS:
            small[key] = like(value, _WIDTHS[key])
        elif type(value) is int and key in _MOST:
            small[key] = min(value, _MOST[key])
    small |= _heads(config) | _layers(config)
    if vocabulary is not None:
        small |= {"vocab_size": like(_count(config, "vocab_size"), vocabulary), **_SPECIAL}
    return small


def like(value: int, width: int) -> int:
    """A number of about `width` that divides by the powers of two up to 128 that `value` does, and by no more."""
    if value <= width:
        return value
    divisor = min(value & -value, _BLOCK)
    return width if divisor == _BLOCK else width + divisor


def _heads(config: Mapping[str, Any]) -> dict[str, int]:
    """Two query groups, or one, with as many heads each as there were; narrower where halves of their width do."""
    if "num_attention_heads" not in config:
        return {}
    heads, hidden = _count(config, "num_attention_heads"), _count(config, "hidden_size")
    groups = config.get("num_key_value_heads") or heads
    if type(groups) is not int or groups < 1 or heads % groups:
        raise ValueError(f"num_attention_heads={heads} and num_key_value_heads={groups} do not make groups")
    if groups == heads:
        found = {"num_attention_heads": min(heads, 4)}
        kept = found["num_attention_heads"] if "num_key_value_heads" in config else None
    else:
        kept = min(groups, 2)
        found = {"num_attention_heads": kept * (heads // groups)}
    found |= {} if kept is None else {"num_key_value_heads": kept}
    width, blocks = config.get("head_dim") or hidden // heads, min(hidden & -hidden, _BLOCK)
    while width > _HEAD and width % 2 == 0 and (width // 2 * found["num_attention_heads"]) % blocks == 0:
        width //= 2
    if "kv_lora_rank" in config:  # latent attention, whose widths are others
        return found
    if config.get("head_dim"):
        kept_width = like(hidden, _WIDTHS["hidden_size"])
        if hidden % heads == 0 and kept_width % found["num_attention_heads"]:  # what some architectures insist on
            kept_width = lcm(found["num_attention_heads"], min(hidden & -hidden, _BLOCK))
        return found | {"head_dim": width, "hidden_size": kept_width}
    return found | {"hidden_size": width * found["num_attention_heads"]}


def _layers(config: Mapping[str, Any]) -> dict[str, Any]:
    """Four layers; where they are of several kinds, two of each in the order in which the kinds come."""
    layers = _count(config, "num_hidden_layers", least=0)
    found: dict[str, Any] = {}
    for key in _LISTS:
        if isinstance(listed := config.get(key), (list, str)) and listed:
            kinds = list(dict.fromkeys(listed))
            again = (kinds * 2)[: max(_LAYERS, len(kinds))] if len(kinds) > 1 else kinds * _LAYERS
            found[key] = "".join(again) if isinstance(listed, str) else again
            found["num_hidden_layers"] = len(again)
    step = max(int(config.get(key) or 1) for key in ("decoder_sparse_step", "interleave_moe_layer_step"))
    found.setdefault("num_hidden_layers", min(layers or _LAYERS, max(_LAYERS, step)))
    for key in ("mlp_only_layers", "moe_layers"):
        if isinstance(listed := config.get(key), list):
            found[key] = [layer for layer in listed if layer < found["num_hidden_layers"]]
    return found


def _count(config: Mapping[str, Any], key: str, *, least: int = 1) -> int:
    value = config.get(key, least if least == 0 else None)
    if type(value) is not int or value < least:
        raise ValueError(f"{key} is not known")
    return value
