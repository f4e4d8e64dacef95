"""Folders in the layout of Hugging Face: models, what ModelOpt saved or exported of them, and PEFT's adapters."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from scripts.checkpoints.checkpoint import Checkpoint, Tensor, parameters, stored
from scripts.checkpoints.consistency import contradictions, doubts
from scripts.checkpoints.documents import read_json, reading, size_of, unreadable
from scripts.checkpoints.pickles import mapping_of
from scripts.checkpoints.quantization import (
    UNKNOWN,
    Modes,
    Quantization,
    modes_of,
    of_export,
    of_modes,
    restores_something,
)
from scripts.checkpoints.safetensors import read_tensors
from scripts.checkpoints.torch_files import read_torch, tensors_of

_CONFIG, _ADAPTER = "config.json", "adapter_config.json"
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "model.safetensors.index.json")
_SIDECAR = "hf_quant_config.json"
_STATE = "modelopt_state.pth"
_TRAINING = ("optimizer*", "scheduler.pt", "rng_state*.pth", "global_step*")
_Read = Callable[[Path], list[Tensor]]


@dataclass(frozen=True, kw_only=True)
class Weights:
    """The tensors that are there, how they are stored, and a sentence for everything that is not as it should be."""

    tensors: tuple[Tensor, ...] = ()
    format: str | None = None
    problems: tuple[str, ...] = ()


def is_model(folder: Path) -> bool:
    """Whether a folder has the names of a model's files."""
    weights = any(next(folder.glob(pattern), None) for pattern in (*_WEIGHTS, _STATE))
    return weights or ((folder / _CONFIG).is_file() and any(folder.glob("*.bin")))


def is_adapter(folder: Path) -> bool:
    """Whether a folder has the names of an adapter's files."""
    return (folder / _ADAPTER).is_file()


def look_model(folder: Path) -> Checkpoint:
    """A model's folder. Raises JobError `unreadable_checkpoint`."""
    config = _config(folder)
    said = config or {}
    listed = said.get("architectures")
    named = listed[0] if isinstance(listed, list) and listed else said.get("model_type")
    weights = read_weights(folder, "model", "pytorch_model")
    quantization = _exported(folder, said)
    exported = quantization.by_modelopt
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
    if exported and not weights.problems:
        problems += contradictions(quantization, said, _sidecar(folder), weights.tensors)
    return Checkpoint(
        path=folder,
        kind="checkpoint_modelopt" if (folder / _STATE).is_file() else "checkpoint_hf",
        layout="huggingface",
        format=weights.format,
        architecture=named if isinstance(named, str) else None,
        parameters=_parameters(weights, quantization),
        dtypes=stored(weights.tensors),
        quantization=quantization.format,
        kv_cache=quantization.kv_cache,
        modelopt_state=restores_something(modes),
        training_state=any(next(folder.glob(pattern), None) for pattern in _TRAINING),
        problems=tuple(problems),
        doubts=tuple(doubts(quantization, said, _sidecar(folder), weights.tensors)) if exported else (),
    )


def exported_format(folder: Path) -> str | None:
    """How a folder's files say it is quantized, in the words of Checkpoint. Raises JobError `unreadable_checkpoint`."""
    return _exported(folder, _config(folder) or {}).format


def exported_algorithm(folder: Path) -> str | None:
    """The `quant_algo` of a ModelOpt export, in capitals; None for a folder that is none.

    Raises JobError `unreadable_checkpoint`.
    """
    algorithm = _exported(folder, _config(folder) or {}).algorithm
    return algorithm.upper() if algorithm else None


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


def _config(folder: Path) -> dict[str, Any] | None:
    return read_json(folder / _CONFIG) if (folder / _CONFIG).is_file() else None


def _parameters(weights: Weights, quantization: Quantization) -> int | None:
    if weights.problems:
        return None
    quantized = quantization.format is not None or quantization.kv_cache is not None
    return parameters(weights.tensors, quantized=quantized, by_modelopt=quantization.by_modelopt)


def _exported(folder: Path, config: dict[str, Any]) -> Quantization:
    said = _sidecar(folder)
    with reading(folder / (_CONFIG if said is None else _SIDECAR)):
        return of_export(config, said)


def _sidecar(folder: Path) -> dict[str, Any] | None:
    return read_json(folder / _SIDECAR) if (folder / _SIDECAR).is_file() else None


def _modes(folder: Path) -> Modes:
    path = folder / _STATE
    if not path.is_file():
        return []
    with reading(path):
        return modes_of(mapping_of(read_torch(path)))


def read_weights(folder: Path, safe: str, pickled: str) -> Weights:
    """What `<safe>*.safetensors` hold, else `<pickled>*.bin`, which torch.save wrote.

    Raises JobError `unreadable_checkpoint` for a damaged file; one that is missing or empty is a problem.
    """
    kinds: tuple[tuple[str, str, str, _Read], ...] = (
        (safe, ".safetensors", "safetensors", read_tensors),
        (pickled, ".bin", "torch", _read_pickled),
    )
    for stem, ending, form, read in kinds:
        index = folder / f"{stem}{ending}.index.json"
        present = sorted(path.name for path in folder.glob(f"*{ending}"))
        if index.is_file():
            return replace(_read_indexed(index, present, read), format=form)
        files = _belonging(present, stem, ending)
        if files:
            found = _read_files(folder, files, read)
            lost = (f"{index.name} is missing",) if len(files) > 1 else ()
            return replace(found, format=form, problems=found.problems + lost)
    return Weights(problems=("it has no weights",))


def _belonging(present: Sequence[str], stem: str, ending: str) -> list[str]:
    """The model's own files where other tools left theirs beside, such as consolidated.safetensors.

    A .bin can be anything; only one named after the model is taken for its weights.
    """
    if stem + ending in present:
        return [stem + ending]
    named = [name for name in present if name.startswith(stem)]
    return named or (list(present) if ending == ".safetensors" else [])


def _read_indexed(index: Path, present: Sequence[str], read: _Read) -> Weights:
    listed = read_json(index).get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
        raise unreadable(index, "it is no index of weights")
    shards = sorted(set(listed.values()))
    missing = tuple(f"{name} is missing, which {index.name} names" for name in shards if name not in present)
    found = _read_files(index.parent, [name for name in shards if name in present], read)
    names = {one.name for one in found.tensors}
    lost = sorted(name for name in listed if name not in names) if not missing and not found.problems else []
    told = (f"{lost[0]} is in no shard, though {index.name} names it ({len(lost)} such)",) if lost else ()
    return replace(found, problems=missing + found.problems + told)


def _read_files(folder: Path, names: Sequence[str], read: _Read) -> Weights:
    tensors: list[Tensor] = []
    problems = []
    for name in names:
        if size_of(folder / name):
            tensors += read(folder / name)
        else:
            problems.append(f"{name} is empty")
    return Weights(tensors=tuple(tensors), problems=tuple(problems))


def _read_pickled(file: Path) -> list[Tensor]:
    with reading(file):
        return list(tensors_of(mapping_of(read_torch(file))))
