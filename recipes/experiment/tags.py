"""Names that people give to artifacts, which stand for them wherever a reference does: `qwen3-fp8`, `qwen3-fp8:v2`.

They are kept on the submitting machine beside its runs. A name may be moved; nothing else changes one.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from executors.base import nemorun_home
from recipes.experiment.run_ids import ENDING, LATEST
from scripts.run import schema
from scripts.run.files import locked, write_json
from scripts.run.problems import JobError, Problem, ProblemsError

#: A version after the colon; without one it is the name's `latest`.
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}(:[A-Za-z0-9_-]{1,64})?")
_SCHEMA = 1
_FILE = {"schema": schema.one_of(_SCHEMA), "tags": dict}
_TAG = {"run": schema.run_id, "type": str, "digest": (str, None)}
_LOCK_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True)
class Tag:
    """What a name stands for: an output of a run, of the content that it had when it was named."""

    run: str
    type: str
    digest: str | None


def tags() -> dict[str, Tag]:
    """Every name. Raises JobError `damaged_record` where the file of them cannot be read."""
    try:
        held = schema.read(_path(), _FILE)["tags"]
        return {name: Tag(**{key: schema.fitting(one, _TAG).get(key) for key in _TAG}) for name, one in held.items()}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:
        raise JobError("damaged_record", f"{_path()}: {error}.", "Put it right, or remove it.") from error


def tag_of(word: str) -> Tag | None:
    """What a word names, if it is one of these names."""
    return tags().get(_whole(word)) if _NAME.fullmatch(word) else None


def give(name: str, tag: Tag) -> Tag | None:
    """Have a name stand for an artifact; what it stood for before. Raises ProblemsError for what is no name."""
    cause = "a name is letters, digits, `_` and `-`, and begins with a letter; :VERSION may follow"
    if not _NAME.fullmatch(name) or name.partition(":")[0] == LATEST or ENDING.search(name):
        cause = f"`{LATEST}` is the last run of all" if name.startswith(LATEST) else cause
        cause = "it ends as the ids of runs do" if ENDING.search(name) else cause
        raise ProblemsError([Problem(name="bad_tag", key="NAME", value=name, cause=cause)])
    with _changing() as held:
        before = held.get(_whole(name))
        held[_whole(name)] = tag
    return before


def take(name: str) -> Tag:
    """Forget a name; what it stood for. Raises ProblemsError where there is none."""
    with _changing() as held:
        if _whole(name) not in held:
            remedy = f"There are {', '.join(held)}." if held else "There is none yet."
            wrong = Problem(name="bad_tag", key="NAME", value=name, cause="nothing is called so", remedy=remedy)
            raise ProblemsError([wrong])
        return held.pop(_whole(name))


@contextmanager
def _changing() -> Iterator[dict[str, Tag]]:
    """The names, to be changed by one process at a time, and written when the block ends well. Raises JobError."""
    try:
        _path().parent.mkdir(parents=True, exist_ok=True)
        with locked(_path().with_suffix(".lock"), seconds=_LOCK_SECONDS):
            held = tags()
            yield held
            write_json(_path(), {"schema": _SCHEMA, "tags": {name: asdict(one) for name, one in held.items()}})
    except (OSError, TimeoutError) as error:
        raise JobError.of_os_error(OSError(*error.args)) from error


def _whole(name: str) -> str:
    return name if ":" in name else f"{name}:{LATEST}"


def _path() -> Path:
    return Path(nemorun_home()) / "artifacts" / "tags.json"
