"""Somebody's script, as it is, in a process where Megatron runs without a GPU.

python -m scripts.engines.cpu_runtime [--te-layers] SCRIPT WORDS...       # or: -m MODULE WORDS...
"""

import os
import runpy
import sys
from pathlib import Path

from configs import CONFIGS
from scripts.engines import cpu_runtime
from scripts.run.problems import JobError


def main() -> None:
    """Start the CPU runtime, then run what the words name: its own modules are found before ours."""
    te_layers = sys.argv[1] == "--te-layers"
    if te_layers:
        del sys.argv[1]
    try:
        cpu_runtime.start(te_layers=te_layers)
    except JobError as error:
        sys.exit(f"failed: {error}")
    root = str(CONFIGS.parent)
    sys.path[:] = [entry for entry in sys.path if entry != root]
    kept = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry not in ("", root)]
    os.environ["PYTHONPATH"] = os.pathsep.join(kept)
    if sys.argv[1] == "-m":
        sys.argv = sys.argv[2:]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        return
    sys.argv = sys.argv[1:]
    sys.path.insert(0, str(Path(sys.argv[0]).resolve().parent))
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
