"""Runs that ended for good are listed from the index, as reading their folders would have it."""

from pathlib import Path

import pytest

from executors.slurm import profile as slurm
from recipes.artifacts.artifact import artifacts_of
from recipes.experiment import settled
from recipes.experiment.runs import Run, all_runs
from recipes.experiment.settled import SettledRun, known_runs
from recipes.experiment.store import RunFolder
from scripts.run.record import Record
from tests.answers import data_of
from tests.jobs import submitted
from tests.runs import GONE, Shell, quantized, recorded

ENDED, GOES_ON = "probe_1126-0805-000001", "probe_1126-0805-000002"


@pytest.fixture
def opened(home: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The runs whose folders were looked at."""
    looked: list[str] = []

    def look(folders: "list[RunFolder]") -> list[Run]:
        found = list(folders)
        looked.extend(folder.id for folder in found)
        return before(found)

    before = settled.look
    monkeypatch.setattr(settled, "look", look)
    return looked


def test_a_folder_is_opened_once_and_again_when_it_is_another(home: Path, opened: list[str]) -> None:
    folder = recorded(home, ENDED)
    recorded(home, GOES_ON, ended=False)
    assert {run.id: run.state for run in known_runs()} == {ENDED: "failed", GOES_ON: "lost"}
    assert sorted(opened) == [ENDED, GOES_ON]
    assert isinstance({run.id: run for run in known_runs()}[ENDED], SettledRun)
    assert opened[2:] == [GOES_ON]  # one that is lost may still say how it ended
    with (folder / "run.json").open("r+") as file:  # in its place: the folder has the same time
        file.write("{ damaged")
    assert {run.id: run.state for run in known_runs()}[ENDED] == "unreadable" and ENDED in opened[3:]
    assert {run.id: run.state for run in known_runs()}[ENDED] == "unreadable"
    for file in sorted(folder.rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    folder.rmdir()
    assert [run.id for run in known_runs()] == [GOES_ON]


def test_it_says_what_the_folders_say(home: Path) -> None:
    recorded(home, ENDED)
    quantized(home, "fp8")  # without a job of this machine
    there = Record.submit(home / "runs" / "away_1126-0805-000003", id="away_1126-0805-000003", recipe="probe")
    rows = [
        {"type": "checkpoint_hf", "path": f"/there/{name}", "bytes": 3, "digest": f"sha256:{name}"} for name in "ab"
    ]
    there.update(outputs=rows)
    there.finish("succeeded")
    profile = slurm.SlurmProfile(account="a", partition="p", host="login", user="me")
    submitted(RunFolder(dir=there.dir), profile, settled=True, supervisor=GONE)
    for _ in range(2):
        kept, read = known_runs(), all_runs()
        assert [one.as_data() for one in kept] == [one.as_data() for one in read]
        assert [one.figure for one in kept] == [one.figure for one in read]
        assert [one.as_data() for one in artifacts_of(kept)] == [one.as_data() for one in artifacts_of(read)]
        assert [one.place for one in artifacts_of(kept)] == [one.place for one in artifacts_of(read)]
        assert [one.job and one.job.id for one in kept] == [one.job and one.job.id for one in read]
    assert all(isinstance(one, SettledRun) for one in kept)


def test_lists_of_commands_are_the_same_the_second_time(home: Path) -> None:
    quantized(home, "fp8")
    recorded(home, ENDED)
    shell = Shell()
    for words in (("ps",), ("ps", "--all"), ("ps", "--all", "--json"), ("artifacts",)):
        assert shell(*words).stdout == shell(*words).stdout
    recorded(home, GOES_ON, ended=False)
    assert "2 more ended" in shell("ps").stdout
    assert [row["state"] for row in data_of(shell("ps", "--json").stdout)] == ["lost"]


def test_one_that_is_taken_up_again_is_looked_at(home: Path) -> None:
    folder = recorded(home, ENDED)
    known_runs()
    Run.read(RunFolder(dir=folder)).reopen()
    (run,) = known_runs()
    assert not isinstance(run, SettledRun) and run.state in ("submitted", "lost")
