"""A plugin of coverage: packages of others are not traced while they are imported.

A job of a test imports NeMo-Run, torch and ModelOpt first, which takes half as long again when each of their calls is
traced. Modules of ours that such a package imports are measured all the same.
"""

import sqlite3
import sys
import threading
from contextlib import closing
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

#: The packages of [tool.coverage.run], and the one that calls functions of recipes.cli while it is imported.
_TRACED = ("recipes", "executors", "scripts", "nemo_run")
_load = SourceFileLoader.exec_module
_held = threading.local()  # tracer: this thread's, while it does not trace


def coverage_init(registry: object, options: object) -> None:
    """What coverage calls in each process that it measures."""
    SourceFileLoader.exec_module = _exec_module  # type: ignore[method-assign]


def _exec_module(loader: SourceFileLoader, module: ModuleType) -> None:
    traced = module.__name__.partition(".")[0] in _TRACED
    tracer: Any = sys.gettrace()
    held = getattr(_held, "tracer", None)
    if traced and tracer is None and held is not None:
        _held.tracer = None
        held.start()
        try:
            _load(loader, module)
        finally:
            sys.settrace(None)
            _held.tracer = held
    elif not traced and hasattr(tracer, "start"):  # coverage's own, in C; a debugger has none
        _held.tracer = tracer
        sys.settrace(None)
        try:
            _load(loader, module)
        finally:
            tracer.start()
            _held.tracer = None
    else:
        _load(loader, module)


def sweep(folder: Path) -> None:
    """Remove the data that a process was writing when a test killed it: half a file can end the combining of all."""
    for file in folder.glob(".coverage.*"):
        try:
            with closing(sqlite3.connect(file)) as data:
                whole = data.execute("pragma quick_check").fetchone() == ("ok",)
                data.execute("select * from coverage_schema")
        except sqlite3.Error:
            whole = False
        if not whole:
            file.unlink(missing_ok=True)
