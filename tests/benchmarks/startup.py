"""What a dry run and a plan cost beyond NeMo-Run itself, and `mor` without it: `python tests/benchmarks/startup.py`.

Times whole processes in turn (A B A B ...) after one warm-up each and prints medians of wall and processor time and
their difference, so that a slow machine slows both; then the checks of one job alone, in this process.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

NEMO, MOR = (str(Path(sys.executable).with_name(name)) for name in ("nemo", "mor"))
#: A place whose storage is not here: the benchmark needs no room for 60 GB.
PLACE = ["executor=slurm", "executor.output_root=/lustre/runs", "executor.image=nvcr.io/nvidia/nemo:26.06"]
PLANNED = ["quantize_fp8", *PLACE, "args.hf_model_id=Qwen/Qwen3-30B-A3B", "executor.nodes=2"]
COMMANDS = {
    "import nemo_run": [sys.executable, "-c", "import nemo_run"],
    "import nemo_run.cli": [sys.executable, "-c", "import nemo_run.__main__"],
    "dry run": [NEMO, "experiment", "run", "quantize_fp8", *PLACE, "--dryrun"],
    "dry run, tiny model": [NEMO, "experiment", "run", "quantize_nvfp4", "args.hf_model_id=tiny:qwen3", "--dryrun"],
    "plan": [NEMO, "experiment", "plan", *PLANNED],
    "import recipes": [sys.executable, "-c", "import recipes"],
    "mor ps": [MOR, "ps"],
    "mor recipes": [MOR, "recipes"],
    "mor explain": [MOR, "explain", "timeout"],
    "mor executors": [MOR, "executors"],
    "mor plan": [MOR, "plan", *PLANNED],
    "mor --help": [MOR, "--help"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    wall: dict[str, list[float]] = {name: [] for name in COMMANDS}
    worked: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for turn in range(options.repeat + 1):
        for name, command in COMMANDS.items():
            began, used = time.perf_counter(), _used()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            if turn:
                wall[name].append(time.perf_counter() - began)
                worked[name].append(_used() - used)
    medians = {name: round(statistics.median(values), 3) for name, values in worked.items()}
    print(f"{'':24}{'wall s':>8}{'beyond import nemo_run':>24}{'CPU s':>9}{'beyond':>9}")
    for name in COMMANDS:
        row = [figure for seconds in (wall, worked) for figure in _median_and_beyond(seconds, name)]
        print(f"{name:24}{row[0]:8.2f}{row[1]:24.2f}{row[2]:9.2f}{row[3]:9.2f}")
    checks = milliseconds_of_checks()
    print(f"the checks of one job: {checks:.1f} ms")
    medians["checks"] = checks / 1000
    if options.json:
        options.json.write_text(json.dumps(medians, indent=2))


def _used() -> float:
    """Processor seconds of the processes that this one has waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _median_and_beyond(seconds: dict[str, list[float]], name: str) -> tuple[float, float]:
    """The median of a command, and of what it takes beyond the import in the same turn."""
    pairs = zip(seconds[name], seconds["import nemo_run"], strict=True)
    return statistics.median(seconds[name]), statistics.median(value - other for value, other in pairs)


def milliseconds_of_checks(turns: int = 50) -> float:
    """Median of the checks of a large model's job on many GPUs, which have the most to look at."""
    from recipes import prepare, quantize_fp8
    from recipes.preflight.subjects import preflight

    partial = quantize_fp8()
    partial.args.hf_model_id = "Qwen/Qwen3-235B-A22B"
    partial.torchrun.nnodes = 8
    place = {"gpu": "h100-80gb", "image": "nvcr.io/nvidia/nemo:26.06", "output_root": "/lustre/runs"}
    spec = prepare(partial, "slurm", place, online=False)
    seconds = []
    for _ in range(turns):
        began = time.perf_counter()
        preflight(spec)
        seconds.append(time.perf_counter() - began)
    return 1000 * statistics.median(seconds)


if __name__ == "__main__":
    main()
