"""A container may hold an older NeMo-Run than the one that submits: what was written by this one runs under those."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from recipes.catalogue import find
from recipes.experiment.prepare import prepare
from recipes.experiment.submit import record_all
from scripts.run.files import write_text
from scripts.run.record import observe

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("release", ["0.10.0", "0.9.0", "0.8.1"])  # of nemo:26.06, of 26.04, and of 26.02
def test_a_job_runs_under_the_release_of_a_container(release: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEMORUN_HOME", str(home))
    older = home / "older"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(older)]
    subprocess.run([*install, f"nemo-run=={release}"], check=True, timeout=300)
    job = prepare(find("probe").build())
    record_all([job])
    recipe = home / "probe_fn_or_script"
    write_text(recipe, job.text)
    words = ["-m", "nemo_run.core.runners.fdl_runner", "-n", "probe", str(recipe)]
    env = os.environ | {"NEMO_RUN_DIR": str(job.run_dir), "PYTHONPATH": str(older)}
    done = subprocess.run([sys.executable, *words], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    record = observe(job.run_dir)
    assert record["state"] == "succeeded"
    assert record["versions"]["nemo-run"] == release
