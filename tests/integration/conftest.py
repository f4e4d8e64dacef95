"""What the tests of real jobs share, each made once for all tests of a process: daemons, checkpoints, a user of them.

A test that needs a cluster or an engine with other settings has a fixture of the same name in its own module.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.testbed.docker import Engine, docker_engine
from tests.testbed.scripted import User, write_checkpoints
from tests.testbed.slurm import Cluster, Login, login_node, slurm_cluster
from tests.testbed.warm import Warm


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Two nodes with two GPUs each, and accounting. Whoever stops a daemon starts it again."""
    with slurm_cluster() as started:
        yield started


@pytest.fixture(scope="session")
def login(cluster: Cluster) -> Iterator[Login]:
    with login_node(cluster) as started:
        yield started


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """A Docker engine. Whoever kills it starts it again."""
    with docker_engine() as started:
        yield started


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    return write_checkpoints(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs without coverage, which takes memory of its own. Another test measures them."""
    for variable in [name for name in os.environ if name.startswith("COVERAGE_")]:
        monkeypatch.delenv(variable)


@pytest.fixture
def user(warm: Warm, tmp_path: Path) -> User:
    return User(warm=warm, folder=tmp_path)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Modules that share a daemon beside one another: a process of xdist begins with one end of the list, another with
    the other, so that each daemon is started by as few of them as can be."""
    needs: dict[str, set[str]] = {}
    for item in items:
        needs.setdefault(_module(item), set()).update(getattr(item, "fixturenames", ()))
    items.sort(key=lambda item: [name not in needs[_module(item)] for name in ("cluster", "login", "engine")])


def _module(item: pytest.Item) -> str:
    return item.nodeid.partition("::")[0]
