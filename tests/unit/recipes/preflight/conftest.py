"""What tests of checks share."""

from pathlib import Path

import pytest


@pytest.fixture
def away(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty folder to work in, an empty cache of the hub, and no runs."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf-home"))
    monkeypatch.setattr("nemo_run.config._NEMORUN_HOME", str(tmp_path / "nemo-home"))  # read once, at import
    monkeypatch.chdir(tmp_path)
