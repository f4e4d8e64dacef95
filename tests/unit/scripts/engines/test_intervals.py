"""Intervals of scores: they hold the truth as often as they say, and are nothing where nothing can be said."""

import math

import pytest
import torch

from scripts.engines.hf import evaluate
from scripts.engines.hf.evaluate import scores_of


def sums(samples: int, seed: int) -> torch.Tensor:
    """Of samples whose texts differ much in how hard they are, and little in what quantization did to them."""
    chance = torch.Generator().manual_seed(seed)
    tokens = torch.randint(50, 400, (samples,), generator=chance).double()
    base = tokens * (3.0 + torch.randn(samples, generator=chance, dtype=torch.float64))
    worse = tokens * (0.02 + 0.01 * torch.randn(samples, generator=chance, dtype=torch.float64))
    kl = tokens * (0.05 + 0.02 * torch.rand(samples, generator=chance, dtype=torch.float64))
    agreed = (tokens * (0.9 + 0.05 * torch.rand(samples, generator=chance, dtype=torch.float64))).floor()
    return torch.stack([tokens, base, base + worse, kl, agreed], dim=1)


def test_an_interval_holds_the_figure_and_is_paired() -> None:
    found = scores_of(sums(64, 0))
    increase = found.perplexity_quantized / found.perplexity_base - 1
    assert found.intervals is not None
    low, high = found.intervals["perplexity_increase"]
    assert low < increase < high
    assert high - low < 0.01, "texts differ by whole nats, and the two models by a hundredth on each"
    assert found.intervals["kl_divergence"][0] < found.kl_divergence < found.intervals["kl_divergence"][1]
    assert found.intervals == scores_of(sums(64, 0)).intervals, "the same samples say the same"


def test_it_holds_the_truth_as_often_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "_DRAWN", 300)
    truth = math.exp(0.02) - 1
    held = []
    for seed in range(80):
        intervals = scores_of(sums(48, seed)).intervals
        assert intervals is not None
        low, high = intervals["perplexity_increase"]
        held.append(low <= truth <= high)
    assert 0.85 <= sum(held) / len(held) < 1.0, sum(held)


def test_few_samples_and_broken_ones_have_none() -> None:
    assert scores_of(sums(7, 0)).intervals is None
    broken = sums(64, 0)
    broken[3, 2] = math.nan
    assert scores_of(broken).intervals is None
