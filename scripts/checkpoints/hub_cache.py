"""Names of repositories on the hub, and what of them lies in the hub's cache on this machine; nobody is asked."""

import os
import re
from contextlib import suppress
from pathlib import Path

from scripts.run.files import is_there, read_limited

_COMMIT_BYTES = 100


def is_hub_name(name: str) -> bool:
    """Whether `name` can be a repository on the hub: `org/name`, of 96 characters at most (huggingface_hub says so)."""
    return len(name) <= 96 and re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", name) is not None


def is_of_hub(name: str) -> bool:
    """Whether it is one, and no folder of this machine that is called so."""
    return is_hub_name(name) and not is_there(name)


def folder_of(name: str, kind: str = "models") -> Path:
    """Where the cache that the hub's own libraries fill has a repository, be it there or not."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface"
    cache = Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub")
    return cache / f"{kind}--{name.replace('/', '--')}"


def commit_of(name: str) -> str | None:
    """The commit of a repository of the hub that the cache here has as its newest; None where it has none."""
    for kind in ("models", "datasets"):
        with suppress(OSError, ValueError):
            said = read_limited(folder_of(name, kind) / "refs" / "main", _COMMIT_BYTES)
            return said.decode("ascii").strip() or None
    return None
