"""The flags of a script, read from its source: nothing of it is imported or run.

The statements are walked in the order in which they would run, with literals, parsers and functions as the only
values that are told apart. Where a test cannot be decided both branches count. What is not argparse (Hydra, click,
Megatron's own argument list) is not read, and the interface is then open.
"""

import ast
import re
from collections.abc import Sequence
from enum import Enum, auto
from pathlib import Path
from typing import Any

from scripts.engines.script.flags.expressions import forget
from scripts.engines.script.flags.interface import Interface
from scripts.engines.script.flags.modules import Imports, Library, parse
from scripts.engines.script.flags.values import (
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
    identity,
    parsers_in,
    rearranged,
    short,
)

_MOST_STATEMENTS = 20_000
_MOST_ROUNDS = 64
#: What a function is called that a script leaves its command line to.
_LIKELY = re.compile("main|cli|run|launch|arg|parse", re.IGNORECASE)
#: How many imports deep a parser is searched for when the script itself neither makes nor fills one.
_DEEPEST = 3
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


def read_interface(path: Path, roots: Sequence[Path] = ()) -> Interface:
    """What the script at `path` accepts.

    Modules that it imports are looked for beside it, in `roots`, and in the checkout that holds it (its src/ too).
    Positional arguments are no flags and are left out. Raises JobError `script_not_found`, `script_unreadable`.
    """
    tree = parse(path)
    path = path.resolve()
    reader = _Reader(Library(path, roots))
    try:
        reader.read(path, tree)
    except RecursionError:
        reader.parsers.mark_open()
    return reader.parsers.interface()


class _Flow(Enum):
    """Where the statement after a statement is."""

    NEXT = auto()
    CONTINUE = auto()
    BREAK = auto()
    RETURN = auto()


class _Reader(Imports):
    """Walks statements, and follows calls as far as they have to do with a parser.

    An imported function is followed when a parser is passed to it or its result is used as one; everything else
    that a script calls, the work it does, is not. What a module does when it is imported makes none of its parsers
    the script's.
    """

    def __init__(self, library: Library) -> None:
        super().__init__(library)
        self._pending: list[Pending] = []  # calls of imported functions that had no parser to pass
        self._followed: dict[tuple[Any, ...], tuple[dict[str, Any], Any]] = {}
        self._active: list[ast.AST] = []
        self._walked = 0
        self._returned: list[list[Any]] = []

    def read(self, path: Path, tree: ast.Module) -> None:
        """Walk the script; where no parser comes into view, what it calls in other modules, then its own functions."""
        scope = Scope(path=path, names={"__name__": "__main__"})
        self.run(tree.body, scope)
        for _ in range(_DEEPEST):
            if self.parsers.seen:
                return
            calls, self._pending = self._pending, []
            for call in calls:
                if _LIKELY.search(call.callee.name):
                    self.follow_pending(call)
        for function in [value for value in scope.names.values() if isinstance(value, Function)]:
            self.offer(function)

    def run(self, body: list[ast.stmt], scope: Scope) -> list[Any]:
        self._returned.append([])
        self._walk(body, scope)
        return self._returned.pop()

    def _walk(self, body: Sequence[ast.stmt], scope: Scope) -> _Flow:
        for statement in body:
            self._walked += 1
            if self._walked > _MOST_STATEMENTS:
                self.parsers.open = True
                return _Flow.RETURN
            try:
                flow = self._statement(statement, scope)
            except RecursionError:  # an expression of hundreds of parts; the next statement may do with less
                self.parsers.mark_open()
                continue
            if flow is not _Flow.NEXT:
                return flow
        return _Flow.NEXT

    def _statement(self, node: ast.stmt, scope: Scope) -> _Flow:
        match node:
            case ast.Expr():
                self.value(node.value, scope)
            case ast.Assign() | ast.AnnAssign() | ast.AugAssign() | ast.Delete():
                self._assign(node, scope)
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                self._define(node, scope)
            case ast.Import() | ast.ImportFrom():
                _import(node, scope)
            case ast.If():
                test = self.truth(node.test, scope)
                if test is not None:
                    return self._walk(node.body if test else node.orelse, scope)
                return self._branches((node.body, node.orelse), scope)
            case ast.For() | ast.AsyncFor():
                return self._loop(node, scope)
            case ast.While():
                self.value(node.test, scope)
                self._branches((node.body, []), scope)
                return self._walk(node.orelse, scope)
            case ast.With() | ast.AsyncWith():
                for item in node.items:
                    self.value(item.context_expr, scope)
                    if item.optional_vars is not None:
                        self.bind(item.optional_vars, UNKNOWN, scope)
                return self._walk(node.body, scope)
            case ast.Try() | ast.TryStar():
                return self._try(node, scope)
            case ast.Match():
                self.value(node.subject, scope)
                return self._branches([case.body for case in node.cases] + [[]], scope)
            case ast.Return():
                self._returned[-1].append(None if node.value is None else self.value(node.value, scope))
                return _Flow.RETURN
            case ast.Raise():
                return _Flow.RETURN
            case ast.Continue():
                return _Flow.CONTINUE
            case ast.Break():
                return _Flow.BREAK
        return _Flow.NEXT

    def _assign(self, node: ast.Assign | ast.AnnAssign | ast.AugAssign | ast.Delete, scope: Scope) -> None:
        targets = [node.target] if isinstance(node, ast.AnnAssign | ast.AugAssign) else node.targets
        value: Any = UNKNOWN
        if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name):
            held = ast.Name(id=node.target.id, ctx=ast.Load())
            value = self.value(ast.BinOp(left=held, op=node.op, right=node.value), scope)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            if node.value is None:
                return
            value = self.kept(node.value, scope)
            if isinstance(value, Pending) and any("parser" in ast.unparse(target).lower() for target in targets):
                value = self.forced(value)
        for target in targets:
            self.bind(target, value, scope)

    def _define(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef, scope: Scope) -> None:
        for decorator in node.decorator_list:
            self.value(decorator, scope)
        if not isinstance(node, ast.ClassDef):
            scope.names[node.name] = Function(node=node, scope=scope)
            return
        inner = Scope(path=scope.path, parent=scope, of_class=True)
        bases = tuple(self.value(base, scope) for base in node.bases if not isinstance(base, ast.Starred))
        self._walk(node.body, inner)
        known = []
        for base in bases:  # one that is imported is looked up, unless it is argparse's
            found = self.look_up(base) if isinstance(base, Imported) and base.name.endswith("Parser") else base
            known.append(base if found is UNKNOWN else found)
        scope.names[node.name] = Class(name=node.name, bases=tuple(known), scope=inner)

    def _branches(self, bodies: Sequence[Sequence[ast.stmt]], scope: Scope) -> _Flow:
        """Walk each of several possible ways; a name that they leave with different values has none."""
        before, after, flows = scope.names, [], []
        for body in bodies:
            scope.names = dict(before)
            flows.append(self._walk(body, scope))
            if flows[-1] is _Flow.NEXT:
                after.append(scope.names)
        scope.names = before
        if not after:
            return flows[0] if len(set(flows)) == 1 else _Flow.CONTINUE
        for name in dict.fromkeys(name for names in after for name in names):
            scope.names[name] = all_same([names[name] for names in after if name in names])
        return _Flow.NEXT

    def _loop(self, node: ast.For | ast.AsyncFor, scope: Scope) -> _Flow:
        adds = self._adds(node, scope)
        with self.wanting(adds):
            items = elements(self.told(self.value(node.iter, scope)))
        if items is None or len(items) > _MOST_ROUNDS or not adds:
            self.bind(node.target, UNKNOWN, scope)
            self._branches((node.body, []), scope)
            return self._walk(node.orelse, scope)
        for item in items:
            self.bind(node.target, item, scope)
            flow = self._walk(node.body, scope)
            if flow is _Flow.RETURN:
                return flow
            if flow is _Flow.BREAK:
                return _Flow.NEXT
        return self._walk(node.orelse, scope)

    def _adds(self, node: ast.For | ast.AsyncFor, scope: Scope) -> bool:
        """Whether a loop has to do with a parser, so that it is walked round by round."""
        for one in ast.walk(node):
            if isinstance(one, ast.Attribute) and one.attr in ("add_argument", "add_parser"):
                return True
            holder = scope.holder(one.id) if isinstance(one, ast.Name) else None
            if holder is not None and isinstance(one, ast.Name) and isinstance(holder.names[one.id], Parser):
                return True
        return False

    def _try(self, node: ast.Try | ast.TryStar, scope: Scope) -> _Flow:
        """The way without an exception decides what names mean; the handlers add what it leaves unbound."""
        flow = self._walk(node.body, scope)
        if flow is _Flow.NEXT:
            flow = self._walk(node.orelse, scope)
        without = scope.names
        for handler in node.handlers:
            scope.names = dict(without)
            if self._walk(handler.body, scope) is _Flow.NEXT:
                flow = _Flow.NEXT
            without |= {name: value for name, value in scope.names.items() if name not in without}
        scope.names = without
        last = self._walk(node.finalbody, scope)
        return flow if last is _Flow.NEXT else last

    def call(self, node: ast.Call, scope: Scope) -> Any:
        base: Any = None
        method = ""
        if isinstance(node.func, ast.Attribute):
            base, method = self.value(node.func.value, scope), node.func.attr
            base = UNKNOWN if isinstance(base, Later) and not self.wanted else base
            callee = self.attribute(base, method)
        else:
            callee = self.value(node.func, scope)
        if base is UNKNOWN and callee is UNKNOWN and method in PARSER_METHODS:
            callee = Method(parser=self.parsers.loose, name=method)
        with self.wanting(isinstance(callee, Method) and callee.name in ("add_argument", "add_parser")):
            arguments = self.arguments(node, scope)
            if isinstance(callee, Method):
                return self._method(callee, arguments)
        if method in _CHANGING and isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name):
            forget(node.func.value.id, scope)
        if callee is UNKNOWN and base is UNKNOWN:
            # A method of some class of the module's: which one an object has cannot be told.
            classes = [value for value in scope.module.names.values() if isinstance(value, Class)]
            own = [found for one in classes if isinstance(found := one.scope.names.get(method), Function)]
            if own:
                return all_same([self.follow(function.bind(UNKNOWN), arguments) for function in own])
        result = self._call(callee, arguments)
        if result is not UNKNOWN or arguments.keywords or not arguments.whole:
            return result
        given = [self.told(value) for value in arguments.positional]
        return rearranged(callee, self.told(base), method, given) if all(map(short, given)) else UNKNOWN

    def follow(self, function: Function, arguments: Arguments) -> Any:
        """Walk a function's body with these arguments, once; what it returns."""
        names = self._bindings(function, arguments)
        key = (id(function.node), bool(self.parsers.importing), identity(names))
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
        given = Arguments(positional=(), keywords=dict.fromkeys(taken, self.parsers.outside))
        if taken:
            self.parsers.see(self.parsers.outside)
            self.parsers.mark_open()
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

    def _elsewhere(self, arguments: Arguments) -> Any:
        """A call into code that is not here: it may do anything with a parser or a function that it gets."""
        given = [parser for value in arguments for parser in parsers_in(value)]
        if given:
            self.parsers.mark_open()
        self._offer_all(arguments)
        return given[0] if given else UNKNOWN

    def _offer_all(self, arguments: Arguments) -> None:
        if self.parsers.importing:
            return
        for value in arguments.positional:
            if isinstance(value, Function):
                self.offer(value)
        for name, value in arguments.keywords.items():
            if isinstance(value, Imported) and ("args" in name or "parser" in name):
                value = self.look_up(value)
                self.parsers.open = self.parsers.open or value is UNKNOWN  # a provider of flags that cannot be found
            if isinstance(value, Function):
                self.offer(value)

    def _imported(self, callee: Imported, arguments: Arguments) -> Any:
        if callee.dotted == "argparse.ArgumentParser":
            return self.parsers.make(None, arguments)
        if callee.name.endswith(_FOREIGN):
            target = self.look_up(callee)
            if isinstance(target, Class):
                return self._instance(target, arguments)
            self.parsers.mark_open()
            return self.parsers.make(None, arguments)
        if any(parsers_in(value) for value in arguments):
            target = self.look_up(callee)
            return self._call(target if isinstance(target, Function | Class) else UNKNOWN, arguments)
        self._offer_all(arguments)
        result = Pending(callee=callee, arguments=arguments)
        if not self.parsers.importing:
            self._pending.append(result)
        return self.forced(result) if "parser" in callee.name.lower() else result

    def _instance(self, kind: Class, arguments: Arguments) -> Any:
        """An object of a class: a parser, or one whose methods may have to do with parsers."""
        start = kind.attribute("__init__")
        parser = self.parsers.make(kind, arguments) if kind.is_parser else None
        if isinstance(start, Function):
            self.follow(start.bind(parser or UNKNOWN), arguments)
        if parser is not None:
            return parser
        for method in kind.scope.names.values():
            if isinstance(method, Function) and method is not start and not method.parser_parameters():
                self.follow(method.bind(UNKNOWN), Arguments(positional=(), keywords={}))
        return UNKNOWN

    def _method(self, method: Method, arguments: Arguments) -> Any:
        """A parser's method: its own class may have written it over."""
        result = self.parsers.change(method, arguments)
        own = UNKNOWN
        if method.name.startswith("parse_") and method.parser.kind:
            own = method.parser.kind.attribute(method.name)
        return self.follow(own.bind(method.parser), arguments) if isinstance(own, Function) else result

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


def _import(node: ast.Import | ast.ImportFrom, scope: Scope) -> None:
    if isinstance(node, ast.Import):
        for alias in node.names:
            whole = alias.name if alias.asname else alias.name.partition(".")[0]
            scope.names[alias.asname or whole] = Imported(dotted=whole, origin=scope.path)
        return
    package = "." * node.level + (f"{node.module}." if node.module else "")
    depth = len(node.module.split(".")) if node.module else 0
    for alias in node.names:
        found = Imported(dotted=package + alias.name, origin=scope.path, depth=depth)
        if alias.name == "*":
            scope.module.stars.append(found)
        else:
            scope.names[alias.asname or alias.name] = found
