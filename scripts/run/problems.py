"""What can go wrong with a job, as data: a Problem that was found before it runs, a JobError that ended it.

Both have a name of configs/problems.yaml's, a cause in one sentence and a remedy; each becomes the other
where the same check serves both sides.
"""

import difflib
import errno
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

#: A warning lets the job go on; a forced error does too, because somebody said so with `--force NAME`.
Severity = Literal["error", "warning", "forced"]
_WORDS = {"error": "Problem", "warning": "Warning", "forced": "Forced"}


#: What a terminal obeys instead of showing, but for the ends of lines and tabs; and half characters.
_COMMANDS = re.compile("[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u2028-\\u202e\\u2066-\\u2069\\ud800-\\udfff]")


def shown(text: object) -> str:
    """A text as a terminal can be given it: what it would obey stands there as it is written in a program."""
    return _COMMANDS.sub(lambda match: match[0].encode("unicode_escape").decode(), str(text))


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing wrong with a job: its name, the key and value at fault, the cause, the remedy.

    `can_force`: it is a judgement about a model or a machine, which somebody may know better. What
    cannot be right, or would destroy something, cannot be forced.
    """

    name: str = ""  # inside a check: empty, where it is the check's
    key: str
    value: Any
    cause: str
    remedy: str = ""
    severity: Severity = "error"
    can_force: bool = False

    def __str__(self) -> str:
        where = self.key if self.value is None else f"{self.key}={self.value}"
        remedy = f"  {self.remedy}" if self.remedy else ""
        return f"{_WORDS[self.severity]} {self.name}   {where}: {self.cause}{remedy}"

    def as_data(self) -> dict[str, Any]:
        """As JSON has it, with the sentence that a person reads; a value that JSON does not know is text."""
        known = isinstance(self.value, (str, int, float, bool, list, type(None)))
        return {**vars(self), "value": self.value if known else str(self.value), "text": str(self)}

    def as_error(self) -> "JobError":
        """The same as what ends a job."""
        where = self.key if self.value is None else f"{self.key}={self.value}"
        return JobError(self.name, f"{where}: {self.cause}.", self.remedy)


class ProblemsError(ValueError):
    """A job that cannot run as asked; `problems` holds every reason, not the first one."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = tuple(problems)


class JobError(Exception):
    """A failure that a job understands: its name, the cause in one sentence, and what to do about it.

    Recorded in run.json and printed on the terminal without a traceback; anything else that
    escapes an engine is a defect of ours or of a library and keeps its traceback in logs/.
    """

    def __init__(self, name: str, cause: str, remedy: str = "", *, exit_code: int = 1) -> None:
        super().__init__(f"{name}: {cause}" + (f"  {remedy}" if remedy else ""))
        self.exit_code = exit_code
        self.name = name
        self.cause = cause
        self.remedy = remedy

    def __reduce__(self) -> tuple[Any, ...]:
        """As other processes are sent it."""
        return JobError, (self.name, self.cause, self.remedy), self.__dict__

    @classmethod
    def of_os_error(cls, error: Exception) -> "JobError":
        """A failure of the operating system, as on a full disk, with its name and remedy."""
        if is_disk_full(error):
            return cls("disk_full", f"{error}.", "Free some space, or write elsewhere.")
        return cls("system_error", f"{error}.", "Look at that file or folder, and who may use it.")

    def as_data(self) -> dict[str, str]:
        """As run.json has it."""
        return error_data(self.name, self.cause, self.remedy)

    def as_problem(self, key: str, value: Any = None, **facts: Any) -> Problem:
        """The same as what was found before a job runs, at the key that names it; `facts` are Problem's."""
        return Problem(name=self.name, key=key, value=value, **{"cause": self.cause, "remedy": self.remedy, **facts})


def is_disk_full(error: Exception) -> bool:
    """Whether the disk, or a quota on it, has no room left. Libraries in Rust, as safetensors is, say it in words."""
    numbers = (errno.ENOSPC, errno.EDQUOT)
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in numbers
    return any(f"(os error {number})" in str(error) for number in numbers)


def error_data(name: str, message: str, remedy: str = "") -> dict[str, str]:
    """Why a run ended, as run.json has it under `error`."""
    return {"name": name, "message": message, "remedy": remedy}


def error_line(error: Mapping[str, Any]) -> str:
    """A recorded error as one line: name, message, remedy."""
    return " ".join(part for part in (f"{error['name']}:", error["message"], error["remedy"]) if part)


def install(extra: str) -> str:
    """How to have what an extra of pyproject.toml brings."""
    return f'pip install "modelopt-recipes[{extra}]", or ".[{extra}]" in a checkout.'


def near_miss(word: str, known: Iterable[str], otherwise: str = "", *, cutoff: float = 0.6) -> str:
    """A remedy naming the closest of the words that are known; `otherwise` where none is close."""
    close = difflib.get_close_matches(word, sorted(known), n=1, cutoff=cutoff)
    return f"Did you mean {close[0]}?" if close else otherwise


def nearest(word: str, choices: Iterable[str], *, listed: int = 12) -> str:
    """A remedy naming the closest choice and, when there are few, all of them."""
    names = sorted(choices)
    hint = near_miss(word, names, cutoff=0.5)
    if len(names) <= listed or not hint:
        hint = f"{hint}  Choices: {', '.join(names)}.".strip()
    return hint
