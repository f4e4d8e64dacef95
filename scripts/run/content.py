"""What a file or a folder holds: a digest of it, and a manifest that says of which file another digest would come."""

import hashlib
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

#: Folder of a run directory that holds the manifests of its artifacts.
FOLDER = "manifests"
_CHUNK = 1 << 20
#: A line as sha256sum writes and reads it; one that begins with a backslash has escapes in its name.
_LINE = re.compile(r"(\\?)([0-9a-f]{64}) [ *](.+)")
_ESCAPED = {"\\": "\\\\", "\n": "\\n", "\r": "\\r"}
_MANIFEST_BYTES = 64 << 20
#: Of what cannot be read.
_NO_FILE = hashlib.sha256(b"no file").hexdigest()


@dataclass(frozen=True, kw_only=True)
class Content:
    """Bytes, number of files, and a SHA-256 over names and contents: another one where a bit or a name is another."""

    bytes: int
    files: int
    digest: str
    listing: Mapping[str, str] = field(default_factory=dict, repr=False)  # SHA-256 of each file, by its name

    @property
    def facts(self) -> dict[str, int | str]:
        """As run.json has it."""
        return {"bytes": self.bytes, "files": self.files, "digest": self.digest}


#: A file as it was written: device, number there, size, time. Who renames it leaves all of it as it is.
Written = tuple[int, int, int, int]


def content_of(
    path: Path,
    advance: Callable[[int], None] = lambda read: None,
    copy: Path | None = None,
    known: Mapping[Written, str] = MappingProxyType({}),
    stopped: Callable[[], bool] = lambda: False,
) -> Content:
    """Measure `path`; the digest depends on relative names and contents, never on time or place.

    Links are followed; what is no file (a socket, a link to nothing) counts by its name, an empty folder not at all.
    Files are read by as many threads as there are processors. `advance` is called with the bytes of each piece that
    was read, by any of them. `copy`: a folder into which the very bytes that are read are written. `known`: SHA-256 of
    files that need not be read again. Raises OSError, and CancelledError once it is `stopped`.
    """
    files = [path] if path.is_file() else sorted(files_below(path))
    names = [file.name if path.is_file() else file.relative_to(path).as_posix() for file in files]
    ended = threading.Event()

    def over() -> bool:
        return ended.is_set() or stopped()

    pool = ThreadPoolExecutor(os.cpu_count() or 1)
    try:
        copies = [None if copy is None else copy / name for name in names]
        found = list(pool.map(lambda file, to: _read(file, advance, over, to, known), files, copies))
    finally:
        ended.set()  # whoever is interrupted does not wait for gigabytes
        pool.shutdown(cancel_futures=True)
    listing = {name: digest for name, (digest, _) in zip(names, found, strict=True)}
    return Content(bytes=sum(size for _, size in found), files=len(files), digest=digest_of(listing), listing=listing)


def files_below(folder: Path, above: frozenset[str] = frozenset()) -> Iterator[Path]:
    """Everything in a folder that is none itself; one that leads back to where it lies is no folder."""
    above |= {os.path.realpath(folder)}
    with os.scandir(folder) as entries:
        for entry in entries:
            inner = folder / entry.name
            if entry.is_dir() and os.path.realpath(inner) not in above:
                yield from files_below(inner, above)
            else:
                yield inner


@contextmanager
def reading() -> Iterator[Callable[[Path], "Future[Content]"]]:
    """`content_of` beside the work of the block, which waits for what it needs; the rest is read no further then."""
    stopped, pool = threading.Event(), ThreadPoolExecutor(2)
    try:
        yield lambda path: pool.submit(content_of, path, stopped=stopped.is_set)
    finally:
        stopped.set()
        pool.shutdown(cancel_futures=True)


def written(file: Path) -> Written:
    """What tells a file from one of another content. Raises OSError."""
    state = file.stat()
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns


def _read(
    file: Path,
    advance: Callable[[int], None],
    stopped: Callable[[], bool],
    copy: Path | None,
    known: Mapping[Written, str],
) -> tuple[str, int]:
    if not file.is_file():
        return _NO_FILE, 0
    if known and copy is None and (whole := known.get(written(file))):
        return whole, file.stat().st_size
    digest, total, piece = hashlib.sha256(), 0, bytearray(_CHUNK)
    if copy is not None:
        copy.parent.mkdir(parents=True, exist_ok=True)
    with file.open("rb", buffering=0) as handle, copy.open("xb") if copy else nullcontext() as out:
        while read := handle.readinto(piece):
            if stopped():
                raise CancelledError
            digest.update(memoryview(piece)[:read])
            if out is not None:
                out.write(memoryview(piece)[:read])
            total += read
            advance(read)
    return digest.hexdigest(), total


def digest_of(listing: Mapping[str, str]) -> str:
    """Of files, by their names in the order of paths, and the SHA-256 of each."""
    tree = hashlib.sha256()
    for name, digest in listing.items():
        tree.update(f"{name}\0{digest}\n".encode(errors="surrogateescape"))
    return f"sha256:{tree.hexdigest()}"


def manifest_of(content: Content) -> str:
    """Each file and its digest, as `sha256sum --check` takes them."""
    return "".join(_line(name, digest) for name, digest in content.listing.items())


def manifest_path(run_dir: Path, digest: str) -> Path:
    """Where a run directory holds the manifest of an artifact of this digest."""
    return run_dir / FOLDER / f"{digest.removeprefix('sha256:')[:16]}.sha256"


def listing_in(run_dir: Path, digest: str) -> dict[str, str] | None:
    """The files of an artifact as its run wrote them down; None where that is absent, damaged, or another's."""
    file = manifest_path(run_dir, digest)
    try:
        if not file.is_file() or file.stat().st_size > _MANIFEST_BYTES:
            return None
        text = file.read_bytes().decode(errors="surrogateescape")
    except OSError:
        return None
    listing = dict(_parsed(text))
    return listing if digest_of(listing) == digest else None


def _line(name: str, digest: str) -> str:
    escaped = "".join(_ESCAPED.get(character, character) for character in name)
    lead = "" if escaped == name else "\\"
    return f"{lead}{digest}  {escaped}\n"


def _parsed(text: str) -> Iterator[tuple[str, str]]:
    plain = {escaped: character for character, escaped in _ESCAPED.items()}
    for line in text.split("\n"):
        if match := _LINE.fullmatch(line):
            escapes, digest, name = match.groups()
            if escapes:
                name = re.sub(r"\\[\\nr]", lambda found: plain[found[0]], name)
            yield name, digest
