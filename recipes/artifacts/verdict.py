"""A verdict on a quantized checkpoint: may it be shipped? By what its run measured, and limits that somebody sets."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from recipes.experiment.runs import Run
from scripts.run.schema import listed, mapping, number

#: accept: every limit holds. regression: one does not. anomalous: figures that no quantization has, which are looked
#: into before anything is believed. infeasible: there is nothing to judge.
Answer = Literal["accept", "regression", "anomalous", "infeasible"]
#: Perplexity this much below the model's is no luck, whatever the interval says.
_TOO_GOOD = 0.05


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What is allowed; None: anything."""

    increase: float | None = None  # of the perplexity, as a share of the model's own
    kl: float | None = None  # nats a token
    agreement: float | None = None  # at least: share of tokens whose likeliest next one is the same
    size: float | None = None  # share of the model's bytes


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The answer, why, and what speaks neither for nor against it."""

    run: Run
    answer: Answer
    reasons: tuple[str, ...]
    doubts: tuple[str, ...]
    limits: Limits

    def as_data(self) -> dict[str, Any]:
        """As `verdict --json` has it."""
        told = {"reasons": list(self.reasons), "doubts": list(self.doubts), "limits": asdict(self.limits)}
        return {"id": self.run.id, "verdict": self.answer, **told}


@dataclass(frozen=True, kw_only=True)
class _Figure:
    """One that a limit is of: what it is called, its value, the interval that other samples would have given."""

    name: str
    value: float
    low: float | None
    high: float | None
    least: bool = False  # whether the limit is the least that it may be

    def breaks(self, limit: float) -> bool:
        return self.value < limit if self.least else self.value > limit

    def is_near(self, limit: float) -> bool:
        """Whether other samples might have said the opposite."""
        return self.low is not None and self.high is not None and self.low < limit < self.high

    def text(self, limit: float) -> str:
        between = "" if self.low is None or self.high is None else f" ({self.low:.3g} to {self.high:.3g})"
        return (
            f"{self.name} {self.value:.3g}{between}, {'at least' if self.least else 'at most'} {limit:.3g} is allowed"
        )


def judge(run: Run, limits: Limits) -> Verdict:
    """What to say of a run; figures are those of its report."""
    report = run.report or {}
    scores = report.get("evaluation")
    if run.state != "succeeded":
        return Verdict(run=run, answer="infeasible", reasons=(f"it is {run.state}",), doubts=(), limits=limits)
    if not isinstance(scores, dict):
        why = "nothing was scored: its report has no evaluation"
        return Verdict(run=run, answer="infeasible", reasons=(why,), doubts=(), limits=limits)
    figures = _figures(scores, report.get("size"))
    if odd := list(_anomalies(scores, figures)):
        return Verdict(run=run, answer="anomalous", reasons=tuple(odd), doubts=(), limits=limits)
    asked = {one.name: value for one in fields(Limits) if (value := getattr(limits, one.name)) is not None}
    lacking = [f"there is no {name} to hold against its limit" for name in asked if name not in figures]
    if lacking:
        return Verdict(run=run, answer="infeasible", reasons=tuple(lacking), doubts=(), limits=limits)
    judged = {name: (figures[name], limit) for name, limit in asked.items()}
    broken = [figure.text(limit) for figure, limit in judged.values() if figure.breaks(limit)]
    kept = [figure.text(limit) for figure, limit in judged.values() if not figure.breaks(limit)]
    near = [
        f"{one.name}: other samples might have said the opposite"
        for one, limit in judged.values()
        if one.is_near(limit)
    ]
    doubts = [*near, *(str(warning) for warning in listed(report.get("warnings")))]
    answer: Answer = "regression" if broken else "accept"
    return Verdict(run=run, answer=answer, reasons=tuple(broken or kept), doubts=tuple(doubts), limits=limits)


def _figures(scores: Mapping[str, Any], size: Any) -> dict[str, _Figure]:
    """By the names of limits, those that were measured."""
    found = {}
    before, after = (number(scores.get(f"perplexity_{which}")) for which in ("base", "quantized"))
    intervals, sizes = mapping(scores.get("intervals")), mapping(size)
    values = {
        "increase": ("perplexity_increase", after / before - 1 if before and after is not None else None),
        "kl": ("kl_divergence", number(scores.get("kl_divergence"))),
        "agreement": ("top1_agreement", number(scores.get("top1_agreement"))),
    }
    for name, (key, value) in values.items():
        ends = [number(end) for end in listed(intervals.get(key))]
        low, high = ends if len(ends) == 2 else (None, None)
        if value is not None:
            found[name] = _Figure(
                name=key.replace("_", " "), value=value, low=low, high=high, least=name == "agreement"
            )
    made, of = (number(sizes.get(key)) for key in ("export_bytes", "base_bytes"))
    if made and of:
        found["size"] = _Figure(name="size", value=made / of, low=None, high=None)
    return found


def _anomalies(scores: Mapping[str, Any], figures: Mapping[str, _Figure]) -> Iterator[str]:
    for key, value in scores.items():
        if isinstance(value, float) and not math.isfinite(value):
            yield f"{key} is {value}"
    lacking = [key for key in ("perplexity_base", "perplexity_quantized") if number(scores.get(key)) is None]
    if lacking:
        yield f"{' and '.join(lacking)}: no number"
        return
    kl, agreement, increase = (figures.get(name) for name in ("kl", "agreement", "increase"))
    if kl and kl.value == 0.0 and agreement and agreement.value == 1.0:
        yield "every output is the model's own, to the last bit: nothing was quantized, or it was scored against itself"
    if kl and kl.value < 0:
        yield f"the divergence is {kl.value:.3g}, and none is below zero"
    if increase and (increase.value < -_TOO_GOOD or (increase.high is not None and increase.high < 0)):
        between = "" if increase.high is None else f" ({increase.low:+.2%} to {increase.high:+.2%})"
        yield f"the perplexity is {increase.value:+.2%}{between} of the model's: better than what it was made of"
