"""Where facts of a model come from: its config.json here, a cached snapshot of the hub, or configs/models/hub.yaml; and
whether a run will get models and data sets by their hub names."""

import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from configs import CONFIGS
from recipes.models.architecture import ModelFacts
from recipes.models.config import facts_from_config
from scripts.checkpoints.documents import read_json
from scripts.checkpoints.hub_cache import folder_of, is_hub_name, is_of_hub
from scripts.run.files import expanded, is_folder
from scripts.run.problems import JobError
from scripts.tiny.model import TINY_MODELS
from scripts.tiny.train import TinyModel

_TIMEOUT_SECONDS = 8.0
SOURCE = "configs/models/hub.yaml"
_FILE = CONFIGS.parent / SOURCE
_SIDECAR = "hf_quant_config.json"


def facts_of(model: str) -> ModelFacts | None:
    """The facts of a folder, hub name or built-in model; None when nothing is known of it. Never raises, never asks."""
    if model in TINY_MODELS:
        return _tiny(TINY_MODELS[model])
    try:
        folder = expanded(model)
        if is_folder(folder):
            return _of_folder(folder)
        cached = cached_model(model)
    except OSError:  # unreadable or too long
        return None
    found = _of_folder(cached) if cached else None
    if found is not None:
        return replace(found, gated=is_gated(model))
    return _of_published(model) if model in published().configs else None


def _of_folder(folder: Path) -> ModelFacts | None:
    try:
        return _read(folder, *(_state(folder / name) for name in ("config.json", _SIDECAR)))
    except (OSError, JobError):
        return None


@functools.lru_cache(maxsize=64)
def _read(folder: Path, config: tuple[int, ...] | None, sidecar: tuple[int, ...] | None) -> ModelFacts | None:
    """The facts of a folder whose files are in these states: what is cached holds only as long as they do."""
    if config is None:
        return None
    said = read_json(folder / "config.json")
    beside = read_json(folder / _SIDECAR) if sidecar else None
    return facts_from_config(said, source=str(folder / "config.json"), sidecar=beside, gated=False)


def _state(file: Path) -> tuple[int, ...] | None:
    try:
        facts = file.stat()
    except FileNotFoundError:
        return None
    return facts.st_mtime_ns, facts.st_size, facts.st_ino


@functools.cache
def _of_published(name: str) -> ModelFacts:
    return facts_from_config(published().configs[name], source=SOURCE, gated=is_gated(name))


def _tiny(model: TinyModel) -> ModelFacts:
    """A model that is trained here on first use: its configuration is what scripts.tiny.train builds."""
    config: dict[str, Any] = {
        "model_type": model.architecture,
        "vocab_size": model.vocab_size,
        "hidden_size": model.hidden_size,
        "intermediate_size": model.intermediate_size,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.head_dim,
        "max_position_embeddings": model.context,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    }
    return facts_from_config(config, source="scripts/tiny/model.py", gated=False)


# --- the hub ---------------------------------------------------------------------------------------------------------


def is_local(model: str) -> bool:
    """Whether a model's name means a folder or a built-in model, not a repository of the hub."""
    return not is_of_hub(model)


def cached_model(name: str) -> Path | None:
    """The newest cached snapshot of a model that has a config.json; None when there is none."""
    snapshots = folder_of(name) / "snapshots"
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
    if not online or is_folder(folder_of(repository, "datasets")):
        return
    cause = _ask("dataset", repository)
    if cause:
        raise JobError("missing_data", cause, "Name a local JSONL or text file with args.calib_dataset.")


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


def configuration_of(model: str) -> tuple[Mapping[str, Any], Path | None] | None:
    """What a model's config.json says, and the folder that it is in; None where neither is here.

    Of a model that is known by its hub name alone, what configs/models/hub.yaml has, without a folder.
    """
    try:
        folder = expanded(model)
        where = folder if is_folder(folder) else cached_model(model)
        if where is not None:
            return read_json(where / "config.json"), where
    except (OSError, JobError):
        return None
    known = published().configs.get(model)
    return None if known is None else (known, None)
