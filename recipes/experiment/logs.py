"""The logs of runs, and following runs until they have ended; leaving does not end them."""

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress

from executors.base import PIECE_BYTES, read_from
from recipes.experiment.runs import Run, Watcher, look
from recipes.experiment.store import RunFolder
from scripts.run.problems import Problem, ProblemsError
from scripts.run.record import DamagedRecordError


class LeftRunningError(Exception):
    """Ctrl-C while following: the jobs go on. `runs` are those that have not ended."""

    def __init__(self, runs: Sequence[Run]) -> None:
        super().__init__(f"{len(runs)} runs go on")
        self.runs = tuple(runs)


def follow(folders: Sequence[RunFolder], watch: Watcher | None = None) -> list[Run]:
    """Return how every run has ended. Raises LeftRunningError on Ctrl-C."""
    runs = look(folders)
    try:
        while True:
            for run in runs:
                if watch:
                    watch(run)
            if all(run.ended for run in runs):
                return runs
            time.sleep(runs[0].poll_seconds)
            runs = look(folders)
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


def log_piece(run: Run, name: str, offset: int) -> bytes:
    """What the log `name` of a run (`rank0.log`) holds from byte `offset` on. Raises UnreachableError.

    Nothing before the job has opened its own log, unless it ended without: then its launcher's. Whoever follows
    counts bytes, and would miss as many of the job's log as the launcher's had.
    """
    if run.job is None or run.scheduled is None:
        return read_from(run.dir / "logs" / name, offset)
    place = run.job.place
    piece = place.log(run.scheduled, name, offset)  # asked for in any case: it says when nobody can be asked
    return piece if "started_at" in run.record or run.ended or place.has_one_log else b""


def refuse_rank(folder: RunFolder, rank: int) -> None:
    """Raise ProblemsError `no_such_rank` for a rank that the run has not, as far as its shape is known here."""
    with suppress(DamagedRecordError):
        job = Run.read(folder).job
        ranks = job.nodes * job.processes if job is not None and job.ranked else 1
        if job is not None and not 0 <= rank < ranks:
            cause = "it has rank 0 alone" if ranks == 1 else f"it has ranks 0 to {ranks - 1}"
            raise ProblemsError([Problem(name="no_such_rank", key="RANK", value=rank, cause=cause)])


def log_of(folder: RunFolder, name: str, *, follow: bool) -> Iterator[bytes]:
    """A log piece by piece; with `follow` until the run has ended."""
    offset = 0
    while True:
        run = look([folder])[0]
        piece = log_piece(run, name, offset)
        offset += len(piece)
        yield piece
        if len(piece) == PIECE_BYTES:  # there may be more of it
            continue
        if not follow or (run.ended and not piece):
            return
        time.sleep(run.poll_seconds)
