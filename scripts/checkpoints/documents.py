"""Files of a checkpoint, read with limits: bytes, JSON, single values of YAML without building what it describes."""

import difflib
import os
import posixpath
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scripts.run import schema
from scripts.run.files import is_folder, regular
from scripts.run.problems import JobError

#: The most that is read of one file at a time.
MAX_BYTES = 256 << 20
#: Of an integer: tokenizers write 10**30 for no limit.
_DIGITS = 40


def unreadable(path: Path, reason: object) -> JobError:
    """The error for a file that is there and cannot be understood: it is never taken for an absent one."""
    return JobError("unreadable_checkpoint", f"{path}: {reason}.", "Copy it again, or name another checkpoint.")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """What is wrong with a value in this block is wrong with the file at `path`."""
    try:
        yield
    except ValueError as error:
        raise unreadable(path, error) from error


def read_bytes(path: Path, length: int | None = None, *, offset: int = 0) -> bytes:
    """`length` bytes of a regular file, or all of them; a pipe or a device could block for ever.

    Raises JobError `unreadable_checkpoint`, also where that is more than fits what is read whole here.
    """
    size = size_of(path)
    wanted = size - offset if length is None else length
    if wanted > MAX_BYTES:
        raise unreadable(path, f"{wanted} bytes are too many for what it should hold")
    if wanted < 0 or offset + wanted > size:
        raise unreadable(path, f"it is cut short: {size} bytes, {offset + wanted} expected")
    try:
        # What is there may be a link, as in the hub's cache; since it was measured it may have become a pipe.
        with open(posixpath.realpath(path), "rb", opener=regular) as handle:
            handle.seek(offset)
            return handle.read(wanted)
    except OSError as error:
        raise unreadable(path, error.strerror or error) from error


def size_of(path: Path) -> int:
    """Bytes of a regular file. Raises JobError `unreadable_checkpoint`."""
    try:
        facts = path.stat()
    except OSError as error:
        raise unreadable(path, error.strerror or error) from error
    if not stat.S_ISREG(facts.st_mode):
        raise unreadable(path, "it is no regular file")
    return facts.st_size


def parse_json(content: bytes, path: Path) -> dict[str, Any]:
    """The JSON object that `content` of the file `path` is. Raises JobError `unreadable_checkpoint`."""
    try:
        return schema.parse(content, digits=_DIGITS, halves=True)
    except ValueError as error:
        raise unreadable(path, f"no JSON: {error}") from error


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises JobError `unreadable_checkpoint`."""
    return parse_json(read_bytes(path), path)


def neighbour(path: Path, otherwise: str, *, like: Callable[[Path], bool] = Path.exists) -> str:
    """What to do about a path that is not there: take what lies beside it under the nearest name."""
    if not is_folder(path.parent):
        return f"{path.parent} does not exist either."
    names = [child.name for child in path.parent.iterdir() if like(child)]
    close = difflib.get_close_matches(path.name, names, n=1, cutoff=0.5)
    return f"Did you mean {path.parent / close[0]}?" if close else otherwise


def yaml_scalars(path: Path, *keys: str) -> list[str | None]:
    """The scalar under each dotted key of a YAML file; None where there is none, or null, or no such file.

    It is read as nodes: tags, which can name Python objects, are not followed, nor are merges expanded. Raises
    JobError `unreadable_checkpoint`.
    """
    import yaml

    if not path.is_file():
        return [None for _ in keys]
    try:
        root = yaml.compose(read_bytes(path), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise unreadable(path, f"no YAML: {' '.join(str(error).split())}") from error
    found = []
    for key in keys:
        node = root
        for word in key.split("."):
            inner = node.value if isinstance(node, yaml.MappingNode) else ()
            node = next((value for name, value in inner if name.value == word), None)
        scalar = node if isinstance(node, yaml.ScalarNode) and node.tag != "tag:yaml.org,2002:null" else None
        found.append(None if scalar is None else str(scalar.value))
    return found


def measure(paths: Sequence[Path]) -> tuple[int, int, list[Path]]:
    """Bytes and number of the files in `paths`, each once however many names it has, and the links that lead nowhere.

    Links to files are followed, links to folders in the folders not.
    """
    sizes: dict[tuple[int, int], int] = {}
    broken = []
    for file in (file for path in paths for file in _files(path)):
        try:
            facts = file.stat()
        except OSError:
            broken.append(file)
        else:
            sizes[facts.st_dev, facts.st_ino] = facts.st_size
    return sum(sizes.values()), len(sizes), broken


def _files(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        yield path
    for folder, _, names in os.walk(path):
        yield from (Path(folder) / name for name in names)
