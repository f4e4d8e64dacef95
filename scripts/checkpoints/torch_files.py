"""Files of torch.save, read without unpickling: the tensors they hold by name, and the values beside them."""

import io
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from scripts.checkpoints.checkpoint import unreadable
from scripts.checkpoints.documents import read_bytes, size_of
from scripts.checkpoints.pickles import (
    MAX_BYTES,
    Call,
    Global,
    Persistent,
    PickleError,
    is_call,
    mapping_of,
    read_pickle,
)
from scripts.checkpoints.tensors import Tensor, tensor

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


def read_torch(path: Path, content: bytes | None = None) -> object:
    """The node of what torch.save wrote to `path`, or of `content`, a part of that file.

    Raises JobError `unreadable_checkpoint`.
    """
    try:
        if content is not None:
            return _read_zip(io.BytesIO(content))
        if read_bytes(path, min(4, size_of(path))) == _ZIP:
            return _read_zip(path)
        return _read_legacy(io.BytesIO(read_bytes(path, min(size_of(path), MAX_BYTES))))
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
        if _is_tensor(value):
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


def _read_legacy(stream: io.BytesIO) -> object:
    if read_pickle(stream) != _LEGACY_MAGIC:
        raise PickleError("it is a pickle, but not of torch.save")
    for _ in ("protocol", "machine"):
        read_pickle(stream)
    return read_pickle(stream)


def _is_tensor(node: object) -> bool:
    return is_call(node, *_REBUILD, _WRAPPED)


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
