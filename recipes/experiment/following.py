"""Following runs that their schedulers look after; leaving does not end them."""

import time
from collections.abc import Sequence

from recipes.experiment.launching import Watcher
from recipes.experiment.runs import log_piece, poll_seconds
from recipes.experiment.standing import Run, look
from recipes.experiment.store import RunFolder


class LeftRunningError(Exception):
    """Ctrl-C while following: the jobs go on. `runs` are those that have not ended."""

    def __init__(self, runs: Sequence[Run]) -> None:
        super().__init__(f"{len(runs)} runs go on")
        self.runs = tuple(runs)


def follow(folders: Sequence[RunFolder], watch: Watcher | None = None) -> None:
    """Return when every run has ended. Raises LeftRunningError on Ctrl-C."""
    dirs = [folder.dir for folder in folders]
    runs = look(dirs)
    try:
        while True:
            for run in runs:
                if watch:
                    watch(run)
            if all(run.ended for run in runs):
                return
            time.sleep(poll_seconds(folders[0].handle()))
            runs = look(dirs)
    except KeyboardInterrupt:
        raise LeftRunningError([run for run in runs if not run.ended]) from None


class Tail:
    """What a log of a run has gained since it was last read."""

    def __init__(self, name: str = "rank0.log") -> None:
        self._name, self._offset = name, 0

    def lines(self, run: Run) -> list[str]:
        """The whole lines that came since the last call. Raises UnreachableError."""
        piece = log_piece(run, self._name, self._offset)
        whole = piece[: piece.rfind(b"\n") + 1]
        self._offset += len(whole)
        return whole.decode("utf-8", errors="replace").splitlines()
