"""Packages that are not installed, made of the names that somebody imports from them."""

import importlib.machinery
import types
from typing import Any


def made_of(name: str, **content: Any) -> types.ModuleType:
    """A package of that name with `content`; it is not put among the modules that are imported."""
    module: Any = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
    module.__path__ = []
    vars(module).update(content)
    return module  # type: ignore[no-any-return]
