"""A job's code as one archive: the user's files at its root, our own packages in `.recipes/`.

The archive depends on names, contents and executable bits alone: packing the same files again, on
another day or another machine, gives the same bytes.
"""

import dataclasses
import gzip
import hashlib
import os
import secrets
import stat
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, cast

from configs import CONFIGS
from executors.base import OWN_CODE, AnyJob, Packaging
from executors.packaging.files import Selection, select, shown
from scripts.run.problems import JobError, Problem, ProblemsError

if TYPE_CHECKING:
    import nemo_run as run

OWN_FOLDER = Path(OWN_CODE).name
#: What runs on nodes: what is checked and submitted with stays on the machine that submits.
NODE_PACKAGES = ("configs", "scripts")
LARGE_BYTES = 200_000_000
_OWN_ROOT = CONFIGS.parent
# Of our own files; a Lepton job has a megabyte for everything.
_NOT_RUN = (".pyc", ".md", ".txt")
# What commands show is not shown there.
_NOT_ON_NODES = tuple(("configs", name) for name in ("problems.yaml", "schemas", "pipelines"))
_LEVEL = 4
_TIME = 946684800  # the year 2000: tar warns about older files, and clocks that are behind about newer ones
_LISTED = 5


@dataclass(frozen=True, kw_only=True)
class Code:
    """The code of a job: what is in its archive, and what was left out."""

    packager: Literal["git", "pattern", "none"]  # what `auto` came to
    root: str  # the folder whose content is the root of the job's code
    archive: Path | None  # None: planned, not written
    bytes: int  # of the archive
    content_bytes: int
    files: int
    digest: str  # over names, contents and executable bits of everything
    own_digest: str  # the same over our own packages alone
    commit: str | None
    changed: tuple[str, ...]  # tracked, with uncommitted changes, which are in the archive
    untracked: tuple[str, ...]  # not in the archive
    withheld: tuple[str, ...]  # look like secrets: not in the archive
    missing: tuple[str, ...]  # submodules that are not checked out: not in the archive
    largest: tuple[tuple[str, int], ...]  # the user's largest files with their bytes

    def as_record(self) -> dict[str, Any]:
        """For run.json: everything but where the archive lies on this machine."""
        return {key: value for key, value in dataclasses.asdict(self).items() if key != "archive"}

    def notes(self) -> list[str]:
        """What a user should know before this code runs somewhere, a sentence each."""
        found = []
        if self.changed:
            found.append(f"uncommitted changes are packed: {_listing(self.changed)}")
        if self.untracked:
            found.append(f"git does not track, so these are not packed: {_listing(self.untracked)}")
        if self.missing:
            found.append(f"submodules that are not checked out are not packed: {_listing(self.missing)}")
        if self.withheld:
            name = self.withheld[0]
            found.append(
                f"files that look like secrets are not packed: {_listing(self.withheld)}"
                f" (executor.include='[{name}]' packs one all the same)"
            )
        if self.bytes > LARGE_BYTES:
            top = ", ".join(f"{name} {size / 1e6:.0f} MB" for name, size in self.largest)
            found.append(f"the code is {self.bytes / 1e6:.0f} MB packed; the largest files are {top}")
        return found


def packager_of(job: AnyJob | None) -> "run.Packager":
    """What hands a job its code: the archive that was made before; without one, nothing."""
    import nemo_run as run

    if job is None or job.archive is None:
        return run.Packager()
    from executors.packaging.archive import ArchivePackager  # which imports NeMo-Run

    return ArchivePackager(archive=str(job.archive))


def package(folder: Path, into: Path, *, packager: Packaging, include: Sequence[str]) -> Code:
    """Write the archive of the code in `folder` to `into`, whole or not at all.

    Raises ProblemsError for what the user must change, JobError `packaging_failed` where a file
    cannot be read or the archive not be written.
    """
    chosen = select(folder, packager=packager, include=include)
    beside = into.with_name(f".{into.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        into.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("xb") as handle:
            code = _pack(chosen, handle)
            handle.flush()
            os.fsync(handle.fileno())
        beside.replace(into)
    except OSError as error:
        raise _failed(error, into) from error
    finally:
        beside.unlink(missing_ok=True)
    return dataclasses.replace(code, archive=into)


def plan(folder: Path, *, packager: Packaging, include: Sequence[str]) -> Code:
    """What `package` would say, with nothing written."""
    chosen = select(folder, packager=packager, include=include)
    try:
        return _pack(chosen, cast(IO[bytes], _Sink()))
    except OSError as error:
        raise _failed(error, folder) from error


def _pack(chosen: Selection, handle: IO[bytes]) -> Code:
    """Write the archive of `chosen` and our own packages to `handle`."""
    taken = [path for path in chosen.paths if path.split("/")[0] == OWN_FOLDER]
    if taken:
        cause = f"{shown(taken[0])} lies where this project puts its own code in a job"
        problem = Problem(name="reserved_folder", key="executor.packager", value=chosen.packager, cause=cause)
        raise ProblemsError([dataclasses.replace(problem, remedy="Rename the folder, or leave it out.")])
    users = [(path, chosen.root / path) for path in chosen.paths]
    own = list(_own_files())
    everything = sorted((*users, *own), key=lambda pair: os.fsencode(pair[0]))
    total, own_total = hashlib.sha256(), hashlib.sha256()
    sizes: dict[str, int] = {}
    with (
        gzip.GzipFile(filename="", mode="wb", compresslevel=_LEVEL, fileobj=handle, mtime=_TIME) as packed,
        tarfile.open(fileobj=packed, mode="w|", format=tarfile.GNU_FORMAT, errors="surrogateescape") as tar,
    ):
        for name, file in everything:
            line, size = _add(tar, name, file)
            total.update(line)
            if name.startswith(f"{OWN_FOLDER}/"):
                own_total.update(line)
            sizes[name] = size
    largest = sorted(((shown(name), sizes[name]) for name, _ in users), key=lambda pair: (-pair[1], pair[0]))
    return Code(
        packager=chosen.packager,
        root=shown(str(chosen.root)),
        archive=None,
        bytes=handle.tell(),
        content_bytes=sum(sizes.values()),
        files=len(everything),
        digest=f"sha256:{total.hexdigest()}",
        own_digest=f"sha256:{own_total.hexdigest()}",
        commit=chosen.commit,
        changed=tuple(map(shown, chosen.changed)),
        untracked=tuple(map(shown, chosen.untracked)),
        withheld=tuple(map(shown, chosen.withheld)),
        missing=tuple(map(shown, chosen.missing)),
        largest=tuple(largest[:_LISTED]),
    )


def _own_files() -> Iterator[tuple[str, Path]]:
    """Our packages as they are imported here: beside this one, in a checkout and in site-packages alike."""
    for package in NODE_PACKAGES:
        folder = _OWN_ROOT / package
        if not (folder / "__init__.py").is_file():
            raise JobError("packaging_failed", f"{folder} is not there.", "Install modelopt-recipes again.")
        for file in folder.rglob("*"):
            inner = file.relative_to(_OWN_ROOT)
            hidden = any(part.startswith(".") or part == "__pycache__" for part in inner.parts)
            needed = file.suffix not in _NOT_RUN and inner.parts[:2] not in _NOT_ON_NODES
            if file.is_file() and needed and not hidden:
                yield f"{OWN_FOLDER}/{inner.as_posix()}", file


def _add(tar: tarfile.TarFile, name: str, file: Path) -> tuple[bytes, int]:
    """Add one file or link; return its line of the digest, and its size."""
    info = tarfile.TarInfo(name)
    info.mtime = _TIME
    status = file.lstat()
    if stat.S_ISLNK(status.st_mode):
        info.type, info.mode = tarfile.SYMTYPE, 0o777
        info.linkname = os.readlink(file)  # noqa: PTH115 - the text as it is, not made a Path
        tar.addfile(info)
        return _digest_line(name, "link", hashlib.sha256(os.fsencode(info.linkname)).hexdigest()), 0
    with file.open("rb") as handle:
        status = os.fstat(handle.fileno())
        executable = bool(status.st_mode & stat.S_IXUSR)
        info.size, info.mode = status.st_size, 0o755 if executable else 0o644
        reader = _Hashing(handle, file)
        tar.addfile(info, cast(IO[bytes], reader))
    return _digest_line(name, "executable" if executable else "file", reader.digest.hexdigest()), info.size


def _digest_line(name: str, kind: str, digest: str) -> bytes:
    return os.fsencode(name) + f"\0{kind}\0{digest}\n".encode()


class _Hashing:
    """A file whose reader gets, and whose digest covers, exactly the same bytes."""

    def __init__(self, handle: IO[bytes], file: Path) -> None:
        self._handle = handle
        self._file = file
        self.digest = hashlib.sha256()

    def read(self, size: int) -> bytes:
        chunk = self._handle.read(size)
        if len(chunk) < size:
            raise OSError(0, "it became shorter while it was packed", str(self._file))
        self.digest.update(chunk)
        return chunk


class _Sink:
    """A file that keeps nothing but its length."""

    def __init__(self) -> None:
        self._length = 0

    def write(self, chunk: bytes) -> int:
        self._length += len(chunk)
        return len(chunk)

    def flush(self) -> None: ...

    def tell(self) -> int:
        return self._length


def _failed(error: OSError, target: Path) -> JobError:
    cause = f"{error.filename or target}: {error.strerror or error}."
    return JobError("packaging_failed", cause, "Nothing was submitted; set that right and run it again.")


def _listing(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
