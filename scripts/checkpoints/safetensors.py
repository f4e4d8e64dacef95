"""Safetensors files by their headers: 8 bytes that give the length of a JSON object, which lists the tensors."""

import json
import math
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from scripts.checkpoints.checkpoint import Tensor, tensor
from scripts.checkpoints.documents import parse_json, read_bytes, size_of, unreadable

_MAX_HEADER = 100_000_000  # the format's own limit
_DTYPES = {
    "BF16": "bfloat16",
    "F16": "float16",
    "F32": "float32",
    "F64": "float64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "U8": "uint8",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
    "BOOL": "bool",
}
_NAMES = {name: code for code, name in _DTYPES.items()}
#: What is smaller waits in memory for the end of its file; what is larger is written at once, where it keeps what
#: follows aligned to eight bytes, as loaders map it.
_SMALL, _ALIGNED = 1 << 20, 8
#: What an entry takes besides its name: dtype, shape and offsets.
_ENTRY = 160


def read_header(file: Path) -> dict[str, Any]:
    """What the header says of each tensor: `dtype`, `shape`, `data_offsets`.

    Raises JobError `unreadable_checkpoint` where it is damaged, or longer or shorter than the file.
    """
    size = size_of(file)
    (length,) = struct.unpack("<Q", read_bytes(file, 8))
    if length > min(size - 8, _MAX_HEADER):
        raise unreadable(file, "it is cut short or no safetensors file")
    header = parse_json(read_bytes(file, length, offset=8), file)
    header.pop("__metadata__", None)
    try:
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        whole = 8 + length + end <= size
    except (LookupError, TypeError, AttributeError) as error:
        raise unreadable(file, "its header is no safetensors header") from error
    if not whole:
        raise unreadable(file, f"it is cut short: {size} bytes, {8 + length + end} by its header")
    return header


def read_tensors(file: Path) -> list[Tensor]:
    """The tensors of a safetensors file. Raises JobError `unreadable_checkpoint`."""
    found = []
    for name, entry in read_header(file).items():
        try:
            dtype = str(entry["dtype"])
            found.append(tensor(name, _DTYPES.get(dtype, dtype.lower()), entry["shape"]))
        except (LookupError, TypeError, ValueError) as error:
            raise unreadable(file, f"its header is no safetensors header ({error})") from error
    return found


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
