"""Follows a run for one tracker, in a process of its own: `python -m scripts.tracking.follow RUN_DIR NAME PARENT`.

Whatever a tracker's library does, waits for or breaks on, it does here. All that it is told is in files of the run
directory, so that nothing is lost while a server does not answer: it is told later, at the latest when the run ends.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from scripts.run.files import write_json
from scripts.run.record import FINAL_STATES, DamagedRecordError, observe, read_record
from scripts.run.secrets import masked, secrets_here
from scripts.tracking.known import FOLDER
from scripts.tracking.to_mlflow import Mlflow
from scripts.tracking.to_tensorboard import Tensorboard
from scripts.tracking.to_wandb import Wandb
from scripts.tracking.told import Point, Points, Tracker, Where, told_of

TRACKERS: dict[str, Callable[[Path], Tracker]] = {"mlflow": Mlflow, "wandb": Wandb, "tensorboard": Tensorboard}
#: How often figures are looked for, how often whether the run has ended, and how long one that failed is left alone.
_POLL_SECONDS, _GLANCE_SECONDS, _AGAIN_SECONDS = 2.0, 0.2, 15.0
_AT_A_TIME, _ORPHANED_SECONDS = 500, 60.0
_LONGEST = 500


class Sending:
    """A run and one tracker: what it was told, and what is still to be told."""

    def __init__(self, run_dir: Path, name: str) -> None:
        self._run_dir, self._name = run_dir, name
        self._points = Points(run_dir / "metrics.jsonl")
        self._unsent: list[Point] = []
        self._tracker = TRACKERS[name](run_dir / FOLDER)
        self._where: Where | None = None
        self._error: str | None = None

    def go_on(self, record: dict[str, Any]) -> bool:
        """Tell what is new; False where that failed."""
        return self._tried(lambda: self._send(record), "following")

    def finish(self, record: dict[str, Any]) -> bool:
        """Tell the rest; False where that failed."""

        def rest() -> None:
            self._send(record)
            self._tracker.end(told_of(self._run_dir, record))

        done = self._tried(rest, "failed")
        if done:
            self._say("sent" if self._where and not self._where.folder else "kept")
        return done

    def _send(self, record: dict[str, Any]) -> None:
        if self._where is None:
            self._where = self._tracker.begin(told_of(self._run_dir, record))
            self._error = self._where.note
            self._say("following")
        self._unsent += self._points.new()
        while self._unsent:
            self._tracker.measure(self._unsent[:_AT_A_TIME])
            del self._unsent[:_AT_A_TIME]
        self._error = self._where.note

    def _tried(self, send: Callable[[], object], otherwise: str) -> bool:
        try:
            send()
        except (Exception, SystemExit) as error:  # of a library, which may be of any kind
            said = " ".join(f"{type(error).__name__}: {error}".split())
            self._error = str(masked(said, secrets_here()))[:_LONGEST]
            print(self._error, flush=True)
            self._say(otherwise)
            return False
        return True

    def _say(self, state: str) -> None:
        where = asdict(self._where) if self._where else {}
        facts = {key: str(value) for key in ("id", "url", "folder") if (value := where.get(key)) is not None}
        said = {"state": state, **facts} | ({"error": self._error} if self._error else {})
        with suppress(OSError):  # a full disk; whoever waits sees how this process ends
            write_json(self._run_dir / FOLDER / f"{self._name}.json", said)


def follow(run_dir: Path, name: str) -> bool:
    """Until the run has ended, or its process is gone; whether all of it was told."""
    sending, began, next_look = Sending(run_dir, name), read_record(run_dir).get("started_at"), 0.0
    with suppress(DamagedRecordError):
        while (record := observe(run_dir)).get("started_at") == began:  # else another process follows a further attempt
            if record["state"] in FINAL_STATES:
                return sending.finish(record)
            if time.monotonic() >= next_look:
                next_look = time.monotonic() + (_POLL_SECONDS if sending.go_on(record) else _AGAIN_SECONDS)
            time.sleep(_GLANCE_SECONDS)
    return False


def main(words: Iterable[str]) -> int:
    """Follow the run directory, for the tracker; the parent's process id tells when nobody waits any more."""
    folder, name, parent = words
    for number in (signal.SIGINT, signal.SIGTERM):  # they are for the job, whose end is going to be told
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_after, args=(int(parent),), daemon=True).start()
    return 0 if follow(Path(folder), name) else 1


def _end_after(parent: int) -> None:
    """A library that hangs does not outlive for long who would have ended it."""
    while os.getppid() == parent:
        time.sleep(_POLL_SECONDS)
    time.sleep(_ORPHANED_SECONDS)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
