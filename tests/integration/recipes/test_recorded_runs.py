"""Run folders that an earlier version wrote (tests/golden/runs) are listed, shown, read and started over."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from recipes.experiment.experiment import partial_of
from recipes.experiment.job import Job
from recipes.experiment.runs import Run
from recipes.experiment.store import RunFolder
from tests.conftest import Done
from tests.golden.cases import FOLDER
from tests.golden.cases import HOME as THEIRS

pytestmark = pytest.mark.integration
FAILED, CANCELLED = "probe_1795685258229-914bf1", "quantize_tiny_1795685285584-220333"


@pytest.fixture
def runs(home: Path) -> Path:
    """The folders, in this test's home."""
    for source in (file for file in (FOLDER / "runs").rglob("*") if file.is_file()):
        target = home / "runs" / source.relative_to(FOLDER / "runs")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(source.read_text(encoding="utf-8").replace(THEIRS, str(home)), encoding="utf-8")
    return home / "runs"


def test_they_are_listed_shown_and_started_over(nemo: Callable[..., Done], runs: Path) -> None:
    listed = nemo("ps", "--all", "--json").json
    assert [(run["id"], run["state"], run["where"]) for run in listed] == [
        (FAILED, "failed", "local"),
        (CANCELLED, "cancelled", "local"),
    ]
    assert nemo("status", FAILED, "--json").json["error"]["name"] == "told_to_fail"
    resumed = nemo("resume", FAILED)
    assert resumed.code == 0, resumed.err
    followed = nemo("logs", "-f", FAILED)
    assert "(attempt 2)" in followed.out
    again = json.loads((runs / FAILED / "job.json").read_text())
    assert again["job"]["id"] == f"{FAILED}-r2" and "launch" not in again


@pytest.mark.parametrize("run_id", [FAILED, CANCELLED])
def test_they_are_read_whole(runs: Path, run_id: str) -> None:
    folder = RunFolder(dir=runs / run_id)
    run = Run.read(folder)
    assert run.job is not None and run.scheduled is not None and run.scheduled.run_id == run_id
    assert (run.job.id, run.job.run_dir, run.where) == (run_id, folder.dir, "local")
    assert partial_of(folder).recipe == run.job.recipe
    data = json.loads(json.dumps(run.job.as_data()))
    assert Job.from_data(data).as_data() == data, "what is written is what is read"
