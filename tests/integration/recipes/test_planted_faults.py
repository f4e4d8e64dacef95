"""What a dry run lets pass and a job breaks at is found by rehearsing it: the hf engine's part of the list.

FAULTS=all python -m pytest tests/integration/recipes/test_planted_faults.py  # a rehearsal each, of half a minute
"""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Done
from tests.hf_models import build, save
from tests.planted_faults import FAULTS, Fault

pytestmark = pytest.mark.integration

Nemo = Callable[..., Done]
OURS = [fault for fault in FAULTS if fault.engine == "hf"]
TRIED = OURS if os.environ.get("FAULTS") == "all" else OURS[::9]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(build("qwen3"), tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("fault", TRIED, ids=lambda fault: fault.name)
def test_it_is_found(fault: Fault, nemo: Nemo, model: Path, tmp_path: Path) -> None:
    words = fault.command(tmp_path, model)
    assert nemo("run", *words, "--dryrun").code == 0
    done = nemo("rehearse", *words)
    assert (done.code != 0) is fault.found
    assert fault.told in done.out + done.err


def test_nine_of_ten_are_found() -> None:
    assert len(FAULTS) >= 40 and len({fault.name for fault in FAULTS}) == len(FAULTS)
    assert sum(fault.found for fault in FAULTS) >= 0.9 * len(FAULTS)
