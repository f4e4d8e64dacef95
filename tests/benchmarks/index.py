"""How long the index takes over thousands of runs: made anew, and asked, beside reading every record.

    python tests/benchmarks/index.py [RUNS]

It prints medians of five, and how many times faster the index is than reading the folders.
"""

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("NEMORUN_HOME", tempfile.mkdtemp(prefix="index-"))

from recipes.experiment.index import refreshed
from recipes.experiment.store import run_folders
from scripts.run.record import Record, read_record


def main(runs: int) -> None:
    home = Path(os.environ["NEMORUN_HOME"])
    for number in range(runs):
        folder = home / "runs" / f"quantize_fp8_0101-0000-{number:06x}"
        record = Record.submit(folder, id=folder.name, recipe="quantize_fp8", algorithm="quantize", values={})
        digest = f"sha256:{number:064x}"
        made = {"type": "checkpoint_hf", "path": f"/x/{number}", "bytes": 1, "files": 1, "digest": digest}
        record.update(outputs=[made])
        record.finish("succeeded")
        (folder / "job.json").write_text(json.dumps({"job": {"fingerprint": {"digest": f"f{number}"}}}))
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
