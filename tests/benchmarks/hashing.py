"""Reading and digesting an artifact, beside what `cat` reads of the same files: `python tests/benchmarks/hashing.py`.

In turn, from the disk (the page cache is dropped before each; as root) and from memory; medians. `--files 1` is a
checkpoint in one file, which one thread alone can digest.
"""

import argparse
import json
import os
import secrets
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from scripts.run.content import content_of

_DROP = Path("/proc/sys/vm/drop_caches")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--files", type=int, default=4)
    parser.add_argument("--megabytes", type=int, default=1200, help="of all files together")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        files = [Path(folder) / f"{number}.safetensors" for number in range(options.files)]
        for file in files:
            file.write_bytes(secrets.token_bytes(options.megabytes * 10**6 // options.files))
        gigabytes = sum(file.stat().st_size for file in files) / 1e9
        for source in ("disk", "memory"):
            if source == "disk" and not os.access(_DROP, os.W_OK):
                continue
            ways = {"cat": lambda: _cat(files), "ours": lambda: content_of(Path(folder))}
            seconds: dict[str, list[float]] = {name: [] for name in ways}
            for _ in range(options.repeat + 1):
                for name, way in ways.items():
                    if source == "disk":
                        os.sync()
                        _DROP.write_text("3")
                    seconds[name].append(_timed(way))
            speeds = {name: gigabytes / statistics.median(times[1:]) for name, times in seconds.items()}
            found[source] = speeds | {"ratio": speeds["ours"] / speeds["cat"]}
            print(f"from {source:6}  cat {speeds['cat']:.2f} GB/s, ours {speeds['ours']:.2f}", end="")
            print(f" GB/s, ratio {found[source]['ratio']:.2f}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=2))


def _cat(files: list[Path]) -> None:
    subprocess.run(["cat", *map(str, files)], stdout=subprocess.DEVNULL, check=True)


def _timed(way: Callable[[], object]) -> float:
    began = time.perf_counter()
    way()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
