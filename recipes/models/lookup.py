"""Where facts of a model come from: its config.json here, a cached snapshot of the hub, or configs/models."""

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

from recipes.models import hub
from recipes.models.architecture import ModelFacts
from recipes.models.config import facts_from_config
from recipes.models.hub import SOURCE, is_gated, published
from scripts.checkpoints.documents import read_json
from scripts.run.problems import JobError
from scripts.tiny.model import TINY_MODELS
from scripts.tiny.train import TinyModel

_SIDECAR = "hf_quant_config.json"


def facts_of(model: str) -> ModelFacts | None:
    """The facts of a folder, hub name or built-in model; None when nothing is known of it. Never raises, never asks."""
    if model in TINY_MODELS:
        return _tiny(TINY_MODELS[model])
    try:
        folder = Path(model).expanduser()
        if folder.is_dir():
            return _of_folder(folder)
        cached = hub.cached_model(model)
    except (OSError, RuntimeError):  # unreadable or too long, the home of nobody
        return None
    found = _of_folder(cached) if cached else None
    if found is not None:
        return replace(found, gated=is_gated(model))
    return _published(model)


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


def _published(name: str) -> ModelFacts | None:
    config = published().configs.get(name)
    return None if config is None else _of_published(name)


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
