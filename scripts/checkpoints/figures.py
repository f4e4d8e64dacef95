"""Whether the figures of a config.json can be those of a model, and of the weights that lie beside it."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from scripts.checkpoints.checkpoint import Tensor

#: Types whose classes give each head its share of the hidden width where `head_dim` is not said, and refuse a rest.
_DIVIDED = frozenset({"arcee", "cwm", "gpt_neox", "jais2", "llama", "mistral", "mixtral", "olmo2", "phi3", "qwen2"})
#: Types whose projections of queries and keys have the rows of their heads and no others.
_PLAIN_HEADS = frozenset({"gemma", "gemma2", "gemma3_text", "qwen3", "qwen3_moe"}) | _DIVIDED
#: Types whose files hold no layer above num_hidden_layers. Others keep those that predict further tokens there.
_NO_MORE_LAYERS = _PLAIN_HEADS
#: Types whose vocabulary has tokens that vocab_size does not count, and whose layers num_hidden_layers does not.
_OTHERWISE = frozenset({"longcat_flash", "mllama", "mllama_text_model", "moshi", "moshi_depth"})
#: The least of sizes that the classes take for whole numbers; some models have no attention, or no MLP.
_LEAST = {"hidden_size": 1, "num_hidden_layers": 1, "vocab_size": 1} | dict.fromkeys(
    ("num_attention_heads", "num_key_value_heads", "intermediate_size", "head_dim"), 0
)
#: The language model's own tensors: towers for other senses and extra heads have other words before `layers`.
_OWN = r"^(?:(?:model|language_model|backbone|gpt_neox|transformer)\.)*"
_LAYER = re.compile(_OWN + r"layers\.(\d+)\.")
_EMBEDDING = re.compile(_OWN + r"(?:embed_tokens|embed_in|wte)\.weight$")
_FIRST_HEADS = re.compile(_OWN + r"layers\.0\.self_attn\.([qk])_proj\.weight$")


def impossible(config: Mapping[str, Any]) -> str | None:
    """Why no model has these figures, in a sentence; None also where the repository's own code reads them."""
    if config.get("auto_map"):
        return None
    text = _text(config)
    for prefix, section in {"": config, "text_config.": text}.items():
        if told := next(_of_nokind_of(section), None):
            return prefix + told
    hidden, heads, groups = (_count(text, key) for key in ("hidden_size", "num_attention_heads", "num_key_value_heads"))
    if heads and groups and heads % groups:
        return f"num_attention_heads is {heads}, no multiple of its num_key_value_heads, {groups}"
    if hidden and heads and hidden % heads and not text.get("head_dim") and kind_of(text) in _DIVIDED:
        return f"hidden_size is {hidden}, no multiple of its num_attention_heads, {heads}"
    return None


def contradicted(config: Mapping[str, Any], tensors: Sequence[Tensor]) -> Iterator[str]:
    """A sentence for each figure that the weights show to be another. What is not said or not plain is left out."""
    text = _text(config)
    if config.get("auto_map") or {kind_of(config), kind_of(text)} & _OTHERWISE:
        return
    layers = {int(match[1]) for one in tensors if (match := _LAYER.match(one.name))}
    said, there = _count(text, "num_hidden_layers"), max(layers, default=-1) + 1
    more = there if kind_of(text) in _NO_MORE_LAYERS and not any("nextn" in key for key in text) else said
    if said and there and not there >= said >= (more or 0):
        yield f"num_hidden_layers is {said}, and the files hold {there} layers"
    table = next((one.shape for one in tensors if _EMBEDDING.match(one.name) and _whole(one)), None)
    for key, side in zip(("vocab_size", "hidden_size"), table or (), strict=False):
        if (figure := _count(text, key)) and figure != side:
            yield f"{key} is {figure}, and the embedding has {side}"
    yield from _heads(text, tensors)


def _heads(text: Mapping[str, Any], tensors: Sequence[Tensor]) -> Iterator[str]:
    """The rows of queries and keys are heads of one width."""
    kind, heads, hidden = kind_of(text), _count(text, "num_attention_heads"), _count(text, "hidden_size")
    width = _count(text, "head_dim") or (hidden // heads if hidden and heads and kind in _DIVIDED else None)
    if kind not in _PLAIN_HEADS or width is None or heads is None:
        return
    rows = {match[1]: one.shape[0] for one in tensors if (match := _FIRST_HEADS.match(one.name)) and one.shape}
    keys = "num_key_value_heads" if "num_key_value_heads" in text else "num_attention_heads"
    for letter, key in (("q", "num_attention_heads"), ("k", keys)):
        number = _count(text, key)
        if number and letter in rows and number * width != rows[letter]:
            yield f"{key} is {number} of width {width}, and {letter}_proj has {rows[letter]} rows"


def _text(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The section of the language model."""
    section = config.get("text_config")
    return section if isinstance(section, Mapping) else config


def kind_of(section: Mapping[str, Any]) -> str | None:
    """The model_type of a config.json, or of a section of it, where it says one."""
    said = section.get("model_type")
    return said if isinstance(said, str) else None


def _of_nokind_of(section: Mapping[str, Any]) -> Iterator[str]:
    """Values that the checks of transformers' classes refuse: "4", 4.0 and -4 are no sizes. A list is of each layer."""
    for key, least in _LEAST.items():
        value = section.get(key)
        if value is not None and not isinstance(value, list) and (type(value) is not int or value < least):
            yield f"{key} is {json.dumps(value)}, no whole number{' above 0' if least else ''}"
    for key in ("rms_norm_eps", "layer_norm_eps"):
        if (value := section.get(key)) is not None and type(value) not in (int, float):
            yield f"{key} is {json.dumps(value)}, no number"


def _count(section: Mapping[str, Any], key: str) -> int | None:
    value = section.get(key)
    return value if type(value) is int and value > 0 else None


def _whole(one: Tensor) -> bool:
    """Whether its sides are those of the matrix: nothing is packed."""
    return len(one.shape) == 2 and one.dtype.startswith(("float", "bfloat"))
