"""How much lies under a path."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Size:
    """Bytes and number of files, each file once however many names it has, and the links that lead nowhere."""

    bytes: int
    files: int
    broken: tuple[Path, ...]


def measure(paths: Sequence[Path]) -> Size:
    """What the files and folders in `paths` amount to. Links to files are followed, links to folders in them not."""
    sizes: dict[tuple[int, int], int] = {}
    broken = []
    for file in (file for path in paths for file in _files(path)):
        try:
            facts = file.stat()
        except OSError:
            broken.append(file)
        else:
            sizes[facts.st_dev, facts.st_ino] = facts.st_size
    return Size(bytes=sum(sizes.values()), files=len(sizes), broken=tuple(broken))


def _files(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        yield path
    for folder, _, names in os.walk(path):
        yield from (Path(folder) / name for name in names)
