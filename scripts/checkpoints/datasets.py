"""Training data: Megatron's tokenized .bin/.idx pairs, and JSON lines."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.checkpoints.checkpoint import Checkpoint
from scripts.checkpoints.documents import parse_json, read_bytes, size_of, unreadable

_MAGIC = b"MMIDIDX\x00\x00"
_HEADER = struct.Struct("<9sQBQQ")  # magic, version, dtype, sequences, documents
_DTYPES = {
    1: ("uint8", 1),
    2: ("int8", 1),
    3: ("int16", 2),
    4: ("int32", 4),
    5: ("int64", 8),
    6: ("float64", 8),
    7: ("float32", 4),
    8: ("uint16", 2),
}
_SEQUENCE_BYTES, _DOCUMENT_BYTES = 4 + 8, 8  # a length and an offset; the number of a sequence
_LONGEST_LINE = 16 << 20


@dataclass(frozen=True, kw_only=True)
class TokenFile:
    """One pair of files."""

    prefix: Path  # without .bin and .idx
    dtype: str
    documents: int
    tokens: int


def pair_of(path: Path) -> tuple[Path, Path] | None:
    """The index and the data that `path` stands for: one of the two, or what their names begin with."""
    prefix = path.with_suffix("") if path.suffix in (".idx", ".bin") else path
    index, data = (prefix.with_name(prefix.name + ending) if prefix.name else prefix for ending in (".idx", ".bin"))
    return (index, data) if index.is_file() and data.is_file() else None


def look_binidx(path: Path, pairs: Sequence[tuple[Path, Path]]) -> Checkpoint:
    """Tokenized data: the tokens of these pairs of index and data. Raises JobError `unreadable_checkpoint`."""
    tokens: dict[str, int] = {}
    for index, data in pairs:
        file = _read_pair(index, data)
        tokens[file.dtype] = tokens.get(file.dtype, 0) + file.tokens
    return Checkpoint(path=path, kind="binidx", layout="binidx", dtypes=tokens)


def token_files(folder: Path) -> list[TokenFile]:
    """Every pair in `folder`, by name. Raises JobError `unreadable_checkpoint` for one that is not whole."""
    return [_read_pair(index, index.with_suffix(".bin")) for index in sorted(folder.glob("*.idx"))]


def blend(files: list[TokenFile]) -> list[int | str]:
    """`data_paths` of a training: each prefix after its weight, which is its number of tokens."""
    return [part for file in files if file.tokens for part in (file.tokens, str(file.prefix))]


def look_jsonl(path: Path, files: Sequence[Path]) -> Checkpoint:
    """JSON lines, of which the first of each file is read. Raises JobError `unreadable_checkpoint`."""
    for file in files:
        if not size_of(file):
            raise unreadable(file, "it is empty")
        with file.open("rb") as handle:
            parse_json(handle.readline(_LONGEST_LINE), file)
    return Checkpoint(path=path, kind="training_jsonl", layout="jsonl")


def _read_pair(index: Path, data: Path) -> TokenFile:
    """What the index says, which must fit both files."""
    start = read_bytes(index, min(size_of(index), _HEADER.size))
    magic, version, code, sequences, documents = _HEADER.unpack(start.ljust(_HEADER.size, b"\0"))
    if magic != _MAGIC or version != 1 or code not in _DTYPES:
        raise unreadable(index, "it is no index of tokenized data")
    least = _HEADER.size + sequences * _SEQUENCE_BYTES + documents * _DOCUMENT_BYTES
    if size_of(index) < least:
        raise unreadable(index, f"it is cut short: {size_of(index)} bytes, {least} by its header")
    dtype, width = _DTYPES[code]
    end = 0  # the byte behind the last sequence
    if sequences:
        lengths = _HEADER.size + 4 * (sequences - 1)
        offsets = _HEADER.size + 4 * sequences + 8 * (sequences - 1)
        (length,) = struct.unpack("<i", read_bytes(index, 4, offset=lengths))
        (offset,) = struct.unpack("<q", read_bytes(index, 8, offset=offsets))
        end = offset + length * width
    if size_of(data) < end:
        raise unreadable(data, f"it is cut short: {size_of(data)} bytes, {end} by its index")
    # The table of documents has an entry for the end.
    return TokenFile(
        prefix=index.with_suffix(""), dtype=dtype, tokens=size_of(data) // width, documents=max(0, documents - 1)
    )
