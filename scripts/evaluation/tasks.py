"""The tasks that ship: questions on the text that was kept from the built-in models, so that no network is needed."""

import glob
import json
from pathlib import Path
from typing import Any

from configs import CONFIGS
from scripts.run.files import write_text
from scripts.tiny.corpus import passages

_SHIPPED = CONFIGS / "evaluate" / "tasks"
#: Of a choice: words of the beginning, words of a continuation, and how many continuations there are.
_CONTEXT_WORDS, _NEXT_WORDS, _CHOICES = 40, 12, 4


def write_tasks(folder: Path) -> Path:
    """Write the shipped tasks with their rows to `folder`. The harness takes absolute paths of data, as patterns."""
    import yaml

    for file in sorted(_SHIPPED.glob("*.yaml")):
        task = yaml.safe_load(file.read_text(encoding="utf-8"))
        files = task["dataset_kwargs"]["data_files"]
        task["dataset_kwargs"]["data_files"] = {split: glob.escape(str(folder / name)) for split, name in files.items()}
        write_text(folder / file.name, yaml.safe_dump(task, sort_keys=False))
    _write_rows(folder / "tiny_text.jsonl", [{"text": text} for text in passages("eval")])
    _write_rows(folder / "tiny_choice.jsonl", _choices())
    return folder


def _choices() -> list[dict[str, Any]]:
    """For each part of each passage: its beginning, and its continuation among those of other passages."""
    parts = [part for text in passages("eval") for part in _parts(text)]
    rows = []
    for number, (context, continuation) in enumerate(parts):
        others = [parts[(number + step * (len(parts) // _CHOICES)) % len(parts)][1] for step in range(1, _CHOICES)]
        answer = number % _CHOICES
        rows.append(
            {"context": context, "choices": [*others[:answer], continuation, *others[answer:]], "answer": answer}
        )
    return rows


def _parts(text: str) -> list[tuple[str, str]]:
    words = text.split()
    length = _CONTEXT_WORDS + _NEXT_WORDS
    starts = range(0, len(words) - length + 1, length)
    return [
        (" ".join(words[start : start + _CONTEXT_WORDS]), " ".join(words[start + _CONTEXT_WORDS : start + length]))
        for start in starts
    ]


def _write_rows(file: Path, rows: list[dict[str, Any]]) -> None:
    write_text(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
