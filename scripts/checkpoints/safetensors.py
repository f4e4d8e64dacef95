"""Safetensors files by their headers: 8 bytes that give the length of a JSON object, which lists the tensors."""

import json
import math
import os
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from scripts.checkpoints.checkpoint import Tensor, tensor
from scripts.checkpoints.documents import parse_json, read_bytes, size_of, unreadable

_MAX_HEADER = 100_000_000  # the format's own limit
#: By their codes: how PyTorch calls them, where it has them, and bits. It is all that the format has.
_DTYPES = {
    "BOOL": ("bool", 8),
    "F4": ("float4_e2m1fn_x2", 4),
    "F6_E2M3": ("float6_e2m3", 6),
    "F6_E3M2": ("float6_e3m2", 6),
    "U8": ("uint8", 8),
    "I8": ("int8", 8),
    "F8_E5M2": ("float8_e5m2", 8),
    "F8_E4M3": ("float8_e4m3fn", 8),
    "F8_E8M0": ("float8_e8m0fnu", 8),
    "F8_E4M3FNUZ": ("float8_e4m3fnuz", 8),
    "F8_E5M2FNUZ": ("float8_e5m2fnuz", 8),
    "I16": ("int16", 16),
    "U16": ("uint16", 16),
    "F16": ("float16", 16),
    "BF16": ("bfloat16", 16),
    "I32": ("int32", 32),
    "U32": ("uint32", 32),
    "F32": ("float32", 32),
    "C64": ("complex64", 64),
    "F64": ("float64", 64),
    "I64": ("int64", 64),
    "U64": ("uint64", 64),
}
_NAMES = {name: code for code, (name, _) in _DTYPES.items()}
#: What is smaller waits in memory for the end of its file; what is larger is written at once, where it keeps what
#: follows aligned to eight bytes, as loaders map it.
_SMALL, _ALIGNED = 1 << 20, 8
#: What an entry takes besides its name: dtype, shape and offsets.
_ENTRY = 160


def read_header(file: Path) -> dict[str, Any]:
    """What the header says of each tensor: `dtype`, `shape`, `data_offsets`; as strict as loaders are.

    Raises JobError `unreadable_checkpoint` where it is damaged, or its tensors are not what the file holds.
    """
    size = size_of(file)
    (length,) = struct.unpack("<Q", read_bytes(file, 8))
    if length > min(size - 8, _MAX_HEADER):
        raise unreadable(file, "it is cut short or no safetensors file")
    header = parse_json(read_bytes(file, length, offset=8), file)
    try:
        told = (header.pop("__metadata__", None) or {}).values()
        end = _end(header)
        sound = all(isinstance(value, str) for value in told)
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise unreadable(file, f"its header is no safetensors header ({error})") from error
    if not sound:
        raise unreadable(file, "its header is no safetensors header (its metadata is no text)")
    if (whole := 8 + length + end) != size:
        what = "cut short" if whole > size else "longer than its tensors"
        raise unreadable(file, f"it is {what}: {size} bytes, {whole} by its header")
    return header


def _end(header: Mapping[str, Any]) -> int:
    """Where the last tensor ends: each begins where another ends. Raises ValueError and the like where one does not."""
    at = 0
    for name, entry in sorted(header.items(), key=lambda item: list(item[1]["data_offsets"])):
        if entry["dtype"] not in _DTYPES:
            raise ValueError(f"{name} is of no known type")
        size, rest = divmod(tensor(name, "", entry["shape"]).elements * _DTYPES[entry["dtype"]][1], 8)
        begin, end = entry["data_offsets"]
        if rest or not (type(begin) is type(end) is int) or end - begin != size:
            raise ValueError(f"{name} has other bytes than its shape takes")
        if begin != at:
            raise ValueError(f"{name} does not begin where the tensor before it ends")
        at = end
    return at


def read_tensors(file: Path) -> list[Tensor]:
    """The tensors of a safetensors file. Raises JobError `unreadable_checkpoint`."""
    return [tensor(name, _DTYPES[entry["dtype"]][0], entry["shape"]) for name, entry in read_header(file).items()]


class Writer:
    """A safetensors file that is written tensor by tensor; `writing` opens and ends it."""

    def __init__(self, file: IO[bytes], room: int) -> None:
        self._file, self._room = file, room
        self._header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        self._end = 0
        self._small: list[tuple[str, str, Sequence[int], memoryview]] = []

    def add(self, name: str, dtype: str, shape: Sequence[int], data: memoryview) -> None:
        """One tensor: its dtype as torch calls it, its bytes in order. They are kept where they are few."""
        if data.nbytes < _SMALL or data.nbytes % _ALIGNED:
            self._small.append((name, dtype, shape, data))
        else:
            self._write(name, dtype, shape, data)

    def _write(self, name: str, dtype: str, shape: Sequence[int], data: memoryview) -> None:
        self._file.write(data)
        offsets = [self._end, self._end + data.nbytes]
        self._header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": offsets}
        self._end = offsets[1]

    def finish(self) -> None:
        """Write what waited, the widest elements first, and the header in the room that was left for it."""
        for one in sorted(self._small, key=lambda one: (-(one[3].nbytes // max(math.prod(one[2]), 1)), one[0])):
            self._write(*one)
        header = json.dumps(self._header, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(header) <= self._room, "more tensors than were announced"
        self._file.seek(0)
        self._file.write(struct.pack("<Q", self._room) + header.ljust(self._room))


@contextmanager
def writing(path: Path, names: Iterable[str]) -> Iterator[Writer]:
    """A new safetensors file for tensors of at most these names; on the disk when the block has ended well."""
    room = sum(len(name.encode()) + _ENTRY for name in names) + _ENTRY
    room += -room % _ALIGNED
    with path.open("xb") as file:
        file.seek(8 + room)
        writer = Writer(file, room)
        yield writer
        writer.finish()
        file.flush()
        os.fsync(file.fileno())
