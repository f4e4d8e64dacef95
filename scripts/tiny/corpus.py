"""The text of the tiny models: the pydoc topics, which every Python carries, cut into passages and splits.

Standard library only. The text differs between Python versions; for one version every function here
returns the same values in every process.
"""

import hashlib
from collections.abc import Iterator
from functools import cache
from typing import Literal, get_args

Split = Literal["train", "calibration", "eval"]

_TARGET_CHARS = 1000
_MAX_CHARS = 2000
_MIN_CHARS = 200
_EVAL_OF_1000 = 100


def passages(split: Split) -> list[str]:
    """The passages of one split, in the order of their digests: any prefix is a mix of topics.

    A passage is 200 to 2000 characters of consecutive paragraphs of one topic. No paragraph occurs
    twice in the corpus, so nothing in "eval" is in the other two. "calibration" is the training
    text itself: the corpus is too small to keep a third part away from training, and a range
    measured on training text is no less valid. Raises ValueError for another name.
    """
    if split not in get_args(Split):
        raise ValueError(f"split {split!r}: choose one of {', '.join(get_args(Split))}")
    held_out = split == "eval"
    ordered = sorted((_digest(text), text) for text in _all_passages())
    # By content, not by position: a passage keeps its split when another Python version adds text before it.
    return [text for digest, text in ordered if (int(digest[:12], 16) % 1000 < _EVAL_OF_1000) == held_out]


@cache
def corpus_digest() -> str:
    """SHA-256 over every passage and the split it is in (64 hexadecimal digits)."""
    digest = hashlib.sha256()
    for split in ("train", "eval"):
        texts = passages(split)
        digest.update(f"{split} {len(texts)}\n".encode())
        for text in texts:
            digest.update(hashlib.sha256(text.encode()).digest())
    return digest.hexdigest()


def normalized(text: str) -> str:
    """The text with every run of white space as one space: what decides that two texts are the same."""
    return " ".join(text.split())


def _digest(text: str) -> str:
    return hashlib.sha256(normalized(text).encode()).hexdigest()


@cache
def _all_passages() -> tuple[str, ...]:
    from pydoc_data.topics import topics

    seen: set[str] = set()
    found: list[str] = []
    for name in sorted(topics):
        fresh: list[str] = []
        for paragraph in _paragraphs(topics[name]):
            # Topics quote each other at length (the one on a class's methods holds three others).
            if (key := normalized(paragraph)) not in seen:
                seen.add(key)
                fresh.append(paragraph)
        found.extend(_group(fresh))
    return tuple(found)


def _paragraphs(text: str) -> Iterator[str]:
    """Blocks between blank lines; one longer than a passage may be is cut between lines."""
    block: list[str] = []
    size = 0
    for raw in [*text.splitlines(), ""]:
        line = raw.rstrip()
        if block and (not line or size + len(line) > _MAX_CHARS):
            yield "\n".join(block)
            block, size = [], 0
        if line:
            block.append(line)
            size += len(line) + 1


def _group(paragraphs: list[str]) -> list[str]:
    """Consecutive paragraphs joined to about 1000 characters; a rest too short to stand alone is dropped."""
    groups: list[str] = []
    current = ""
    for paragraph in paragraphs:
        joined = f"{current}\n\n{paragraph}" if current else paragraph
        if current and len(joined) > _MAX_CHARS:
            groups.append(current)
            joined = paragraph
        current = joined
        if len(current) >= _TARGET_CHARS:
            groups.append(current)
            current = ""
    if current and groups and len(groups[-1]) + len(current) + 2 <= _MAX_CHARS and len(current) < _MIN_CHARS:
        groups[-1] = f"{groups[-1]}\n\n{current}"
    elif current:
        groups.append(current)
    return [text for text in groups if len(text) >= _MIN_CHARS]
