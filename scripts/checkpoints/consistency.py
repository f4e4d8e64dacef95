"""Whether an export of ModelOpt agrees with itself: two files say how it is quantized, and the tensors show it."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from scripts.checkpoints.checkpoint import Tensor
from scripts.checkpoints.quantization import Quantization, cache_of_scheme
from scripts.formats import FORMATS

_PACKED = ("float8_e4m3fn", "uint8", "int8")


def contradictions(
    quantization: Quantization, config: Mapping[str, Any], sidecar: Mapping[str, Any] | None, tensors: Sequence[Tensor]
) -> Iterator[str]:
    """A sentence for each: config.json against hf_quant_config.json, and what is packed against both."""
    said, beside = config.get("quantization_config"), (sidecar or {}).get("quantization")
    if isinstance(said, Mapping) and isinstance(beside, Mapping):
        yield from _between(said, beside, silent=False)
    facts = FORMATS.get(quantization.format or "")
    needed = tuple(facts.scales) if facts else ("weight_scale",)
    names = {one.name for one in tensors}
    weights = (one for one in tensors if one.dtype in _PACKED and one.name.endswith(".weight"))
    packed = [one.name.removesuffix(".weight") for one in weights]
    lacking = [f"{module}.{scale}" for module in packed for scale in needed if f"{module}.{scale}" not in names]
    if lacking:
        yield f"{lacking[0]} is missing, without which its weight means nothing ({len(lacking)} such)"
    excluded = [module for module in packed if _excludes(_patterns(beside) or _patterns(said) or (), module)]
    if excluded:
        yield f"{excluded[0]} is packed, and excluded from quantization all the same ({len(excluded)} such)"
    scaled = [{_layer(name) for name in names if name.endswith(f".{part}_scale")} for part in "kv"]
    if quantization.kv_cache and scaled[0] != scaled[1]:
        yield f"{min(scaled[0] ^ scaled[1])} has a scale for keys or for values, but not for both"


def doubts(
    quantization: Quantization, config: Mapping[str, Any], sidecar: Mapping[str, Any] | None, tensors: Sequence[Tensor]
) -> Iterator[str]:
    """What may be as it was meant to be: ModelOpt can export a cache without scales, whose scale is then 1."""
    said, beside = config.get("quantization_config"), (sidecar or {}).get("quantization")
    if isinstance(said, Mapping) and isinstance(beside, Mapping):
        yield from _between(said, beside, silent=True)
    scaled = any(one.name.endswith((".k_scale", ".v_scale")) for one in tensors)
    if quantization.kv_cache and quantization.by_modelopt and not scaled:
        yield f"the key/value cache is said to be {quantization.kv_cache}, and no layer has a scale: servers take 1"


def _between(said: Mapping[str, Any], beside: Mapping[str, Any], *, silent: bool) -> Iterator[str]:
    """Where they differ, or where one is `silent` on what the other says: older ModelOpts wrote less to config.json."""
    pairs = {
        "quant_algo": (said.get("quant_algo"), beside.get("quant_algo")),
        "kv_cache_quant_algo": (cache_of_scheme(said), beside.get("kv_cache_quant_algo")),
        "exclude_modules": (_patterns(said), _patterns(beside)),
    }
    for key, (one, other) in pairs.items():
        first, second = (sorted(each) if isinstance(each, list) else each for each in (one, other))
        if (first or None) != (second or None) and silent == (first is None or second is None):
            told = f"{_shown(first)} by config.json and {_shown(second)} by hf_quant_config.json"
            yield f"{key} is {told}: servers read one or the other"


def _shown(value: object) -> str:
    text = (", ".join(map(str, value)) if isinstance(value, list) else str(value or "")) or "none"
    return text if len(text) <= 80 else f"{text[:77]}..."


def _patterns(said: object) -> list[str] | None:
    listed = said.get("exclude_modules", said.get("ignore")) if isinstance(said, Mapping) else None
    return [one for one in listed if isinstance(one, str)] if isinstance(listed, list) else None


def _excludes(patterns: Collection[str], module: str) -> bool:
    return any(fnmatchcase(module, pattern) for pattern in patterns)


def _layer(name: str) -> str:
    """The attention's name, of any name of a scale in it."""
    parts = name.split(".")
    return ".".join(parts[: max((at for at, part in enumerate(parts) if part.isdigit()), default=-1) + 1])
