"""The tensors of a Hugging Face folder: one file, or shards and an index that says which tensor is in which."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from scripts.checkpoints.checkpoint import unreadable
from scripts.checkpoints.documents import read_json, size_of
from scripts.checkpoints.headers import read_tensors
from scripts.checkpoints.pickles import mapping_of
from scripts.checkpoints.tensors import Tensor
from scripts.checkpoints.torch_files import read_torch, tensors_of

_Read = Callable[[Path], list[Tensor]]


@dataclass(frozen=True, kw_only=True)
class Weights:
    """The tensors that are there, how they are stored, and a sentence for everything that is not as it should be."""

    tensors: tuple[Tensor, ...] = ()
    format: str | None = None
    problems: tuple[str, ...] = ()


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
    listed = _weight_map(index)
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


def _weight_map(index: Path) -> dict[str, str]:
    listed = read_json(index).get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
        raise unreadable(index, "it is no index of weights")
    return listed


def _read_pickled(file: Path) -> list[Tensor]:
    try:
        return list(tensors_of(mapping_of(read_torch(file))))
    except ValueError as error:
        raise unreadable(file, error) from error
