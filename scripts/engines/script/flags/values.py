"""What an expression of a script can be told to be without running it, and what can be done with that.

A literal is itself: a str, a number, None, or a list, tuple, set or dict of these and of the kinds below.
"""

import ast
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from scripts.engines.script.flags.interface import Flag

_ANNOTATIONS = ("ArgumentParser", "_ArgumentGroup", "_SubParsersAction", "_ActionsContainer")
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
COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
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


class Unknown:
    """What cannot be told."""

    def __repr__(self) -> str:
        return "unknown"


UNKNOWN: Final = Unknown()
PARSER_METHODS: Final = frozenset(
    {
        *("add_argument", "add_argument_group", "add_mutually_exclusive_group", "add_subparsers", "add_parser"),
        *("parse_args", "parse_intermixed_args", "parse_known_args", "parse_known_intermixed_args"),
    }
)


@dataclass(kw_only=True, eq=False)
class Scope:
    """The names of a module, a class or one call of a function."""

    path: Path
    parent: "Scope | None" = None
    names: dict[str, Any] = field(default_factory=dict)
    stars: list["Imported"] = field(default_factory=list)  # from module import *
    of_class: bool = False  # its names are seen by the class body, not by the methods

    def holder(self, name: str) -> "Scope | None":
        """The scope, this one or one around it, that binds `name`."""
        scope: Scope | None = self
        while scope is not None and name not in scope.names:
            scope = scope.parent
        return scope

    @property
    def module(self) -> "Scope":
        return self if self.parent is None else self.parent.module


@dataclass(frozen=True, kw_only=True)
class Imported:
    """A name that another module owns, not looked up before it matters."""

    dotted: str
    origin: Path  # the file that imports it
    depth: int = 0  # how many of its parts name a module for certain: 2 in `from a.b import c`

    @property
    def name(self) -> str:
        return self.dotted.rpartition(".")[2]

    def attribute(self, name: str) -> "Imported":
        return replace(self, dotted=f"{self.dotted}.{name}")

    def sibling(self, name: str) -> "Imported":
        """Another name of the same module."""
        return replace(self, dotted=self.dotted.removesuffix(self.name) + name)


@dataclass(frozen=True, kw_only=True)
class Builtin:
    """A name of Python itself."""

    name: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Function:
    """A function or lambda of the script, or of a module that it imports."""

    node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
    scope: Scope  # where it was defined
    bound: Any = None  # what its first parameter is, where it is a method

    @property
    def name(self) -> str:
        return "lambda" if isinstance(self.node, ast.Lambda) else self.node.name

    @property
    def parameters(self) -> tuple[ast.arg, ...]:
        own = self.node.args
        return (*own.posonlyargs, *own.args, *own.kwonlyargs)

    def parser_parameters(self) -> list[str]:
        """The parameters that are parsers: by name, by annotation, or because flags are added to them."""
        used = {
            one.value.id
            for one in ast.walk(self.node)
            if isinstance(one, ast.Attribute) and one.attr in PARSER_METHODS and isinstance(one.value, ast.Name)
        }
        found = []
        for one in self.parameters:
            annotation = "" if one.annotation is None else ast.unparse(one.annotation).strip("'\"")
            if one.arg in used or one.arg.lower().endswith("parser") or annotation.endswith(_ANNOTATIONS):
                found.append(one.arg)
        return found

    def decorated(self, name: str) -> bool:
        decorators = [] if isinstance(self.node, ast.Lambda) else self.node.decorator_list
        return any(isinstance(one, ast.Name) and one.id == name for one in decorators)

    def bind(self, owner: Any) -> "Function":
        """The function as a method of `owner`."""
        return self if self.decorated("staticmethod") else replace(self, bound=owner)


@dataclass(frozen=True, kw_only=True, eq=False)
class Class:
    """A class; its scope holds its methods and constants."""

    name: str
    bases: tuple[Any, ...]
    scope: Scope

    def attribute(self, name: str) -> Any:
        """A method or constant as the class has it, its own or inherited from a class that is known."""
        if name in self.scope.names:
            found = self.scope.names[name]
            return found.bind(UNKNOWN) if isinstance(found, Function) and found.decorated("classmethod") else found
        for base in self.bases:
            if isinstance(base, Class) and (found := base.attribute(name)) is not UNKNOWN:
                return found
        return UNKNOWN

    @property
    def is_parser(self) -> bool:
        """Whether it derives from argparse.ArgumentParser."""
        return any(
            base.dotted == "argparse.ArgumentParser" if isinstance(base, Imported) else base.is_parser
            for base in self.bases
            if isinstance(base, Imported | Class)
        )


@dataclass(kw_only=True, eq=False)
class Parser:
    """An argparse parser, with everything that is added to its groups and subparsers."""

    kind: Class | None = None  # a class derived from argparse.ArgumentParser
    flags: list[Flag] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    under: tuple[str, ...] = ()  # the subcommand, with its aliases, whose parser this is


@dataclass(frozen=True, kw_only=True, eq=False)
class Method:
    """`parser.add_argument` and the like, not called yet."""

    parser: Parser
    name: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Arguments:
    """The values of a call."""

    positional: tuple[Any, ...]
    keywords: dict[str, Any]
    whole: bool = True  # False: *args or **kwargs brought some that cannot be told
    nodes: dict[str, ast.expr] = field(default_factory=dict)  # what the keywords were written as

    def __iter__(self) -> Iterator[Any]:
        return iter((*self.positional, *self.keywords.values()))


@dataclass(frozen=True, kw_only=True, eq=False)
class Pending:
    """The result of an imported function that is not followed before its result matters."""

    callee: Imported
    arguments: Arguments


@dataclass(frozen=True, kw_only=True, eq=False)
class Later:
    """An expression that another module's constant decides, evaluated when it matters."""

    node: ast.expr
    scope: Scope


def literal(value: Any) -> bool:
    """Whether a value is fully told."""
    if isinstance(value, list | tuple | set | frozenset):
        return all(map(literal, value))
    if isinstance(value, dict):
        return all(map(literal, value)) and all(map(literal, value.values()))
    return value is None or isinstance(value, str | bytes | int | float | complex | range)


def identity(value: Any) -> Any:
    """Equal for values that a function cannot tell apart, so that it is walked once for them."""
    match value:
        case list() | tuple():
            return tuple(map(identity, value))
        case dict():
            return tuple((name, identity(one)) for name, one in value.items())
        case Function():
            return id(value.node), identity(value.bound)
        case Imported() | Builtin():
            return value
        case Pending() | Later():
            return type(value)
    return repr(value) if literal(value) else id(value)


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


def truth(value: Any) -> bool | None:
    """Whether a value counts as true; None where that cannot be told."""
    if literal(value) or isinstance(value, list | tuple | set | dict):
        return bool(value)
    return True if isinstance(value, Parser) else None


def elements(value: Any) -> list[Any] | None:
    """What a loop over `value` meets, in order; None where that cannot be told."""
    return list(value) if isinstance(value, list | tuple | dict | range | str) and short(value) else None


def all_same(values: Sequence[Any]) -> Any:
    """What is left of several possible values: the first parser, or the value that all are; None of none."""
    first = next((value for value in values if isinstance(value, Parser)), values[0] if values else None)
    if isinstance(first, Parser):
        return first
    alike = all(one is first or (literal(one) and literal(first) and one == first) for one in values)
    return first if alike else UNKNOWN


def short(value: Any) -> bool:
    """Whether a value is a number, or a literal that is not too long to work with."""
    if isinstance(value, list | tuple | set | dict | str | bytes | range):
        return len(value) <= _LONGEST
    return value is None or isinstance(value, int | float)


def parsers_in(value: Any) -> list[Parser]:
    """The parsers that a value holds."""
    if isinstance(value, Parser):
        return [value]
    if isinstance(value, Method):
        return [value.parser]
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, list | tuple | set):
        return [parser for one in value for parser in parsers_in(one)]
    return []
