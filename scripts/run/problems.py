"""Problems: what preflight found wrong, each with what would be right."""

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

#: A warning lets the job go on; a forced error does too, because somebody said so with `--force NAME`.
Severity = Literal["error", "warning", "forced"]
_WORDS = {"error": "Problem", "warning": "Warning", "forced": "Forced"}


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


class ProblemsError(ValueError):
    """A job that cannot run as asked; `problems` holds every reason, not the first one."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = tuple(problems)


def nearest(word: str, choices: Iterable[str], *, listed: int = 12) -> str:
    """A remedy naming the closest choice and, when there are few, all of them."""
    names = sorted(choices)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    hint = f"Did you mean {close[0]}?" if close else ""
    if len(names) <= listed or not close:
        hint = f"{hint}  Choices: {', '.join(names)}.".strip()
    return hint
