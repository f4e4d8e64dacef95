"""What the script engine costs beyond torchrun and the script itself, side by side on this machine.

    python tests/benchmarks/engine.py [--repeat 9] [--processes 2] [--json FILE]

One stand-in (tests/testbed/standin.py) that does nothing but write its small outputs is run by torchrun alone, by
torchrun through the entrypoint as NeMo-Run's local executor starts it, and by NeMo-Run's runner around a function that
does nothing. They take turns (A B C A B C ...), so that a machine that slows down slows all of them. Times are medians
of whole processes; a difference is the median of the differences of neighbours. `engine` minus `torchrun` is what a
user waits longer; `runner` minus `torchrun` is the part of it that NeMo-Run's own runner takes to be imported, which
every NeMo-Run job has. Inside a job: from the entrypoint's first line to the script's, and from the script's last line
to the end of the entrypoint.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.testbed.standin import write_huggingface, write_standin  # noqa: E402

SCRIPT, RELEASE = "Megatron-Bridge/examples/quantization/quantize.py", "v0.6.0"
#: The budget: what the engine may add to torchrun and the script itself, NeMo-Run's runner aside.
MOST_SECONDS = 1.0
Times = dict[str, list[float]]


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A checkout with one stand-in, a model, and a recipe that names both."""

    folder: Path
    processes: int
    script: Path
    model: Path

    @property
    def torchrun(self) -> list[str]:
        """As NeMo-Run's local executor has it."""
        rendezvous = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "--rdzv-id", "1"]
        shape = ["--nnodes", "1", "--nproc-per-node", str(self.processes), "--node-rank", "0"]
        return [str(Path(sys.executable).with_name("torchrun")), *rendezvous, *shape, "--tee", "3"]

    def alone(self, run_dir: Path) -> list[str]:
        """The script with what the engine would give it."""
        words = ["--hf-model-id", str(self.model), "--export-quant-cfg", "fp8", "--calib-size", "512"]
        words += ["--megatron-save-path", str(run_dir / "out"), "--tp", "1", "--pp", "1", "--ep", "1", "--etp", "1"]
        return [*self.torchrun, str(self.script), *words]

    def runner(self, run_dir: Path) -> list[str]:
        """NeMo-Run's runner around nothing."""
        import nemo_run as run

        return self._run(run.Partial(tempfile.gettempdir), run_dir)

    def engine(self, run_dir: Path) -> list[str]:
        """The recipe."""
        from recipes import quantize_fp8

        partial = quantize_fp8()
        partial.engine = "script"
        partial.script.path = str(self.script)
        partial.args.hf_model_id = str(self.model)
        partial.args.megatron_save_path = str(run_dir / "out")
        partial.args.ep = 1
        return self._run(partial, run_dir)

    def _run(self, partial: Any, run_dir: Path) -> list[str]:
        from recipes.experiment.job import serialized

        file = run_dir.with_suffix(".zlib")
        file.write_text(serialized(partial))
        return [*self.torchrun, "-m", "nemo_run.core.runners.fdl_runner", "-n", "job", str(file)]

    def seconds(self, command: Callable[[Path], list[str]], run_dir: Path) -> float:
        """One whole process, which must succeed."""
        words = command(run_dir)
        env = {**os.environ, "NEMO_RUN_DIR": str(run_dir), "OMP_NUM_THREADS": "1"}
        began = time.perf_counter()
        done = subprocess.run(words, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        taken = time.perf_counter() - began
        if done.returncode:
            raise RuntimeError(f"{' '.join(words)}: {done.stdout[-3000:]} {done.stderr[-3000:]}")
        return taken

    def turns(self, repeat: int) -> tuple[Times, Times]:
        """Seconds of each way, and of the phases inside the engine; a first turn does not count."""
        ways: Mapping[str, Callable[[Path], list[str]]] = {
            "torchrun": self.alone,
            "runner": self.runner,
            "engine": self.engine,
        }
        times: Times = {name: [] for name in ways}
        inside: Times = {}
        for turn in range(repeat + 1):
            for name, command in ways.items():
                run_dir = self.folder / f"{name}-{turn}"
                taken = self.seconds(command, run_dir)
                if turn:
                    times[name].append(taken)
                    for part, value in phases(run_dir).items() if name == "engine" else ():
                        inside.setdefault(part, []).append(value)
        return times, inside


def phases(run_dir: Path) -> dict[str, float]:
    """What rank 0 spent, as its record says, the script's own time apart."""
    record = json.loads((run_dir / "run.json").read_text())
    script: float = json.loads((run_dir / "ranks" / "0.json").read_text())["seconds"]
    timings = dict(record["timings"])
    timings["start and wait for the script"] = timings.pop("run the script") - script
    return {**timings, "the script itself": script}


def table(times: Times, inside: Times) -> dict[str, Any]:
    """Print it; return what --json keeps."""
    kept: dict[str, Any] = {}
    print(f"\n{'':34}{'median s':>10}{'min':>8}{'max':>8}{'beyond torchrun':>18}")
    for name, values in {**times, **inside}.items():
        row = {"median": statistics.median(values), "min": min(values), "max": max(values)}
        line = f"{name:34}{row['median']:10.3f}{row['min']:8.3f}{row['max']:8.3f}"
        if name in times:
            row["beyond"] = statistics.median(
                value - base for value, base in zip(values, times["torchrun"], strict=True)
            )
            line += f"{row['beyond']:18.3f}"
        print(line)
        kept[name] = {key: round(value, 4) for key, value in row.items()} | {"seconds": values}
    pairs = zip(times["engine"], times["runner"], strict=True)
    kept["engine beyond runner"] = round(statistics.median(engine - runner for engine, runner in pairs), 4)
    print(f"the engine itself, beyond NeMo-Run's runner: {kept['engine beyond runner']:.3f} s of {MOST_SECONDS} s")
    return kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=9)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    result: dict[str, Any] = {"load_before": os.getloadavg(), "cores": os.cpu_count(), "processes": options.processes}
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        script = write_standin(folder / "checkout", SCRIPT, RELEASE)
        bench = Bench(
            folder=folder, processes=options.processes, script=script, model=write_huggingface(folder / "model")
        )
        result["times"] = table(*bench.turns(options.repeat))
    result["load_after"] = os.getloadavg()
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
