"""The argparse parsers of a script: what `add_argument` and its like add to them."""

import ast
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from scripts.engines.script.flags.interface import Flag, FlagKind, Interface
from scripts.engines.script.flags.values import (
    UNKNOWN,
    Arguments,
    Builtin,
    Class,
    Function,
    Imported,
    Method,
    Parser,
    literal,
)

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


class Parsers:
    """The script's own parsers, and those of modules that it uses; what is not used of a module adds nothing.

    `open` says that flags may exist which were not seen.
    """

    def __init__(self, told: Callable[[Any], Any], forced: Callable[[Any], Any]) -> None:
        """`told` looks an imported value up, `forced` follows a call that was put off."""
        self.seen: list[Parser] = []
        self.open = False
        self.importing = 0  # how deep in modules that are only imported
        self.outside = Parser()  # one that other code hands in
        self.loose = Parser()  # what nobody knows to be a parser but has add_argument called on it
        self._made = False  # whether the script makes a parser of its own
        self._told, self._forced = told, forced

    def interface(self) -> Interface:
        """Everything that was seen."""
        return Interface(
            flags=_union([flag for parser in self.seen for flag in parser.flags]),
            closed=self._made and not self.open,
            commands=tuple(dict.fromkeys(command for parser in self.seen for command in parser.commands)),
        )

    def see(self, parser: Parser) -> None:
        """A parser has come into view."""
        if not self.importing and parser not in self.seen:
            self.seen.append(parser)

    def mark_open(self) -> None:
        """Some flags may be out of sight."""
        self.open = self.open or not self.importing

    def make(self, kind: Class | None, arguments: Arguments) -> Parser:
        """`ArgumentParser(...)`, or of a class that derives from it."""
        parser = Parser(kind=kind)
        self._made = self._made or not self.importing
        self.see(parser)
        self._inherit(parser, arguments)
        return parser

    def change(self, method: Method, arguments: Arguments) -> Any:
        """What a call of a parser's method returns, and what it adds."""
        parser = method.parser
        if parser is self.loose and not self.importing:
            self.see(parser)
        match method.name:
            case "add_argument":
                self._add(parser, arguments)
            case "add_argument_group" | "add_mutually_exclusive_group" | "add_subparsers":
                return parser
            case "add_parser":
                child = self._command(parser, arguments)
                self._inherit(child, arguments)
                return child
            case "parse_known_args" | "parse_known_intermixed_args":
                self.mark_open()
        return UNKNOWN

    def _inherit(self, parser: Parser, arguments: Arguments) -> None:
        """`parents=`: their flags are the parser's too."""
        parents = arguments.keywords.get("parents", ())
        if not isinstance(parents, list | tuple):
            self.mark_open()
            return
        for parent in map(self._forced, parents):
            if isinstance(parent, Parser):
                own = parent.flags is parser.flags
                parser.flags += [] if own else [replace(flag, commands=parser.under) for flag in parent.flags]
            else:
                self.mark_open()

    def _add(self, parser: Parser, arguments: Arguments) -> None:
        told = self._told
        keywords = arguments.keywords.items()
        arguments = replace(
            arguments,
            positional=tuple(map(told, arguments.positional)),
            keywords={key: value if key in ("action", "type") else told(value) for key, value in keywords},
        )
        names = arguments.positional
        if (not names and not arguments.whole) or not all(isinstance(name, str) for name in names):
            self.mark_open()  # a name that cannot be told: some flag stays unseen
        flag = _flag_of(arguments)
        if flag is not None and not (self.importing and parser.flags is self.loose.flags):
            parser.flags.append(replace(flag, commands=parser.under))

    def _command(self, parser: Parser, arguments: Arguments) -> Parser:
        """The parser of a subcommand; its flags are the script's, and say whose they are."""
        told = self._told
        aliases = told(arguments.keywords.get("aliases", ()))
        names = [told(next(iter((*arguments.positional, arguments.keywords.get("name")))))]
        names += aliases if isinstance(aliases, list | tuple) else ()
        known = tuple(name for name in names if isinstance(name, str))
        if len(known) < len(names):
            self.mark_open()
        parser.commands += [name for name in known if name not in parser.commands]
        under = parser.under or (known if len(known) == len(names) else ())
        return replace(parser, under=under)  # with the same lists


def _union(flags: Sequence[Flag]) -> tuple[Flag, ...]:
    """Each flag once, in the order of their first appearance."""
    found: list[Flag] = []
    place: dict[str, int] = {}
    for flag in flags:
        at = next((place[name] for name in flag.names if name in place), len(found))
        if at < len(found):
            found[at] = _merged(found[at], flag)
        else:
            found.append(flag)
        place |= dict.fromkeys(flag.names, at)
    return tuple(found)


def _flag_of(arguments: Arguments) -> Flag | None:
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


def _merged(one: Flag, other: Flag) -> Flag:
    """Two flags of one name, as subcommands have them: either's spellings and choices."""
    names = tuple(dict.fromkeys((*one.names, *other.names)))
    limited = one.choices is not None and other.choices is not None
    choices = tuple(dict.fromkeys((*(one.choices or ()), *(other.choices or ())))) if limited else None
    commands = tuple(dict.fromkeys((*one.commands, *other.commands))) if one.commands and other.commands else ()
    return replace(one, names=names, choices=choices, required=one.required or other.required, commands=commands)


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
