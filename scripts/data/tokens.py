"""Megatron's binary data: the .bin and .idx files in a folder, and what a training calls them."""

import struct
from dataclasses import dataclass
from pathlib import Path

from scripts.checkpoints import look

#: In an index: the number of entries of its document table, one for each document and one for the end.
_DOCUMENTS = struct.Struct("<26xQ")


@dataclass(frozen=True, kw_only=True)
class TokenFile:
    """One pair of files."""

    prefix: Path  # without .bin and .idx
    documents: int
    tokens: int


def token_files(folder: Path) -> list[TokenFile]:
    """Every pair in `folder`, by name. Raises JobError `unreadable_checkpoint` for one that is not whole."""
    return [_token_file(index.with_suffix("")) for index in sorted(folder.glob("*.idx"))]


def blend(files: list[TokenFile]) -> list[int | str]:
    """`data_paths` of a training: each prefix after its weight, which is its number of tokens."""
    return [part for file in files if file.tokens for part in (file.tokens, str(file.prefix))]


def _token_file(prefix: Path) -> TokenFile:
    tokens = sum(look(prefix).dtypes.values())
    with Path(f"{prefix}.idx").open("rb") as handle:
        (entries,) = _DOCUMENTS.unpack(handle.read(_DOCUMENTS.size))
    return TokenFile(prefix=prefix, documents=max(0, entries - 1), tokens=tokens)
