"""A sweep that waits for an earlier run, as one job array of a real Slurm cluster."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import Done
from tests.testbed.slurm import Cluster, slurm_cluster

pytestmark = pytest.mark.integration

MARKER = "hf_MARKER_of_a_sweep_0123456789"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with slurm_cluster(nodes=1, accounting=False) as started:
        yield started


@pytest.mark.parametrize(("exit_code", "state"), [(0, "succeeded"), (3, "cancelled")])
def test_a_sweep_waits_for_its_parent(
    nemo: Callable[..., Done], home: Path, cluster: Cluster, exit_code: int, state: str
) -> None:
    env = {"SLURM_CONF": cluster.env["SLURM_CONF"], "HF_TOKEN": MARKER, "OMP_NUM_THREADS": "1"}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    place = ["executor=slurm", "executor.image=null", f"executor.env.PATH={path}", "executor.secrets=[HF_TOKEN]"]
    words = ["run", "probe", *place, "--json"]
    parent = nemo(*words, "args.seconds=15", f"args.exit_code={exit_code}", "--detach", env=env).json["id"]
    done = nemo(*words, "--after", parent, "--sweep", "args.message=one,two", env=env)
    assert [run["state"] for run in done.json["runs"]] == [state] * 2, done
    assert done.code == (130 if exit_code else 0)
    if exit_code:
        assert {run["error"]["name"] for run in done.json["runs"]} == {"dependency_failed"}
        assert not any("started_at" in run for run in done.json["runs"])
    else:
        ended = json.loads((home / "runs" / parent / "run.json").read_text())["finished_at"]
        for run in done.json["runs"]:
            assert run["started_at"] > ended
            (rank,) = json.loads((Path(run["run_dir"]) / "report" / "probe.json").read_text())["ranks"]
            assert "HF_TOKEN" in rank["variables"]
    files = [file for file in home.rglob("*") if file.is_file()]
    assert not [file for file in files if MARKER.encode() in file.read_bytes()]
