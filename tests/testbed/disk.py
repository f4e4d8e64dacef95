"""A disk that can be filled: a real mount, which needs root."""

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def small_disk(folder: Path, kib: int) -> Iterator[Callable[[int], None]]:
    """A tmpfs on `folder`; gives what leaves so many KiB of it free."""
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", folder], check=True, timeout=20)

    def leave(free: int) -> None:
        space = os.statvfs(folder)
        with (folder / "filling").open("ab", buffering=0) as file:
            file.write(b"\0" * max(0, space.f_bavail * space.f_frsize - free * 1024))

    try:
        yield leave
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True, timeout=20)
