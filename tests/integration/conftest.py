"""Fixtures of every module that runs jobs of the script engine: checkpoints, and their user."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.testbed.scripted import User, write_checkpoints
from tests.testbed.warm import Warm


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    return write_checkpoints(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture
def user(warm: Warm, tmp_path: Path) -> User:
    return User(warm=warm, folder=tmp_path)
