"""Imports of a script: found as files, and their constants and functions told apart without running them."""

import ast
from abc import abstractmethod
from typing import Any

from scripts.engines.script.expressions import Expressions
from scripts.engines.script.modules import Library
from scripts.engines.script.values import UNKNOWN, Builtin, Imported, Parser, Scope

_ARGPARSE = {"REMAINDER": "...", "SUPPRESS": "==SUPPRESS==", "OPTIONAL": "?", "ZERO_OR_MORE": "*", "ONE_OR_MORE": "+"}


class Imports(Expressions):
    """Looks imported names up. What a module does when it is imported makes none of its parsers the script's."""

    def __init__(self, library: Library) -> None:
        super().__init__()
        self.parsers: list[Parser] = []  # the script's own, and those of others that it uses
        self._library = library
        self._importing = 0
        self._modules: dict[str, Scope] = {}
        self._looked_up: dict[Imported, Any] = {}

    @abstractmethod
    def run(self, body: list[ast.stmt], scope: Scope) -> list[Any]:
        """Walk statements; what they return."""

    def see(self, parser: Parser) -> None:
        if not self._importing and parser not in self.parsers:
            self.parsers.append(parser)

    def look_up(self, imported: Imported) -> Any:
        if imported not in self._looked_up:
            self._looked_up[imported] = UNKNOWN  # what modules that import each other get
            self._looked_up[imported] = self._find(imported)
        found = self._looked_up[imported]
        if isinstance(found, Parser):
            self.see(found)
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
            value = self._whole(self._name(parts[end], scope))
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
            wanted, self._wanted = self._wanted, 0
            self._importing += 1
            self.run(tree.body, scope)
            self._importing -= 1
            self._wanted = wanted
        return self._modules[str(path)]
