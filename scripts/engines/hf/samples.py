"""Token samples to calibrate on and to score on; no sample is ever in both."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from scripts.args.quantize import MeasuredArgs
from scripts.data.texts import Source, read, source_of
from scripts.run.problems import JobError

Tokens = tuple[int, ...]
#: At most this share of a single text source is kept aside for scoring.
_HELD_OUT_SHARE = 0.2


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Token ids per sample, unpadded, at most `calib_seq_length` long."""

    calibration: list[Tokens]
    held_out: list[Tokens]
    calibration_source: str
    held_out_source: str


def choose_samples(args: MeasuredArgs, tokenizer: Any, vocabulary: int | None = None) -> Samples:
    """Read, tokenize and part the text.

    Samples are compared after truncation, as the token ids that the model sees: what was
    calibrated on is never scored on. Raises JobError `too_little_text`, and `tokenizer_larger_than_vocabulary` where
    a token is none of the first `vocabulary`.
    """
    source = source_of(args.calib_dataset, args.hf_model_id)
    tokens = _unique(_tokenize(read(source, args.calib_text_key), tokenizer, args.calib_seq_length))
    other = source_of(args.eval_dataset, args.hf_model_id) if args.eval_dataset is not None else None
    if other is None and source.kind == "builtin":
        other = Source(kind="builtin", place="eval")
    if args.eval_size == 0:
        calibration, held_out = list(islice(tokens, args.calib_size)), list[Tokens]()
    elif other is None:
        calibration, held_out = _part(list(islice(tokens, args.calib_size + args.eval_size)), args)
    else:
        calibration = list(islice(tokens, args.calib_size))
        seen = set(calibration)
        scored = _unique(_tokenize(read(other, args.calib_text_key), tokenizer, args.calib_seq_length))
        held_out = list(islice((sample for sample in scored if sample not in seen), args.eval_size))
    if not calibration or (args.eval_size and not held_out):
        missing = "to score on" if calibration else "to calibrate on"
        remedy = "Give more text, another args.eval_dataset, or args.eval_size=0."
        raise JobError("too_little_text", f"{source.place} leaves no text {missing}.", remedy)
    largest = max(max(sample) for sample in (*calibration, *held_out))
    if vocabulary is not None and largest >= vocabulary:
        cause = f"The tokenizer gives token {largest}, and the model's embeddings have {vocabulary} rows."
        raise JobError("tokenizer_larger_than_vocabulary", cause, "Put the model's own tokenizer beside its weights.")
    name = f"{source.kind}:{source.place}"
    held_out_name = f"{other.kind}:{other.place}" if other else f"{name} (kept aside)"
    return Samples(calibration=calibration, held_out=held_out, calibration_source=name, held_out_source=held_out_name)


def _part(pool: list[Tokens], args: MeasuredArgs) -> tuple[list[Tokens], list[Tokens]]:
    """Keep some of `pool` aside, chosen by hash so that neither order nor time matters."""
    kept = min(args.eval_size, max(1, int(len(pool) * _HELD_OUT_SHARE)), len(pool) - 1)
    if kept < 1:
        return pool, []
    held_out = set(sorted(pool, key=lambda sample: hashlib.sha256(repr(sample).encode()).digest())[:kept])
    calibration = [sample for sample in pool if sample not in held_out]
    return calibration[: args.calib_size], [sample for sample in pool if sample in held_out]


def _tokenize(texts: Iterable[str], tokenizer: Any, length: int) -> Iterator[Tokens]:
    for text in texts:
        sample = tuple(tokenizer(text, truncation=True, max_length=length)["input_ids"])
        if len(sample) > 1:  # one token predicts nothing
            yield sample


def _unique(samples: Iterable[Tokens]) -> Iterator[Tokens]:
    seen: set[Tokens] = set()
    for sample in samples:
        if sample not in seen:
            seen.add(sample)
            yield sample
