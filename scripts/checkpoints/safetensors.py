"""Safetensors files by their headers: 8 bytes that give the length of a JSON object, which lists the tensors."""

import struct
from pathlib import Path
from typing import Any

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
