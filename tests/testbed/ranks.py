"""Jobs of the hf engine on ranks of torchrun's own agent, which are forked from one process that has imported torch.

`python -m tests.testbed.ranks JSON`: cases, each with its run directory, its ranks, the arguments of quantize and,
where a rank is to fail while it calibrates, how.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from scripts import entrypoints
from scripts.args.quantize import QuantizeArgs
from scripts.run.problems import JobError

ROOT = Path(__file__).resolve().parents[2]


def run_cases(cases: list[dict[str, Any]]) -> str:
    """In a process of its own; what it and its ranks printed."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    env |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-m", __name__, json.dumps(cases)]
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def _rank(case: dict[str, Any]) -> None:
    from scripts.engines.hf import calibrate

    # What an earlier case has measured of the model is of no use to the next.
    os.environ |= {"NEMO_RUN_DIR": case["run_dir"], "XDG_CACHE_HOME": f"{case['run_dir']}.cache"}

    def killed(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def failed(*_: Any) -> None:
        raise JobError("out_of_memory", "A single sample does not fit.")

    if os.environ["RANK"] == "1" and case.get("fails"):
        calibrate._run_groups = {"killed": killed, "failed": failed}[case["fails"]]
    entrypoints.entrypoint("quantize")(engine="hf", args=QuantizeArgs(**case["args"]))


def _main() -> None:
    import datasets  # noqa: F401 - so that no rank has to
    import matplotlib.backends.backend_svg  # noqa: F401
    import modelopt.torch.export
    import modelopt.torch.quantization  # noqa: F401
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch
    from transformers import AutoModelForCausalLM, Qwen3ForCausalLM, Qwen3MoeForCausalLM  # noqa: F401

    import scripts.engines.hf.engine  # noqa: F401

    for case in json.loads(sys.argv[1]):
        Path(case["run_dir"]).mkdir(parents=True)
        how: Any = {"min_nodes": 1, "max_nodes": 1, "nproc_per_node": case["ranks"], "max_restarts": 0}
        where: Any = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "run_id": "test"}
        try:
            elastic_launch(LaunchConfig(**how, **where, start_method="fork"), _rank)(case)
        except ChildFailedError:
            assert case.get("fails"), case


if __name__ == "__main__":
    _main()
