"""What torch writes, read without unpickling: files of torch.save, and folders of torch.distributed.checkpoint."""

import gc
import io
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from scripts.checkpoints.checkpoint import Tensor, tensor
from scripts.checkpoints.documents import MAX_BYTES, read_bytes, reading, size_of, unreadable
from scripts.checkpoints.pickles import (
    Call,
    Global,
    Pairs,
    Persistent,
    PickleError,
    attributes_of,
    is_call,
    mapping_of,
    pairs_of,
    read_pickle,
)

_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ZIP = b"PK\x03\x04"
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # the first of four pickles, before torch.save wrote zip archives
_STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
_REBUILD = ("_rebuild_tensor_v2", "_rebuild_tensor_v3", "_rebuild_parameter", "_rebuild_parameter_with_state")
_WRAPPED = "_rebuild_from_type_v2"
#: What torch.distributed.checkpoint writes about its shards, and Megatron Core beside them.
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


def read_torch(path: Path, content: bytes | None = None) -> object:
    """The node of what torch.save wrote to `path`, or of `content`, a part of that file.

    Raises JobError `unreadable_checkpoint`.
    """
    try:
        if content is not None:
            return _read_zip(io.BytesIO(content))
        if read_bytes(path, min(4, size_of(path))) == _ZIP:
            return _read_zip(path)
        stream = io.BytesIO(read_bytes(path, min(size_of(path), MAX_BYTES)))
        if read_pickle(stream) != _LEGACY_MAGIC:
            raise PickleError("it is a pickle, but not of torch.save")
        for _ in ("protocol", "machine"):
            read_pickle(stream)
        return read_pickle(stream)
    except (ValueError, OSError, EOFError, RuntimeError, zipfile.BadZipFile, struct.error, zlib.error) as error:
        raise unreadable(path, f"no file of torch.save: {error}") from error


def tensors_of(named: Mapping[str, object]) -> Iterator[Tensor]:
    """The tensors in dictionaries that lie in one another, under dotted names; one with several names only once.

    Raises ValueError for a tensor that cannot be.
    """
    seen: set[object] = set()
    nodes: set[int] = set()
    below = list(named.items())[::-1]
    while below:
        name, value = below.pop()
        if is_call(value, *_REBUILD, _WRAPPED):
            found, place = _tensor(name, value)
            if place is None or place not in seen:
                seen.add(place)
                yield found
            continue
        if id(value) not in nodes:  # a program can put one dictionary into another many times over
            nodes.add(id(value))
            below += [(f"{name}.{key}", held) for key, held in mapping_of(value).items()][::-1]


def _read_zip(source: Path | io.BytesIO) -> object:
    with zipfile.ZipFile(source) as archive:
        member = next((one for one in archive.infolist() if one.filename.endswith("/data.pkl")), None)
        if member is None:
            raise PickleError("it is a zip archive without data.pkl")
        if member.flag_bits & 1 or member.compress_type not in _COMPRESSIONS or member.file_size > MAX_BYTES:
            raise PickleError("its data.pkl is encrypted, too long, or packed in a way that torch.save does not use")
        return read_pickle(io.BytesIO(archive.read(member)))


def _tensor(name: str, node: object) -> tuple[Tensor, object]:
    """The tensor that a call of torch._utils would rebuild, and where it lies: its storage's key and its offset."""
    for _ in range(4):  # a parameter or a subclass wraps the call that makes the tensor
        args = node.args if isinstance(node, Call) and isinstance(node.args, tuple) else ()
        if is_call(node, _WRAPPED) and len(args) > 2:
            node = Call(args[0], args[2])
        elif args and isinstance(args[0], Persistent):
            return _plain_tensor(name, args)
        else:
            node = args[0] if args else None
    raise ValueError(f"{name} is made in a way that torch.save does not use")


def _plain_tensor(name: str, args: tuple[object, ...]) -> tuple[Tensor, object]:
    storage = args[0].id if isinstance(args[0], Persistent) else None
    if not isinstance(storage, tuple) or len(storage) < 3 or len(args) < 3 or not isinstance(args[2], tuple):
        raise ValueError(f"{name} has no storage or no size")
    told = args[6] if len(args) > 6 else storage[1]  # v3 names the dtype apart from an untyped storage
    word = told.name if isinstance(told, Global) else ""
    key, offset = storage[2], args[1]
    place = (key, offset) if isinstance(key, str) and isinstance(offset, int) else None
    return tensor(name, _STORAGES.get(word, word or "unknown"), args[2]), place


def read_shards(folder: Path) -> Shards:
    """What lies in `folder`. Raises JobError `unreadable_checkpoint`, also where a shard is cut short."""
    path = folder / METADATA
    content = read_bytes(path)
    with reading(path), _no_collector():
        tensors, pieces = _listed(content)
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
    tensors = [_described(name, entry) for name, entry in entries.items() if is_call(entry, "TensorStorageMetadata")]
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


def _described(name: str, entry: object) -> Tensor:
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
