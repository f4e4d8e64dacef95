"""The figures of a quantization, as report.json holds them."""

from pathlib import Path
from typing import Any

from scripts.args.quantize import QuantizeArgs
from scripts.engines.hf.evaluate import Scores
from scripts.engines.hf.samples import Samples
from scripts.run.files import weight_bytes

_QUALITY_SAMPLES = 128
_SCORED_SAMPLES = 16


def format_name(args: QuantizeArgs) -> str:
    """The format and what was asked for besides it, in words."""
    parts = [args.export_quant_cfg, "weight-only" if args.weight_only else "", "compressed" if args.compress else ""]
    if args.export_kv_cache_quant != "none":
        parts.append(f"key/value cache {args.export_kv_cache_quant}")
    return ", ".join(part for part in parts if part)


def calibration_figures(samples: Samples, seconds: float) -> dict[str, Any]:
    """What was calibrated on; `seconds` include inserting the quantizers."""
    tokens = sum(map(len, samples.calibration))
    return {
        "source": samples.calibration_source,
        "samples": len(samples.calibration),
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_second": round(tokens / max(seconds, 1e-9), 1),
    }


def evaluation_figures(scores: Scores | None, samples: Samples) -> dict[str, Any] | None:
    """Quality on text that was not calibrated on; KL in nats per token, agreement as a share."""
    if scores is None:
        return None
    return {
        "source": samples.held_out_source,
        "samples": len(samples.held_out),
        "tokens": scores.tokens,
        "perplexity_base": scores.base_perplexity,
        "perplexity_quantized": scores.perplexity,
        "kl_divergence": scores.mean_kl,
        "top1_agreement": scores.top1_agreement,
    }


def sizes(args: QuantizeArgs, source: Path) -> dict[str, int | None]:
    """Bytes of safetensors before and after."""
    exported = weight_bytes(Path(args.export_dir)) if args.export_dir else None
    return {"base_bytes": weight_bytes(source), "export_bytes": exported}


def warnings(args: QuantizeArgs, samples: Samples) -> list[str]:
    """What a reader of the figures must know."""
    found = []
    count = len(samples.calibration)
    if count < args.calib_size:
        found.append(f"{args.calib_size} calibration samples were asked for; the text gave {count}.")
    if count < _QUALITY_SAMPLES:
        found.append(f"tiny_calibration_used_as_quality_signal: {count} samples are a smoke test, not a measurement.")
    if args.eval_size and len(samples.held_out) < _SCORED_SAMPLES:
        found.append(f"Only {len(samples.held_out)} samples were scored; the figures are rough.")
    return found
