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

from scripts.engines.script.calls import Calls
from scripts.engines.script.flags import Flag, Interface
from scripts.engines.script.literals import all_same, elements
from scripts.engines.script.modules import Library, parse
from scripts.engines.script.options import merged
from scripts.engines.script.values import UNKNOWN, Class, Function, Imported, Parser, Pending, Scope

_MOST_STATEMENTS = 20_000
_MOST_ROUNDS = 64
#: What a function is called that a script leaves its command line to.
_LIKELY = re.compile("main|cli|run|launch|arg|parse", re.IGNORECASE)
#: How many imports deep a parser is searched for when the script itself neither makes nor fills one.
_DEEPEST = 3


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
        reader.mark_open()
    parsers = reader.parsers
    return Interface(
        flags=_union([flag for parser in parsers for flag in parser.flags]),
        closed=reader.made and not reader.open,
        commands=tuple(dict.fromkeys(command for parser in parsers for command in parser.commands)),
    )


def _union(flags: Sequence[Flag]) -> tuple[Flag, ...]:
    """Each flag once, in the order of their first appearance."""
    found: list[Flag] = []
    place: dict[str, int] = {}
    for flag in flags:
        at = next((place[name] for name in flag.names if name in place), len(found))
        if at < len(found):
            found[at] = merged(found[at], flag)
        else:
            found.append(flag)
        place |= dict.fromkeys(flag.names, at)
    return tuple(found)


class _Flow(Enum):
    """Where the statement after a statement is."""

    NEXT = auto()
    CONTINUE = auto()
    BREAK = auto()
    RETURN = auto()


class _Reader(Calls):
    """Walks statements."""

    def __init__(self, library: Library) -> None:
        super().__init__(library)
        self._walked = 0
        self._returned: list[list[Any]] = []

    def read(self, path: Path, tree: ast.Module) -> None:
        """Walk the script; where no parser comes into view, what it calls in other modules, then its own functions."""
        scope = Scope(path=path, names={"__name__": "__main__"})
        self.run(tree.body, scope)
        for _ in range(_DEEPEST):
            if self.parsers:
                return
            calls, self.pending = self.pending, []
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
                self.open = True
                return _Flow.RETURN
            try:
                flow = self._statement(statement, scope)
            except RecursionError:  # an expression of hundreds of parts; the next statement may do with less
                self.mark_open()
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
        if isinstance(node, ast.Delete):
            for target in node.targets:
                self.bind(target, UNKNOWN, scope)
            return
        if node.value is None:
            return
        if isinstance(node, ast.AugAssign):
            if not isinstance(node.target, ast.Name):
                self.bind(node.target, UNKNOWN, scope)
                return
            held = ast.Name(id=node.target.id, ctx=ast.Load())
            self.bind(node.target, self.value(ast.BinOp(left=held, op=node.op, right=node.value), scope), scope)
            return
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
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
        known = tuple(self._base(base) for base in bases)
        scope.names[node.name] = Class(name=node.name, bases=known, scope=inner)

    def _base(self, base: Any) -> Any:
        """A base class; one that is imported is looked up, unless it is argparse's."""
        found = self.look_up(base) if isinstance(base, Imported) and base.name.endswith("Parser") else base
        return base if found is UNKNOWN else found

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
