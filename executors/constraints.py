"""What the keys of a profile may hold, said where each is declared, and what every kind's profile is checked for."""

import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, fields
from typing import Any

from scripts.run.problems import Problem

VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
#: Of `secrets` that hold something else: cause and remedy.
NO_NAMES = ("names of variables are expected", "Write secrets: [HF_TOKEN], and set HF_TOKEN where you submit.")


@dataclass(frozen=True, kw_only=True)
class _Constraint:
    needed: bool = False
    least: int | None = None
    pattern: str = ""  # of the whole value; of a list each item
    choices: Collection[str] = ()
    expected: str = ""  # in words
    remedy: str = ""
    first: str = ""  # what users write here before they use a new profile

    def fault(self, value: Any) -> str:
        """What is wrong with a value that is there; empty where nothing is."""
        if self.least is not None and isinstance(value, int) and value < self.least:
            return self.expected or f"a number from {self.least} on is expected"
        if self.pattern and not re.fullmatch(self.pattern, value):
            return self.expected
        return f"one of {', '.join(self.choices)} is expected" if self.choices and value not in self.choices else ""


def key(default: Any, **constraint: Any) -> Any:
    """A key of a profile: its default, or what makes it, and what it may hold. An absolute path is "/.*"."""
    metadata = {"constraint": _Constraint(**constraint)}
    if isinstance(default, Callable):  # type: ignore[arg-type]  # list, dict
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


def wrong(key: str, value: Any, cause: str, remedy: str = "", name: str = "wrong_value") -> Problem:
    """A Problem of a profile's key."""
    return Problem(name=name, key=f"executor.{key}", value=value, cause=cause, remedy=remedy)


def to_set_first(profile: type) -> dict[str, str]:
    """The keys that a profile of one's own is useless without, and what to write there; not all of them are needed."""
    marked = {one.name: one.metadata.get("constraint") for one in fields(profile)}
    return {name: constraint.first for name, constraint in marked.items() if constraint and constraint.first}


def value_problems(profile: Any) -> Iterator[Problem]:
    """What each key says of itself."""
    for one in fields(profile):
        constraint, value = one.metadata.get("constraint"), getattr(profile, one.name)
        if constraint is None:
            continue
        if not value and constraint.needed:
            remedy = (
                constraint.remedy or f"Set {one.name} in the profile, or executor.{one.name}=... on the command line."
            )
            yield wrong(one.name, None, "it is needed", remedy, "missing_value")
        for item in value if isinstance(value, list) else () if value in (None, "") else [value]:
            if cause := constraint.fault(item):
                yield wrong(one.name, item, cause, constraint.remedy)


def variable_fault(name: str, value: Any, reserved: Collection[str]) -> tuple[str, str]:
    """What is wrong with a variable that a job is to be given, and the remedy; empty where nothing is."""
    if not VARIABLE.fullmatch(name):
        return "a variable's name is letters, digits and `_`, and begins with no digit", ""
    if name in reserved:
        return f"{name} is set for each job by the executor", "Remove it."
    return ("no variable can hold a NUL character", "") if "\0" in str(value) else ("", "")


def environment_problems(profile: Any, reserved: Collection[str]) -> Iterator[Problem]:
    """Variables that cannot be set, or that are set for each job; of secrets none is shown, for it might be one."""
    for name, value in profile.env.items():
        cause, remedy = variable_fault(name, value, reserved)
        if cause:
            yield wrong(f"env.{name}", None, cause, remedy)
        elif name in profile.secrets:
            remedy = "Keep it in secrets, so that its value stays out of files."
            yield wrong(f"env.{name}", None, "it is in env and in secrets", remedy, "contradiction")
    for name in profile.secrets:
        if not VARIABLE.fullmatch(name):
            yield wrong("secrets", None, *NO_NAMES)
        elif name in reserved:
            yield wrong("secrets", name, "it is set for each job", "Remove it.")
