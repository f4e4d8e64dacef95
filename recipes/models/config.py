"""Facts of a model from its configuration in the layout of Hugging Face: config.json, or the same keys in YAML."""

from collections.abc import Mapping
from typing import Any

from recipes.models import model_types
from recipes.models.architecture import ModelFacts, MultiLatent, Vision
from recipes.models.model_types import FAMILIES, TEXT_OF, Blocks, Family, Flag, Values, vision_parameters
from scripts.checkpoints.quantization import of_export

_DTYPES = ("bfloat16", "float16", "float32")
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


def facts_from_config(
    config: Mapping[str, Any], *, source: str, sidecar: Mapping[str, Any] | None = None, gated: bool | None = None
) -> ModelFacts:
    """The facts that a configuration tells; what is absent, unreadable or of an unknown type is None. Never raises.

    `sidecar` is what hf_quant_config.json says, where there is one.
    """
    whole = Values(config)
    model_type = whole.word("model_type")
    text = whole.section("text_config") or config
    text_type = Values(text).word("model_type") or model_type
    text_type = TEXT_OF.get(text_type, text_type) if text_type else None
    family = FAMILIES.get(text_type) if text_type else None
    values = Values(text, family.absent if family else None)
    hidden = values.count("hidden_size")
    tied_here = values.flag("tie_word_embeddings", absent=family.tied if family else None)
    facts: dict[str, Any] = {
        "hidden_size": hidden,
        "heads": values.count("num_attention_heads"),
        "query_groups": values.count("num_key_value_heads"),
        "vocab_size": values.count("vocab_size"),
        "tied_embeddings": tied_here if text is config else whole.flag("tie_word_embeddings", absent=tied_here),
        "dtype": _dtype(whole) or _dtype(values),
        "context": values.count("max_position_embeddings"),
        # Whether the repository's own classes are the ones that load it.
        "remote_code": bool(config.get("auto_map")) and not (family and family.native),
        "vision": _vision(model_type, config, hidden),
        "quantized": _quantized(config, sidecar),
    }
    known = _of_family(values, family) if family else {"experts": values.count(*_EXPERTS, least=0)}
    return ModelFacts(source=source, model_type=model_type, gated=gated, **facts, **known)


def _of_family(values: Values, family: Family) -> dict[str, Any]:
    """What figures mean for the weights, and what the architecture always has."""
    blocks, width = family.blocks(values), values.count(family.ffn)
    return {
        "blocks": blocks,
        "head_dim": _head_dim(values, family),
        "latent": _latent(values) if family.latent else None,
        "gated_mlp": family.gated_mlp,
        "attention_bias": _flag(values, family.attention_bias),
        "attention_output_bias": _flag(values, family.output_bias),
        "mlp_bias": _flag(values, family.mlp_bias),
        "qk_norm": family.qk_norm,
        "attention_sinks": family.sinks,
        "block_norms": family.norms,
        "norm_bias": family.norm_bias,
        "ffn_hidden_size": width if width is not None or _has(blocks, "mlp") is not False else 0,
        **_experts(values, family, blocks),
        **_mamba(values, family),
    }


def _experts(values: Values, family: Family, blocks: Blocks | None) -> dict[str, Any]:
    if family.blocks is model_types.dense:
        # A number of experts contradicts such a type, but somebody meant it: whoever asks for experts learns of it.
        said = values.count(*_EXPERTS, least=0) if any(values.has(key) for key in _EXPERTS) else 0
        return {"experts": said, "experts_per_token": 0, "expert_ffn_size": 0, "shared_expert_ffn_size": 0}
    if _has(blocks, "experts") is False:
        return dict.fromkeys(("experts", "experts_per_token", "expert_ffn_size", "shared_expert_ffn_size"), 0)
    return {
        "experts": values.count(*_EXPERTS),
        "experts_per_token": values.count("num_experts_per_tok"),
        "expert_ffn_size": values.count(family.expert_ffn),
        "shared_expert_ffn_size": family.shared_ffn(values),
        "expert_bias": family.expert_bias,
        "expert_latent_size": values.count("moe_latent_size") if values.has("moe_latent_size") else 0,
        "router_bias": family.router_bias,
        "shared_expert_gate": family.shared_gate,
    }


def _mamba(values: Values, family: Family) -> dict[str, Any]:
    if family.blocks is not model_types.hybrid:
        return dict.fromkeys(("mamba_heads", "mamba_head_dim", "mamba_groups", "mamba_state", "mamba_conv"), 0)
    return {
        "mamba_heads": values.count("mamba_num_heads"),
        "mamba_head_dim": values.count("mamba_head_dim"),
        "mamba_groups": values.count("mamba_n_groups", "n_groups"),
        "mamba_state": values.count("ssm_state_size"),
        "mamba_conv": values.count("mamba_d_conv", "conv_kernel"),
        "mamba_bias": values.flag("use_bias", absent=False),
        "mamba_conv_bias": values.flag("mamba_conv_bias", absent=values.flag("use_conv_bias", absent=True)),
    }


def _head_dim(values: Values, family: Family) -> int | None:
    """As configured; else what is left of the hidden size for each head, as transformers divides it."""
    if family.latent:
        latent = _latent(values)
        return None if latent is None else latent.qk_nope_head_dim + latent.qk_rope_head_dim
    said = values.count("head_dim")
    if said is not None or values.has("head_dim"):
        return said
    hidden, heads = values.count("hidden_size"), values.count("num_attention_heads")
    return None if hidden is None or heads is None else hidden // heads or None


def _latent(values: Values) -> MultiLatent | None:
    """None where a rank or width is not said, or cannot be read; a null q_lora_rank says that there is none."""
    query = values.count("q_lora_rank")
    kv, nope = values.count("kv_lora_rank"), values.count("qk_nope_head_dim")
    rope, value = values.count("qk_rope_head_dim"), values.count("v_head_dim")
    unknown = query is None and (values.has("q_lora_rank") or not values.mentions("q_lora_rank"))
    if unknown or kv is None or nope is None or rope is None or value is None:
        return None
    return MultiLatent(
        kv_lora_rank=kv, q_lora_rank=query, qk_nope_head_dim=nope, qk_rope_head_dim=rope, v_head_dim=value
    )


def _vision(model_type: str | None, config: Mapping[str, Any], hidden: int | None) -> Vision | None:
    if "vision_config" not in config and model_type not in TEXT_OF:
        return None
    section = config.get("vision_config")
    if not isinstance(section, dict):
        return Vision(parameters=None)
    return Vision(parameters=vision_parameters(model_type, section, hidden))


def _dtype(values: Values) -> str | None:
    word = (values.word("dtype", "torch_dtype") or "").removeprefix("torch.")
    return word if word in _DTYPES else None


def _quantized(config: Mapping[str, Any], sidecar: Mapping[str, Any] | None) -> str | None:
    if sidecar is None and config.get("quantization_config") is None:
        return None
    try:
        return of_export(config, sidecar).format
    except ValueError:
        return None


def _flag(values: Values, flag: Flag) -> bool | None:
    return flag if isinstance(flag, bool) else values.flag(flag.key, absent=flag.absent)


def _has(blocks: Blocks | None, part: str) -> bool | None:
    return None if blocks is None else any(part in block for block in blocks)
