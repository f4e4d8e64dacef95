"""`tiny:qwen3` and `tiny:llama`: real models that ship as code, trained on first use and cached.

Standard library only, except while a model is trained.
"""

import difflib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from scripts.run.files import staged
from scripts.run.problems import JobError
from scripts.tiny.corpus import corpus_digest

# Part of the cache key: raise it when training code changes what comes out for the same values.
_CODE_VERSION = 2

_NEEDED = ("config.json", "model.safetensors", "tokenizer.json", "tiny.json")


@dataclass(frozen=True, kw_only=True)
class TinyModel:
    """Dimensions and training values of one model.

    Every in and out feature of a projection is a multiple of 128, the largest block of any format.
    The number of steps, not of seconds, is fixed: the weights do not depend on the machine's load.
    """

    name: str
    architecture: Literal["qwen3", "llama"]
    vocab_size: int = 1024
    hidden_size: int = 256
    intermediate_size: int = 512
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    context: int = 1024
    steps: int = 300
    warmup_steps: int = 30
    batch: int = 8
    window: int = 128
    learning_rate: float = 5e-3
    weight_decay: float = 0.1
    seed: int = 1
    # One thread: two take 46 s instead of 54 with the cores free, but 220 s with one core busy, where each of
    # thousands of short parallel regions waits for the thread that lost its core.
    threads: int = 1


TINY_MODELS: dict[str, TinyModel] = {
    model.name: model
    for model in (
        TinyModel(name="tiny:qwen3", architecture="qwen3"),
        TinyModel(name="tiny:llama", architecture="llama"),
    )
}


def default_cache_root() -> Path:
    """Where tiny models are kept unless the caller says otherwise: under XDG_CACHE_HOME or ~/.cache."""
    # The XDG specification says to ignore a relative path.
    given = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(given) if given.startswith("/") else Path.home() / ".cache"
    return base / "modelopt-recipes" / "tiny"


def find_tiny_model(name: str) -> TinyModel:
    """The values behind a name; raises JobError `unknown_tiny_model` with the nearest name."""
    if name in TINY_MODELS:
        return TINY_MODELS[name]
    near = difflib.get_close_matches(name, TINY_MODELS, n=1)
    remedy = f"Did you mean {near[0]}?" if near else f"Choose one of {', '.join(TINY_MODELS)}."
    raise JobError("unknown_tiny_model", f"There is no tiny model {name!r}.", remedy)


def cache_path(name: str, cache_root: Path) -> Path:
    """The folder that holds, or will hold, the model; raises JobError for an unknown name."""
    return model_path(find_tiny_model(name), cache_root)


def is_cached(name: str, cache_root: Path) -> bool:
    """Whether the model is there and complete, so that no training is needed."""
    return _complete(cache_path(name, cache_root))


def ensure_tiny_model(name: str, cache_root: Path, *, advance: Callable[[int, int], None] | None = None) -> Path:
    """The folder of the model `name`, trained now if it is not there (about a minute on two cores).

    `advance(done, total)` is called after each training step. Raises JobError for an unknown name
    and for a cache that cannot be written.
    """
    return ensure_model(find_tiny_model(name), cache_root, advance=advance)


def model_path(model: TinyModel, cache_root: Path) -> Path:
    """The folder for these values under `cache_root`; other values, text or code give another one."""
    key = {"model": asdict(model), "corpus": corpus_digest(), "code": _CODE_VERSION}
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return cache_root / f"{model.architecture}-{digest[:16]}"


def ensure_model(model: TinyModel, cache_root: Path, *, advance: Callable[[int, int], None] | None = None) -> Path:
    """`ensure_tiny_model` for values that need not be in the table.

    Processes that ask at once train once: the first holds a lock, which the kernel drops if it
    dies, and the others wait for it. The folder appears by one rename, with everything in it.
    """
    folder = model_path(model, cache_root)
    if _complete(folder):
        return folder
    try:
        cache_root.mkdir(parents=True, exist_ok=True)
        with _locked(folder.with_name(f".{folder.name}.lock")):
            if not _complete(folder):
                _build(model, folder, advance)
    except OSError as error:
        raise JobError(
            "tiny_model_cache",
            f"The model {model.name} cannot be kept in {cache_root}: {error}.",
            "Make the folder writable, free some disk (30 MB), or set XDG_CACHE_HOME to another place.",
        ) from error
    return folder


def _build(model: TinyModel, folder: Path, advance: Callable[[int, int], None] | None) -> None:
    """Train beside `folder`, then rename. The caller holds the lock, so an incomplete folder is nobody's."""
    from scripts.tiny.train import train_into

    if folder.exists():
        shutil.rmtree(folder)
    with staged(folder) as partial:
        train_into(model, partial, advance)


def _complete(folder: Path) -> bool:
    return all((folder / name).is_file() for name in _NEEDED)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
