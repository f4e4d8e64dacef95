"""Expressions of a script, evaluated as far as that needs no code of it to run."""

import ast
import builtins
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from scripts.engines.script.flags.parsers import Parsers
from scripts.engines.script.flags.values import (
    COMPARISONS,
    FAULTS,
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
    all_same,
    elements,
    literal,
    short,
    truth,
)


class Expressions(ABC):
    """Evaluates; what a call does, and what an import finds, is for the classes that are made of it to say."""

    def __init__(self) -> None:
        self.parsers = Parsers(self.told, self.forced)
        self._stored: dict[str, Parser] = {}  # parsers kept as attributes: self.parser
        self.wanted = False  # whether the value at hand describes a flag, so that other modules are asked for it
        self._missed = False  # whether one was not asked

    @abstractmethod
    def call(self, node: ast.Call, scope: Scope) -> Any:
        """What a call returns."""

    @abstractmethod
    def look_up(self, imported: Imported) -> Any:
        """What an imported name is; UNKNOWN where its module cannot be found."""

    @abstractmethod
    def follow_pending(self, pending: Pending) -> Any:
        """What a call returns that was put off."""

    @contextmanager
    def wanting(self, wanted: bool) -> Iterator[None]:
        """Whether values matter in this block: only then are other modules read for them."""
        before, self.wanted = self.wanted, self.wanted or wanted
        try:
            yield
        finally:
            self.wanted = before

    def told(self, value: Any) -> Any:
        """A value with its import looked up, where values matter."""
        if not isinstance(value, Imported | Pending | Later):
            return value
        if not self.wanted:
            self._missed = True
            return UNKNOWN
        if isinstance(value, Later):
            return self.told(self.value(value.node, value.scope))
        return self.look_up(value) if isinstance(value, Imported) else self.forced(value)

    def forced(self, value: Any) -> Any:
        """A value with its pending call followed: it is used as a parser."""
        return self.follow_pending(value) if isinstance(value, Pending) else value

    def kept(self, node: ast.expr, scope: Scope) -> Any:
        """The value that a name is to have."""
        self._missed = False
        value = self.value(node, scope)
        return Later(node=node, scope=scope) if value is UNKNOWN and self._missed else value

    def value(self, node: ast.expr, scope: Scope) -> Any:
        """What `node` is; an imported name stays one until `told` asks for it."""
        match node:
            case ast.Constant():
                return node.value
            case ast.Name():
                return self.name(node.id, scope)
            case ast.Attribute():
                return self.attribute(self.value(node.value, scope), node.attr)
            case ast.Call():
                return self.call(node, scope)
            case ast.List() | ast.Tuple() | ast.Set():
                return self._sequence(node, scope)
            case ast.Dict():
                return self._dict(node, scope)
            case ast.JoinedStr():
                return self._text(node, scope)
            case ast.Lambda():
                return Function(node=node, scope=scope)
            case ast.NamedExpr():
                scope.names[node.target.id] = self.value(node.value, scope)
                return scope.names[node.target.id]
            case ast.IfExp():
                test = self.truth(node.test, scope)
                if test is not None:
                    return self.value(node.body if test else node.orelse, scope)
                return all_same([self.value(node.body, scope), self.value(node.orelse, scope)])
            case ast.BoolOp():
                return self._first(node, scope)
            case ast.UnaryOp() | ast.BinOp() | ast.Compare() | ast.Subscript():
                return self._operation(node, scope)
            case ast.Slice():
                parts = [
                    None if part is None else self.value(part, scope) for part in (node.lower, node.upper, node.step)
                ]
                return slice(*parts) if all(map(literal, parts)) else UNKNOWN
            case ast.ListComp() | ast.GeneratorExp() | ast.SetComp() if len(node.generators) == 1:
                found = self._comprehension(node.elt, node.generators[0], scope)
                return UNKNOWN if found is None else found
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                self.value(child, scope)
        return UNKNOWN

    def attribute(self, value: Any, name: str) -> Any:
        """`value.name`."""
        if name in PARSER_METHODS:
            value = self.forced(value)
        if isinstance(value, Imported):
            return value.attribute(name)
        if isinstance(value, Parser):
            return Method(parser=value, name=name)
        if isinstance(value, Class):
            return value.attribute(name)
        return self._stored.get(name, UNKNOWN) if value is UNKNOWN else UNKNOWN

    def arguments(self, node: ast.Call, scope: Scope) -> Arguments:
        """The values that a call passes."""
        positional = self._items(node.args, scope)
        keywords: dict[str, Any] = {}
        whole = positional is not None
        for keyword in node.keywords:
            value = self.value(keyword.value, scope)
            if keyword.arg is not None:
                keywords[keyword.arg] = value
            elif isinstance(value := self.told(value), dict) and all(isinstance(key, str) for key in value):
                keywords |= value
            else:
                whole = False
        nodes = {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg is not None}
        return Arguments(positional=tuple(positional or ()), keywords=keywords, whole=whole, nodes=nodes)

    def truth(self, node: ast.expr, scope: Scope) -> bool | None:
        """Whether a test holds; None where that cannot be told."""
        return truth(self.value(node, scope))

    def bind(self, target: ast.expr, value: Any, scope: Scope) -> None:
        """`target = value`."""
        match target:
            case ast.Name():
                scope.names[target.id] = value
            case ast.Tuple() | ast.List():
                found = elements(self.told(value))
                parts = found if found and len(found) == len(target.elts) else [UNKNOWN] * len(target.elts)
                for one, part in zip(target.elts, parts, strict=True):
                    self.bind(one.value if isinstance(one, ast.Starred) else one, part, scope)
            case ast.Attribute() if isinstance(value, Parser):
                self._stored[target.attr] = value
            case ast.Subscript(value=ast.Name() as changed):
                forget(changed.id, scope)

    def name(self, name: str, scope: Scope) -> Any:
        """What a name means in `scope`."""
        holder = scope.holder(name)
        if holder is not None:
            value = holder.names[name]
            if isinstance(value, Parser):
                self.parsers.see(value)
            return value
        for star in scope.module.stars:
            if (found := self.look_up(star.sibling(name))) is not UNKNOWN:
                return found
        return Builtin(name=name) if hasattr(builtins, name) else UNKNOWN

    def _items(self, nodes: Sequence[ast.expr], scope: Scope) -> list[Any] | None:
        """The values of a display or of positional arguments; None where *these cannot be told."""
        found: list[Any] | None = []
        for node in nodes:
            if not isinstance(node, ast.Starred):
                value = [self.value(node, scope)]
            else:
                value = self.told(self.value(node.value, scope))
            if isinstance(value, list | tuple | dict | set | range) and short(value):
                found = None if found is None else [*found, *value]
            else:
                found = None
        return found

    def _sequence(self, node: ast.List | ast.Tuple | ast.Set, scope: Scope) -> Any:
        found = self._items(node.elts, scope)
        if found is None:
            return UNKNOWN
        if isinstance(node, ast.Set):
            return set(found) if all(map(literal, found)) else UNKNOWN
        return found if isinstance(node, ast.List) else tuple(found)

    def _dict(self, node: ast.Dict, scope: Scope) -> Any:
        found: dict[Any, Any] = {}
        whole = True
        for key_node, value_node in zip(node.keys, node.values, strict=True):
            value = self.value(value_node, scope)
            if key_node is None:
                merged = self.told(value)
                whole = whole and isinstance(merged, dict)
                found |= merged if isinstance(merged, dict) else {}
                continue
            key = self.told(self.value(key_node, scope))
            if isinstance(key, str | int | float | bool | bytes | None):
                found[key] = value
            else:
                whole = False
        return found if whole else UNKNOWN

    def _text(self, node: ast.JoinedStr, scope: Scope) -> Any:
        parts = []
        for part in node.values:
            plain = isinstance(part, ast.FormattedValue) and part.conversion == -1 and part.format_spec is None
            value = self.told(self.value(part.value, scope)) if isinstance(part, ast.FormattedValue) else part
            if isinstance(value, ast.Constant):
                parts.append(str(value.value))
            elif plain and literal(value):
                parts.append(str(value))
            else:
                return UNKNOWN
        return "".join(parts)

    def _first(self, node: ast.BoolOp, scope: Scope) -> Any:
        """What is left of the operands of which one decides `a or b`, `a and b`."""
        possible = []
        for operand in node.values:
            value = self.value(operand, scope)
            test = truth(value)
            if test is None or test is isinstance(node.op, ast.Or) or operand is node.values[-1]:
                possible.append(value)
            if test is isinstance(node.op, ast.Or):
                break
        return all_same(possible)

    def _operation(self, node: ast.UnaryOp | ast.BinOp | ast.Compare | ast.Subscript, scope: Scope) -> Any:
        operands = [
            self.told(self.value(one, scope)) for one in ast.iter_child_nodes(node) if isinstance(one, ast.expr)
        ]
        with suppress(*FAULTS):
            match node:
                case ast.UnaryOp(op=ast.Not()):
                    test = truth(operands[0])
                    return UNKNOWN if test is None else not test
                case ast.UnaryOp(op=ast.USub()):
                    return -operands[0]
                case ast.BinOp(op=ast.Add() | ast.BitOr()) if all(map(short, operands)):
                    left, right = operands
                    return left + right if isinstance(node.op, ast.Add) else left | right
                case ast.Compare(ops=[operator]) if all(map(literal, operands)):
                    return COMPARISONS[type(operator)](*operands)
                case ast.Subscript():
                    return operands[0][operands[1]]
        return UNKNOWN

    def _comprehension(self, result: ast.expr, loop: ast.comprehension, scope: Scope) -> list[Any] | None:
        items = elements(self.told(self.value(loop.iter, scope)))
        if items is None:
            return None
        inner = Scope(path=scope.path, parent=scope)
        found = []
        for item in items:
            self.bind(loop.target, item, inner)
            tests = [self.truth(test, inner) for test in loop.ifs]
            if None in tests:
                return None
            if all(tests):
                found.append(self.value(result, inner))
        return found


def forget(name: str, scope: Scope) -> None:
    """A list or dict of that name was changed in a way that is not followed."""
    holder = scope.holder(name)
    if holder is not None and isinstance(holder.names[name], list | dict | set):
        holder.names[name] = UNKNOWN
