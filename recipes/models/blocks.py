"""Which parts each layer of a model has, by what its configuration says of it."""

from collections.abc import Collection

from recipes.models.model import Part
from recipes.models.values import Values

Blocks = tuple[tuple[Part, ...], ...]

#: More layers than any model has; a figure beyond is damage, and must not fill the memory here.
_MOST_LAYERS = 4096
_DENSE: tuple[Part, ...] = ("attention", "mlp")
_SPARSE: tuple[Part, ...] = ("attention", "experts")
#: One letter for each layer, and the words of newer configurations.
_HYBRID: dict[str, tuple[Part, ...]] = {
    **dict.fromkeys(("M", "mamba", "linear_attention"), ("mamba",)),
    **dict.fromkeys(("*", "attention", "full_attention"), ("attention",)),
    **dict.fromkeys(("-", "mlp"), ("mlp",)),
    **dict.fromkeys(("E", "moe"), ("experts",)),
}


def dense(values: Values) -> Blocks | None:
    """Every layer has an MLP."""
    layers = _layers(values)
    return None if layers is None else _mixed(layers, ())


def sparse(values: Values) -> Blocks | None:
    """Every layer has experts."""
    layers = _layers(values)
    return None if layers is None else _mixed(layers, range(layers))


def stepped(values: Values) -> Blocks | None:
    """Experts in every `decoder_sparse_step`-th layer not in `mlp_only_layers`. Source: Qwen2MoeDecoderLayer."""
    layers, step, listed = _layers(values), values.count("decoder_sparse_step"), _indices(values, "mlp_only_layers")
    if layers is None or step is None or listed is None:
        return None
    return _mixed(layers, {layer for layer in range(step - 1, layers, step) if layer not in listed})


def dense_first(values: Values) -> Blocks | None:
    """Experts after the first `first_k_dense_replace` layers. Source: DeepseekV3DecoderLayer."""
    layers, first = _layers(values), values.count("first_k_dense_replace", least=0)
    return None if layers is None or first is None else _mixed(layers, range(first, layers))


def interleaved(values: Values) -> Blocks | None:
    """Experts in `moe_layers`, else in every `interleave_moe_layer_step`-th layer. Source: Llama4TextConfig."""
    layers, step, listed = _layers(values), values.count("interleave_moe_layer_step"), _indices(values, "moe_layers")
    if layers is None or step is None or listed is None:
        return None
    return _mixed(layers, listed if values.has("moe_layers") else range(step - 1, layers, step))


def hybrid(values: Values) -> Blocks | None:
    """One part in each layer, as a list of words or a pattern of letters. Source: NemotronHConfig."""
    listed: list[object] | str | None = next(
        (values.list(key) for key in ("layers_block_type", "layer_types") if values.has(key)),
        values.word("hybrid_override_pattern"),
    )
    if (
        not listed
        or len(listed) > _MOST_LAYERS
        or not all(isinstance(word, str) and word in _HYBRID for word in listed)
    ):
        return None
    return tuple(_HYBRID[str(word)] for word in listed)


def _layers(values: Values) -> int | None:
    layers = values.count("num_hidden_layers")
    return layers if layers is not None and layers <= _MOST_LAYERS else None


def _mixed(layers: int, with_experts: Collection[int]) -> Blocks:
    return tuple(_SPARSE if layer in with_experts else _DENSE for layer in range(layers))


def _indices(values: Values, key: str) -> set[int] | None:
    listed = values.list(key)
    return set(listed) if listed is not None and all(type(layer) is int for layer in listed) else None
