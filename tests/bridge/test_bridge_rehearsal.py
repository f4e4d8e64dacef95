"""Rehearsals with Megatron-Bridge: recipes whose checkpoints and data other stages make first."""

import json
import os
import subprocess
import sys
from pathlib import Path

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


@pytest.mark.timeout(1500)  # several commands, each of which imports all of Megatron
@pytest.mark.parametrize("recipe", RECIPES)
def test_it_is_rehearsed(recipe: str, home: Path) -> None:
    env = os.environ | {"NEMORUN_HOME": str(home / recipe), "HOME": str(home), "OMP_NUM_THREADS": "1"}
    place = "engine=bridge" if recipe in HERE else "executor=slurm"
    words = [NEMO, "experiment", "rehearse", recipe, place, "--json"]
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=1400, cwd=home)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout)["data"]
    stages, kind = RECIPES[recipe]
    assert (told["state"], told["engine"]) == ("succeeded", "bridge")
    assert [run["recipe"] for run in told["runs"]] == stages
    assert kind in {output["type"] for output in told["runs"][-1]["outputs"]}
    assert any("Transformer Engine" in line for line in told["not_exercised"])
