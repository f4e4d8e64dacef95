"""Which folder of a Megatron or NeMo checkpoint holds the weights: the iteration that is meant, or NeMo's own."""

import re
from dataclasses import dataclass
from pathlib import Path

from scripts.checkpoints.documents import read_bytes
from scripts.run.problems import JobError

TRACKER = "latest_checkpointed_iteration.txt"
RELEASE = "release"
NEMO_WEIGHTS = ("weights", "model_weights")
_ITERATION = re.compile(r"iter_([0-9]{1,18})")
_METADATA, _RANKS = ".metadata", "mp_rank_*"
_LONGEST_WORD = 64


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Where to look: the path that was named, the folder with the weights, and how one led to the other."""

    path: Path
    folder: Path
    layout: str
    iteration: int | None = None
    iterations: tuple[int, ...] = ()
    problems: tuple[str, ...] = ()


def holds_weights(folder: Path) -> bool:
    """Whether this folder itself holds what Megatron writes for one iteration, whole or in part."""
    if (folder / _METADATA).is_file() or all((folder / name).is_file() for name in ("metadata.json", "common.pt")):
        return True
    return any(next(folder.glob(pattern), None) for pattern in ("*.distcp", _RANKS))


def holds_ranks(folder: Path) -> bool:
    """Whether each rank has a file of its own here, in place of shards that are described together."""
    return next(folder.glob(_RANKS), None) is not None and not (folder / _METADATA).is_file()


def is_tracked(folder: Path) -> bool:
    """Whether this folder holds iterations."""
    return (folder / TRACKER).is_file() or _release(folder) is not None or bool(_iterations(folder))


def nemo_weights(folder: Path) -> Path | None:
    """The folder of weights in a NeMo checkpoint."""
    found = (folder / name for name in NEMO_WEIGHTS)
    return next((path for path in found if path.is_dir() and holds_weights(path)), None)


def linked_weights(path: Path) -> list[Path]:
    """Folders of weights in `path` that are links to where they really lie."""
    named = [path / RELEASE, *(path / name for name in NEMO_WEIGHTS), *_iterations(path).values()]
    return [folder for folder in named if folder.is_symlink() and folder.is_dir()]


def concrete_iteration(path: Path) -> Path:
    """The folder of one iteration: `path` itself if it is one, else the one that its tracker names, else the last.

    Raises JobError: `missing_path`; `missing_iteration`, with those that are there, where the tracker names another;
    `no_iteration` where there is none.
    """
    if not path.is_dir():
        raise JobError("missing_path", f"{path} is no folder.", "Name a Megatron checkpoint, or one of its iterations.")
    if _ITERATION.fullmatch(path.name) or holds_weights(path):
        return path
    chosen, word = _tracked(path)
    there = _iterations(path)
    if chosen is not None:
        return chosen
    if word is not None:
        cause = f"{path / TRACKER} names {word}, which is not there."
        names = ", ".join(folder.name for folder in there.values())
        raise JobError("missing_iteration", cause, f"There are: {names}." if there else "There is no other.")
    if not there:
        raise JobError("no_iteration", f"{path} holds no iteration.", "Name the folder that Megatron saved to.")
    return there[max(there)]


def choose(path: Path) -> Choice | None:
    """Where to look in `path`; None where it is no Megatron or NeMo checkpoint.

    A tracker that names an iteration that is not there is a problem; the last one is looked at in its place.
    """
    if holds_weights(path):
        number = _number(path)
        there = () if number is None else (number,)
        layout = "nemo" if path.name in NEMO_WEIGHTS else "megatron"
        return Choice(path=path, folder=path, layout=layout, iteration=number, iterations=there)
    if is_tracked(path):
        return _of_tracked(path)
    weights = nemo_weights(path)
    return Choice(path=path, folder=weights, layout="nemo") if weights else None


def _of_tracked(path: Path) -> Choice | None:
    there = _iterations(path)
    chosen, word = _tracked(path)
    problems: tuple[str, ...] = ()
    if chosen is None:
        if not there:
            return None
        chosen = there[max(there)]
        if word is not None:
            problems = (f"{TRACKER} names {word}, which is not there",)
        elif len(there) > 1:
            problems = (f"{TRACKER} is missing; the last iteration is looked at",)
    number, present = _number(chosen), tuple(sorted(there))
    return Choice(path=path, folder=chosen, layout="megatron", iteration=number, iterations=present, problems=problems)


def _iterations(path: Path) -> dict[int, Path]:
    found = ((_number(child), child) for child in path.iterdir())
    return dict(sorted((number, child) for number, child in found if number is not None and child.is_dir()))


def _number(folder: Path) -> int | None:
    match = _ITERATION.fullmatch(folder.name)
    return int(match[1]) if match else None


def _release(path: Path) -> Path | None:
    """What a conversion to Megatron leaves in place of an iteration."""
    folder = path / RELEASE
    return folder if folder.is_dir() and holds_weights(folder) else None


def _tracked(path: Path) -> tuple[Path | None, str | None]:
    """The folder that the tracker names, if it is there, and the word in the tracker, if there is one."""
    there = _iterations(path)
    if not (path / TRACKER).is_file():
        return (None if there else _release(path)), None
    word = read_bytes(path / TRACKER)[:_LONGEST_WORD].decode("utf-8", errors="replace").strip()
    if word == RELEASE:
        return _release(path), word
    return (there.get(int(word)) if word.isascii() and word.isdigit() else None), word
