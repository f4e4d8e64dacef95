"""Calls of a script, followed as far as they have to do with an argparse parser."""

import ast
from dataclasses import replace
from typing import Any

from scripts.engines.script.expressions import forget
from scripts.engines.script.imports import Imports
from scripts.engines.script.literals import all_same, rearranged, short
from scripts.engines.script.modules import Library
from scripts.engines.script.options import flag_of, is_unknown_name
from scripts.engines.script.values import (
    PARSER_METHODS,
    UNKNOWN,
    Arguments,
    Builtin,
    Class,
    Function,
    Imported,
    Later,
    Method,
    Parser,
    Pending,
    Scope,
    identity,
    parsers_in,
)

#: A function that calls itself with ever different values is not followed further.
_DEEPEST_RECURSION = 2
_CHANGING = frozenset(
    {"add", "append", "clear", "discard", "extend", "insert", "pop", "remove", "setdefault", "update"}
)
#: What Python's own functions do not do to a parser: add flags.
_HARMLESS = frozenset(
    {
        *("bool", "dict", "enumerate", "frozenset", "hasattr", "id", "isinstance", "len", "list", "print", "range"),
        *("repr", "reversed", "set", "sorted", "str", "super", "tuple", "type", "zip"),
    }
)
_FOREIGN = ("ArgumentParser", "ArgParser")


class Calls(Imports):
    """Knows what parsers are made, and by which functions, in which modules, flags are added to them.

    An imported function is followed when a parser is passed to it or its result is used as one; everything else
    that a script calls, the work it does, is not. `open` says that flags may exist which were not seen.
    """

    def __init__(self, library: Library) -> None:
        super().__init__(library)
        self.open = False
        self.made = False  # whether the script makes a parser of its own
        self.pending: list[Pending] = []  # calls of imported functions that had no parser to pass
        self._outside = Parser()  # a parser that other code hands in
        self._loose = Parser()  # what nobody knows to be a parser but has add_argument called on it
        self._followed: dict[tuple[Any, ...], tuple[dict[str, Any], Any]] = {}
        self._active: list[ast.AST] = []

    def mark_open(self) -> None:
        """Some flags may be out of sight."""
        self.open = self.open or not self._importing

    def call(self, node: ast.Call, scope: Scope) -> Any:
        base: Any = None
        method = ""
        if isinstance(node.func, ast.Attribute):
            base, method = self.value(node.func.value, scope), node.func.attr
            base = UNKNOWN if isinstance(base, Later) and not self._wanted else base
            callee = self.attribute(base, method)
        else:
            callee = self.value(node.func, scope)
        if base is UNKNOWN and callee is UNKNOWN and method in PARSER_METHODS:
            callee = Method(parser=self._loose, name=method)
        with self.wanting(isinstance(callee, Method) and callee.name in ("add_argument", "add_parser")):
            arguments = self.arguments(node, scope)
            if isinstance(callee, Method):
                return self._parser_method(callee, arguments)
        if method in _CHANGING and isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name):
            forget(node.func.value.id, scope)
        if callee is UNKNOWN and base is UNKNOWN and (own := _methods(scope.module, method)):
            return all_same([self.follow(function.bind(UNKNOWN), arguments) for function in own])
        result = self._call(callee, arguments)
        return self._rearranged(callee, base, method, arguments) if result is UNKNOWN else result

    def follow(self, function: Function, arguments: Arguments) -> Any:
        """Walk a function's body with these arguments, once; what it returns."""
        names = self._bindings(function, arguments)
        key = (id(function.node), bool(self._importing), identity(names))
        if key not in self._followed:
            if self._active.count(function.node) >= _DEEPEST_RECURSION:
                return UNKNOWN
            self._followed[key] = (names, UNKNOWN)
            self._active.append(function.node)
            around = function.scope
            while around.of_class and around.parent is not None:
                around = around.parent
            inner = Scope(path=around.path, parent=around, names=dict(names))
            if isinstance(function.node, ast.Lambda):
                result = self.value(function.node.body, inner)
            else:
                result = all_same(self.run(function.node.body, inner))
            self._active.pop()
            self._followed[key] = (names, result)
        return self._followed[key][1]

    def offer(self, function: Function) -> None:
        """Walk a function that other code will call; one that takes a parser gets one from outside."""
        taken = function.parser_parameters()
        given = Arguments(positional=(), keywords=dict.fromkeys(taken, self._outside))
        if taken:
            self.see(self._outside)
            self.mark_open()
        self.follow(function, given)

    def follow_pending(self, pending: Pending) -> Any:
        target = self.look_up(pending.callee)
        return self._call(target, pending.arguments) if isinstance(target, Function | Class) else UNKNOWN

    def _call(self, callee: Any, arguments: Arguments) -> Any:
        match callee:
            case Function():
                return self.follow(callee, arguments)
            case Class():
                return self._instance(callee, arguments)
            case Imported():
                return self._imported(callee, arguments)
            case Builtin() if callee.name in _HARMLESS:
                return UNKNOWN
        return self._elsewhere(arguments)

    def _rearranged(self, callee: Any, base: Any, method: str, arguments: Arguments) -> Any:
        if arguments.keywords or not arguments.whole:
            return UNKNOWN
        given = [self.told(value) for value in arguments.positional]
        return rearranged(callee, self.told(base), method, given) if all(map(short, given)) else UNKNOWN

    def _elsewhere(self, arguments: Arguments) -> Any:
        """A call into code that is not here: it may do anything with a parser or a function that it gets."""
        given = [parser for value in arguments for parser in parsers_in(value)]
        if given:
            self.mark_open()
        self._offer_all(arguments)
        return given[0] if given else UNKNOWN

    def _offer_all(self, arguments: Arguments) -> None:
        if self._importing:
            return
        for value in arguments.positional:
            if isinstance(value, Function):
                self.offer(value)
        for name, value in arguments.keywords.items():
            if isinstance(value, Imported) and ("args" in name or "parser" in name):
                value = self.look_up(value)
                self.open = self.open or value is UNKNOWN  # a provider of flags that cannot be found
            if isinstance(value, Function):
                self.offer(value)

    def _imported(self, callee: Imported, arguments: Arguments) -> Any:
        if callee.dotted == "argparse.ArgumentParser":
            return self._parser(None, arguments)
        if callee.name.endswith(_FOREIGN):
            target = self.look_up(callee)
            if isinstance(target, Class):
                return self._instance(target, arguments)
            self.mark_open()
            return self._parser(None, arguments)
        if any(parsers_in(value) for value in arguments):
            target = self.look_up(callee)
            return self._call(target if isinstance(target, Function | Class) else UNKNOWN, arguments)
        self._offer_all(arguments)
        result = Pending(callee=callee, arguments=arguments)
        if not self._importing:
            self.pending.append(result)
        return self.forced(result) if "parser" in callee.name.lower() else result

    def _instance(self, kind: Class, arguments: Arguments) -> Any:
        """An object of a class: a parser, or one whose methods may have to do with parsers."""
        start = kind.attribute("__init__")
        parser = self._parser(kind, arguments) if kind.is_parser else None
        if isinstance(start, Function):
            self.follow(start.bind(parser or UNKNOWN), arguments)
        if parser is not None:
            return parser
        for method in kind.scope.names.values():
            if isinstance(method, Function) and method is not start and not method.parser_parameters():
                self.follow(method.bind(UNKNOWN), Arguments(positional=(), keywords={}))
        return UNKNOWN

    def _parser(self, kind: Class | None, arguments: Arguments) -> Parser:
        parser = Parser(kind=kind)
        self.made = self.made or not self._importing
        self.see(parser)
        self._inherit(parser, arguments)
        return parser

    def _inherit(self, parser: Parser, arguments: Arguments) -> None:
        """`parents=`: their flags are the parser's too."""
        parents = arguments.keywords.get("parents", ())
        if not isinstance(parents, list | tuple):
            self.mark_open()
            return
        for parent in map(self.forced, parents):
            if isinstance(parent, Parser):
                own = parent.flags is parser.flags
                parser.flags += [] if own else [replace(flag, commands=parser.under) for flag in parent.flags]
            else:
                self.mark_open()

    def _parser_method(self, method: Method, arguments: Arguments) -> Any:
        parser = method.parser
        if parser is self._loose and not self._importing:
            self.see(parser)
        if method.name == "add_argument":
            return self._add(parser, arguments)
        if method.name in ("add_argument_group", "add_mutually_exclusive_group", "add_subparsers"):
            return parser
        if method.name == "add_parser":
            child = self._command(parser, arguments)
            self._inherit(child, arguments)
            return child
        if method.name in ("parse_known_args", "parse_known_intermixed_args"):
            self.mark_open()
        own = parser.kind.attribute(method.name) if parser.kind else UNKNOWN
        return self.follow(own.bind(parser), arguments) if isinstance(own, Function) else UNKNOWN

    def _add(self, parser: Parser, arguments: Arguments) -> Any:
        told = Arguments(
            positional=tuple(map(self.told, arguments.positional)),
            keywords={
                key: value if key in ("action", "type") else self.told(value)
                for key, value in arguments.keywords.items()
            },
            whole=arguments.whole,
            nodes=arguments.nodes,
        )
        if is_unknown_name(told):
            self.mark_open()
        flag = flag_of(told)
        if flag is not None and not (self._importing and parser.flags is self._loose.flags):
            parser.flags.append(replace(flag, commands=parser.under))
        return UNKNOWN

    def _command(self, parser: Parser, arguments: Arguments) -> Parser:
        """The parser of a subcommand; its flags are the script's, and say whose they are."""
        given = self.told(next(iter((*arguments.positional, arguments.keywords.get("name")))))
        aliases = self.told(arguments.keywords.get("aliases", ()))
        names = [given, *(aliases if isinstance(aliases, list | tuple) else ())]
        if not all(isinstance(name, str) for name in names):
            self.mark_open()
        told = tuple(name for name in names if isinstance(name, str))
        parser.commands += [name for name in told if name not in parser.commands]
        under = parser.under or (told if len(told) == len(names) else ())
        return replace(parser, under=under)  # with the same lists

    def _bindings(self, function: Function, arguments: Arguments) -> dict[str, Any]:
        """Parameter -> value, of the arguments and defaults."""
        own = function.node.args
        places = [one.arg for one in (*own.posonlyargs, *own.args)]
        names: dict[str, Any] = dict.fromkeys((*places, *(one.arg for one in own.kwonlyargs)), UNKNOWN)
        if arguments.whole:  # else a default may be overridden by what cannot be seen
            for name, node in zip(reversed(places), reversed(own.defaults), strict=False):
                names[name] = self.value(node, function.scope)
            for one, default in zip(own.kwonlyargs, own.kw_defaults, strict=True):
                names[one.arg] = UNKNOWN if default is None else self.value(default, function.scope)
        first = () if function.bound is None else (function.bound,)
        given = (*first, *arguments.positional)
        names |= dict(zip(places, given, strict=False))
        names |= {name: value for name, value in arguments.keywords.items() if name in names}
        if own.vararg is not None:
            names[own.vararg.arg] = given[len(places) :] if arguments.whole else UNKNOWN
        if own.kwarg is not None:
            rest = {name: value for name, value in arguments.keywords.items() if name not in names}
            names[own.kwarg.arg] = rest if arguments.whole else UNKNOWN
        return names


def _methods(module: Scope, name: str) -> list[Function]:
    """The methods of that name in the module's own classes: which one an object has cannot be told."""
    classes = [value for value in module.names.values() if isinstance(value, Class)]
    found = [kind.scope.names.get(name) for kind in classes]
    return [method for method in found if isinstance(method, Function)]
