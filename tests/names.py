"""The names of failures that the code can give: literals in the calls that make Problems, JobErrors and states."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: Calls whose first argument is a name, and those that take one as `name=`.
_FIRST = {
    *("JobError", "UnreachableError", "SubmitError", "SubmissionUnknownError", "_PassingError"),
    *("refuse", "_refuse", "_problem", "_wrong_pattern", "error_data", "cls", "Rule", "_wrong"),
}
_CONSTANTS = {"_NAME", "_MOCK", "_TINY", "_LIMITED", "_OVERLAPS", "GATE_FAILED"}
#: Keys of a Lepton profile, which its `_problem` takes first.
_NO_NAMES = {"env", "mounts", "queue_priority", "secret_names"}
_TABLES = {"_WORDS", "_REFUSALS"}  # of Slurm's words, with the name in second place
_KEYWORD = {"Problem", "Check", "JobState", "Doubt", "wrong", "_wrong", "_problem", "Violation", "Rule"}


def names_given() -> dict[str, set[str]]:
    """By name: the files that give it."""
    found: dict[str, set[str]] = {}
    for top in ("recipes", "executors", "scripts"):
        for file in sorted((ROOT / top).rglob("*.py")):
            for name in _names(ast.parse(file.read_text(encoding="utf-8"))):
                if name in _NO_NAMES or (ROOT / "configs" / name).is_dir():
                    continue
                found.setdefault(name, set()).add(str(file.relative_to(ROOT)))
    return found


def _names(tree: ast.Module) -> Iterator[str]:
    constants = {
        target.id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name) and node.value is not None
    }
    for table in _TABLES & constants.keys():
        rows = (node for node in ast.walk(constants[table]) if isinstance(node, ast.Tuple) and len(node.elts) in (2, 3))
        yield from (name for row in rows if row.elts for name in _literals(row.elts[1]) if row.elts[0] is not None)
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in constants:
            yield from (name for name in _literals(constants[node.id]) if "_" in name) if node.id in _CONSTANTS else ()
        if isinstance(node, ast.Dict):
            keys = {
                key.value: value
                for key, value in zip(node.keys, node.values, strict=True)
                if isinstance(key, ast.Constant)
            }
            if {"name", "message"} <= keys.keys():
                yield from _literals(keys["name"])
        elif isinstance(node, ast.Return) and isinstance(node.value, ast.Tuple) and len(node.value.elts) == 3:
            yield from (name for name in _literals(node.value.elts[0]) if "_" in name)  # name, cause, remedy
        elif isinstance(node, ast.Call):
            called = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            if called in _FIRST and node.args:
                yield from _literals(node.args[0])
            if called == "check":
                yield from (name for arg in node.args for name in _literals(arg))
            if called in ("_ended", "finish"):  # of a run; `finish` takes the run first
                yield from (name for arg in node.args[1 + (called == "finish") :][:1] for name in _literals(arg))
            if called in _KEYWORD:
                yield from (name for word in node.keywords if word.arg == "name" for name in _literals(word.value))
        elif isinstance(node, ast.Yield) and isinstance(node.value, ast.Tuple) and len(node.value.elts) == 5:
            yield from _literals(node.value.elts[0])  # of a Slurm profile: name, key, value, cause, remedy
        elif isinstance(node, ast.Assign) and any(getattr(target, "id", "") == "name" for target in node.targets):
            yield from (name for name in _literals(node.value) if "_" in name)


def _literals(node: ast.AST) -> Iterator[str]:
    """The strings that an expression may come to."""
    if isinstance(node, ast.Constant):
        if isinstance(node.value, str) and node.value.isidentifier():
            yield node.value
    elif isinstance(node, ast.Dict):
        for value in node.values:
            yield from _literals(value)
    elif isinstance(node, ast.IfExp | ast.BoolOp | ast.Tuple | ast.Starred):
        parts = [node.body, node.orelse] if isinstance(node, ast.IfExp) else getattr(node, "values", None)
        for part in parts or getattr(node, "elts", None) or [getattr(node, "value", None)]:
            if part is not None:
                yield from _literals(part)
