"""How long the index takes over thousands of runs: made anew, asked, and listed from, beside reading every folder.

    python tests/benchmarks/index.py [RUNS]

It prints medians of five, and how many times faster the index is than reading the folders; then what commands take,
in wall time and in time of a processor, beside the same where no run is.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("NEMORUN_HOME", tempfile.mkdtemp(prefix="index-"))

from executors.local import LocalProfile
from recipes.experiment.index import refreshed
from recipes.experiment.runs import all_runs
from recipes.experiment.settled import known_runs
from recipes.experiment.store import RunFolder, run_folders
from scripts.run.record import Record, read_record
from tests.jobs import submitted


def main(runs: int) -> None:
    home = Path(os.environ["NEMORUN_HOME"])
    for number in range(runs):
        folder = home / "runs" / f"quantize_fp8_0101-0000-{number:06x}"
        record = Record.submit(folder, id=folder.name, recipe="quantize_fp8", algorithm="quantize", values={})
        digest = f"sha256:{number:064x}"
        made = {"type": "checkpoint_hf", "path": f"/x/{number}", "bytes": 1, "files": 1, "digest": digest}
        record.update(outputs=[made])
        record.finish("succeeded")
        submitted(RunFolder(dir=folder), LocalProfile(), settled=True)
    wanted = f"sha256:{runs // 2:064x}"

    def by_index() -> None:
        with refreshed() as index:
            assert len(index.runs_with_outputs(digest=wanted)) == 1

    def by_records() -> None:
        records = (read_record(folder.dir) for folder in run_folders())
        assert sum(any(one["digest"] == wanted for one in record["outputs"]) for record in records) == 1

    print(f"{runs} runs; made anew {timed(by_index, 1) * 1e3:.0f} ms")
    asked, read = timed(by_index, 5), timed(by_records, 5)
    print(f"asked {asked * 1e3:.0f} ms, every record read {read * 1e3:.0f} ms: {read / asked:.0f} times as long")
    first, later, every = timed(known_runs, 1), timed(known_runs, 5), timed(all_runs, 1)
    print(f"listed first {first * 1e3:.0f} ms, later {later * 1e3:.0f} ms, every folder read {every * 1e3:.0f} ms")
    for words in (["ps"], ["ps", "--all"], ["artifacts"]):
        took = [command(words, str(home)), command(words, tempfile.mkdtemp(prefix="index-none-"))]
        print(" ".join(["mor", *words]), *(f"{wall:.2f} s ({spent:.2f} s)" for wall, spent in took), sep=", ")


def command(words: list[str], home: str) -> tuple[float, float]:
    """Wall time and processor time of a command, the medians of five, in seconds."""
    rows = []
    for _ in range(5):
        before, began = os.times(), time.perf_counter()
        mor = [str(Path(sys.executable).with_name("mor")), *words]
        subprocess.run(mor, env=os.environ | {"NEMORUN_HOME": home}, check=True, stdout=subprocess.DEVNULL)
        after = os.times()
        spent = sum(after[2:4]) - sum(before[2:4])
        rows.append((time.perf_counter() - began, spent))
    return statistics.median(row[0] for row in rows), statistics.median(row[1] for row in rows)


def timed(function: Callable[[], None], times: int) -> float:
    """The median, in seconds."""
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        function()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)
