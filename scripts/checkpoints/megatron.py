"""Checkpoints of Megatron-LM, Megatron-Bridge and NeMo: a folder for each iteration, or one of weights."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from scripts.checkpoints.checkpoint import Checkpoint, unreadable
from scripts.checkpoints.documents import Yaml, read_json
from scripts.checkpoints.grids import UNKNOWN
from scripts.checkpoints.iterations import Choice
from scripts.checkpoints.quantization import Modes, Quantization, modes_of, of_modes, restores_something
from scripts.checkpoints.sharded import COMMON_FILE, METADATA, Shards, common_state, read_shards
from scripts.checkpoints.tensors import Tensor, parameters, stored
from scripts.run.problems import JobError

_BACKEND = "metadata.json"  # written last, when everything else is there
_STATE = "modelopt_state"
_RUN_CONFIG = "run_config.yaml"
_NEMO_MODEL = "context/model.yaml"
#: How the names begin of what a training run keeps beside the model.
_TRAINING = ("optimizer", "chained_", "opt_param_scheduler", "lr_scheduler", "rng_state")
_BESIDE = (*_TRAINING, "rerun_state_machine")


def look_sharded(choice: Choice) -> Checkpoint:
    """The checkpoint in a folder that Megatron Core, or torch.distributed.checkpoint, wrote.

    Raises JobError `unreadable_checkpoint`.
    """
    folder = choice.folder
    backend = _backend(folder)
    shards = _shards(folder, backend)
    common = common_state(folder, shards.objects)
    tensors = [one for one in shards.tensors if not one.name.startswith(_BESIDE)]
    modes = _modes(folder / _STATE)
    quantization = of_modes(modes)
    problems = [*choice.problems, *shards.problems]
    if not modes and any(one.of_quantizer for one in tensors):
        problems.append(f"it has quantizers' values but no {_STATE}: its quantizers cannot be restored")
        quantization = Quantization(format=UNKNOWN)
    if backend is None and common is not None:
        problems.append(f"{_BACKEND} is missing, which is written last: its save did not end")
    elif backend is None and choice.layout == "megatron" and choice.iteration is None:
        cause = f"{folder} holds shards of torch.distributed.checkpoint, but not as Megatron or NeMo arranges them."
        raise JobError("unknown_checkpoint", cause, "Convert it with the framework that saved it.")
    adapter = any(_of_adapter(one.name) for one in tensors)
    config = _run_config(folder)
    return Checkpoint(
        path=choice.path,
        kind="checkpoint_lora" if adapter else "checkpoint_megatron",
        layout=choice.layout,
        format=backend or "torch_dcp",
        architecture=_architecture(folder, config),
        parameters=_parameters(tensors, quantization),
        dtypes=stored(tensors),
        iteration=choice.iteration if choice.iteration is not None else iteration_in(common or {}),
        iterations=choice.iterations,
        quantization=quantization.format,
        kv_cache=quantization.kv_cache,
        modelopt_state=restores_something(modes),
        base_model=config.text("checkpoint", "pretrained_checkpoint") if config and adapter else None,
        training_state=trains([*(one.name for one in shards.tensors), *shards.objects, *(common or ())]),
        problems=tuple(problems),
    )


def iteration_in(common: Mapping[str, object]) -> int | None:
    """The iteration that a checkpoint's common state names."""
    iteration = common.get("iteration")
    return iteration if isinstance(iteration, int) else None


def _backend(folder: Path) -> str | None:
    """What Megatron Core says it wrote, such as torch_dist or zarr; None where it says nothing."""
    path = folder / _BACKEND
    if not path.is_file():
        return None
    backend = read_json(path).get("sharded_backend")
    if not isinstance(backend, str):
        raise unreadable(path, "it names no sharded_backend")
    return backend


def _shards(folder: Path, backend: str | None) -> Shards:
    """What `.metadata` lists; nothing for a backend that has none, such as zarr, whose tensors are not looked into."""
    if (folder / METADATA).is_file():
        return read_shards(folder)
    if backend in (None, "torch_dist"):
        raise unreadable(folder, f"it has no {METADATA}: its save did not end")
    return Shards(tensors=(), objects={}, problems=())


def _modes(folder: Path) -> Modes:
    """What the folder of ModelOpt's state says was done to the model; nothing where there is none."""
    if not folder.is_dir():
        return []
    objects = read_shards(folder).objects if (folder / METADATA).is_file() else {}
    state = common_state(folder, objects)
    if state is None:
        raise unreadable(folder, f"it has neither {COMMON_FILE} nor a common state")
    try:
        return modes_of(state)
    except ValueError as error:
        raise unreadable(folder, error) from error


def _parameters(tensors: Sequence[Tensor], quantization: Quantization) -> int | None:
    if not tensors:
        return None
    return parameters(tensors, quantized=quantization.by_modelopt, by_modelopt=True)


def _of_adapter(name: str) -> bool:
    return any(part.startswith("adapter") or part.endswith("_adapter") for part in name.split("."))


def _run_config(folder: Path) -> Yaml | None:
    path = folder / _RUN_CONFIG
    return Yaml(path) if path.is_file() else None


def _architecture(folder: Path, config: Yaml | None) -> str | None:
    """The class that makes the model, as Megatron-Bridge or NeMo 2 wrote it down."""
    if config is not None:
        told = config.text("model", "_target_")
    else:
        path = folder.parent / _NEMO_MODEL
        told = Yaml(path).text("_target_") if path.is_file() else None
    return told.rpartition(".")[2] if told else None


def trains(names: Iterable[str]) -> bool:
    """Whether these names, of tensors or of what stands beside them, are those of a training run."""
    return any(name.startswith(_TRAINING) for name in names)
