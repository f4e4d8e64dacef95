"""Whether a model can be loaded, told by its files alone: asked where a job is submitted, and by the engine."""

from pathlib import Path
from typing import Any, Literal

from scripts.checkpoints.documents import neighbour, read_json
from scripts.checkpoints.huggingface import read_weights
from scripts.run.files import expanded, is_file, is_folder, is_there
from scripts.run.problems import JobError, nearest
from scripts.tiny.model import TINY_MODELS

_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "spiece.model")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
Trouble = tuple[str, str, str]


def local_model_problem(name: str, *, needs: Literal["all", "shape", "tokenizer"] = "all") -> Trouble | None:
    """What is wrong with a folder or a built-in model as (problem, cause, remedy); None when it can be loaded.

    `needs` "shape" is config.json and tokenizer, without weights.
    """
    if name in TINY_MODELS:
        return None
    if name.startswith("tiny:"):
        return "unknown_model", "there is no such built-in model", nearest(name, TINY_MODELS)
    path = expanded(name)
    if needs == "tokenizer" and is_folder(path):
        found = None
    else:
        found = config_problem(path) or (weights_problem(path) if needs == "all" else None)
    if found is None and not any(is_file(path / file) for file in _TOKENIZERS):
        return "missing_tokenizer", "it has no tokenizer", "Copy the tokenizer's files beside config.json."
    return found


def config_problem(path: Path, *, trust_remote_code: bool = True) -> Trouble | None:
    """What is wrong with a folder apart from its weights; code that it brings is, unless it is trusted."""
    if not is_there(path):
        other = "Name a model's folder, a hub name, tiny:qwen3 or tiny:llama."
        remedy = neighbour(path, other, like=lambda child: is_file(child / "config.json"))
        return "missing_model", "there is no such folder, and it is not a hub name (org/name)", remedy
    if not is_folder(path):
        return "missing_model", "it is a file; a model is a folder with config.json and safetensors", ""
    if is_file(path / "adapter_config.json"):
        return "unmerged_adapter", "it is a LoRA adapter, not a model", "Merge it into its base model first."
    config = read_config(path)
    if config is None:
        return "missing_model", "it has no readable config.json", "Name the folder that save_pretrained wrote."
    if config.get("auto_map") and not trust_remote_code:
        cause = f"it brings its own Python code ({', '.join(sorted(config['auto_map']))})"
        return "remote_code_not_trusted", cause, "Read that code, then set args.trust_remote_code=true."
    return None


def weights_problem(path: Path) -> Trouble | None:
    """What is wrong with the weights in a folder: nothing but whole safetensors is opened."""
    if not any(path.glob("*.safetensors")):
        unsafe = [file.name for pattern in _PICKLES for file in sorted(path.glob(pattern))]
        if unsafe:
            cause = f"its weights are pickles ({unsafe[0]}), which can run code when they are opened"
            return "unsafe_weights", cause, "Convert them where that does no harm: save_pretrained(folder)."
        return "missing_model", "it has no *.safetensors", "Copy the weights beside config.json."
    try:
        problems = read_weights(path, "model", "").problems
    except JobError as error:
        return "damaged_weights", error.cause.rstrip("."), "Copy it again."
    return ("missing_model", problems[0], "Copy the weights again.") if problems else None


def read_config(folder: Path) -> dict[str, Any] | None:
    """config.json of a model; None when it is absent or no JSON object."""
    try:
        return read_json(folder / "config.json")
    except JobError:
        return None
