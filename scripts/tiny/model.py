"""`tiny:qwen3` and `tiny:llama`: real models that ship as code, trained on first use and cached.

Standard library only, except while a model is trained.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Collection
from dataclasses import asdict
from pathlib import Path

from scripts.run.files import expanded, locked, staged
from scripts.run.problems import JobError, nearest
from scripts.run.record import Record
from scripts.tiny.corpus import corpus_digest
from scripts.tiny.train import TinyModel, train_into

# Part of the cache key: raise it when training code changes what comes out for the same values.
_CODE_VERSION = 3

_NEEDED = ("config.json", "model.safetensors", "tokenizer.json", "tiny.json")


TINY_MODELS: dict[str, TinyModel] = {
    "tiny:qwen3": TinyModel(name="tiny:qwen3", architecture="qwen3"),
    "tiny:llama": TinyModel(name="tiny:llama", architecture="llama"),
}


def default_cache_root() -> Path:
    """Where tiny models are kept unless the caller says otherwise: under XDG_CACHE_HOME or ~/.cache."""
    # The XDG specification says to ignore a relative path.
    given = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(given) if given.startswith("/") else Path.home() / ".cache"
    return base / "modelopt-recipes" / "tiny"


def find_tiny_model(name: str) -> TinyModel:
    """The values behind a name; raises JobError `unknown_model` with the nearest name."""
    if name in TINY_MODELS:
        return TINY_MODELS[name]
    raise JobError("unknown_model", f"there is no built-in model {name}.", nearest(name, TINY_MODELS))


def cache_path(name: str, cache_root: Path) -> Path:
    """The folder that holds, or will hold, the model; raises JobError for an unknown name."""
    return model_path(find_tiny_model(name), cache_root)


def is_cached(name: str, cache_root: Path) -> bool:
    """Whether the model is there and complete, so that no training is needed."""
    return _whole(cache_path(name, cache_root), _NEEDED)


def ensure_tiny_model(name: str, cache_root: Path, *, advance: Callable[[int, int], None] | None = None) -> Path:
    """The folder of the model `name`, trained now if it is not there (about a minute on two cores).

    `advance(done, total)` is called after each training step. Raises JobError for an unknown name
    and for a cache that cannot be written.
    """
    return ensure_model(find_tiny_model(name), cache_root, advance=advance)


def local_model(name: str, record: Record) -> str:
    """`name` as a library can open it: a built-in model becomes its folder, trained now if it is not there."""
    if name.startswith("tiny:"):
        with record.phase("built-in model"):
            root = default_cache_root()
            return str(ensure_tiny_model(name, root, advance=lambda done, of: record.progress(done, of, "steps")))
    folder = expanded(name)
    return str(folder.absolute()) if folder.exists() else name


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
    return made_once(folder, model.name, _NEEDED, lambda partial: train_into(model, partial, advance))


def made_once(folder: Path, name: str, needed: Collection[str], make: Callable[[Path], None]) -> Path:
    """A folder of the cache with all files that are `needed`, filled by `make` where it is not whole yet.

    Raises JobError `tiny_model_cache` for a cache that cannot be written.
    """
    if _whole(folder, needed):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.with_name(f".{folder.name}.lock")):
            if not _whole(folder, needed):
                if folder.exists():  # incomplete, and nobody's: we hold the lock
                    shutil.rmtree(folder)
                with staged(folder) as partial:
                    make(partial)
    except OSError as error:
        remedy = "Make the folder writable, free some disk (30 MB), or set XDG_CACHE_HOME to another place."
        cause = f"The model {name} cannot be kept in {folder.parent}: {error}."
        raise JobError("tiny_model_cache", cause, remedy) from error
    return folder


def _whole(folder: Path, needed: Collection[str]) -> bool:
    return all((folder / file).is_file() for file in needed)
