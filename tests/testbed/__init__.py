"""Real executors on one machine: private daemons that a test starts and ends."""

import os

import pytest


def cannot_run(why: str) -> None:
    """Skip a test that this machine has nothing to run with; fail it where REQUIRE_TESTBED is set, as in CI."""
    if os.environ.get("REQUIRE_TESTBED"):
        pytest.fail(why)
    pytest.skip(why)
