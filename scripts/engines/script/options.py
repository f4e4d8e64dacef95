"""One `add_argument` call, as a Flag."""

import ast
from dataclasses import replace
from typing import Any

from scripts.engines.script.flags import Flag, FlagKind
from scripts.engines.script.values import UNKNOWN, Arguments, Builtin, Class, Function, Imported, literal

_KINDS: dict[str, FlagKind] = {
    "store_true": "on",
    "store_false": "off",
    "store_const": "on",
    "append": "append",
    "append_const": "on",
    "count": "on",
    "extend": "list",
    "help": "on",
    "version": "on",
    "BooleanOptionalAction": "toggle",
}


def flag_of(arguments: Arguments) -> Flag | None:
    """The flag that these arguments of add_argument make; None for a positional or where no name can be told."""
    names = tuple(name for name in arguments.positional if isinstance(name, str) and name.startswith("-"))
    if not names:
        return None
    kind = _kind(arguments.keywords)
    return Flag(
        names=names,
        kind=kind,
        type=_type(arguments),
        choices=_choices(arguments.keywords),
        required=arguments.keywords.get("required") is True,
        default=None if kind in ("on", "off") else _default(arguments),
    )


def merged(one: Flag, other: Flag) -> Flag:
    """Two flags of one name, as subcommands have them: either's spellings and choices."""
    names = (*one.names, *(name for name in other.names if name not in one.names))
    choices = None
    if one.choices is not None and other.choices is not None:
        choices = (*one.choices, *(choice for choice in other.choices if choice not in one.choices))
    required = one.required or other.required
    commands = tuple(dict.fromkeys((*one.commands, *other.commands))) if one.commands and other.commands else ()
    return replace(one, names=names, choices=choices, required=required, commands=commands)


def _kind(keywords: dict[str, Any]) -> FlagKind:
    action = keywords.get("action")
    name = action if isinstance(action, str) else getattr(action, "name", "")
    kind, nargs = _KINDS.get(name, "value"), keywords.get("nargs")
    if kind != "value" or nargs is None or nargs == "?":
        return kind
    if nargs == 0:  # an action of the script's own that takes no value
        return "on"
    return "list" if isinstance(nargs, int) or nargs in ("*", "+", "...", "A...") else kind


def _type(arguments: Arguments) -> str:
    value, node = arguments.keywords.get("type"), arguments.nodes.get("type")
    if isinstance(value, Builtin | Function | Class | Imported):
        return value.name
    if node is None or value is None:
        return "str"
    return ast.unparse(node.func if isinstance(node, ast.Call) else node).rpartition(".")[2]


def _choices(keywords: dict[str, Any]) -> tuple[str, ...] | None:
    choices = keywords.get("choices")
    if choices is None or not isinstance(choices, list | tuple | set | frozenset | dict | range | str):
        return None
    found = sorted(choices, key=repr) if isinstance(choices, set | frozenset) else list(choices)
    return tuple(map(str, found)) if all(map(literal, found)) else None


def _default(arguments: Arguments) -> str | None:
    value = arguments.keywords.get("default")
    if value is None or value == "==SUPPRESS==":
        return None
    if not literal(value):
        node = arguments.nodes.get("default")
        return f"<{ast.unparse(node)}>" if node is not None else None
    if isinstance(value, list | tuple):
        return " ".join(map(str, value)) or None
    return str(value)


def is_unknown_name(arguments: Arguments) -> bool:
    """Whether add_argument was given a name that cannot be told, so that some flag stays unseen."""
    named = not arguments.positional and not arguments.whole
    return named or any(name is UNKNOWN or not isinstance(name, str) for name in arguments.positional)
