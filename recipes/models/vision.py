"""How many parameters a vision tower and its projector have."""

from collections.abc import Callable, Mapping

from recipes.models.values import Values

#: What transformers takes for keys that are absent, by the type of the whole model.
_ABSENT: Mapping[str, Mapping[str, int | str]] = {
    "qwen3_vl": {
        "depth": 27,
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "in_channels": 3,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "out_hidden_size": 3584,
        "num_position_embeddings": 2304,
    },
    "llama4": {
        "hidden_size": 768,
        "num_hidden_layers": 34,
        "num_channels": 3,
        "intermediate_size": 5632,
        "vision_output_dim": 7680,
        "image_size": 448,
        "patch_size": 14,
        "projector_input_dim": 4096,
        "projector_output_dim": 4096,
    },
    "gemma3": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_channels": 3,
        "image_size": 224,
        "patch_size": 16,
    },
}


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
