"""Literals of a script: what can be done with them that needs no code of it to run."""

import ast
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any

from scripts.engines.script.values import UNKNOWN, Builtin, Parser, literal

#: A longer literal than this is no list of choices, and a script could make one that never ends.
_LONGEST = 10_000
_TEXT_METHODS = frozenset({"join", "lower", "lstrip", "replace", "rstrip", "split", "strip", "title", "upper"})
_DICT_METHODS = frozenset({"copy", "get", "items", "keys", "values"})
#: What a script's own mistake, or a value that is not told, raises here.
FAULTS = (TypeError, ValueError, LookupError, ArithmeticError, AttributeError)
_COPYING: dict[str, Callable[..., Any]] = {
    "dict": dict,
    "enumerate": lambda *given: list(enumerate(*given)),
    "frozenset": set,
    "len": len,
    "list": list,
    "range": range,
    "reversed": lambda given: list(reversed(given)),
    "set": set,
    "sorted": sorted,
    "tuple": tuple,
    "zip": lambda *given: list(zip(*given, strict=False)),
}
_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: lambda a, b: a == b,
    ast.NotEq: lambda a, b: a != b,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
    ast.Is: lambda a, b: a is b,
    ast.IsNot: lambda a, b: a is not b,
    ast.Lt: lambda a, b: a < b,
    ast.LtE: lambda a, b: a <= b,
    ast.Gt: lambda a, b: a > b,
    ast.GtE: lambda a, b: a >= b,
}


def rearranged(callee: Any, base: Any, method: str, given: list[Any]) -> Any:
    """The result of a call that only rearranges literals, as list(CHOICES) or CHOICES.keys() do; else UNKNOWN."""
    with suppress(*FAULTS):
        if callee == Builtin(name="str"):
            return str(given[0]) if literal(given[0]) else UNKNOWN
        if isinstance(callee, Builtin):
            return _COPYING[callee.name](*given)
        if isinstance(base, str) and method in _TEXT_METHODS and all(map(literal, given)):
            return getattr(base, method)(*given)
        if isinstance(base, dict) and method in _DICT_METHODS:
            found = getattr(base, method)(*given)
            return list(found) if method in ("items", "keys", "values") else found
    return UNKNOWN


def compared(operator: ast.cmpop, one: Any, other: Any) -> Any:
    """`one < other` and the like, of literals."""
    with suppress(*FAULTS):
        return _COMPARISONS[type(operator)](one, other)
    return UNKNOWN


def truth(value: Any) -> bool | None:
    """Whether a value counts as true; None where that cannot be told."""
    if literal(value) or isinstance(value, list | tuple | set | dict):
        return bool(value)
    return True if isinstance(value, Parser) else None


def elements(value: Any) -> list[Any] | None:
    """What a loop over `value` meets, in order; None where that cannot be told."""
    return list(value) if isinstance(value, list | tuple | dict | range | str) and short(value) else None


def same(one: Any, other: Any) -> Any:
    """What is left of two possible values: a parser, or the value that both are."""
    for value in (one, other):
        if isinstance(value, Parser):
            return value
    return one if one is other or (literal(one) and literal(other) and one == other) else UNKNOWN


def all_same(values: Iterable[Any]) -> Any:
    """`same` of any number of values; None of none."""
    found: Iterator[Any] = iter(values)
    result = next(found, None)
    for value in found:
        result = same(result, value)
    return result


def short(value: Any) -> bool:
    """Whether a value is a number, or a literal that is not too long to work with."""
    if isinstance(value, list | tuple | set | dict | str | bytes | range):
        return len(value) <= _LONGEST
    return value is None or isinstance(value, int | float)


def spread(value: Any, parts: int) -> list[Any]:
    """The values of the targets in `a, b = value`."""
    found = elements(value)
    return found if found is not None and len(found) == parts else [UNKNOWN] * parts
