"""How a checkpoint is quantized: what an export's JSON says, or what the state that ModelOpt saved was asked to do."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scripts.checkpoints.grids import UNKNOWN, cache_of, format_of, rules_of
from scripts.checkpoints.pickles import mapping_of

#: What ModelOpt did to a model, in order: mode and its configuration.
Modes = list[tuple[str, dict[str, object]]]

_QUANTIZE_MODES = ("quantize", "auto_quantize", "real_quantize")
#: A mode that changes nothing that a checkpoint would have to restore.
_EMPTY_MODES = ("kd_loss",)


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """Format of the weights and of the key/value cache, in the words that Checkpoint explains; None: not quantized."""

    format: str | None = None
    kv_cache: str | None = None
    by_modelopt: bool = False


def of_export(config: Mapping[str, Any], sidecar: Mapping[str, Any] | None) -> Quantization:
    """What config.json and, where it is there, hf_quant_config.json say.

    Raises ValueError where they are not what exporters write.
    """
    if sidecar is not None:
        said = sidecar.get("quantization")
        if not isinstance(said, dict):
            raise ValueError("it has no section quantization")
        return _of_words(said.get("quant_algo"), said.get("kv_cache_quant_algo"))
    said = config.get("quantization_config")
    if said is None:
        return Quantization()
    if not isinstance(said, dict):
        raise ValueError("its quantization_config is no object")
    method = said.get("quant_method")
    if method == "modelopt" or "quant_algo" in said:
        return _of_words(said.get("quant_algo"), said.get("kv_cache_quant_algo"))
    return Quantization(format=_foreign(method))


def _of_words(algo: object, cache: object) -> Quantization:
    if not isinstance(algo, (str, type(None))) or not isinstance(cache, (str, type(None))):
        raise ValueError("an algorithm's name is no text")
    return Quantization(format=_named(algo) if algo else None, kv_cache=cache and cache.lower(), by_modelopt=True)


def _named(algo: str) -> str:
    """The format of configs/formats.yaml whose export says `algo`; else the word itself."""
    from scripts.formats import FORMATS

    for name, facts in FORMATS.items():
        words = (facts.quant_algo, facts.quant_algo_weight_only, facts.quant_algo_compressed)
        if algo.lower() in [word.lower() for word in words if word]:
            return name
    return algo


def _foreign(method: object) -> str:
    """Another tool's word, told apart from a format of ours that has the same name."""
    from scripts.formats import FORMATS

    if not isinstance(method, str):
        return UNKNOWN
    return f"{method} (not ModelOpt's)" if method in FORMATS else method


def modes_of(state: Mapping[str, object]) -> Modes:
    """What the state that ModelOpt saved says it did to the model. Raises ValueError where it is no such state."""
    listed = state.get("modelopt_state_dict")
    if not isinstance(listed, list):
        raise ValueError("it is not the state that ModelOpt saves")
    modes = []
    for entry in listed:
        if not isinstance(entry, tuple) or len(entry) != 2 or not isinstance(entry[0], str):
            raise ValueError("it is not the state that ModelOpt saves")
        modes.append((entry[0], mapping_of(mapping_of(entry[1]).get("config"))))
    return modes


def restores_something(modes: Modes) -> bool:
    """Whether loading these modes changes the model."""
    return any(mode not in _EMPTY_MODES for mode, _ in modes)


def of_modes(modes: Modes) -> Quantization:
    """What the last quantization asked for; where its configuration is not there, the format is unknown."""
    if not any(mode in _QUANTIZE_MODES for mode, _ in modes):
        return Quantization()
    asked = [config for _, config in modes if "quant_cfg" in config]
    if not asked:
        return Quantization(format=UNKNOWN, by_modelopt=True)
    rules = rules_of(asked[-1]["quant_cfg"])
    calibrations = [mode for mode, _ in modes] + _methods(asked[-1].get("algorithm"))
    return Quantization(format=format_of(rules, calibrations), kv_cache=cache_of(rules), by_modelopt=True)


def _methods(algorithm: object) -> list[str]:
    """The calibration that was asked for: a word, or a dictionary that holds it."""
    word = mapping_of(algorithm).get("method", algorithm)
    return [word] if isinstance(word, str) else []
