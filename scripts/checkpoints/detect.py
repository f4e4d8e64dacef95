"""What kind of checkpoint or data a path holds, by looking: names of files first, then what those files say."""

from dataclasses import replace
from pathlib import Path

from scripts.checkpoints import megatron
from scripts.checkpoints.checkpoint import Checkpoint
from scripts.checkpoints.datasets import look_binidx, look_jsonl, pair_of
from scripts.checkpoints.documents import measure, neighbour, unreadable
from scripts.checkpoints.huggingface import is_adapter, is_model, look_adapter, look_model
from scripts.run.files import expanded
from scripts.run.problems import JobError

_KNOWN = (
    "Known are Hugging Face and PEFT folders, Megatron checkpoints and their iterations, NeMo folders, files of "
    "torch.save, .bin/.idx data and JSON lines."
)
_TORCH_ENDINGS = (".pt", ".pth", ".ckpt", ".bin")


def look(path: Path) -> Checkpoint:
    """What `path`, a folder, a file or a data prefix, holds. Nothing is unpickled, and only headers are read.

    Raises JobError: `missing_path`; `unknown_checkpoint`, with what is known; `unreadable_checkpoint` for a file
    that is damaged or must not be read.
    """
    path = expanded(path)
    try:
        found = _look(path)
        size, files, broken = measure(
            [path, *megatron.linked_weights(path)] if path.is_dir() else pair_of(path) or [path]
        )
    except OSError as error:
        raise unreadable(Path(error.filename or path), error.strerror or error) from error
    links = tuple(f"{link} is a link to nothing" for link in broken)
    return replace(found, bytes=size, files=files, problems=found.problems + links)


def _look(path: Path) -> Checkpoint:
    if path.is_dir():
        return _look_folder(path)
    if pair := pair_of(path):
        return look_binidx(path, [pair])
    if path.is_file():
        return _look_file(path)
    if path.exists():
        raise JobError("unknown_checkpoint", f"{path} is neither a folder nor a file.", _KNOWN)
    raise JobError("missing_path", f"{path} does not exist.", neighbour(path, _KNOWN))


def _look_folder(path: Path) -> Checkpoint:
    if (path / "run.json").is_file() and (path / "logs").is_dir():
        raise JobError(
            "unknown_checkpoint", f"{path} is a run directory.", "Name one of the run's outputs: status lists them."
        )
    if is_adapter(path):
        return look_adapter(path)
    choice = megatron.choose(path)
    if choice is not None:
        return megatron.look_ranks(choice) if megatron.holds_ranks(choice.folder) else megatron.look_sharded(choice)
    if is_model(path):
        return look_model(path)
    return _look_files(path)


def _look_files(path: Path) -> Checkpoint:
    """A folder that is known by the files in it alone: one of torch.save, tokenized data, JSON lines."""
    indexes = sorted(path.glob("*.idx"))
    pairs = [pair for file in indexes if (pair := pair_of(file))]
    lines = sorted(path.glob("*.jsonl"))
    saved = [file for ending in (".pt", ".pth", ".ckpt") for file in sorted(path.glob(f"*{ending}"))]
    if pairs:
        alone = tuple(f"{file.name} has no data beside it" for file in indexes if not pair_of(file))
        return replace(look_binidx(path, pairs), problems=alone)
    if len(saved) == 1:
        return replace(megatron.look_file(saved[0]), path=path)
    if lines:
        return look_jsonl(path, lines)
    named = (is_adapter, is_model, megatron.holds_weights, megatron.is_tracked, megatron.nemo_weights)
    folders = (child for child in sorted(path.iterdir()) if child.is_dir())
    inside = [child.name for child in folders if any(holds(child) for holds in named)]
    hint = f"Name one of the folders in it: {', '.join(inside[:8])}." if inside else _KNOWN
    raise JobError("unknown_checkpoint", f"{path} is no checkpoint, and no data either.", hint)


def _look_file(path: Path) -> Checkpoint:
    if path.suffix == ".jsonl":
        return look_jsonl(path, [path])
    if path.suffix in _TORCH_ENDINGS:
        return megatron.look_file(path)
    remedy = {
        ".safetensors": "Name the folder that it lies in.",
        ".nemo": "It is an archive: unpack it with tar, and name the folder.",
    }.get(path.suffix, _KNOWN)
    raise JobError("unknown_checkpoint", f"{path} is no checkpoint by itself.", remedy)
