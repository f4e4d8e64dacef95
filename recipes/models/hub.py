"""Models and data sets by hub name: is it cached here, does the hub know it, and what configs/models/hub.yaml has."""

import functools
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from configs import CONFIGS
from scripts.run.problems import JobError

_TIMEOUT_SECONDS = 8.0
SOURCE = "configs/models/hub.yaml"
_FILE = CONFIGS.parent / SOURCE


def is_hub_name(name: str) -> bool:
    """Whether `name` can be a repository on the hub: `org/name`."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", name) is not None


def cached_model(name: str) -> Path | None:
    """The newest cached snapshot of a model that has a config.json; None when there is none."""
    snapshots = _cache() / f"models--{name.replace('/', '--')}" / "snapshots"
    found = [file.parent for file in snapshots.glob("*/config.json")] if is_hub_name(name) else []
    return max(found, key=lambda folder: folder.stat().st_mtime, default=None)


def model_problem(name: str, *, online: bool) -> tuple[str, str, str] | None:
    """Why a run could not get this model, as (problem, cause, remedy). Asks the hub only when `online`."""
    if cached_model(name) is not None or not online:
        return None
    cause = _ask("model", name)
    return ("missing_model", cause, "Name a local folder, or log in where the model is gated.") if cause else None


def require_dataset(name: str, *, online: bool) -> None:
    """Raise JobError `missing_data` when the data set is neither cached nor known to the hub."""
    repository = {"cnn_dailymail": "abisee/cnn_dailymail"}.get(name, name)
    folder = f"datasets--{repository.replace('/', '--')}"
    if not online or (_cache() / folder).is_dir():
        return
    cause = _ask("dataset", repository)
    if cause:
        raise JobError("missing_data", cause, "Name a local JSONL or text file with args.calib_dataset.")


def _cache() -> Path:
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub")


def _ask(kind: str, name: str) -> str | None:
    """None when the hub knows `name` and lets us read it; else why not, in one sentence."""
    if os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "TRUE", "YES", "ON"):
        return "it is not in the local cache, and HF_HUB_OFFLINE forbids to ask the hub"
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        HfApi().repo_info(name, repo_type=kind, timeout=_TIMEOUT_SECONDS)
    except GatedRepoError:
        return "it is gated, and no token with access is set (HF_TOKEN)"
    except RepositoryNotFoundError:
        return "the hub has no such repository, or it is private"
    except Exception as error:  # every transport has errors of its own; all mean that it cannot be had now
        return f"it is not in the local cache, and the hub cannot be reached ({type(error).__name__})"
    return None


@dataclass(frozen=True, kw_only=True)
class Published:
    """What the file holds: configurations by hub name, and patterns of names whose repositories are gated or open."""

    configs: Mapping[str, Mapping[str, Any]]
    gated: tuple[str, ...]
    open: tuple[str, ...]


@functools.cache
def published() -> Published:
    """The file as it was installed."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    said = yaml.load(_FILE.read_text(encoding="utf-8"), Loader=loader)
    configs = {name: entry["config"] for entry in said["models"] for name in entry["names"]}
    return Published(configs=configs, gated=tuple(said["gated"]), open=tuple(said["open"]))


def is_gated(name: str) -> bool | None:
    """Whether the hub gives the model only to somebody who accepted its licence; None where that is not known."""
    for patterns, gated in ((published().gated, True), (published().open, False)):
        if any(fnmatchcase(name, pattern) for pattern in patterns):
            return gated
    return None
