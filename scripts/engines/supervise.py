"""Runs a command, and ends it with everything that it started as soon as standard input is closed.

A script of its own, which imports nothing of ours, run by a job with a pipe for standard input: however the job ends,
killed outright too, the pipe is closed, and no server goes on holding the GPUs. Exits as the command did, with 128 + N
after signal N.
"""

import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress

_GRACE_SECONDS = 15.0
_POLL_SECONDS = 0.2
_PR_SET_CHILD_SUBREAPER = 36


def main() -> int:
    """Run the command in sys.argv."""
    if sys.platform == "linux":  # processes whose parent is gone become ours, also in sessions of their own
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        process = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, start_new_session=True)
    except OSError as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        return 127
    try:
        while process.poll() is None:
            ready, _, _ = select.select([0], [], [], _POLL_SECONDS)
            if ready and not os.read(0, 1):
                break  # standard input was closed
    finally:
        _end(process)
    return 128 - process.returncode if process.returncode < 0 else process.returncode


def end_group(process: "subprocess.Popen[bytes]", seconds: float) -> None:
    """SIGTERM, and SIGKILL `seconds` later, to a process that leads a group, and to all of that group."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _end(process: "subprocess.Popen[bytes]") -> None:
    """What it started in groups of their own ends with it."""
    import psutil

    end_group(process, _GRACE_SECONDS)
    deadline = time.monotonic() + _GRACE_SECONDS
    while (left := psutil.Process().children(recursive=True)) and time.monotonic() < deadline:
        for child in left:
            with suppress(psutil.NoSuchProcess):
                child.kill()
        psutil.wait_procs(left, timeout=1)


if __name__ == "__main__":
    sys.exit(main())
