"""What the evidence of a quantization costs: `quantize_fp8` with scoring, against ModelOpt's own flow, in turn.

Both load the same folder (a random Llama), calibrate on the same samples in the same batches, and export. Ours also
scores 16 samples before and after, measures the layers' noise, and reads back what it wrote. `again` is `sampled` where
an earlier run has measured the model, as all formats of a sweep but the first. Each run is a process of its own, child
of this one; ratios are of medians. On a processor without instructions for bfloat16 both send its
products through float32 (scripts/processor.py): torch's own loops would hide everything else.

    python tests/benchmarks/evidence.py --repeat 3 --layer-noise none --layer-noise sampled --layer-noise all
"""

import argparse
import json
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.run.provenance import peak_memory
from tests import hf_models

#: The budget for ours, as ratios to ModelOpt's own flow.
MOST_CPU, MOST_MEMORY = 1.5, 1.25
SAMPLES, TOKENS, SCORED = 4, 64, 16


def write_model(folder: Path, width: int) -> None:
    """A Llama of random parameters (0.95 billion for a width of 2048), and text for it: a byte is a token."""
    heads = {"num_attention_heads": width // 128, "num_key_value_heads": width // 128, "head_dim": 128}
    shape = {"hidden_size": width, "intermediate_size": width * 11 // 4, "num_hidden_layers": 16, "vocab_size": 32000}
    hf_models.save(hf_models.build("llama", loud=1.0, **heads, **shape), folder)
    rows = [{"text": f"{number:04d} " + "a sentence of some length. " * 8} for number in range(200)]
    (folder / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def own_flow(folder: Path, out: Path) -> None:
    """As ModelOpt's examples do it."""
    import modelopt.torch.quantization as mtq
    import torch
    from modelopt.torch.export import export_hf_checkpoint
    from modelopt.torch.utils import create_forward_loop
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from scripts.processor import bf16_products

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [json.loads(line)["text"] for line in (folder / "text.jsonl").read_text().splitlines()[:SAMPLES]]
    rows = [tokenizer(text, truncation=True, max_length=TOKENS).input_ids for text in texts]
    batches = [{"input_ids": torch.tensor(rows)}]
    with bf16_products():
        mtq.quantize(model, mtq.FP8_DEFAULT_CFG, create_forward_loop(dataloader=batches))
    export_hf_checkpoint(model, dtype=torch.bfloat16, export_dir=out)
    tokenizer.save_pretrained(out)


def ours(folder: Path, out: Path, layer_noise: str) -> None:
    """The hf engine, in a run directory."""
    from scripts.args.quantize import QuantizeArgs
    from scripts.engines.hf.engine import quantize_checkpoint
    from scripts.run.record import Record

    record = Record.submit(out / "run")
    args = QuantizeArgs(
        hf_model_id=str(folder),
        calib_dataset=str(folder / "text.jsonl"),
        calib_size=SAMPLES,
        calib_seq_length=TOKENS,
        calib_batch_size=SAMPLES,
        eval_size=SCORED,
        prompts="",
        layer_noise=layer_noise,
        modelopt_save_path=None,
        export_dir=str(out / "export"),
    )
    with record.running():
        quantize_checkpoint(args, record)
    print(json.dumps(record.values["timings"]), file=sys.stderr)


def _measure(pipe: Any, what: str, folder: Path, out: Path, cache: Path) -> None:
    os.environ["XDG_CACHE_HOME"] = str(cache if what == "again" else out)
    began = time.perf_counter()
    if what == "ModelOpt":
        own_flow(folder, out)
    else:
        ours(folder, out, "sampled" if what == "again" else what)
    used = resource.getrusage(resource.RUSAGE_SELF)
    found = {"seconds": time.perf_counter() - began, "cpu": used.ru_utime + used.ru_stime}
    pipe.send(found | {"gb": peak_memory()["rss_bytes"] / 1e9})


def measure(what: str, folder: Path, cache: Path) -> dict[str, float]:
    """One run in a process of its own: wall seconds, CPU seconds, peak of resident memory in GB."""
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    with tempfile.TemporaryDirectory() as out:
        child = context.Process(target=_measure, args=(send, what, folder, Path(out), cache))
        child.start()
        send.close()
        try:
            found: dict[str, float] = receive.recv()
        finally:
            child.join()
    return found


def main() -> None:
    """Print a table, and JSON where it is asked for; exit status 1 where `sampled` is over the budget."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--layer-noise", action="append", choices=("none", "sampled", "all"))
    parser.add_argument("--width", type=int, default=2048, help="the hidden size: 2048 is 0.95 billion parameters")
    parser.add_argument("--model", type=Path, help="a folder to write the model to, and to find it in")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    ways = ["ModelOpt", *(options.layer_noise or ["sampled"]), "again"]
    with tempfile.TemporaryDirectory() as temporary:
        folder, cache = options.model or Path(temporary) / "model", Path(temporary) / "cache"
        if not (folder / "config.json").is_file():
            write_model(folder, options.width)
        measure("again", folder, cache)
        runs: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
        for _ in range(options.repeat):
            for way in ways:
                runs[way].append(measure(way, folder, cache))
    medians = {way: {key: statistics.median(run[key] for run in runs[way]) for key in runs[way][0]} for way in ways}
    print(f"{'':10} {'seconds':>8} {'CPU s':>8} {'GB':>6} {'CPU ratio':>10} {'GB ratio':>9}")
    for way, found in medians.items():
        cpu, memory = (found[key] / medians["ModelOpt"][key] for key in ("cpu", "gb"))
        print(f"{way:10} {found['seconds']:8.1f} {found['cpu']:8.1f} {found['gb']:6.2f} {cpu:10.2f} {memory:9.2f}")
        medians[way] |= {"cpu_ratio": cpu, "gb_ratio": memory}
    if options.json:
        options.json.write_text(json.dumps({"medians": medians, "runs": runs}, indent=2))
    sampled = medians.get("sampled", {"cpu_ratio": 0.0, "gb_ratio": 0.0})
    sys.exit(int(sampled["cpu_ratio"] > MOST_CPU or sampled["gb_ratio"] > MOST_MEMORY))


if __name__ == "__main__":
    main()
