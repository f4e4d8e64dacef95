"""A bundle as a file: a gzipped tar of plain members, which its first one, bundle.json, lists with sizes and digests.

Nothing in it is a path: members are read in the order of the list, and where they go, below one folder, is said by
trees whose names are looked at before anything is written. Whoever unpacks one writes what was promised, or nothing.
"""

import errno
import gzip
import hashlib
import io
import json
import os
import re
import secrets
import shutil
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from recipes.experiment.run_ids import is_title
from scripts.run import schema
from scripts.run.files import staged
from scripts.run.problems import JobError, Problem, ProblemsError

FORMAT, SCHEMA = "modelopt-recipes bundle", 1
Advance = Callable[[int], None]
#: Where what goes along lies: a file here, or its content.
Source = Path | bytes
_FIRST = "bundle.json"
_CHUNK, _BLOCK = 1 << 20, tarfile.BLOCKSIZE
_LEVEL = 1  # weights hardly become smaller
_LONGEST = 4095
_SHA = re.compile(r"[0-9a-f]{64}")
_MEMBER = re.compile(r"[\w./-]{1,99}", re.ASCII)


def _sha256(value: Any) -> bool:
    """a SHA-256"""
    return isinstance(value, str) and _SHA.fullmatch(value) is not None


#: bundle.json, as far as somebody relies on it; recipes' values are looked at as those of any file are.
_STAGE = {
    **{"recipe": str, "family": str, "executor": str, "profile": dict, "after": [str], "values": dict},
    **{"run": schema.run_id, "outputs": [dict]},
}
_DOCUMENT = {
    **{"id": schema.run_id, "pipeline": (is_title, None), "versions": dict, "git": (dict, None), "stages": dict},
    "inputs": [{"stage": str, "field": str, "name": str, "digest": (str, None), "tree": (int, None)}],
    "trees": [{"name": str, "files": dict, "executable": [str]}],
    **{"code": (int, None), "files": dict},
}


def write(file: Path, data: Mapping[str, Any], sources: Mapping[str, Source], advance: Advance) -> None:
    """Write a bundle, whole or not at all; the same bytes of the same content. `advance`: as files are read.

    Raises ProblemsError where there is such a file, or no room; JobError where one that goes along is another by now.
    """
    refuse_place(file)
    beside = file.with_name(f".{file.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        _refuse_small_disk(file.parent, sum(facts["bytes"] for facts in data["files"].values()), "-o", file)
        with beside.open("xb") as handle:
            with gzip.GzipFile(filename="", mode="wb", compresslevel=_LEVEL, fileobj=handle, mtime=0) as packed:
                document = (json.dumps(data, indent=1, sort_keys=True) + "\n").encode()
                _put(packed, _FIRST, len(document), io.BytesIO(document), lambda read: None)
                for name in sorted(data["files"]):
                    facts, source = data["files"][name], sources[name]
                    with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as content:
                        digest = _put(packed, name, facts["bytes"], content, advance)
                    if digest != facts["sha256"]:
                        raise JobError("packaging_failed", f"{name} was changed meanwhile.", "Make it again.")
                packed.write(bytes(2 * _BLOCK))
            handle.flush()
            os.fsync(handle.fileno())
        try:
            file.hardlink_to(beside)
        except FileExistsError:
            raise ProblemsError([_exists(file)]) from None
        except OSError:  # a file system without links
            beside.rename(file)
    except OSError as error:
        raise JobError.of_os_error(error) from error
    finally:
        beside.unlink(missing_ok=True)


def refuse_place(file: Path) -> None:
    """Raise ProblemsError where no bundle can be written."""
    if os.path.lexists(file):
        raise ProblemsError([_exists(file)])
    if not file.parent.is_dir():
        cause, remedy = f"there is no folder {file.parent}", "Make it, or name another file."
        raise ProblemsError([Problem(name="output_not_writable", key="-o", value=file, cause=cause, remedy=remedy)])


def _exists(file: Path) -> Problem:
    cause, remedy = "there is such a file", "Choose another name."
    return Problem(name="output_exists", key="-o", value=file, cause=cause, remedy=remedy)


def _put(packed: gzip.GzipFile, name: str, size: int, content: IO[bytes], advance: Advance) -> str:
    """Write one member of exactly so many bytes; return the SHA-256 of them."""
    info, digest, left = tarfile.TarInfo(name), hashlib.sha256(), size
    info.size = size
    packed.write(info.tobuf(tarfile.GNU_FORMAT))
    while left and (piece := content.read(min(_CHUNK, left))):
        packed.write(piece)
        digest.update(piece)
        left -= len(piece)
        advance(len(piece))
    packed.write(bytes(left + -size % _BLOCK))
    return "" if left or content.read(1) else digest.hexdigest()


def read(file: Path) -> dict[str, Any]:
    """What bundle.json says. Raises ProblemsError for what is none, damaged, or of a newer version; JobError."""
    with _opened(file) as packed:
        return _document(packed, file)


def unpack(file: Path, data: Mapping[str, Any], folder: Path, advance: Advance) -> None:
    """Put the trees of a bundle below `folder`, each in a folder of its number, verified, whole or not at all.

    What holds none is read to its end all the same. Raises as `read` does.
    """
    if not data["trees"]:
        with _opened(file) as packed:
            _document(packed, file)
            _take(packed, data, {}, advance)
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    sizes = {name: facts["bytes"] for name, facts in data["files"].items()}
    needed = sum(sizes[member] for tree in data["trees"] for member in tree["files"].values())
    _refuse_small_disk(folder.parent, needed, "--bundle", file)
    with staged(folder) as partial, _opened(file) as packed:
        _document(packed, file)
        targets: dict[str, list[tuple[Path, bool]]] = {}
        for number, tree in enumerate(data["trees"]):
            for name, member in tree["files"].items():
                target = partial / str(number) / tree["name"] / name
                targets.setdefault(member, []).append((target, name in tree["executable"]))
        _take(packed, data, targets, advance)


def _take(
    packed: IO[bytes], data: Mapping[str, Any], targets: Mapping[str, list[tuple[Path, bool]]], advance: Advance
) -> None:
    """Read every member, which is what the list says, and write those that have a target."""
    for name, facts in sorted(data["files"].items()):
        if (size := _header(packed, name)) != facts["bytes"]:
            raise ValueError(f"{name} holds {size} bytes, and {facts['bytes']} were promised")
        wanted = targets.get(name, [])
        for target, _ in wanted:
            target.parent.mkdir(parents=True, exist_ok=True)
        with wanted[0][0].open("xb") if wanted else io.BytesIO() as out:
            digest, left = hashlib.sha256(), size
            while left:
                piece = _exactly(packed, min(_CHUNK, left))
                digest.update(piece)
                left -= len(piece)
                advance(len(piece))
                if wanted:
                    out.write(piece)
        _exactly(packed, -size % _BLOCK)
        if digest.hexdigest() != facts["sha256"]:
            raise ValueError(f"{name} is another than was promised")
        for target, _ in wanted[1:]:
            shutil.copyfile(wanted[0][0], target)
        for target, executable in wanted:
            target.chmod(0o755 if executable else 0o644)
    if any(_exactly(packed, 2 * _BLOCK)) or packed.read(1):
        raise ValueError("it holds more than it lists")


@contextmanager
def _opened(file: Path) -> Iterator[IO[bytes]]:
    try:
        with file.open("rb") as raw:
            if not file.is_file():
                raise ValueError("it is no regular file")
            with gzip.GzipFile(fileobj=raw, mode="rb") as packed:
                yield packed  # type: ignore[misc]  # it reads as a file does
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise ProblemsError([_unreadable(file, "there is no such file")]) from error
    except (gzip.BadGzipFile, EOFError, zlib.error, tarfile.TarError, ValueError) as error:
        if isinstance(error, ProblemsError):
            raise
        said = "it is cut short" if isinstance(error, EOFError) else " ".join(str(error).split())
        raise ProblemsError([_unreadable(file, said)]) from error
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise ProblemsError([_unreadable(file, "a name is longer than this disk takes")]) from error
        raise JobError.of_os_error(error) from error


def _unreadable(file: Path, cause: str) -> Problem:
    remedy = "Make it anew where the run is: nemo experiment bundle ID -o FILE."
    return Problem(name="unreadable_bundle", key="--bundle", value=file, cause=cause, remedy=remedy)


def _exactly(packed: IO[bytes], size: int) -> bytes:
    content = packed.read(size)
    if len(content) < size:
        raise EOFError
    return content


def _header(packed: IO[bytes], name: str) -> int:
    """The size of the next member, a plain file of that name. Raises ValueError, TarError, EOFError."""
    info = tarfile.TarInfo.frombuf(_exactly(packed, _BLOCK), "ascii", "strict")
    if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or info.name != name or info.size < 0:
        raise ValueError(f"{info.name!r} is not the plain file {name} that belongs there")
    return info.size


def _document(packed: IO[bytes], file: Path) -> dict[str, Any]:
    size = _header(packed, _FIRST)
    if size > schema.MAX_BYTES:
        raise ValueError(f"{_FIRST} holds {size} bytes")
    data = schema.parse(_exactly(packed, size))
    _exactly(packed, -size % _BLOCK)
    if data.get("format") != FORMAT:
        raise ValueError(f"{_FIRST} is no bundle's")
    if type(data.get("schema")) is not int or data["schema"] < 1:
        raise ValueError("its version is no number")
    if data["schema"] > SCHEMA:
        cause = f"it is of version {data['schema']}, and {SCHEMA} is what is known here"
        wrong = Problem(name="newer_bundle", key="--bundle", value=file, cause=cause, remedy="Install a newer version.")
        raise ProblemsError([wrong])
    schema.fitting(data, _DOCUMENT)
    for name, facts in data["files"].items():
        if not _MEMBER.fullmatch(name):
            raise ValueError(f"{name!r} is no name of a member")
        schema.fitting(facts, {"bytes": int, "sha256": _sha256})
    for name, version in data["versions"].items():
        if not (isinstance(version, str) and name.isprintable() and version.isprintable()):
            raise ValueError(f"{name!r} is in no version")
    for stage in data["stages"].values():
        schema.fitting(stage, _STAGE)
    for tree in data["trees"]:
        _refuse_strange(tree, data["files"])
    numbers = [row["tree"] for row in data["inputs"]] + [data["code"]]
    if not data["stages"] or not all(one is None or 0 <= one < len(data["trees"]) for one in numbers):
        raise ValueError("it names what it does not hold")
    if data["pipeline"] is None and len(data["stages"]) > 1:
        raise ValueError("it holds several stages of no pipeline")
    return data


def _refuse_strange(tree: Mapping[str, Any], members: Mapping[str, Any]) -> None:
    """Raise ValueError for names that lead elsewhere, or are in each other's way."""
    names = tree["files"]
    for name in (tree["name"], *(name for name in names if name or len(names) > 1)):
        parts = name.split("/")
        if "\0" in name or len(name.encode()) > _LONGEST or {"", ".", ".."} & set(parts):
            raise ValueError(f"{name!r} leads elsewhere")
        if any("/".join(parts[:depth]) in names for depth in range(1, len(parts))) and name in names:
            raise ValueError(f"{name!r} is a file and a folder")
    held = all(isinstance(one, str) and one in members for one in names.values()) and {*tree["executable"]} <= {*names}
    if "/" in tree["name"] or not held:
        raise ValueError(f"{tree['name']!r} names what is not in it")


def _refuse_small_disk(folder: Path, needed: int, key: str, value: object) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        cause = f"{needed / 1e9:.3g} GB are to be written, and {folder} has {free / 1e9:.3g} GB left"
        remedy = "Free some space, or name another disk."
        raise ProblemsError([Problem(name="not_enough_disk", key=key, value=value, cause=cause, remedy=remedy)])
