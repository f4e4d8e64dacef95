"""The text that prepare_data tokenizes: found, checked, and laid out as JSONL in one folder."""

import codecs
import gzip
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import IO, Any, cast

from scripts.args.data import PrepareDataArgs
from scripts.data import texts
from scripts.data.texts import BUILT_IN
from scripts.engines.installed import missing_tool
from scripts.run.files import expanded, is_file, is_folder
from scripts.run.problems import JobError, Problem
from scripts.run.registry import check

_JSONL, _TEXT, _GZ = (".jsonl", ".ndjson", ".json"), (".txt", ".md"), ".gz"
_CHUNK = 1 << 20
_SHOWN_KEYS = 12
_JSON_OBJECTS = "Each line holds one JSON object, in UTF-8."


@dataclass(frozen=True, kw_only=True)
class DataSource:
    """One file of text."""

    name: str  # as it was given
    file: Path  # JSONL in the folder that the script reads, a link where the original is JSONL
    documents: int  # its lines, blank ones too

    @property
    def compressed(self) -> bool:
        return self.file.suffix == _GZ


@check("one_data_source", args=PrepareDataArgs, where="both")
def data_source(job: Any) -> Iterator[Problem]:
    """There is one, and one only."""
    args: PrepareDataArgs = job.resolved
    given = {"jsonl_paths": args.jsonl_paths, "input_dir": args.input_dir, "hf_dataset": args.hf_dataset}
    named = [f"args.{key}" for key, value in given.items() if value]
    if len(named) != 1:
        cause = f"{' and '.join(named)} are all set" if named else "nothing says what to tokenize"
        remedy = "Set one of args.jsonl_paths, args.input_dir and args.hf_dataset."
        yield Problem(key=named[-1] if named else "args.jsonl_paths", value=None, cause=cause, remedy=remedy)


@check("out_of_range", args=PrepareDataArgs, where="both")
def fields_to_tokenize(job: Any) -> Iterator[Problem]:
    """There is a field to take the text from."""
    if not job.resolved.json_keys:
        yield Problem(key="args.json_keys", value=[], cause="at least one field is needed")


@check("megatron_core_missing", args=PrepareDataArgs, where="both")
def megatron_core(job: Any) -> Iterator[Problem]:
    """The Python that is to run it can write the data."""
    if job.in_this_python and (missing := missing_tool(PrepareDataArgs)):
        cause = "the data's format is Megatron-Core's, and this Python has no megatron.core"
        remedy = f"Use a NeMo container, or: {missing}"
        yield Problem(key="executor", value=None, cause=cause, remedy=remedy)


def gather(args: PrepareDataArgs, folder: Path) -> list[DataSource]:
    """Make `folder` hold every file that `args` names as JSONL, each under a name of its own.

    JSONL is linked, or copied where it begins with a byte order mark; text is written, a row for each document. The
    script calls an output after its input and skips one that is there, so of two data.jsonl the second would be left
    out in silence: it becomes data-2. Raises JobError `missing_data`, `unknown_data`, `unreadable_data` or `no_text`.
    """
    folder.mkdir()
    taken: set[str] = set()
    return [_source(name, folder, taken, args.json_keys) for name in _names(args)]


def _names(args: PrepareDataArgs) -> Iterator[str]:
    for name in args.jsonl_paths or ([args.input_dir] if args.input_dir else []):
        path = expanded(name)
        if name == BUILT_IN or not is_folder(path):
            yield name
            continue
        files = [file for file in sorted(path.iterdir()) if file.is_file() and _ending(file) in (*_JSONL, *_TEXT)]
        if not files:
            raise JobError("missing_data", f"{path} has no JSONL or text file in it.", "Name the folder of the files.")
        yield from map(str, files)


def _ending(path: Path) -> str:
    """The ending that says what a file holds: of data.jsonl.gz the one before .gz."""
    inner = path.with_suffix("") if path.suffix == _GZ else path
    return inner.suffix.lower() if path.suffix != _GZ or inner.suffix.lower() in _JSONL else path.suffix


def _source(name: str, folder: Path, taken: set[str], keys: Sequence[str]) -> DataSource:
    if name == BUILT_IN:
        passages = texts.read(texts.Source(kind="builtin", place="calibration"), None)
        return _written(name, folder / _unique("tiny-text", taken), passages, keys)
    path = expanded(name).absolute()
    if not is_file(path):
        raise JobError("missing_data", f"{path} does not exist.", "Name JSONL or text files.")
    stem = path.with_suffix("").stem if path.suffix == _GZ else path.stem
    if _ending(path) in _TEXT:
        paragraphs = texts.read(texts.Source(kind="text", place=str(path)), None)
        return _written(name, folder / _unique(stem, taken), paragraphs, keys)
    if _ending(path) not in _JSONL:
        known = f"Known endings: {', '.join((*_JSONL, *_TEXT))}, and {_GZ} after those of JSONL."
        raise JobError("unknown_data", f"{path} is neither JSONL nor text.", known)
    documents, unique = _surveyed(path, keys), _unique(stem, taken)
    file = folder / (unique + (_GZ if path.suffix == _GZ else ""))
    if _is_marked(path):  # the script takes the mark for a part of the first row
        file = folder / unique
        with _opened(path) as given, file.open("wb") as copy:
            given.seek(len(codecs.BOM_UTF8))
            shutil.copyfileobj(given, copy)
    else:
        file.symlink_to(path)
    return DataSource(name=name, file=file, documents=documents)


def _is_marked(path: Path) -> bool:
    """Whether UTF-8 begins with the byte order mark that programs of Windows write."""
    with _opened(path) as handle:
        return handle.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8


def _unique(stem: str, taken: set[str]) -> str:
    name = next(name for number in count(1) if (name := stem if number == 1 else f"{stem}-{number}") not in taken)
    taken.add(name)
    return f"{name}.jsonl"


def _written(name: str, file: Path, documents: Iterable[str], keys: Sequence[str]) -> DataSource:
    if len(keys) != 1:
        cause = f"{name} is text, with no fields to tell {' and '.join(keys)} apart."
        raise JobError("no_text", cause, "Give args.json_keys one name, or JSONL.")
    written = 0
    with file.open("w", encoding="utf-8") as handle:
        for text in documents:
            handle.write(json.dumps({keys[0]: text}, ensure_ascii=False) + "\n")
            written += 1
    return DataSource(name=name, file=file, documents=written)


def _surveyed(path: Path, keys: Sequence[str]) -> int:
    """The number of lines. The first row must have the fields: the script finds out after it has loaded everything."""
    try:
        with _opened(path) as handle:
            first = next((line for line in handle if line.strip()), None)
            row = None if first is None else json.loads(first)
        lines = _lines(path)
    except (OSError, EOFError, ValueError) as error:
        raise JobError("unreadable_data", f"{path} is not JSONL: {error}.", _JSON_OBJECTS) from error
    if not isinstance(row, dict):
        cause = f"{path} is empty." if row is None else f"{path}: its first line is no JSON object."
        raise JobError("unreadable_data", cause, _JSON_OBJECTS)
    missing = [key for key in keys if key not in row]
    if missing:
        cause = f"{path} has no {' and no '.join(missing)}; it has {', '.join([*row][:_SHOWN_KEYS]) or 'no fields'}."
        raise JobError("no_text", cause, "Set args.json_keys.")
    return lines


def _lines(path: Path) -> int:
    breaks, last = 0, b"\n"
    with _opened(path) as handle:
        while chunk := handle.read(_CHUNK):
            breaks += chunk.count(b"\n")
            last = chunk[-1:]
    return breaks + (last != b"\n")


def _opened(path: Path) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(path, "rb")) if path.suffix == _GZ else path.open("rb")
