"""Files that appear whole or not at all."""

import errno
import fcntl
import hashlib
import json
import os
import posixpath
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from scripts.run.problems import JobError

#: What lies at a path. Path's own questions raise for a name that is too long, or in a folder that is closed to us.
is_there, is_file, is_folder = posixpath.exists, posixpath.isfile, posixpath.isdir


def expanded(path: str | Path) -> Path:
    """A path with `~` and `~name` replaced; where there is no such user it stays as it is, and will not be found."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 - Path's own raises where there is no such user


def regular(path: str, flags: int) -> int:
    """An `opener` for `open`: a regular file, no link is followed, and no pipe is waited for. Raises OSError."""
    handle = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "it is no regular file", path)
    return handle


def opened(path: Path, mode: str = "a", **how: Any) -> Any:
    """A file of a run folder to write to; a link or a pipe in its place is taken away. Raises OSError."""
    with suppress(FileNotFoundError):
        if stat.S_ISLNK(kind := path.lstat().st_mode) or stat.S_ISFIFO(kind) or stat.S_ISSOCK(kind):
            path.unlink()
    return open(path, mode, opener=regular, **how)


def read_limited(path: Path, most: int) -> bytes:
    """A regular file of at most so many bytes. Raises OSError, or ValueError where it holds more."""
    with open(path, "rb", opener=regular) as handle:
        content = handle.read(most + 1)
    if len(content) > most:
        raise ValueError(f"it holds more than {most >> 20} MiB")
    return content


@contextmanager
def _replacing(path: Path, mode: int) -> Iterator[IO[bytes]]:
    """A file beside `path` that takes its place when the block ends well."""
    beside = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Replace `path` with `text`: a reader, or a crash, sees the old content or the new one.

    A name of a file that is no UTF-8, as Python has it in a text, becomes its own bytes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _replacing(path, 0o666) as file:
        file.write(text.encode(errors="surrogateescape"))


def write_private(path: Path, content: bytes) -> None:
    """Replace `path` with `content`, readable by its owner only; the folders made for it too."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _replacing(path, 0o600) as file:
        file.write(content)


def write_json(path: Path, value: Any) -> None:
    """Replace `path` with `value` as indented JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def staged(final: Path) -> Iterator[Path]:
    """A folder to write in that becomes `final` by one rename when the block ends well.

    Leftovers of a killed writer beside `final` are removed first; a live writer's are not (it
    holds a lock that the kernel drops with the process). Raises JobError `output_exists` when
    `final` is there with something in it, before or after the work.
    """
    refuse_existing(final)
    final.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(final)
    partial = final.with_name(f".{final.name}.partial-{secrets.token_hex(4)}")
    lock = partial.with_name(partial.name + ".lock")
    with locked(lock):
        partial.mkdir()
        try:
            yield partial
            publish(partial, final)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            lock.unlink(missing_ok=True)


@contextmanager
def locked(file: Path, *, seconds: float | None = None) -> Iterator[None]:
    """One process at a time: the others wait, at most `seconds`. The kernel drops the lock of a process that dies.

    Raises TimeoutError.
    """
    with open(file, "ab", opener=regular) as held:
        if seconds is None:
            fcntl.flock(held, fcntl.LOCK_EX)
        else:
            _lock_within(held, seconds)
        yield


def _lock_within(held: IO[bytes], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            return fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise TimeoutError(f"another process has held {held.name} for {seconds:g} s") from None
        time.sleep(0.02)


def publish(partial: Path, final: Path) -> None:
    """Make the whole folder `partial` appear as `final`, by one rename. Raises JobError `output_exists`."""
    refuse_existing(final)
    for path in (*partial.rglob("*"), partial):  # so that a rename that survives a power cut names whole files
        if path.is_file() or path.is_dir():  # a pipe would wait for who writes, and a link may lead to nothing
            _sync(path)
    with suppress(FileNotFoundError):
        final.rmdir()
    partial.rename(final)
    _sync(final.parent)


def _sync(path: Path) -> None:
    """Bring a file, or a folder's list of names, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def refuse_existing(*finals: str | Path | None) -> None:
    """Raise JobError `output_exists` unless each is null, absent or an empty folder."""
    for final in (Path(one) for one in finals if one):
        if final.is_file() or (final.is_dir() and any(final.iterdir())):
            raise JobError("output_exists", f"{final} already holds something.", "Name another folder, or remove it.")


def _remove_stale(final: Path) -> None:
    for lock in final.parent.glob(f".{final.name}.partial-*.lock"):
        with lock.open("w") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue  # its writer is alive
            shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
            lock.unlink(missing_ok=True)


def stamp_of(folder: Path) -> str:
    """A digest over names, sizes and times of what a folder holds: another one where anybody changed something.

    Nothing is read, and the folder may be renamed. Raises OSError.
    """
    tree = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        facts = path.lstat()
        size = 0 if stat.S_ISDIR(facts.st_mode) else facts.st_size
        tree.update(f"{path.relative_to(folder)}\0{facts.st_mode}\0{size}\0{facts.st_mtime_ns}\n".encode())
    return f"sha256:{tree.hexdigest()}"


def weight_bytes(folder: Path) -> int:
    """Bytes of the checkpoint's safetensors."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))
