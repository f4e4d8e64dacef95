"""Folders in the layout of Hugging Face: models, what ModelOpt saved or exported of them, and PEFT's adapters."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from scripts.checkpoints.checkpoint import Checkpoint, unreadable
from scripts.checkpoints.documents import read_json
from scripts.checkpoints.grids import UNKNOWN
from scripts.checkpoints.hf_weights import Weights, read_weights
from scripts.checkpoints.pickles import mapping_of
from scripts.checkpoints.quantization import (
    Modes,
    Quantization,
    modes_of,
    of_export,
    of_modes,
    restores_something,
)
from scripts.checkpoints.tensors import parameters, stored
from scripts.checkpoints.torch_files import read_torch

_CONFIG, _ADAPTER = "config.json", "adapter_config.json"
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "model.safetensors.index.json")
_SIDECAR = "hf_quant_config.json"
_STATE = "modelopt_state.pth"
_TRAINING = ("optimizer*", "scheduler.pt", "rng_state*.pth", "global_step*")


def is_model(folder: Path) -> bool:
    """Whether a folder has the names of a model's files."""
    weights = any(next(folder.glob(pattern), None) for pattern in (*_WEIGHTS, _STATE))
    return weights or ((folder / _CONFIG).is_file() and any(folder.glob("*.bin")))


def is_adapter(folder: Path) -> bool:
    """Whether a folder has the names of an adapter's files."""
    return (folder / _ADAPTER).is_file()


def look_model(folder: Path) -> Checkpoint:
    """A model's folder. Raises JobError `unreadable_checkpoint`."""
    config = read_json(folder / _CONFIG) if (folder / _CONFIG).is_file() else None
    weights = read_weights(folder, "model", "pytorch_model")
    quantization = _exported(folder, config or {})
    modes = _modes(folder)
    if restores_something(modes):
        quantization = of_modes(modes)
    problems = list(weights.problems)
    if config is None:
        problems.append(f"{_CONFIG} is missing")
    if quantization.format is None and any(one.name.endswith("weight_scale") for one in weights.tensors):
        problems.append("weights have scales, but no configuration says how they are quantized")
        quantization = replace(quantization, format=UNKNOWN)
    if not modes and any(one.of_quantizer for one in weights.tensors):
        problems.append(f"it has quantizers' values but no {_STATE}: its quantizers cannot be restored")
        quantization = replace(quantization, format=UNKNOWN)
    return Checkpoint(
        path=folder,
        kind="checkpoint_modelopt" if (folder / _STATE).is_file() else "checkpoint_hf",
        layout="huggingface",
        format=weights.format,
        architecture=_architecture(config or {}),
        parameters=_parameters(weights, quantization),
        dtypes=stored(weights.tensors),
        quantization=quantization.format,
        kv_cache=quantization.kv_cache,
        modelopt_state=restores_something(modes),
        training_state=any(next(folder.glob(pattern), None) for pattern in _TRAINING),
        problems=tuple(problems),
    )


def look_adapter(folder: Path) -> Checkpoint:
    """An adapter that PEFT saved. Raises JobError `unreadable_checkpoint`."""
    base = read_json(folder / _ADAPTER).get("base_model_name_or_path")
    weights = read_weights(folder, "adapter_model", "adapter_model")
    return Checkpoint(
        path=folder,
        kind="checkpoint_lora",
        layout="peft",
        format=weights.format,
        parameters=_parameters(weights, Quantization()),
        dtypes=stored(weights.tensors),
        base_model=base if isinstance(base, str) else None,
        training_state=any(next(folder.glob(pattern), None) for pattern in _TRAINING),
        problems=weights.problems,
    )


def _architecture(config: dict[str, Any]) -> str | None:
    listed = config.get("architectures")
    named = listed[0] if isinstance(listed, list) and listed else config.get("model_type")
    return named if isinstance(named, str) else None


def _parameters(weights: Weights, quantization: Quantization) -> int | None:
    if weights.problems:
        return None
    quantized = quantization.format is not None or quantization.kv_cache is not None
    return parameters(weights.tensors, quantized=quantized, by_modelopt=quantization.by_modelopt)


def _exported(folder: Path, config: dict[str, Any]) -> Quantization:
    sidecar = folder / _SIDECAR
    said = read_json(sidecar) if sidecar.is_file() else None
    try:
        return of_export(config, said)
    except ValueError as error:
        raise unreadable(sidecar if said is not None else folder / _CONFIG, error) from error


def _modes(folder: Path) -> Modes:
    path = folder / _STATE
    if not path.is_file():
        return []
    try:
        return modes_of(mapping_of(read_torch(path)))
    except ValueError as error:
        raise unreadable(path, error) from error
