"""A script that was written for CUDA is run as it is, without a GPU, by the script engine."""

import json
from pathlib import Path

import pytest

from scripts.checkpoints import look
from scripts.engines import cpu_runtime
from tests.bridge.conftest import nemo, run_of

pytestmark = pytest.mark.integration
SCRIPT = Path(__file__).with_name("quantize_with_cuda.py")


@pytest.mark.timeout(900)  # two ranks, each of which imports all of Megatron
def test_it_quantizes_on_two_ranks(source: Path, home: Path) -> None:
    given = [f"args.hf_model_id={source}", "executor=local", f"script.path={SCRIPT}", "script.runtime=cpu", "--yes"]
    done = nemo(home, "run", "quantize_fp8", *given, "args.tp=2", "args.calib_size=2", "torchrun.nproc_per_node=2")
    assert done.returncode == 0, done.stdout + done.stderr
    record = run_of(home, "quantize_fp8")
    assert (record["state"], record["engine"]) == ("succeeded", "script")
    assert record["not_shown"] == list(cpu_runtime.LIMITS)
    (checkpoint,) = (one["path"] for one in record["outputs"] if one["type"] == "checkpoint_megatron")
    found = look(Path(checkpoint))
    assert found.quantization == "fp8" and found.modelopt_state and not found.problems
    assert json.loads((record["folder"] / "ranks" / "1.json").read_text())
