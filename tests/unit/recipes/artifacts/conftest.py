"""A home that commands in this process have too."""

from pathlib import Path

import nemo_run.config
import pytest


@pytest.fixture
def home(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(nemo_run.config, "_NEMORUN_HOME", str(home))
    return home
