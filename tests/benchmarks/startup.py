"""What a dry run costs beyond NeMo-Run itself: `python tests/benchmarks/startup.py [--repeat N]`.

Times whole processes in turn (A B A B ...) after one warm-up each and prints medians and their
difference, so that a slow machine slows both.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

NEMO = str(Path(sys.executable).with_name("nemo"))
COMMANDS = {
    "import nemo_run": [sys.executable, "-c", "import nemo_run"],
    "import nemo_run.cli": [sys.executable, "-c", "import nemo_run.__main__"],
    "dry run": [NEMO, "experiment", "run", "quantize_fp8", "executor=local", "--dryrun"],
    "dry run, tiny model": [NEMO, "experiment", "run", "quantize_nvfp4", "args.hf_model_id=tiny:qwen3", "--dryrun"],
    "import recipes": [sys.executable, "-c", "import recipes"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for turn in range(options.repeat + 1):
        for name, command in COMMANDS.items():
            began = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            if turn:
                seconds[name].append(time.perf_counter() - began)
    medians = {name: round(statistics.median(values), 3) for name, values in seconds.items()}
    base = seconds["import nemo_run"]
    print(f"{'':24}{'median s':>10}{'beyond import nemo_run':>25}")
    for name, values in seconds.items():
        beyond = statistics.median(value - other for value, other in zip(values, base, strict=True))
        print(f"{name:24}{medians[name]:10.2f}{beyond:25.2f}")
    if options.json:
        options.json.write_text(json.dumps(medians, indent=2))


if __name__ == "__main__":
    main()
