"""One process of a script: started with a word list, watched, ended with whatever it started, its output bounded."""

import codecs
import ctypes
import os
import re
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from scripts.engines.iterations import Iterations
from scripts.engines.supervise import end_group
from scripts.run.secrets import Mask

#: What of a script's output goes to the log whole.
LOG_BYTES = 64 << 20
_CHUNK = 1 << 16
_TAIL = 1 << 14
_SHOWN = 500
_GRACE_SECONDS = 10.0
_PR_SET_PDEATHSIG = 1
#: A bar of tqdm: `12/512 [00:10<`, wherever it stands in a line.
_BAR = re.compile(r"(\d+)/(\d+) \[")


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a script ended."""

    status: int  # the exit status, or minus the number of the signal that killed it
    tail: str  # the end of what it printed
    seconds: float


class SilentError(Exception):
    """The script printed nothing for as long as it may."""


class Output:
    """Passes what a script prints on, without secrets, up to a limit; beyond it a file keeps the end.

    What is printed goes through sys.stdout, which the record's log follows. A log of gigabytes fills the
    disk of whoever runs the job, and nobody reads it: `limit` bytes go there, then `kept` of the last ones
    to `overflow`.
    """

    def __init__(self, overflow: Path, *, limit: int = LOG_BYTES, kept: int = 4 << 20) -> None:
        self._overflow, self._limit, self._kept = overflow, limit, kept
        self._decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
        self._mask = Mask()
        self._seen = 0
        self._end = b""  # of the output, bounded
        self._file: IO[bytes] | None = None

    def write(self, data: bytes) -> None:
        """Pass `data` on."""
        self._pass(self._mask.feed(data))

    def _pass(self, data: bytes) -> None:
        self._end = (self._end + data)[-_TAIL:]
        room = max(0, self._limit - self._seen)
        self._seen += len(data)
        if room:
            print(self._decoder.decode(data[:room]), end="", flush=True)
        if len(data) > room:
            self._keep(data[room:])

    def _keep(self, data: bytes) -> None:
        if self._file is None:
            megabytes = self._limit / (1 << 20)
            print(f"\n[output beyond {megabytes:.0f} MB: its end is in {self._overflow.name}]", flush=True)
            self._file = self._overflow.open("wb")
        if self._file.tell() + len(data) > self._kept:  # two halves, so that there is always some of the end
            self._file.close()
            self._overflow.replace(self._overflow.with_name(f"{self._overflow.name}.before"))
            self._file = self._overflow.open("wb")
        self._file.write(data[-self._kept :])
        self._file.flush()

    def close(self) -> None:
        """Flush what was cut in two, and the file."""
        self._pass(self._mask.rest())
        print(self._decoder.decode(b"", final=True), end="", flush=True)
        if self._file is not None:
            self._file.close()

    @property
    def tail(self) -> str:
        """The end of what was printed."""
        return self._end.decode("utf-8", "replace")


def last_words(tail: str, error: re.Pattern[str]) -> str:
    """What the end of an output says last of an error, in the pattern's first group; else its last line."""
    said = error.findall(tail) or [line for line in tail.splitlines() if line.strip()]
    return str(said[-1]).strip()[:_SHOWN] if said else ""


def run_child(
    words: Sequence[str],
    *,
    env: Mapping[str, str],
    output: Output,
    silence: float,
    progress: Callable[[int, int], None],
    measured: Callable[[int, Mapping[str, float]], None] = lambda step, figures: None,
) -> Ended:
    """Run `words` as a process group of its own and wait for it; its standard output and error go to `output`.

    The group is gone when this returns or raises, and dies with this process. Raises SilentError when
    nothing was printed for `silence` seconds (0 waits forever), OSError when it cannot be started.
    """
    began = time.monotonic()
    process = subprocess.Popen(
        list(words),
        env=dict(env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=_dying_with_parent(),
    )
    try:
        assert process.stdout is not None
        _follow(process, process.stdout, output, silence, progress, measured)
        status = process.wait()
    finally:
        end_group(process, _GRACE_SECONDS)
        output.close()
    return Ended(status=status, tail=output.tail, seconds=round(time.monotonic() - began, 3))


def _dying_with_parent() -> Callable[[], None] | None:
    """If this rank is killed outright, its script must not go on holding the GPU (Linux; nothing elsewhere).

    The function is looked up here: between fork and exec nothing may be loaded, for a lock of another
    thread would never be released there.
    """
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl
    return lambda: prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _follow(
    process: "subprocess.Popen[bytes]",
    pipe: IO[bytes],
    output: Output,
    silence: float,
    progress: Callable[[int, int], None],
    measured: Callable[[int, Mapping[str, float]], None],
) -> None:
    """Copy until the end of the output, or shortly after the process ended: what it left running may hold the pipe."""
    heard = time.monotonic()
    iterations = Iterations()
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while True:
            ready = selector.select(timeout=0.5)
            if ready:
                data = os.read(pipe.fileno(), _CHUNK)
                if not data:
                    return
                heard = time.monotonic()
                output.write(data)
                if bars := _BAR.findall(data.decode("utf-8", "replace")):
                    progress(*map(int, bars[-1]))
                for step, figures in iterations.feed(data):
                    measured(step, figures)
            elif process.poll() is not None:
                return
            elif silence and time.monotonic() - heard > silence:
                raise SilentError
