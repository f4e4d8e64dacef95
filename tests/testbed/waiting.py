"""Waiting for what another process does."""

import time
from collections.abc import Callable
from typing import Any

#: Far longer than anything that is waited for takes: a machine with other work must not fail a test.
SECONDS = 240


def until(check: Callable[[], Any], seconds: float = SECONDS) -> Any:
    """What `check` returns once it is true."""
    deadline = time.monotonic() + seconds
    while not (found := check()):
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.1)
    return found
