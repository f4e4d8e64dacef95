"""Checkpoints of Megatron-LM, Megatron-Bridge and NeMo: a folder for each iteration, or one of weights.

An iteration is described together (shards and `.metadata`), or was written by torch.save: one file for each rank of
model parallelism. A single file of torch.save is read in the same way.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from scripts.checkpoints.checkpoint import Checkpoint, Tensor, parameters, stored
from scripts.checkpoints.documents import read_bytes, read_json, reading, unreadable, yaml_scalars
from scripts.checkpoints.pickles import mapping_of
from scripts.checkpoints.quantization import UNKNOWN, Modes, Quantization, modes_of, of_modes, restores_something
from scripts.checkpoints.torch_files import (
    COMMON_FILE,
    METADATA,
    Shards,
    common_state,
    read_shards,
    read_torch,
    tensors_of,
)
from scripts.run.problems import JobError

TRACKER = "latest_checkpointed_iteration.txt"
RELEASE = "release"
NEMO_WEIGHTS = ("weights", "model_weights")
_ITERATION = re.compile(r"iter_([0-9]{1,18})")
_RANKS = "mp_rank_*"
_LONGEST_WORD = 64
_BACKEND = "metadata.json"  # written last, when everything else is there
_STATE = "modelopt_state"
#: Where Megatron-Bridge and NeMo 2 write down the class that makes the model.
_RUN_CONFIG, _NEMO_MODEL = "run_config.yaml", "context/model.yaml"
#: How the names begin of what a training run keeps beside the model.
_TRAINING = ("optimizer", "chained_", "opt_param_scheduler", "lr_scheduler", "rng_state")
_BESIDE = (*_TRAINING, "rerun_state_machine")
_RANK_FILES = f"{_RANKS}/model_optim_rng.pt"
#: Where frameworks put a model's tensors; Megatron numbers its virtual pipeline stages.
_MODEL = re.compile(r"model[0-9]*|module|state_dict|model_state_dict")
_MODELOPT = re.compile(r"modelopt_state(_[0-9]+)?")


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Where to look: the path that was named, the folder with the weights, and how one led to the other."""

    path: Path
    folder: Path
    layout: str
    iteration: int | None = None
    iterations: tuple[int, ...] = ()
    problems: tuple[str, ...] = ()


def holds_weights(folder: Path) -> bool:
    """Whether this folder itself holds what Megatron writes for one iteration, whole or in part."""
    if (folder / METADATA).is_file() or all((folder / name).is_file() for name in (_BACKEND, COMMON_FILE)):
        return True
    return any(next(folder.glob(pattern), None) for pattern in ("*.distcp", _RANKS))


def holds_ranks(folder: Path) -> bool:
    """Whether each rank has a file of its own here, in place of shards that are described together."""
    return next(folder.glob(_RANKS), None) is not None and not (folder / METADATA).is_file()


def is_tracked(folder: Path) -> bool:
    """Whether this folder holds iterations."""
    return (folder / TRACKER).is_file() or _release(folder) is not None or bool(_iterations(folder))


def nemo_weights(folder: Path) -> Path | None:
    """The folder of weights in a NeMo checkpoint."""
    found = (folder / name for name in NEMO_WEIGHTS)
    return next((path for path in found if path.is_dir() and holds_weights(path)), None)


def linked_weights(path: Path) -> list[Path]:
    """Folders of weights in `path` that are links to where they really lie."""
    named = [path / RELEASE, *(path / name for name in NEMO_WEIGHTS), *_iterations(path).values()]
    return [folder for folder in named if folder.is_symlink() and folder.is_dir()]


def concrete_iteration(path: Path) -> Path:
    """The folder of one iteration: `path` itself if it is one, else the one that its tracker names, else the last.

    Raises JobError: `missing_path`; `missing_iteration`, with those that are there, where the tracker names another;
    `no_iteration` where there is none.
    """
    if not path.is_dir():
        raise JobError("missing_path", f"{path} is no folder.", "Name a Megatron checkpoint, or one of its iterations.")
    if _ITERATION.fullmatch(path.name) or holds_weights(path):
        return path
    there, chosen, word = _tracked(path)
    if chosen is not None:
        return chosen
    if word is not None:
        cause = f"{path / TRACKER} names {word}, which is not there."
        names = ", ".join(folder.name for folder in there.values())
        raise JobError("missing_iteration", cause, f"There are: {names}." if there else "There is no other.")
    if not there:
        raise JobError("no_iteration", f"{path} holds no iteration.", "Name the folder that Megatron saved to.")
    return there[max(there)]


def choose(path: Path) -> Choice | None:
    """Where to look in `path`; None where it is no Megatron or NeMo checkpoint.

    A tracker that names an iteration that is not there is a problem; the last one is looked at in its place.
    """
    if holds_weights(path):
        number = _number(path)
        there = () if number is None else (number,)
        layout = "nemo" if path.name in NEMO_WEIGHTS else "megatron"
        return Choice(path=path, folder=path, layout=layout, iteration=number, iterations=there)
    if is_tracked(path):
        return _of_tracked(path)
    weights = nemo_weights(path)
    return Choice(path=path, folder=weights, layout="nemo") if weights else None


def _of_tracked(path: Path) -> Choice | None:
    there, chosen, word = _tracked(path)
    problems: tuple[str, ...] = ()
    if chosen is None:
        if not there:
            return None
        chosen = there[max(there)]
        if word is not None:
            problems = (f"{TRACKER} names {word}, which is not there",)
        elif len(there) > 1:
            problems = (f"{TRACKER} is missing; the last iteration is looked at",)
    number, present = _number(chosen), tuple(sorted(there))
    return Choice(path=path, folder=chosen, layout="megatron", iteration=number, iterations=present, problems=problems)


def _iterations(path: Path) -> dict[int, Path]:
    found = ((_number(child), child) for child in path.iterdir())
    return dict(sorted((number, child) for number, child in found if number is not None and child.is_dir()))


def _number(folder: Path) -> int | None:
    match = _ITERATION.fullmatch(folder.name)
    return int(match[1]) if match else None


def _release(path: Path) -> Path | None:
    """What a conversion to Megatron leaves in place of an iteration."""
    folder = path / RELEASE
    return folder if folder.is_dir() and holds_weights(folder) else None


def _tracked(path: Path) -> tuple[dict[int, Path], Path | None, str | None]:
    """The iterations, the one that the tracker names, if it is there, and the word in the tracker, if there is one."""
    there = _iterations(path)
    if not (path / TRACKER).is_file():
        return there, None if there else _release(path), None
    word = read_bytes(path / TRACKER)[:_LONGEST_WORD].decode("utf-8", errors="replace").strip()
    if word == RELEASE:
        return there, _release(path), word
    return there, there.get(int(word)) if word.isascii() and word.isdigit() else None, word


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
    parts = {part for one in tensors for part in one.name.split(".")}
    adapter = any(part.startswith("adapter") or part.endswith("_adapter") for part in parts)
    target, base = yaml_scalars(folder / _RUN_CONFIG, "model._target_", "checkpoint.pretrained_checkpoint")
    if not (folder / _RUN_CONFIG).is_file():
        (target,) = yaml_scalars(folder.parent / _NEMO_MODEL, "_target_")
    return Checkpoint(
        path=choice.path,
        kind="checkpoint_lora" if adapter else "checkpoint_megatron",
        layout=choice.layout,
        format=backend or "torch_dcp",
        architecture=target.rpartition(".")[2] if target else None,
        parameters=parameters(tensors, quantized=quantization.by_modelopt, by_modelopt=True) if tensors else None,
        dtypes=stored(tensors),
        iteration=choice.iteration if choice.iteration is not None else iteration_in(common or {}),
        iterations=choice.iterations,
        quantization=quantization.format,
        kv_cache=quantization.kv_cache,
        modelopt_state=restores_something(modes),
        base_model=base if adapter else None,
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
    with reading(folder):
        return modes_of(state)


def trains(names: Iterable[str]) -> bool:
    """Whether these names, of tensors or of what stands beside them, are those of a training run."""
    return any(name.startswith(_TRAINING) for name in names)


def look_ranks(choice: Choice) -> Checkpoint:
    """The files of all ranks in one iteration. Raises JobError `unreadable_checkpoint`.

    With several ranks the parameters are not told: what is split between them and what each has is not written down.
    """
    files = sorted(choice.folder.glob(_RANK_FILES))
    if not files:
        raise unreadable(choice.folder, f"its ranks have no {Path(_RANK_FILES).name}")
    found = _look_saved(choice.path, files)
    return replace(
        found,
        iteration=found.iteration if choice.iteration is None else choice.iteration,
        iterations=choice.iterations,
        training_state=found.training_state or any(choice.folder.glob(f"{_RANKS}/distrib_optim.pt")),
        problems=choice.problems,
    )


def look_file(path: Path) -> Checkpoint:
    """A file of torch.save. Raises JobError `unreadable_checkpoint`, `unknown_checkpoint` if no tensors are in it."""
    found = _look_saved(path, [path])
    if not found.dtypes:
        raise JobError("unknown_checkpoint", f"{path} holds no tensors under names.", "Name a model's state.")
    return found


def _look_saved(path: Path, files: Sequence[Path]) -> Checkpoint:
    tensors: list[Tensor] = []
    keys: dict[str, object] = {}
    modes: Modes = []
    for file in files:
        root = mapping_of(read_torch(file))
        keys |= root
        with reading(file):
            tensors += _model(root)
            states = [mapping_of(value) for key, value in root.items() if _MODELOPT.fullmatch(key)]
            modes = modes or [mode for state in states if state for mode in modes_of(state)]
    quantization = of_modes(modes)
    total = parameters(tensors, quantized=quantization.by_modelopt, by_modelopt=True)
    return Checkpoint(
        path=path,
        kind="checkpoint_torch",
        layout="torch",
        format="torch",
        parameters=total if len(files) == 1 else None,
        dtypes=stored(tensors),
        iteration=iteration_in(keys),
        quantization=quantization.format,
        kv_cache=quantization.kv_cache,
        modelopt_state=restores_something(modes),
        training_state=trains(keys),
    )


def _model(root: dict[str, object]) -> list[Tensor]:
    """The model's tensors, whether they are the whole content or a part beside the optimizer's."""
    parts = [value for key, value in root.items() if _MODEL.fullmatch(key) and mapping_of(value)]
    if parts:
        return [one for part in parts for one in tensors_of(mapping_of(part))]
    return [one for one in tensors_of(root) if not trains([one.name])]
