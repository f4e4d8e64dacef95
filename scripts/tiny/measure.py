"""How well a model knows held-out text: perplexity, bits per byte, and a unigram model to compare with."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Score:
    """Perplexity per token, and bits per byte of text: the second does not depend on the tokenizer."""

    perplexity: float
    bits_per_byte: float


def unigram_perplexity(
    train: Sequence[Sequence[int]], held_out: Sequence[Sequence[int]], vocab_size: int, text_bytes: int
) -> Score:
    """Score of token frequencies counted on `train`, add-one smoothed, on `held_out`.

    Both are token sequences; the first token of each is given, not predicted, as for a model.
    """
    counts = [1] * vocab_size
    for ids in train:
        for token in ids[1:]:
            counts[token] += 1
    log_total = math.log(sum(counts))
    predicted = [token for ids in held_out for token in ids[1:]]
    return _score(sum(log_total - math.log(counts[token]) for token in predicted), len(predicted), text_bytes)


def model_perplexity(model: Any, held_out: Sequence[Sequence[int]], text_bytes: int) -> Score:
    """Score of a causal language model (in evaluation mode) on token sequences, one sequence at a time.

    A sequence longer than the model's context is cut into pieces of that length, each of which
    begins with the last token of the one before; every token but the first is predicted once.
    """
    import torch
    from torch.nn.functional import cross_entropy

    context: int = model.config.max_position_embeddings
    nats, predicted = 0.0, 0
    with torch.no_grad():
        for ids in held_out:
            for start in range(0, len(ids) - 1, context):
                piece = torch.tensor(ids[start : start + context + 1])
                logits = model(piece[None, :-1], use_cache=False).logits[0].float()
                nats += float(cross_entropy(logits, piece[1:], reduction="sum"))
                predicted += len(piece) - 1
    return _score(nats, predicted, text_bytes)


def _score(nats: float, tokens: int, text_bytes: int) -> Score:
    return Score(perplexity=math.exp(nats / tokens), bits_per_byte=nats / math.log(2) / text_bytes)
