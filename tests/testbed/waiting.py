"""Waiting for what another process does."""

import time
from collections.abc import Callable
from typing import Any

#: Far longer than anything that is waited for takes: a machine with other work must not fail a test.
SECONDS = 240


def until(check: Callable[[], Any], seconds: float = SECONDS) -> Any:
    """What `check` returns once it is true."""
    deadline = time.monotonic() + seconds
    while True:
        began = time.monotonic()
        if found := check():
            return found
        assert time.monotonic() < deadline, f"not within {seconds} s"
        # A check that is a command takes the processor from what it waits for: a third of the time at most.
        time.sleep(min(max(0.1, 2 * (time.monotonic() - began)), 2))
