"""Where calibration and evaluation text comes from: files, data set folders, hub names, the built-in corpus."""

import codecs
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from scripts.checkpoints.huggingface import is_adapter, is_model
from scripts.run.files import expanded, is_file, is_folder, is_there
from scripts.run.problems import JobError
from scripts.tiny.corpus import passages

#: Looked for in this order when no key is named.
TEXT_KEYS = (
    *("text", "prompt", "content", "article", "document", "instruction"),
    *("question", "input", "messages", "conversations"),
)
DEFAULT_DATASET = "cnn_dailymail"
#: The text that the built-in models were trained on.
BUILT_IN = "tiny:text"
_ALIASES = {"cnn_dailymail": ("abisee/cnn_dailymail", "3.0.0")}
_SUFFIXES: dict[str, Literal["jsonl", "text"]] = {".jsonl": "jsonl", ".ndjson": "jsonl", ".txt": "text", ".md": "text"}
#: What the data sets library reads as rows of text, or unpacks.
_OF_ROWS = (
    *(".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow", ".txt", ".md", ".xml", ".h5", ".hdf5"),
    *(".lance", ".gz", ".zip", ".bz2", ".xz", ".zst", ".lz4", ".tar"),
)
#: With or without the mark that programs of Windows begin a file with.
_UTF_8 = "utf-8-sig"
_GZIP = b"\x1f\x8b"
_MOST_FILES = 20_000  # that are looked through for one of those
_DATA = 'Data is a JSONL file, each line such as {"text": "..."}, a text file, or a folder of JSONL, Parquet or CSV.'
_ROWS = 'Each line is a text in quotes, or an object that holds one: {"text": "..."}.'


@dataclass(frozen=True, kw_only=True)
class Source:
    """A data set by kind and place; `place` is a path, a hub name, or the built-in split."""

    kind: Literal["builtin", "jsonl", "text", "folder", "hub"]
    place: str


def source_of(dataset: str | None, model: str, *, split: Literal["calibration", "eval"] = "calibration") -> Source:
    """What `dataset` names. None is the built-in text for a tiny model, cnn_dailymail for any other.

    BUILT_IN is that text for a tiny model that is named by its folder.

    Raises JobError `missing_data` for a path that is not there or a folder without data, and
    `unknown_data` for a file or folder of another kind.
    """
    if dataset == BUILT_IN or (dataset is None and model.startswith("tiny:")):
        return Source(kind="builtin", place=split)
    if dataset is None:
        return Source(kind="hub", place=DEFAULT_DATASET)
    path = expanded(dataset)
    if is_folder(path):
        require_rows(path)
        return Source(kind="folder", place=str(path))
    kind = _SUFFIXES.get(path.suffix.lower())
    if is_file(path):
        if kind is None:
            remedy = f"Known endings: {', '.join(_SUFFIXES)}.  {_DATA}"
            raise JobError("unknown_data", f"{path} is neither JSONL nor text.", remedy)
        return Source(kind=kind, place=str(path))
    if is_there(path):
        raise JobError("unknown_data", f"{path} is neither a file nor a folder.", _DATA)
    if kind is not None or dataset.startswith((".", "/", "~")) or dataset.count("/") > 1:
        remedy = "Name a JSONL or text file, a data set folder or a hub name."
        raise JobError("missing_data", f"{path} does not exist.", remedy)
    return Source(kind="hub", place=dataset)


def require_rows(folder: Path) -> None:
    """Raise JobError for a folder that is no data: a run's, a model's (whose JSON would be read), or an empty one."""
    if is_file(folder / "run.json") and is_folder(folder / "logs"):
        raise JobError("unknown_data", f"{folder} is a run directory.", f"Name the data that it left. {_DATA}")
    if is_adapter(folder) or is_model(folder):
        raise JobError("unknown_data", f"{folder} is a model's folder.", _DATA)
    if not any(file.suffix.lower() in _OF_ROWS for file in islice(folder.rglob("*"), _MOST_FILES)):
        cause = f"{folder} {'holds no data' if any(folder.iterdir()) else 'is empty'}."
        raise JobError("missing_data", cause, _DATA)


def read(source: Source, key: str | None) -> Iterator[str]:
    """The texts of `source` in order. Raises JobError naming the file, line and key at fault."""
    if source.kind == "builtin":
        yield from passages("eval" if source.place == "eval" else "calibration")
    elif source.kind == "jsonl":
        yield from _read_jsonl(Path(source.place), key)
    elif source.kind == "text":
        yield from _read_text(Path(source.place))
    else:
        for number, row in enumerate(_rows(source)):
            yield text_of(row, key, f"{source.place} row {number}")


def text_of(row: Any, key: str | None, where: str) -> str:
    """The text of one row; chat messages are joined by line. Raises JobError `no_text`."""
    if isinstance(row, str) and key is None:
        return row
    keys = list(row) if isinstance(row, dict) else []
    found = next((name for name in ([key] if key else TEXT_KEYS) if name in keys), None)
    if found is None:
        wanted = f"no {key}" if key else f"none of {', '.join(TEXT_KEYS)}"
        cause = f"{where} has {wanted}; it has {', '.join(map(str, keys)) or 'no keys'}."
        raise JobError("no_text", cause, _other_key(row))
    value = row[found]
    if isinstance(value, list):
        parts = [part.get("content", part.get("value")) if isinstance(part, dict) else part for part in value]
        value = "\n".join(part for part in parts if isinstance(part, str))
    if not isinstance(value, str):
        raise JobError("no_text", f"{where}: {found} is {type(value).__name__}, not text.", _other_key(row))
    return value


def _other_key(row: Any) -> str:
    """What to do about a row without the text that was looked for: one of its fields may hold it."""
    there = isinstance(row, dict) and any(isinstance(value, (str, list)) for value in row.values())
    return "Set args.calib_text_key." if there else _ROWS


def _read_jsonl(path: Path, key: str | None) -> Iterator[str]:
    with path.open("rb") as handle:
        for number, line in enumerate(handle, 1):
            if not line.strip():
                continue
            where = f"{path} line {number}"
            try:
                row = json.loads(line.decode(_UTF_8))
            except UnicodeDecodeError as error:
                raise _not_utf_8(path, where, error) from error
            except ValueError as error:
                cause = f"{where} is not JSON: {error}."
                raise JobError("unreadable_data", cause, "Each line holds one JSON value.") from error
            yield text_of(row, key, where)


def _read_text(path: Path) -> Iterator[str]:
    """Paragraphs, where blank lines part them; lines otherwise."""
    try:
        text = path.read_text(encoding=_UTF_8)
    except UnicodeDecodeError as error:
        raise _not_utf_8(path, str(path), error) from error
    paragraphs = [part.strip() for part in text.replace("\r\n", "\n").split("\n\n") if part.strip()]
    yield from paragraphs if len(paragraphs) > 1 else [line for line in text.splitlines() if line.strip()]


def _not_utf_8(path: Path, where: str, error: UnicodeDecodeError) -> JobError:
    """What a file is whose bytes are no text in UTF-8, as far as its beginning tells."""
    with path.open("rb") as handle:
        start = handle.read(1 << 10)
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        cause, remedy = f"{path} is UTF-16, not UTF-8", "Convert it first: iconv -f UTF-16 -t UTF-8."
    elif start.startswith(_GZIP):
        cause, remedy = f"{path} is compressed (gzip), no text", "Unpack it first."
    elif b"\0" in start:
        cause, remedy = f"{path} is no text, but binary data", _DATA
    else:
        cause, remedy = f"{where} is not UTF-8: {error}", "Convert it first."
    return JobError("unreadable_data", f"{cause}.", remedy)


def _rows(source: Source) -> Iterator[Any]:
    import datasets

    try:
        if source.kind == "folder" and any(Path(source.place).rglob("state.json")):
            loaded = datasets.load_from_disk(source.place)
        elif source.kind == "folder":
            loaded = datasets.load_dataset(source.place)
        else:
            name, config = _ALIASES.get(source.place, (source.place, None))
            loaded = datasets.load_dataset(name, config, streaming=True)
    except Exception as error:  # the library raises a dozen kinds for names it cannot fetch or files it cannot read
        cause = f"{source.place}: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise JobError("missing_data", cause, "Name a local file with args.calib_dataset.") from error
    if isinstance(loaded, dict):  # several splits: the training one, else the first
        loaded = loaded["train"] if "train" in loaded else next(iter(loaded.values()))
    yield from loaded
