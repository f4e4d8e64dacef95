"""Weights quantized from file to file, beside the same arithmetic on the same tensors in memory, in turn.

`ours` is what `args.from_files` does of a random checkpoint: reading, digesting, writing and verifying included.
`memory` gives ModelOpt's functions the same tensors, which are in memory already, in groups as ours does, and drops
what they make. Each run is a process of its own, child of this one, which also reads how much anonymous memory the
other has.

    python tests/benchmarks/files.py --gigabytes 2 --repeat 3
"""

import argparse
import json
import multiprocessing
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests import hf_models

_LAYER = {"hidden_size": 2048, "intermediate_size": 5632, "num_attention_heads": 16, "num_key_value_heads": 16}
_LAYER_BYTES = 2 * (4 * 2048 * 2048 + 3 * 2048 * 5632)


def write_model(folder: Path, gigabytes: float) -> None:
    layers = max(1, round(gigabytes * 1e9 / _LAYER_BYTES))
    model = hf_models.build("llama", head_dim=128, vocab_size=512, num_hidden_layers=layers, **_LAYER)
    model.save_pretrained(folder, max_shard_size="500MB")
    hf_models.tokenizer().save_pretrained(folder)


def ours(args: Any, place: Path) -> float:
    from scripts.engines.hf.engine import quantize_checkpoint
    from scripts.run.record import Record

    began = time.perf_counter()
    record = Record.submit(place, id="files", recipe="quantize", versions={})
    with record.running():
        quantize_checkpoint(args, record)
    return time.perf_counter() - began


def memory(args: Any, place: Path) -> float:
    import torch

    from scripts.engines.hf import quantizers
    from scripts.engines.hf.weights import Source, packed, select

    class InMemory(Source):
        """The same tensors, read before the clock starts."""

        def tensor(self, name: str) -> "torch.Tensor":
            return tensors[name]

    source, config = InMemory(folder=Path(args.hf_model_id)), quantizers.build_config(args)
    chosen = select(source, config, False)
    tensors = {name: Source.tensor(source, name).clone() for name in source.shapes}
    done: set[str] = set()
    began = time.perf_counter()
    for name in sorted(chosen.quantized):
        if name not in done:
            done |= set(group := chosen.sharing(name))
            packed(group, source, config, torch.bfloat16, torch.device("cpu"))
    return time.perf_counter() - began


def _child(way: str, values: dict[str, Any], place: str, answers: Any) -> None:
    from scripts.args.quantize import QuantizeArgs
    from scripts.engines.hf.load import without_weights

    without_weights(values["hf_model_id"], False)  # so that imports are in neither's time
    args = QuantizeArgs(from_files=True, export_dir=str(Path(place) / "hf"), **values)
    answers.put({"ours": ours, "memory": memory}[way](args, Path(place)))


def _anonymous(pid: int) -> int:
    """Bytes that a process has in memory and in no file (RssAnon)."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text("utf-8").splitlines())
    return int(fields["RssAnon"].split()[0]) * 1024


def _measured(way: str, values: dict[str, Any]) -> tuple[float, int]:
    """Seconds, and the most anonymous bytes of twenty looks a second."""
    context = multiprocessing.get_context("spawn")
    answers, peak, ended = context.Queue(), 0, threading.Event()
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as place:
        process = context.Process(target=_child, args=(way, values, str(Path(place) / "run"), answers))
        process.start()

        def watch() -> None:
            nonlocal peak
            while not ended.wait(0.05):
                try:
                    peak = max(peak, _anonymous(process.pid or 0))
                except (OSError, KeyError):
                    return

        watcher = threading.Thread(target=watch)
        watcher.start()
        seconds = answers.get()
        process.join()
        ended.set()
        watcher.join()
    return seconds, peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--gigabytes", type=float, default=2)
    parser.add_argument("--format", default="fp8_blockwise")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found: dict[str, list[tuple[float, int]]] = {"ours": [], "memory": []}
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        write_model(Path(folder), options.gigabytes)
        values = {"hf_model_id": folder, "export_quant_cfg": options.format}
        for _ in range(options.repeat):
            for way, measured in found.items():
                measured.append(_measured(way, values))
    seconds = {way: statistics.median(one for one, _ in each) for way, each in found.items()}
    anonymous = max(one for _, one in found["ours"])
    ratio = seconds["ours"] / seconds["memory"]
    print(f"{options.gigabytes} GB to {options.format}: ours {seconds['ours']:.1f} s, ", end="")
    print(f"in memory {seconds['memory']:.1f} s, ratio {ratio:.2f}; ours has {anonymous >> 20} MiB of its own at most")
    if options.json:
        told = {"seconds": found, "ratio": ratio, "anonymous_bytes": anonymous}
        options.json.write_text(json.dumps(told, indent=2))


if __name__ == "__main__":
    main()
