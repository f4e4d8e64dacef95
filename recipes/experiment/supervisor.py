"""Handing detached runs to a process that looks after them and outlives the terminal."""

import subprocess
import sys
from collections.abc import Sequence

from recipes.experiment.store import RunFolder
from scripts.run.identity import identity


def spawn(folders: Sequence[RunFolder]) -> None:
    """Hand recorded runs to a process of its own session."""
    log_file = folders[0].supervisor_log
    log_file.parent.mkdir(exist_ok=True)
    with log_file.open("ab") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "recipes.experiment.supervise", *(folder.id for folder in folders)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    who = identity(child.pid)
    for folder in folders:
        folder.update_handle(supervisor=who)
    # It waits for the end of its standard input, so that nobody finds a run without its supervisor's name.
    assert child.stdin is not None
    child.stdin.close()
