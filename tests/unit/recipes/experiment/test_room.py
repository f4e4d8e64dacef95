"""How many jobs go on at a time on one machine, and on which GPUs."""

import os
from typing import Any

import psutil
import pytest

from executors.local import LocalPlace, LocalProfile
from recipes.experiment import room
from recipes.experiment.room import Room, needs_of
from tests.jobs import job_of

GB = 1_000_000_000


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """16 processors, 64 GB, no GPU."""
    for name in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    memory = psutil.virtual_memory()._replace(available=64 * GB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    monkeypatch.setattr(room, "gpus_here", lambda: 0)


def job(parallel: Any = "auto", needs: dict[str, int] | None = None, **env: str) -> Any:
    made = job_of("quantize_fp8", args__hf_model_id="tiny:qwen3")
    return made.noting(place=LocalPlace(LocalProfile(parallel=parallel, env=env)), needs=needs)


def need(memory: int = 1, cores: int = 1, gpus: int = 0) -> dict[str, int]:
    return {"memory": memory * GB, "cores": cores, "gpus": gpus}


def most(one: Any) -> int:
    """How many of a kind go on at a time, of twenty."""
    rooms, going = Room(), []
    while len(going) < 20 and rooms.fits(one, going):
        going.append(one)
    return len(going)


def test_as_many_as_fit_where_nobody_said_how_many() -> None:
    assert most(job(needs=need(cores=16))) == 1
    assert most(job(needs=need(cores=5))) == 3
    assert most(job(needs=need(memory=20))) == 3
    assert most(job(needs=need(memory=100))) == 1  # whether it fits at all, checks have said
    assert most(job(needs=None)) == 1


def test_a_number_counts_for_what_nobody_can_tell_and_memory_counts_all_the_same() -> None:
    assert most(job(4, needs=None)) == 4
    assert most(job(4, needs=need(cores=16))) == 4
    assert most(job(4, needs=need(memory=30))) == 2
    assert most(job(1, needs=need())) == 1


def test_torch_takes_every_processor_unless_it_is_told_otherwise() -> None:
    found = needs_of(job())
    assert found is not None and (found["cores"], found["gpus"]) == (16, 0)
    assert GB // 2 < found["memory"] < 2 * GB
    told = needs_of(job(OMP_NUM_THREADS="4"))
    assert told is not None and told["cores"] == 4
    assert needs_of(job_of("probe")) is None


def test_jobs_of_a_number_share_the_processors() -> None:
    def threads(parallel: Any, **env: str) -> str | None:
        one = job(parallel, **env)
        return one.place.executor(one).env_vars.get("OMP_NUM_THREADS")

    assert [threads("auto"), threads(1), threads(4), threads(40)] == [None, None, "4", "1"]
    assert threads(4, OMP_NUM_THREADS="7") == "7"


def test_each_has_gpus_that_no_other_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "gpus_here", lambda: 4)
    one = job(needs=need(gpus=1))
    assert most(one) == 4
    assert most(job(needs=need(gpus=2))) == 2
    assert most(job(needs=need(gpus=1), CUDA_VISIBLE_DEVICES="2,3")) == 2
    first = one.noting(devices=Room().devices(one, []))
    second = one.noting(devices=Room().devices(one, [first]))
    assert (first.devices, second.devices) == (("0",), ("1",))
    assert second.place.executor(second).env_vars["CUDA_VISIBLE_DEVICES"] == "1"
    pinned = job(needs=need(gpus=1), CUDA_VISIBLE_DEVICES="2,3")
    assert Room().devices(pinned, [first]) == ("2",)
    assert Room().devices(job(2, needs=need(gpus=4)), [first]) == ()
