"""What a dry run lets pass and a job breaks at is found by rehearsing it: the bridge engine's part of the list.

FAULTS=all python -m pytest tests/bridge/test_planted_faults.py  # a rehearsal each, of a minute
"""

import os
from pathlib import Path

import pytest

from tests.bridge.conftest import nemo
from tests.planted_faults import FAULTS, Fault

pytestmark = pytest.mark.integration
OURS = [fault for fault in FAULTS if fault.engine == "bridge"]
TRIED = OURS if os.environ.get("FAULTS") == "all" else OURS[::9]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint that all of them begin with is made once."""
    return tmp_path_factory.mktemp("home")


@pytest.mark.timeout(900)  # two stages of two ranks, each of which imports all of Megatron
@pytest.mark.parametrize("fault", TRIED, ids=lambda fault: fault.name)
def test_it_is_found(fault: Fault, source: Path, home: Path, tmp_path: Path) -> None:
    words = fault.command(tmp_path, source)
    dry = nemo(home, "run", *words, "--dryrun")
    assert dry.returncode == 0, dry.stdout + dry.stderr
    done = nemo(home, "rehearse", *words)
    assert (done.returncode != 0) is fault.found
    assert fault.told in done.stdout + done.stderr
