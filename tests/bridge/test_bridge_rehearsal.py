"""Rehearsals with Megatron-Bridge: recipes whose checkpoints and data other stages make first."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

NEMO = Path(sys.executable).with_name("nemo")
#: Its script is newer than those of the container which a cluster has: done here.
HERE = ("export_modelopt",)
#: What each goes through, and what it leaves.
RECIPES = {
    "prune": (["prune"], "checkpoint_hf"),
    "export_modelopt": (["quantize", "export_modelopt"], "checkpoint_hf"),
    "distill": (["prepare_data", "distill"], "checkpoint_megatron"),
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small models of all of them are made once."""
    return tmp_path_factory.mktemp("home")


def _rehearsed(home: Path, name: str, *words: str) -> Any:
    env = os.environ | {"NEMORUN_HOME": str(home / name), "HOME": str(home), "OMP_NUM_THREADS": "1"}
    command = [NEMO, "experiment", "rehearse", *words, "--json"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=1400, cwd=home)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)["data"]


@pytest.mark.timeout(1500)  # several commands, each of which imports all of Megatron
@pytest.mark.parametrize("recipe", RECIPES)
def test_it_is_rehearsed(recipe: str, home: Path) -> None:
    place = "engine=bridge" if recipe in HERE else "executor=slurm"
    told = _rehearsed(home, recipe, recipe, place)
    stages, kind = RECIPES[recipe]
    assert (told["state"], told["engine"]) == ("succeeded", "bridge")
    assert [run["recipe"] for run in told["runs"]] == stages
    assert kind in {output["type"] for output in told["runs"][-1]["outputs"]}
    assert any("Transformer Engine" in line for line in told["not_exercised"])


@pytest.mark.timeout(1500)
def test_what_was_pruned_is_what_is_taught(home: Path) -> None:
    words = ("prune_distill_evaluate", "executor=slurm", "--only", "prune", "--only", "distill")
    told = _rehearsed(home, "pipeline", *words)
    rows = {row["stage"]: row for row in told["stages"]}
    assert {row["state"] for row in rows.values()} == {"succeeded"} and list(rows)[-1] == "distill"
    assert rows["prepare_data"]["note"] == "makes what stands in" and rows["distill"]["engine"] == "bridge"
    taken = next(run for run in told["runs"] if run["recipe"] == "distill")["inputs"]
    assert any("-prune_" in str(row.get("run")) for row in taken)
