"""Calibration time and memory: our loop against ModelOpt's create_forward_loop, in one process, in turn.

Both get the same samples. ModelOpt's loop gets them padded, with an attention mask, as its get_dataset_dataloader makes
them, at its default batch size (1) and at ours. Times are medians over rounds in which all run once (A B C A B C).

    python tests/benchmarks/calibration.py --params 58m --samples 32 --repeat 3
"""

import argparse
import copy
import gc
import json
import multiprocessing
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests import hf_models

CASES = {"equal": 512, "mixed": 64}
VARIANTS = ("modelopt_1", "modelopt_n", "ours")


def forward_loop(variant: str, samples: Sequence[Sequence[int]], batch_size: int, device: str) -> Callable[[Any], None]:
    import torch
    from modelopt.torch.utils import create_forward_loop

    from scripts.engines.hf.calibrate import calibration_loop

    if variant == "ours":
        tokens = batch_size * 512
        return calibration_loop(samples, batch_size=batch_size, max_tokens=tokens, advance=lambda done: None)
    step = 1 if variant == "modelopt_1" else batch_size
    longest = max(map(len, samples))
    # Left padding to the longest sample of all, as a tokenizer call over the whole data set gives.
    rows = [[3] * (longest - len(sample)) + list(sample) for sample in samples]
    masks = [[0] * (longest - len(sample)) + [1] * len(sample) for sample in samples]
    batches = [
        {
            "input_ids": torch.tensor(rows[start : start + step], device=device),
            "attention_mask": torch.tensor(masks[start : start + step], device=device),
        }
        for start in range(0, len(rows), step)
    ]
    loop: Callable[[Any], None] = create_forward_loop(dataloader=batches)
    return loop


def unpadded_loop(samples: Sequence[Sequence[int]], device: str) -> Callable[[Any], None]:
    import torch

    def loop(model: Any) -> None:
        with torch.no_grad():
            for sample in samples:
                model(torch.tensor([list(sample)], device=device), use_cache=False)

    return loop


def scales(model: Any) -> dict[str, Any]:
    return {
        name: value.float().cpu().clone()
        for name, value in model.named_buffers()
        if name.endswith(("_amax", "_pre_quant_scale"))
    }


def largest_difference(found: dict[str, Any], expected: dict[str, Any]) -> float:
    if found.keys() != expected.keys() or not found:
        raise ValueError("the two models do not have the same scales")
    return max(
        float(((found[name] - value).abs() / value.abs().clamp(min=1e-12)).max()) for name, value in expected.items()
    )


def quantized(model: Any, config: dict[str, Any], loop: Callable[[Any], None], device: str) -> tuple[Any, float]:
    """A quantized copy of `model`, and the seconds it took without the copying."""
    import torch

    from scripts.engines.hf.quantizers import quantize

    own = copy.deepcopy(model)
    gc.collect()
    start = time.perf_counter()
    quantize(own, copy.deepcopy(config), loop)
    if device == "cuda":
        torch.cuda.synchronize()
    return own, time.perf_counter() - start


def prepare(options: argparse.Namespace, case: str) -> tuple[Any, list[list[int]], dict[str, Any]]:
    """Model, samples and configuration; the same in every process."""
    from scripts.args.quantize import QuantizeArgs
    from scripts.engines.hf.quantizers import build_config

    model = (hf_models.build_58m() if options.params == "58m" else hf_models.build("qwen3")).to(options.device)
    samples = hf_models.token_samples(options.samples, CASES[case], 512, vocab=int(model.config.vocab_size))
    return model, samples, build_config(QuantizeArgs(export_quant_cfg=options.format))


def _resident_mb(field: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def _measure_child(pipe: Any, options: argparse.Namespace, case: str, variant: str) -> None:
    from scripts.engines.hf.quantizers import quantize

    warnings.filterwarnings("ignore")
    model, samples, config = prepare(options, case)
    loop = forward_loop(variant, samples, options.batch_size, options.device)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts at what is resident now
    before = _resident_mb("VmRSS")
    quantize(model, config, loop)
    pipe.send(_resident_mb("VmHWM") - before)
    pipe.close()


def peak_mb(options: argparse.Namespace, case: str, variant: str) -> float:
    """Megabytes on top of model and samples: resident memory of a process of its own, or CUDA's allocator's count."""
    import torch

    from scripts.engines.hf.quantizers import quantize

    if options.device == "cuda":
        model, samples, config = prepare(options, case)
        loop = forward_loop(variant, samples, options.batch_size, options.device)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        quantize(model, config, loop)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    # Spawned: a fork of a process whose OpenMP threads have started waits for them for ever.
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    child = context.Process(target=_measure_child, args=(send, options, case, variant))
    child.start()
    send.close()
    try:
        value = float(receive.recv())
    except EOFError:
        child.join()
        raise RuntimeError(f"the measured child died with status {child.exitcode}") from None
    child.join()
    return value


def run_case(options: argparse.Namespace, name: str) -> dict[str, Any]:
    model, samples, config = prepare(options, name)
    loops = {v: forward_loop(v, samples, options.batch_size, options.device) for v in VARIANTS}
    peaks = {v: peak_mb(options, name, v) for v in VARIANTS}
    times: dict[str, list[float]] = {v: [] for v in VARIANTS}
    found: dict[str, Any] = {}
    for _ in range(options.repeat):
        for variant in VARIANTS:
            own, seconds = quantized(model, config, loops[variant], options.device)
            times[variant].append(seconds)
            found[variant] = scales(own)
    exact, _ = quantized(model, config, unpadded_loop(samples, options.device), options.device)
    median = {v: statistics.median(times[v]) for v in VARIANTS}
    return {
        "case": name,
        "samples": len(samples),
        "tokens": sum(map(len, samples)),
        "seconds": median,
        "all_seconds": times,
        "ratio_to_modelopt_batch_1": median["modelopt_1"] / median["ours"],
        "ratio_to_modelopt_same_batch": median["modelopt_n"] / median["ours"],
        "peak_mb": peaks,
        "largest_scale_difference": {v: largest_difference(found[v], scales(exact)) for v in VARIANTS},
        "scale_difference_to_modelopt_same_batch": largest_difference(found["ours"], found["modelopt_n"]),
    }


def show(result: dict[str, Any]) -> None:
    print(f"{result['case']}: {result['samples']} samples, {result['tokens']} tokens")
    for variant in VARIANTS:
        seconds, peak = result["seconds"][variant], result["peak_mb"][variant]
        difference = result["largest_scale_difference"][variant]
        print(f"  {variant:12s} {seconds:8.2f} s   peak +{peak:7.0f} MB   scales differ by at most {difference:.2%}")
    same = result["scale_difference_to_modelopt_same_batch"]
    print(f"  (from one unpadded sample at a time; ours from ModelOpt's at the same batch size by {same:.2%})")
    print(f"  ours is {result['ratio_to_modelopt_batch_1']:.2f} times as fast as ModelOpt's default batch size,")
    print(f"          {result['ratio_to_modelopt_same_batch']:.2f} times as fast as ModelOpt at the same batch size")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--params", choices=("small", "58m"), default="58m")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--format", default="fp8")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(argv)
    os.environ["TQDM_DISABLE"] = "1"  # the bars of ModelOpt's loop; ours shows none here either
    warnings.filterwarnings("ignore")
    results = []
    for case in CASES:
        results.append(run_case(options, case))
        show(results[-1])
    if options.json:
        options.json.write_text(json.dumps(results, indent=2), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
