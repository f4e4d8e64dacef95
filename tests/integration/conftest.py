"""Fixtures of every module that runs jobs of the script engine: a warm command line, checkpoints, and their user."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.testbed.scripted import User, write_checkpoints
from tests.testbed.warm import Warm, warm_nemo


@pytest.fixture(scope="module")
def warm() -> Iterator[Warm]:
    with warm_nemo() as started:
        yield started


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    return write_checkpoints(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture
def user(warm: Warm, tmp_path: Path) -> User:
    return User(warm=warm, folder=tmp_path)
