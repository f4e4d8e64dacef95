"""The data of coverage, which each process of a run writes for itself."""

import sqlite3
from contextlib import closing
from pathlib import Path


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
