"""What the keys of a profile may hold, said where each is declared, and what every kind's profile is checked for."""

import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, fields
from typing import Any

from scripts.run.problems import Problem

VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, kw_only=True)
class _Constraint:
    needed: bool = False
    least: int | None = None
    pattern: str = ""  # of the whole value; of a list each item
    choices: Collection[str] = ()
    expected: str = ""  # in words
    remedy: str = ""

    def fault(self, value: Any) -> str:
        """What is wrong with a value that is there; empty where nothing is."""
        if self.least is not None and value < self.least:
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


def environment_problems(profile: Any, reserved: Collection[str]) -> Iterator[Problem]:
    """Variables that cannot be set, or that are set for each job; of secrets none is shown, for it might be one."""
    for name, value in profile.env.items():
        if not VARIABLE.fullmatch(name):
            yield wrong(f"env.{name}", None, "this is no name of a variable", "Letters, digits and _ are.")
        elif name in reserved:
            yield wrong(f"env.{name}", None, "it is set for each job", "Remove it.")
        elif "\0" in value:
            yield wrong(f"env.{name}", None, "a variable cannot hold a NUL character")
        elif name in profile.secrets:
            remedy = "Keep it in secrets, so that its value stays out of files."
            yield wrong(f"env.{name}", None, "it is in env and in secrets", remedy, "contradiction")
    for name in profile.secrets:
        if not VARIABLE.fullmatch(name):
            remedy = "Write secrets: [HF_TOKEN], and set HF_TOKEN where you submit."
            yield wrong("secrets", None, "names of variables are expected", remedy)
        elif name in reserved:
            yield wrong("secrets", name, "it is set for each job", "Remove it.")
