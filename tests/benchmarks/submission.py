"""What submitting costs: ours beside NeMo-Run alone and sbatch alone, on a real Slurm cluster on this machine.

    python tests/benchmarks/submission.py [--repeat 9] [--sweep 100] [--json FILE]

Needs what tests/testbed/slurm.py needs. The cluster takes jobs and starts none, so that nothing but the submission is
measured. Ours and NeMo-Run's own take turns (A B A B ...), in one git repository, with the same values for sbatch and
the same Partial. Times are medians; a ratio is the median of the ratios of neighbours, because a machine that slows
down slows both. `quiet` is NeMo-Run without the status that it asks for and prints when an experiment is left.
"""

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.testbed.slurm import Cluster, executable, slurm_cluster  # noqa: E402

NEMO = str(Path(sys.executable).with_name("nemo"))
VALUES = {"account": "acct", "partition": "batch", "time": "10"}
NO_CONTAINER = {"image": "null"}
#: Files of the repository that travels, of about 4 kB each.
FILES = 200
FINISHED, RUNNING = 100, 20
Times = dict[str, list[float]]


def ours() -> None:
    """One run through our Python API."""
    from recipes import probe, submit

    submit(probe(), "slurm", VALUES | NO_CONTAINER, detach=True)


def ours_sweep(count: int) -> None:
    """Runs that differ in one value through our Python API; the profile is the nearest executors.yaml's."""
    from recipes import probe, sweep

    sweep(probe(), {"args.message": [f"number {n}" for n in range(count)]}, "slurm", detach=True)


def bare(count: int = 1, *, quiet: bool = False) -> None:
    """The same through NeMo-Run's own Experiment, a task for each run."""
    import nemo_run as run

    from scripts.args.probe import ProbeArgs
    from scripts.entrypoints import probe

    executor = run.SlurmExecutor(
        **VALUES,
        nodes=1,
        ntasks_per_node=1,
        packager=run.GitArchivePackager(),
        tunnel=run.LocalTunnel(job_dir=""),
    )
    options = {"skip_status_at_exit": True, "enable_goodbye_message": False, "log_level": "WARN"} if quiet else {}
    with run.Experiment("probe", **options) as experiment:
        for n in range(count):
            partial = run.Partial(probe, args=run.Config(ProbeArgs, message=f"number {n}"))
            experiment.add(partial, executor=executor, name=f"probe_{n}")
        experiment.run(detach=True)


def sbatch(count: int) -> None:
    """As many jobs as sbatch alone can make."""
    argv = ["sbatch", "--parsable", "--output=/dev/null", *(f"--{key}={value}" for key, value in VALUES.items())]
    for _ in range(count):
        subprocess.run([*argv, "--wrap=true"], check=True, capture_output=True)


WAYS: Mapping[str, Callable[[], None]] = {"ours": ours, "bare": bare, "bare, quiet": lambda: bare(quiet=True)}
SWEEPS: Mapping[str, Callable[[int], None]] = {"ours": ours_sweep, "bare": bare, "sbatch alone": sbatch}


def child(words: Sequence[str]) -> None:
    """What a measured process does: `one WAY`; or, after import, `turns REPEAT`, `sweep WAY COUNT` or `list`."""
    what, *rest = words
    result: Any
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()), Path(os.devnull).open() as sys.stdin:
        if what == "one":  # imports what it needs and no more
            WAYS[rest[0]]()
            return
        import nemo_run  # noqa: F401

        import recipes  # noqa: F401

        if what == "turns":
            result = turns(WAYS, int(rest[0]))
        elif what == "sweep":
            result = _seconds(lambda: _sweep(rest[0], int(rest[1])))
        else:
            from recipes.experiment.runs import all_runs

            result = _seconds(lambda: all_runs())
    print(json.dumps(result))


def _sweep(way: str, count: int) -> None:
    SWEEPS[way](count)
    _in_queue(count)


def _in_queue(count: int) -> None:
    """Wait until squeue lists every one. Raises TimeoutError."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        listed = subprocess.run(["squeue", "--noheader", "--array"], check=True, capture_output=True, text=True)
        if len(listed.stdout.splitlines()) == count:
            return
    raise TimeoutError(f"{len(listed.stdout.splitlines())} of {count} jobs are in the queue")


def _seconds(what: Callable[[], object]) -> float:
    began = time.perf_counter()
    what()
    return time.perf_counter() - began


def turns(ways: Mapping[str, Callable[[], None]], repeat: int) -> Times:
    """Seconds of each, one after the other, `repeat` times after a first turn that does not count."""
    times: Times = {name: [] for name in ways}
    for turn in range(repeat + 1):
        for name, way in ways.items():
            seconds = _seconds(way)
            if turn:
                times[name].append(seconds)
    return times


class Bench:
    """A user's surroundings: a repository, a profile, a home for NeMo-Run, a cluster."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster, self.folder, self.work = cluster, folder, folder / "work"
        self.env = {**cluster.env, "NEMORUN_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}
        self.env["XDG_CONFIG_HOME"] = str(folder / "config")
        for n in range(FILES):
            file = self.work / f"package{n % 10}" / f"module{n}.py"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("".join(f"value_{n}_{line} = {n * line}\n" for line in range(200)))
        profile = ", ".join(f"{key}: {value}" for key, value in (VALUES | NO_CONTAINER).items())
        (self.work / "executors.yaml").write_text(f"slurm: {{{profile}}}\n")
        identity = ["-c", "user.name=me", "-c", "user.email=me@example.org"]
        for words in (["init", "-q"], ["add", "."], [*identity, "commit", "-q", "-m", "all"]):
            subprocess.run(["git", *words], cwd=self.work, check=True)

    def run(self, argv: Sequence[str], env: Mapping[str, str] = {}) -> str:
        done = subprocess.run(
            argv, cwd=self.work, env={**self.env, **env}, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(argv)}: {done.stderr[-3000:]}")
        return done.stdout

    def child(self, *words: str, env: Mapping[str, str] = {}) -> Any:
        return json.loads(self.run([sys.executable, __file__, "--child", *words], env) or "null")

    def clear(self) -> None:
        """An empty queue."""
        self.cluster.run("scancel", "--user=root", check=False)
        self.cluster.wait_for("squeue", "--noheader", until=lambda text: not text.strip())

    @contextmanager
    def closed(self) -> Iterator[None]:
        """Jobs wait in the queue."""
        self.cluster.run("scontrol", "update", "PartitionName=batch", "State=DOWN")
        try:
            yield
        finally:
            self.clear()
            self.cluster.run("scontrol", "update", "PartitionName=batch", "State=UP")

    def sweeps(self, count: int, repeat: int) -> Times:
        """From the call until every run is in the queue, after import; a new process each time."""
        times: Times = {name: [] for name in SWEEPS}
        for _ in range(repeat):
            for name in SWEEPS:
                times[name].append(self.child("sweep", name, str(count)))
                self.clear()
        return times

    def processes(self, repeat: int) -> Times:
        """One detached submission as a whole process, import included."""
        ways = {name: lambda name=name: self.child("one", name) for name in WAYS}  # type: ignore[misc]
        return turns(ways, repeat)

    def in_process(self, repeat: int) -> Times:
        """One detached submission after import."""
        times: Times = self.child("turns", str(repeat))
        return times

    def listing(self, repeat: int) -> tuple[Times, dict[str, int]]:
        """`ps` of finished and running runs: seconds, and how often Slurm is asked."""
        self.env["NEMORUN_HOME"] = str(self.folder / "listed")
        self._finished(FINISHED)
        self._running(RUNNING)
        asked = self.folder / "asked"
        spies = self.folder / "spies"
        spies.mkdir()
        for name in ("sacct", "squeue"):
            real = self.run(["sh", "-c", f"command -v {name}"]).strip()
            executable(spies / name, f'#!/bin/sh\necho {name} >> {asked}\nexec {real} "$@"\n')
        path = {"PATH": f"{spies}:{self.env['PATH']}"}
        rows = json.loads(self.run([NEMO, "experiment", "ps", "--all", "--json"], path))["data"]["runs"]
        states = [row["state"] for row in rows]
        found = (states.count("succeeded"), states.count("running"))
        if found != (FINISHED, RUNNING):
            raise RuntimeError(f"ps saw {found} finished and running runs: {sorted(set(states))}")
        calls = {name: asked.read_text().split().count(name) for name in ("sacct", "squeue")}
        times: Times = {"nemo experiment ps --all": [], "after import": []}
        for _ in range(repeat):
            command = [NEMO, "experiment", "ps", "--all"]
            times["nemo experiment ps --all"].append(_seconds(lambda command=command: self.run(command)))  # type: ignore[misc]
            times["after import"].append(self.child("list"))
        self.clear()
        return times, calls

    def _finished(self, count: int) -> None:
        """Recorded runs that have ended, without the jobs: nobody asks Slurm about them."""
        self.run([sys.executable, "-c", _MAKE_FINISHED, str(count)])

    def _running(self, count: int) -> None:
        """Jobs that stay, of two profiles that differ."""
        for seconds in (600, 601):
            grid = f"args.message={','.join(map(str, range(count // 2)))}"
            words = ["--sweep", grid, f"executor.setup=[sleep {seconds}]", "--detach", "--yes"]
            self.run([NEMO, "experiment", "run", "probe", "executor=slurm", *words])
        self.cluster.wait_for(
            "squeue", "--noheader", "--states=RUNNING", until=lambda text: len(text.splitlines()) == count
        )


_MAKE_FINISHED = """
import sys
from recipes import probe
from recipes.experiment.supervisor import finish
from recipes.experiment.prepare import prepare_all
from recipes.experiment.stage import Options
from recipes.experiment.submit import record_all
from recipes.experiment.stage import stages_of

stages = stages_of(probe(), {"args.message": [str(n) for n in range(int(sys.argv[1]))]})
for run in record_all(prepare_all(stages, "slurm", Options())):
    finish(run, "succeeded", "none", "")
"""


def table(title: str, times: Times, base: str | None = None) -> dict[str, Any]:
    """Print a table; return what --json keeps."""
    print(f"\n{title}\n{'':28}{'median s':>10}{'min':>8}{'max':>8}{f'x {base}' if base else '':>16}{'spread':>16}")
    kept: dict[str, Any] = {}
    for name, values in times.items():
        row: dict[str, Any] = {"median": statistics.median(values), "min": min(values), "max": max(values)}
        line = f"{name:28}{row['median']:10.3f}{row['min']:8.3f}{row['max']:8.3f}"
        if base is not None:
            ratios = [value / other for value, other in zip(values, times[base], strict=True)]
            row["ratio"], row["ratio_min"], row["ratio_max"] = statistics.median(ratios), min(ratios), max(ratios)
            line += f"{row['ratio']:16.2f}{f'{min(ratios):.2f} to {max(ratios):.2f}':>16}"
        print(line, flush=True)
        kept[name] = {key: round(value, 4) for key, value in row.items()} | {"seconds": values}
    return kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=9)
    parser.add_argument("--sweep", type=int, default=100, help="runs of the sweep")
    parser.add_argument("--sweep-repeat", type=int, default=3)
    parser.add_argument("--only", choices=("sweep", "one", "list"), action="append")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    parts = options.only or ["sweep", "one", "list"]
    result: dict[str, Any] = {"load_before": os.getloadavg(), "cores": os.cpu_count()}
    # /tmp, whatever TMPDIR says: Slurm's sockets have short names.
    with slurm_cluster(nodes=3) as cluster, tempfile.TemporaryDirectory(dir="/tmp", prefix="bench-") as folder:
        bench = Bench(cluster, Path(folder))
        with bench.closed():
            if "sweep" in parts:
                times = bench.sweeps(options.sweep, options.sweep_repeat)
                result["sweep"] = table(f"a sweep of {options.sweep} runs, until all are in the queue", times, "bare")
            if "one" in parts:
                times = bench.processes(options.repeat)
                result["process"] = table("one detached run, as a process", times, "bare, quiet")
                times = bench.in_process(options.repeat)
                result["in_process"] = table("one detached run, after import", times, "bare, quiet")
        if "list" in parts:
            times, calls = bench.listing(options.repeat)
            result["list"] = table(f"ps of {FINISHED} finished and {RUNNING} running runs", times)
            result["calls"] = calls
            print(", ".join(f"{name} was called {count} times" for name, count in calls.items()))
    result["load_after"] = os.getloadavg()
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2:])
    else:
        main()
