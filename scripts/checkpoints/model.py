"""Whether a model can be loaded, told by its files alone: asked where a job is submitted, and by the engine."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from scripts.checkpoints.documents import neighbour, read_json, size_of
from scripts.checkpoints.figures import contradicted, impossible
from scripts.checkpoints.huggingface import read_weights
from scripts.run.files import expanded, is_file, is_folder, is_there
from scripts.run.problems import JobError, nearest
from scripts.tiny.model import TINY_MODELS

_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "spiece.model")
#: Files that hold a vocabulary, as the classes of transformers and the code of repositories name theirs.
_VOCABULARIES = (
    *("tokenizer.json", "*vocab*", "merges*", "*.txt", "*.model", "*.tiktoken", "*.spm", "*.bpe", "*.codes"),
    *("*.tokenizer", "tekken.json", "*.gguf", "*.py"),
)
#: Classes whose tokens are bytes or characters, without a file.
_WITHOUT_FILES = ("ByT5", "Canine", "Perceiver")
_COPY_TOKENIZER = "Copy the tokenizer's files again."
#: Of what is no model's folder at all, or lacks so much that there is no use in asking for its tokenizer.
_NO_MODEL = ("missing_model", "unmerged_adapter")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
Trouble = tuple[str, str, str]
Needs = Literal["all", "shape", "tokenizer"]


def local_model_problems(name: str, *, needs: Needs = "all") -> Iterator[Trouble]:
    """What is wrong with a folder or a built-in model as (problem, cause, remedy); nothing when it can be loaded.

    `needs` "shape" is config.json and tokenizer, without weights.
    """
    if name in TINY_MODELS:
        return
    if name.startswith("tiny:"):
        yield "unknown_model", "there is no such built-in model", nearest(name, TINY_MODELS)
        return
    path = expanded(name)
    if not is_folder(path) or needs != "tokenizer":
        found = config_problem(path)
        if found is None and needs == "all":
            found = weights_problem(path, read_config(path))
        if found is not None:
            yield found
            if found[0] in _NO_MODEL:
                return
    if found := tokenizer_problem(path):
        yield found


def tokenizer_problem(path: Path) -> Trouble | None:
    """What is wrong with a folder's tokenizer, as far as its files tell without the library that reads them."""
    files = [path / name for name in _TOKENIZERS if is_file(path / name)]
    if not files:
        return "missing_tokenizer", "it has no tokenizer", "Copy the tokenizer's files beside config.json."
    for file in files:
        try:
            if file.suffix == ".json":
                read_json(file)
            elif not size_of(file):
                return "missing_tokenizer", f"its {file.name} is empty", _COPY_TOKENIZER
        except JobError as error:
            said = error.cause.removeprefix(f"{file}: ").rstrip(".")
            return "missing_tokenizer", f"its {file.name} cannot be read: {said}", _COPY_TOKENIZER
    if not any(next(path.glob(pattern), None) for pattern in _VOCABULARIES):
        config = read_json(files[0])
        if not config.get("auto_map") and not str(config.get("tokenizer_class")).startswith(_WITHOUT_FILES):
            cause = f"it has a {files[0].name}, but no vocabulary (tokenizer.json, tokenizer.model, vocab.json)"
            return "missing_tokenizer", cause, _COPY_TOKENIZER
    return None


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
    if sentence := impossible(config):
        cause = f"no model is like its config.json: {sentence}"
        return "impossible_config", cause, "Copy the model's config.json again."
    return None


def weights_problem(path: Path, config: Mapping[str, Any] | None = None) -> Trouble | None:
    """What is wrong with the weights in a folder: nothing but whole safetensors is opened.

    Of a `config`, whether they are those of its figures; whoever loads them learns of each tensor instead.
    """
    if not any(path.glob("*.safetensors")):
        unsafe = [file.name for pattern in _PICKLES for file in sorted(path.glob(pattern))]
        if unsafe:
            cause = f"its weights are pickles ({unsafe[0]}), which can run code when they are opened"
            return "unsafe_weights", cause, "Convert them where that does no harm: save_pretrained(folder)."
        return "missing_model", "it has no *.safetensors", "Copy the weights beside config.json."
    try:
        weights = read_weights(path, "model", "")
    except JobError as error:
        return "damaged_weights", error.cause.rstrip("."), "Copy it again."
    if weights.problems:
        return "missing_model", weights.problems[0], "Copy the weights again."
    if told := list(contradicted(config or {}, weights.tensors)):
        cause = f"its config.json is of other weights: {'; '.join(told)}"
        return "weights_do_not_match", cause, "Copy the weights again, or the config.json that belongs to them."
    return None


def read_config(folder: Path) -> dict[str, Any] | None:
    """config.json of a model; None when it is absent or no JSON object."""
    try:
        return read_json(folder / "config.json")
    except JobError:
        return None
