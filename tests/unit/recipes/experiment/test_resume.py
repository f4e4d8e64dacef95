"""Starting runs over: all of them or none, and each once."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from executors.local import LocalProfile
from recipes.experiment import submit
from recipes.experiment.intervene import reopen_run
from recipes.experiment.runs import Run
from recipes.experiment.store import RunFolder
from scripts.run.problems import ProblemsError
from scripts.run.record import Record, read_record
from tests.jobs import submitted


def run_that(ended: str, folder: Path) -> RunFolder:
    found = RunFolder(dir=folder)
    record = Record.submit(found.dir, id=found.id)
    record.finish(ended, {"name": "its_own", "message": "m", "remedy": ""} if ended != "succeeded" else None)
    submitted(found, LocalProfile(), settled=True)
    return found


@pytest.fixture
def spawned(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The runs for which a supervisor would have been started."""
    found: list[list[str]] = []
    monkeypatch.setattr(submit, "partial_of", lambda folder: None)
    monkeypatch.setattr(submit, "spawn", lambda runs: found.append([run.id for run in runs]))
    return found


def test_nothing_is_changed_where_one_did_not_end_badly(tmp_path: Path, spawned: list[list[str]]) -> None:
    bad, good = run_that("failed", tmp_path / "probe_1-a"), run_that("succeeded", tmp_path / "probe_2-b")
    before = read_record(bad.dir)
    with pytest.raises(ProblemsError) as caught:
        submit.take_up([bad, good])
    assert [(one.name, one.value) for one in caught.value.problems] == [("cannot_resume", "probe_2-b")]
    assert read_record(bad.dir) == before
    assert not (bad.dir / "attempts").exists()
    assert spawned == []


@pytest.mark.parametrize("content", ["garbage", "{}", ""])
def test_a_record_that_cannot_be_read_is_named_by_its_file(content: str, tmp_path: Path) -> None:
    """No recipe is looked for before that: what is damaged is the record."""
    bad = run_that("failed", tmp_path / "probe_1-a")
    (bad.dir / "run.json").write_text(content)
    with pytest.raises(ProblemsError) as caught:
        submit.take_up([bad])
    (problem,) = caught.value.problems
    assert (problem.name, problem.value) == ("damaged_record", "probe_1-a")
    assert str(bad.dir / "run.json") in problem.cause and "remove" in problem.remedy


def test_a_run_that_is_named_twice_is_started_once(tmp_path: Path, spawned: list[list[str]]) -> None:
    bad = run_that("failed", tmp_path / "probe_1-a")
    submit.take_up([bad, RunFolder(dir=bad.dir)])
    assert spawned == [["probe_1-a"]]
    assert len(read_record(bad.dir)["attempts"]) == 1


def test_of_two_at_once_one_starts_it(tmp_path: Path) -> None:
    for turn in range(5):
        bad = run_that("failed", tmp_path / f"probe_{turn}-a")

        def ask(folder: RunFolder) -> Run | None:
            try:
                return reopen_run(folder)
            except ProblemsError as error:
                assert error.problems[0].name == "cannot_resume"
                return None

        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(ask, [RunFolder(dir=bad.dir) for _ in range(4)]))
        assert sum(run is not None for run in answers) == 1
        assert len(read_record(bad.dir)["attempts"]) == 1
