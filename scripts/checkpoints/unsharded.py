"""Checkpoints that torch.save wrote: one file, or one for each rank of Megatron's model parallelism."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from scripts.checkpoints.checkpoint import Checkpoint, unreadable
from scripts.checkpoints.iterations import Choice
from scripts.checkpoints.megatron import iteration_in, trains
from scripts.checkpoints.pickles import mapping_of
from scripts.checkpoints.quantization import Modes, modes_of, of_modes, restores_something
from scripts.checkpoints.tensors import Tensor, parameters, stored
from scripts.checkpoints.torch_files import read_torch, tensors_of
from scripts.run.problems import JobError

_RANK_FILES = "mp_rank_*/model_optim_rng.pt"
#: Where frameworks put a model's tensors; Megatron numbers its virtual pipeline stages.
_MODEL = re.compile(r"model[0-9]*|module|state_dict|model_state_dict")
_MODELOPT = re.compile(r"modelopt_state(_[0-9]+)?")


def look_ranks(choice: Choice) -> Checkpoint:
    """The files of all ranks in one iteration. Raises JobError `unreadable_checkpoint`.

    With several ranks the parameters are not told: what is split between them and what each has is not written down.
    """
    files = sorted(choice.folder.glob(_RANK_FILES))
    if not files:
        raise unreadable(choice.folder, f"its ranks have no {Path(_RANK_FILES).name}")
    found = _look(choice.path, files)
    return replace(
        found,
        iteration=found.iteration if choice.iteration is None else choice.iteration,
        iterations=choice.iterations,
        training_state=found.training_state or any(choice.folder.glob("mp_rank_*/distrib_optim.pt")),
        problems=choice.problems,
    )


def look_file(path: Path) -> Checkpoint:
    """A file of torch.save. Raises JobError `unreadable_checkpoint`, `unknown_checkpoint` if no tensors are in it."""
    found = _look(path, [path])
    if not found.dtypes:
        raise JobError("unknown_checkpoint", f"{path} holds no tensors under names.", "Name a model's state.")
    return found


def _look(path: Path, files: Sequence[Path]) -> Checkpoint:
    tensors: list[Tensor] = []
    keys: dict[str, object] = {}
    modes: Modes = []
    for file in files:
        root = mapping_of(read_torch(file))
        keys |= root
        try:
            tensors += _model(root)
            modes = modes or _modes(root)
        except ValueError as error:
            raise unreadable(file, error) from error
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


def _modes(root: dict[str, object]) -> Modes:
    states = [value for key, value in root.items() if _MODELOPT.fullmatch(key) and mapping_of(value)]
    return [mode for state in states for mode in modes_of(mapping_of(state))]
