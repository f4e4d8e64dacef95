"""Folders of torch.distributed.checkpoint, read without unpickling: `.metadata` says what lies where in the shards."""

import gc
import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from scripts.checkpoints.checkpoint import unreadable
from scripts.checkpoints.documents import read_bytes, size_of
from scripts.checkpoints.pickles import (
    Call,
    Global,
    Pairs,
    PickleError,
    attributes_of,
    is_call,
    mapping_of,
    pairs_of,
    read_pickle,
)
from scripts.checkpoints.tensors import Tensor, tensor
from scripts.checkpoints.torch_files import read_torch

METADATA = ".metadata"
COMMON_FILE = "common.pt"
_COMMON_OBJECT = "common_state/"


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Where an object or a part of a tensor lies."""

    file: str
    offset: int
    length: int


@dataclass(frozen=True, kw_only=True)
class Shards:
    """What a folder's `.metadata` lists: tensors, the other objects by name, and what is wrong with the shards."""

    tensors: tuple[Tensor, ...]
    objects: dict[str, Piece]
    problems: tuple[str, ...]


def read_shards(folder: Path) -> Shards:
    """What lies in `folder`. Raises JobError `unreadable_checkpoint`, also where a shard is cut short."""
    path = folder / METADATA
    content = read_bytes(path)
    try:
        with _no_collector():
            tensors, pieces = _listed(content)
    except ValueError as error:
        raise unreadable(path, error) from error
    named = {one.name for one in tensors}
    objects = {name: piece for name, piece in pieces if name not in named}
    return Shards(tensors=tensors, objects=objects, problems=_check(folder, [piece for _, piece in pieces]))


def common_state(folder: Path, objects: Mapping[str, Piece]) -> dict[str, object] | None:
    """What is the same on all ranks; None where the folder has no such part.

    Megatron Core writes it to common.pt; since 0.19 into a shard, as an object of one element.
    Raises JobError `unreadable_checkpoint`.
    """
    path = folder / COMMON_FILE
    piece = next((piece for name, piece in objects.items() if name.startswith(_COMMON_OBJECT)), None)
    if path.is_file():
        node = read_torch(path)
    elif piece is not None:
        path = folder / piece.file
        node = read_torch(path, read_bytes(path, piece.length, offset=piece.offset))
        node = node[0] if isinstance(node, list) and len(node) == 1 else node
    else:
        return None
    if not isinstance(node, Pairs):
        raise unreadable(path, "its common state is no dictionary")
    return mapping_of(node)


def _listed(content: bytes) -> tuple[tuple[Tensor, ...], list[tuple[str, Piece]]]:
    """The tensors, and what lies where."""
    root = attributes_of(read_pickle(io.BytesIO(content)))
    if not isinstance(root.get("state_dict_metadata"), Pairs):
        raise PickleError("it lists no tensors")
    entries = mapping_of(root["state_dict_metadata"])
    tensors = [_tensor(name, entry) for name, entry in entries.items() if is_call(entry, "TensorStorageMetadata")]
    return tuple(tensors), [(_name(index), _piece(info)) for index, info in pairs_of(root.get("storage_data"))]


@contextmanager
def _no_collector() -> Iterator[None]:
    """Spare the garbage collector from walking millions of new nodes over and over: a third of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _tensor(name: str, entry: object) -> Tensor:
    facts = attributes_of(entry)
    size, properties = facts.get("size"), facts.get("properties")
    if not is_call(size, "Size") or not isinstance(properties, Call):
        raise PickleError(f"{name} has no size")
    sides = size.args[0] if isinstance(size, Call) and isinstance(size.args, tuple) and size.args else None
    state = properties.state
    dtype = state[0] if isinstance(state, tuple) and state else mapping_of(state).get("dtype")
    if not isinstance(sides, tuple) or not isinstance(dtype, Global):
        raise PickleError(f"{name} has no size or no dtype")
    return tensor(name, dtype.name, sides)


def _name(index: object) -> str:
    name = attributes_of(index).get("fqn")
    if not isinstance(name, str):
        raise PickleError("a piece belongs to nothing")
    return name


def _piece(info: object) -> Piece:
    facts = attributes_of(info)
    file, offset, length = (facts.get(key) for key in ("relative_path", "offset", "length"))
    if not isinstance(file, str) or not isinstance(offset, int) or not isinstance(length, int):
        raise PickleError("a piece lies nowhere")
    if Path(file).name != file or offset < 0 or length < 0:
        raise PickleError("a piece lies outside of the folder's files")
    return Piece(file=file, offset=offset, length=length)


def _check(folder: Path, pieces: list[Piece]) -> tuple[str, ...]:
    """A sentence for each shard that is missing or empty; one that is cut short cannot be read."""
    ends: dict[str, int] = {}
    for piece in pieces:
        ends[piece.file] = max(ends.get(piece.file, 0), piece.offset + piece.length)
    problems = []
    for file, end in sorted(ends.items()):
        path = folder / file
        if not path.exists():
            problems.append(f"{file} is missing, which {METADATA} names")
        elif (size := size_of(path)) == 0 < end:
            problems.append(f"{file} is empty")
        elif size < end:
            raise unreadable(path, f"it is cut short: {size} bytes, {end} by {METADATA}")
    return tuple(problems)
