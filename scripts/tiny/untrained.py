"""Small models of random weights, of any architecture that transformers builds: what a rehearsal works on.

Standard library only, except while a model is made.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scripts.checkpoints.published import save_model
from scripts.run.problems import JobError
from scripts.tiny.corpus import corpus_digest
from scripts.tiny.model import made_once
from scripts.tiny.train import build_tokenizer

# Part of the cache key: raise it when other weights come out for the same configuration.
_CODE_VERSION = 2
#: What a folder of a model may hold of its tokenizer.
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json"),
    *("chat_template.jinja", "vocab.json", "merges.txt"),
)
_NEEDED = ("config.json", "model.safetensors", "tokenizer_config.json")
_SEED = 1
_WORDS = 160


def untrained_path(config: Mapping[str, Any], tokenizer: Path | None, cache_root: Path) -> Path:
    """The folder that holds, or will hold, the model of a configuration."""
    words = str(tokenizer) if tokenizer else corpus_digest()  # the built-in one is learned from that text
    key = {"config": config, "tokenizer": words, "code": _CODE_VERSION}
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return cache_root / f"untrained-{config.get('model_type', 'model')}-{digest[:16]}"


def ensure_untrained(config: Mapping[str, Any], cache_root: Path, *, tokenizer: Path | None = None) -> Path:
    """The folder of a model with a configuration's architecture and random weights in bfloat16, made now if need be.

    `tokenizer`: a folder whose tokenizer it gets; None: the built-in one, for a vocabulary of 1,024 or more.
    Raises JobError `unsupported_model` where transformers cannot build it, and as `made_once` does.
    """
    folder = untrained_path(config, tokenizer, cache_root)
    return made_once(folder, folder.name, _NEEDED, lambda partial: _make(config, partial, tokenizer))


def _make(config: Mapping[str, Any], folder: Path, tokenizer: Path | None) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    values = {key: value for key, value in config.items() if key not in ("model_type", "torch_dtype", "dtype")}
    try:
        built = AutoConfig.for_model(config["model_type"], **values)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_SEED)
            model = AutoModelForCausalLM.from_config(built, dtype=torch.bfloat16)
    except Exception as error:  # whatever an architecture's own code makes of figures that it did not expect
        why = str(error).strip().splitlines()
        said = why[0][:_WORDS] if why else type(error).__name__
        cause = f"transformers builds no small {config.get('model_type')}: {said}"
        raise JobError("unsupported_model", cause) from error
    save_model(model, folder)
    if tokenizer is None:
        build_tokenizer(min(1024, config["vocab_size"])).save_pretrained(folder)
        return
    for name in TOKENIZER_FILES:
        if (tokenizer / name).is_file():
            shutil.copy2(tokenizer / name, folder / name)
