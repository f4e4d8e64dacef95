"""JSON from a place that others may write to: read with limits, and checked against what this product writes.

A schema is a type; a function that says whether a value fits; a dict of keys with a schema each (`key?` may be
absent, others are let through); a list of one schema; a tuple of choices.
"""

import json
import math
import re
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from scripts.run.files import read_limited

#: The most that run.json and job.json may hold. Theirs are some KB.
MAX_BYTES = 8 << 20
_MAX_DEPTH = 64  # the values of a recipe are ten deep
_MAX_DIGITS = 18
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_NAMES = {str: "a text", int: "an integer", float: "a number", bool: "true or false", dict: "an object", list: "a list"}


def parse(content: bytes, *, digits: int = _MAX_DIGITS, halves: bool = False) -> dict[str, Any]:
    """A JSON object, with integers of so many digits. Raises ValueError.

    It can be written again, unless `halves` of characters, which nothing can print or encode, may be in it.
    """

    def integer(text: str) -> int:
        if len(text) > digits:
            raise ValueError(f"{text[:40]} is no number that is written there")
        return int(text)

    try:
        value = json.loads(content, parse_int=integer)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("it is no JSON object")
    level: list[Any] = [value]
    for _ in range(_MAX_DEPTH):
        parts = (part.values() if isinstance(part, dict) else part for part in level)
        level = [inner for part in parts for inner in part if isinstance(inner, (dict, list))]
    if level:
        raise ValueError("it is nested too deeply")
    if not halves and _SURROGATE.search(content):
        json.dumps(value, ensure_ascii=False).encode()
    return value


def read(path: Path, schema: Any = dict) -> dict[str, Any]:
    """The JSON object in a file, as `schema` has it. Raises OSError, or ValueError saying what is wrong with it."""
    found: dict[str, Any] = fitting(parse(read_limited(path, MAX_BYTES)), schema)
    return found


def fitting(value: Any, schema: Any) -> Any:
    """`value`, if it is as `schema` says. Raises ValueError."""
    if said := misfit(value, schema, ""):
        raise ValueError(said)
    return value


def misfit(value: Any, schema: Any, where: str) -> str | None:
    """What of `value` is not as `schema` says; None where it fits."""
    if isinstance(schema, tuple):
        misfits = [misfit(value, choice, where) for choice in schema]
        return None if None in misfits else misfits[0]
    if schema is None or isinstance(schema, type):
        fits = value is None if schema is None else type(value) in ((int, float) if schema is float else (schema,))
        return None if fits else f"{where or 'it'} is not {_NAMES[schema] if schema else 'null'}"
    if callable(schema):
        return None if schema(value) else f"{where} is not {schema.__doc__}"
    if said := misfit(value, dict if isinstance(schema, dict) else list, where):
        return said
    if isinstance(schema, list):
        items = (misfit(item, schema[0], f"{where}[{index}]") for index, item in enumerate(value))
        return next(filter(None, items), None)
    for key, inner in schema.items():
        name = key.removesuffix("?")
        inside = f"{where}.{name}".lstrip(".")
        said = f"{inside} is missing" if key == name and name not in value else None
        if said := said or (misfit(value[name], inner, inside) if name in value else None):
            return said
    return None


def mapping(value: Any) -> dict[str, Any]:
    """A JSON object; an empty one in the place of anything else."""
    return value if isinstance(value, dict) else {}


def listed(value: Any) -> list[Any]:
    """A JSON array; an empty one in the place of anything else."""
    return value if isinstance(value, list) else []


def number(value: Any, most: float = math.inf) -> float | None:
    """A finite number, smaller than `most` in its size; None in the place of anything else."""
    known = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < most
    return float(value) if known else None


def one_of(*choices: object) -> Callable[[Any], bool]:
    """A schema: one of these."""

    def fits(value: Any) -> bool:
        return value in choices

    fits.__doc__ = "one of " + ", ".join(map(str, choices))
    return fits


def timestamp(value: Any) -> bool:
    """a time"""
    with suppress(ValueError, TypeError, OverflowError, OSError):
        return datetime.fromisoformat(value).timestamp() > 0
    return False


def process_id(value: Any) -> bool:
    """a process id"""
    return type(value) is int and 0 < value < 1 << 31


def run_id(value: Any) -> bool:
    """a run's id"""
    return isinstance(value, str) and re.fullmatch(r"\w[\w.,=+-]*", value) is not None


#: A process, as identity.py tells them apart.
IDENTITY = {
    **{f"{key}?": (str, None) for key in ("host", "boot", "pid_namespace")},
    **{"pid": process_id, "started": float, "ticks?": (int, None)},
}
