"""Python modules as files: where an import would find one, and what a name of it is; parsed and never run."""

import ast
import warnings
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from scripts.engines.script.flags.expressions import Expressions
from scripts.engines.script.flags.values import UNKNOWN, Builtin, Imported, Parser, Scope
from scripts.run.problems import JobError

_MAX_BYTES = 8 << 20
#: A script whose flags lie in more modules than this is not followed further.
_MOST_MODULES = 32
_CHECKOUT = ("pyproject.toml", "setup.py", ".git")
_ARGPARSE = {"REMAINDER": "...", "SUPPRESS": "==SUPPRESS==", "OPTIONAL": "?", "ZERO_OR_MORE": "*", "ONE_OR_MORE": "+"}


def parse(path: Path) -> ast.Module:
    """The syntax tree of a file. Raises JobError `script_not_found`, `script_unreadable`."""
    if not path.is_file():
        raise JobError("script_not_found", f"{path} is not a file.", "Give the script's path as the node sees it.")
    remedy = "It is read as Python's own parser reads it; a script for Python 2 or a later Python is not understood."
    if path.stat().st_size > _MAX_BYTES:
        raise JobError("script_unreadable", f"{path} is larger than any script ({_MAX_BYTES >> 20} MiB).", remedy)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what a compiler warns of is upstream's affair
            return ast.parse(path.read_bytes(), filename=str(path))
    except (SyntaxError, ValueError, RecursionError, MemoryError, OSError) as error:
        raise JobError("script_unreadable", f"{path}: {error}.", remedy) from error


class Library:
    """The modules that a script would import: beside it, in `roots`, in the checkout that holds it and its src/."""

    def __init__(self, script: Path, roots: Sequence[Path]) -> None:
        checkout = [folder for folder in script.parents if any((folder / mark).exists() for mark in _CHECKOUT)][:1]
        self._folders = (script.parent, *roots, *checkout, *(folder / "src" for folder in checkout))
        self._found: dict[tuple[Path | None, str], Path | None] = {}
        self._trees: dict[Path, ast.Module | None] = {}

    def find(self, dotted: str, origin: Path) -> Path | None:
        """The file of module `dotted` as `origin` imports it; leading dots are relative to its package."""
        level = len(dotted) - len(dotted.lstrip("."))
        key = (origin.parent if level else None, dotted)
        if key not in self._found:
            folders = (origin.parents[level - 1],) if 0 < level <= len(origin.parents) else self._folders
            self._found[key] = next(self._candidates(folders, dotted[level:]), None)
        return self._found[key]

    def tree(self, path: Path) -> ast.Module | None:
        """The module's syntax tree; None where it cannot be read, which is as good as not there."""
        if path not in self._trees and len(self._trees) < _MOST_MODULES:
            try:
                self._trees[path] = parse(path)
            except JobError:
                self._trees[path] = None
        return self._trees.get(path)

    @staticmethod
    def _candidates(folders: Sequence[Path], dotted: str) -> Iterator[Path]:
        parts = [part for part in dotted.split(".") if part]
        for folder in folders:
            base = folder.joinpath(*parts)
            for path in ((base.with_name(base.name + ".py"),) if parts else ()) + (base / "__init__.py",):
                if path.is_file():
                    yield path


class Imports(Expressions):
    """Looks imported names up. What a module does when it is imported makes none of its parsers the script's."""

    def __init__(self, library: Library) -> None:
        super().__init__()
        self._library = library
        self._modules: dict[str, Scope] = {}
        self._looked_up: dict[Imported, Any] = {}

    @abstractmethod
    def run(self, body: list[ast.stmt], scope: Scope) -> list[Any]:
        """Walk statements; what they return."""

    def look_up(self, imported: Imported) -> Any:
        """What the name is; UNKNOWN where its module cannot be found."""
        if imported not in self._looked_up:
            self._looked_up[imported] = UNKNOWN  # what modules that import each other get
            self._looked_up[imported] = self._find(imported)
        found = self._looked_up[imported]
        if isinstance(found, Parser):
            self.parsers.see(found)
        return found

    def _find(self, imported: Imported) -> Any:
        package, _, name = imported.dotted.rpartition(".")
        if package == "argparse":
            return _ARGPARSE.get(name, UNKNOWN)
        dots = imported.dotted[: len(imported.dotted) - len(imported.dotted.lstrip("."))]
        parts = imported.dotted.lstrip(".").split(".")
        for end in range(len(parts) - 1, max(imported.depth, 0 if dots else 1) - 1, -1):
            scope = self._module(dots + ".".join(parts[:end]), imported)
            if scope is None:
                continue
            value = self._whole(self.name(parts[end], scope))
            for part in parts[end + 1 :]:
                value = self._whole(self.attribute(value, part))
            return UNKNOWN if isinstance(value, Builtin) else value
        return UNKNOWN

    def _whole(self, value: Any) -> Any:
        return self.look_up(value) if isinstance(value, Imported) else self.told(value)

    def _module(self, dotted: str, imported: Imported) -> Scope | None:
        path = self._library.find(dotted, imported.origin)
        tree = self._library.tree(path) if path is not None else None
        if path is None or tree is None:
            return None
        if str(path) not in self._modules:
            scope = Scope(path=path, names={"__name__": dotted})
            self._modules[str(path)] = scope
            wanted, self.wanted = self.wanted, False
            self.parsers.importing += 1
            self.run(tree.body, scope)
            self.parsers.importing -= 1
            self.wanted = wanted
        return self._modules[str(path)]
