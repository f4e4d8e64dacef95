"""Following the log of a job."""

from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from executors.lepton.place import LeptonPlace
from executors.slurm.place import SlurmPlace
from executors.slurm.profile import SlurmProfile
from recipes.experiment.logs import Tail


class Cluster(SlurmPlace):
    """A login node over SSH whose job has a log of its own from some moment on."""

    texts: ClassVar[dict[str, bytes]] = {"launcher": b"export A=1\n+ export A=1\nand much more\n", "own": b""}

    def log(self, job: Any, name: str, offset: int) -> bytes:
        return (self.texts["own"] or self.texts["launcher"])[offset:]


@pytest.mark.parametrize("host", [None, "login.example.com"])
def test_lines_of_the_launcher_do_not_hide_those_of_the_job(host: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was so over SSH: what had been read of the launcher's log was left out of the job's."""
    place = Cluster(profile=SlurmProfile(host=host))
    run: Any = SimpleNamespace(job=SimpleNamespace(place=place), scheduled=object(), record={}, ended=False)
    tail = Tail()
    assert tail.lines(run) == [], "it may have a log of its own any moment"
    monkeypatch.setitem(Cluster.texts, "own", b"rank 0 was told to fail\n")
    run.record["started_at"] = "2026-11-26T08:00:00Z"
    assert tail.lines(run) == ["rank 0 was told to fail"]
    run.ended = True
    assert tail.lines(run) == []


def test_a_job_that_ended_without_a_log_shows_its_launcher_s() -> None:
    place = Cluster(profile=SlurmProfile())
    run: Any = SimpleNamespace(job=SimpleNamespace(place=place), scheduled=object(), record={}, ended=True)
    assert Tail().lines(run)[-1] == "and much more"


def test_on_lepton_both_are_one_text() -> None:
    assert LeptonPlace.has_one_log and not SlurmPlace.has_one_log
