"""What a model's folder says about it, read from its files without loading anything."""

import difflib
import json
from pathlib import Path
from typing import Any

from scripts.checkpoints.headers import read_header
from scripts.run.problems import JobError, nearest

_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "spiece.model")
Trouble = tuple[str, str, str]


def local_model_problem(name: str) -> Trouble | None:
    """What is wrong with a local model as (problem, cause, remedy); None when it can be loaded."""
    from scripts.tiny.model import TINY_MODELS

    if name.startswith("tiny:"):
        if name in TINY_MODELS:
            return None
        return "unknown_model", "there is no such built-in model", nearest(name, TINY_MODELS)
    path = Path(name).expanduser()
    if not path.exists():
        return "missing_model", "there is no such folder, and it is not a hub name (org/name)", _neighbours(path)
    if not path.is_dir():
        return "missing_model", "it is a file; a model is a folder with config.json and safetensors", ""
    if (path / "adapter_config.json").is_file():
        return "unmerged_adapter", "it is a LoRA adapter, not a model", "Merge it into its base model first."
    config = read_config(path)
    if config is None:
        return "missing_model", "it has no readable config.json", "Name the folder that save_pretrained wrote."
    if not list(path.glob("*.safetensors")):
        unsafe = [file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in path.glob(pattern)]
        if unsafe:
            return (
                "unsafe_weights",
                f"its weights are pickled ({unsafe[0]})",
                "Convert them: save_pretrained(safe_serialization=True).",
            )
        return "missing_model", "it has no *.safetensors", "Copy the weights beside config.json."
    damaged = next((file.name for file in sorted(path.glob("*.safetensors")) if _header(file) is None), None)
    if damaged:
        return "damaged_weights", f"{damaged} is cut short or not safetensors", "Copy it again."
    if not any((path / file).is_file() for file in _TOKENIZERS):
        return "missing_tokenizer", "it has no tokenizer", "Copy the tokenizer's files beside config.json."
    return None


def read_config(folder: Path) -> dict[str, Any] | None:
    """config.json of a model; None when it is absent or no JSON object."""
    try:
        value = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def linear_shapes(folder: Path) -> dict[str, tuple[int, int]]:
    """Weight matrices by tensor name as (out, in), from the safetensors headers; embeddings and heads left out."""
    shapes = {}
    for file in sorted(folder.glob("*.safetensors")):
        header = _header(file)
        for name, entry in (header or {}).items():
            if not name.endswith(".weight") or len(entry["shape"]) != 2:
                continue
            if any(part in name for part in ("embed", "lm_head", "wte", "wpe", "router", ".gate.weight")):
                continue
            rows, columns = entry["shape"]
            shapes[name.removesuffix(".weight")] = (rows, columns)
    return shapes


def _header(file: Path) -> dict[str, Any] | None:
    """What a safetensors file says of its tensors; None if it is damaged or cut short."""
    try:
        return read_header(file)
    except JobError:
        return None


def _neighbours(path: Path) -> str:
    if not path.parent.is_dir():
        return f"{path.parent} does not exist either."
    folders = [entry.name for entry in path.parent.iterdir() if (entry / "config.json").is_file()]
    close = difflib.get_close_matches(path.name, folders, n=1, cutoff=0.5)
    return (
        f"Did you mean {path.parent / close[0]}?"
        if close
        else "Name a model's folder, a hub name, tiny:qwen3 or tiny:llama."
    )
