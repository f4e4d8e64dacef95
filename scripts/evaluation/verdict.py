"""A verdict on what a job measured: may what it made be shipped? By its report, and limits that somebody sets.

Limits are given after the run (`nemo experiment verdict`), or before it as `args.gate`: then a job that breaks one
fails, and keeps what it made.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from scripts.run.problems import nearest
from scripts.run.schema import listed, mapping, number
from scripts.serving.flaws import flaw_of

#: accept: every limit holds. regression: one does not. anomalous: figures that no quantization has, which are looked
#: into before anything is believed. infeasible: there is nothing to judge.
Answer = Literal["accept", "regression", "anomalous", "infeasible"]
#: Perplexity this much below the model's is no luck, whatever the interval says.
_TOO_GOOD = 0.05
#: So many standard errors above the baseline is no luck either.
_SIGMAS = 4.0
#: Of a normal distribution, 95% lie within so many standard errors.
_NORMAL = 1.96
#: Those that no figure can be above.
_SHARES = ("min_agreement",)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What is allowed; None: anything. Shares are written as 0.01 or 1%."""

    max_increase: float | None = None  # of the perplexity, as a share of the model's own
    max_kl: float | None = None  # nats a token
    min_agreement: float | None = None  # share of tokens whose likeliest next one is the same
    max_size: float | None = None  # share of the model's bytes
    min_score: float | None = None  # of every task of a harness
    max_drop: float | None = None  # of every score below the baseline's, in its own unit; of perplexities, as a share

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> "Limits":
        """As `args.gate` has them. Raises ValueError saying what is wrong."""
        known = [one.name for one in fields(cls)]
        unknown = [name for name in given if name not in known]
        if unknown:
            raise ValueError(f"there is no limit {unknown[0]}.  {nearest(unknown[0], known)}")
        if not given:
            raise ValueError(f"it sets no limit; there are {', '.join(known)}")
        return cls(**{name: number_of(value, name) for name, value in given.items()})

    @property
    def asked(self) -> dict[str, float]:
        """Those that are set."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def number_of(value: Any, name: str) -> float:
    """`1%`, `0.01` or a number. Raises ValueError."""
    text = str(value).strip()
    try:
        found = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        found = math.nan
    most = 1 if name in _SHARES else math.inf
    if isinstance(value, bool) or not (math.isfinite(found) and 0 <= found <= most):
        raise ValueError(f"{name} is {value!r}, and a number or a share is expected, such as 0.01 or 1%")
    return found


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The answer, why, and what speaks neither for nor against it."""

    answer: Answer
    reasons: tuple[str, ...]
    doubts: tuple[str, ...] = ()
    limits: Limits

    def as_data(self) -> dict[str, Any]:
        """As run.json and `verdict --json` have it."""
        told = {"reasons": list(self.reasons), "doubts": list(self.doubts), "limits": asdict(self.limits)}
        return {"verdict": self.answer, **told}


@dataclass(frozen=True, kw_only=True)
class _Figure:
    """One that a limit is of: what it is called, its value, the interval that other samples would have given."""

    limit: str
    name: str
    value: float
    low: float | None = None
    high: float | None = None

    @property
    def least(self) -> bool:
        """Whether the limit is the least that it may be."""
        return self.limit.startswith("min_")

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


def judge(state: str, report: Mapping[str, Any] | None, limits: Limits) -> Verdict:
    """What to say of a job that ended in `state`, by its report: of a quantization, an evaluation, or a server."""
    if state != "succeeded":
        return Verdict(answer="infeasible", reasons=(f"it is {state}",), limits=limits)
    report = report or {}
    scores, tasks = report.get("evaluation"), _tasks(report)
    if broken := [
        f"the answer to {row.get('prompt')!r} is {row['flaw']}" for row in _answers(report) if row.get("flaw")
    ]:
        return Verdict(answer="anomalous", reasons=tuple(broken), limits=limits)
    if not isinstance(scores, dict) and not tasks:
        why = "nothing was scored: its report has no evaluation"
        return Verdict(answer="infeasible", reasons=(why,), limits=limits)
    figures = [*_figures(mapping(scores), report.get("size")), *_of_tasks(tasks)]
    odd = [*(_anomalies(scores, figures) if isinstance(scores, dict) else ()), *_odd_scores(tasks)]
    if odd:
        return Verdict(answer="anomalous", reasons=tuple(odd), limits=limits)
    if not limits.asked:
        why = (
            f"no limit is set; of what was measured there are {', '.join(dict.fromkeys(one.limit for one in figures))}"
        )
        return Verdict(answer="infeasible", reasons=(why,), limits=limits)
    measured = {figure.limit for figure in figures}
    lacking = [f"there is nothing to hold against {name}" for name in limits.asked if name not in measured]
    if limits.max_drop is not None:
        lacking += [f"the baseline has no {name} to hold against max_drop" for name in _not_compared(tasks)]
    if lacking:
        return Verdict(answer="infeasible", reasons=tuple(lacking), limits=limits)
    judged = [(figure, limits.asked[figure.limit]) for figure in figures if figure.limit in limits.asked]
    broken = [figure.text(limit) for figure, limit in judged if figure.breaks(limit)]
    kept = [figure.text(limit) for figure, limit in judged if not figure.breaks(limit)]
    near = [f"{one.name}: other samples might have said the opposite" for one, limit in judged if one.is_near(limit)]
    doubts = [*near, *_broken_texts(report), *(str(warning) for warning in listed(report.get("warnings")))]
    answer: Answer = "regression" if broken else "accept"
    return Verdict(answer=answer, reasons=tuple(broken or kept), doubts=tuple(doubts), limits=limits)


def _figures(scores: Mapping[str, Any], size: Any) -> Iterator[_Figure]:
    """Those of a quantization that were measured."""
    before, after = (number(scores.get(f"perplexity_{which}")) for which in ("base", "quantized"))
    intervals, sizes = mapping(scores.get("intervals")), mapping(size)
    values = {
        "max_increase": ("perplexity_increase", after / before - 1 if before and after is not None else None),
        "max_kl": ("kl_divergence", number(scores.get("kl_divergence"))),
        "min_agreement": ("top1_agreement", number(scores.get("top1_agreement"))),
    }
    for limit, (key, value) in values.items():
        ends = [number(end) for end in listed(intervals.get(key))]
        low, high = ends if len(ends) == 2 else (None, None)
        if value is not None:
            yield _Figure(limit=limit, name=key.replace("_", " "), value=value, low=low, high=high)
    made, of = (number(sizes.get(key)) for key in ("export_bytes", "base_bytes"))
    if made and of:
        yield _Figure(limit="max_size", name="size", value=made / of)


def _tasks(report: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The rows of an evaluation that count: a group's own score, and not those of its members."""
    rows = [mapping(row) for row in listed(report.get("scores"))]
    return [row for row in rows if mapping(row.get("score")).get("headline")]


def _of_tasks(rows: list[Mapping[str, Any]]) -> Iterator[_Figure]:
    for row in rows:
        score = mapping(row["score"])
        value, error = number(score.get("value")), number(score.get("stderr"))
        name, better = f"{score.get('task')} {score.get('metric')}", score.get("higher_is_better")
        if value is not None and better is not False:
            about = (None, None) if error is None else (value - _NORMAL * error, value + _NORMAL * error)
            yield _Figure(limit="min_score", name=name, value=value, low=about[0], high=about[1])
        change, sigmas = number(row.get("change")), number(row.get("sigmas"))
        if change is not None and better is not None:
            # A perplexity has no natural scale: its share of the baseline's.
            scale = 1.0 if better else abs(number(row.get("before")) or 1.0)
            drop = (-change if better else change) / scale
            error = abs(change / sigmas) / scale if sigmas else None
            about = (None, None) if error is None else (drop - _NORMAL * error, drop + _NORMAL * error)
            if len(ends := [number(end) for end in listed(row.get("interval"))]) == 2 and None not in ends:
                low, high = sorted((0.0 - (end or 0.0) if better else (end or 0.0)) / scale for end in ends)
                about = low, high
            yield _Figure(
                limit="max_drop", name=f"{name} worse than the baseline by", value=drop, low=about[0], high=about[1]
            )


def _not_compared(rows: list[Mapping[str, Any]]) -> Iterator[str]:
    """Scores that could have become worse, and nobody knows."""
    for row in rows:
        score = mapping(row["score"])
        if number(row.get("change")) is None and score.get("higher_is_better") is not None:
            yield f"{score.get('task')} {score.get('metric')}"


def _answers(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [mapping(row) for row in listed(report.get("answers"))]


def _broken_texts(report: Mapping[str, Any]) -> Iterator[str]:
    """Continuations that were text before, and are none."""
    for row in map(mapping, listed(report.get("generations"))):
        before, after = (flaw_of(str(row.get(when, ""))) for when in ("before", "after"))
        if after and not before:
            yield f"what it says after {row.get('prompt')!r} is {after}, and was not before"


def _odd_scores(rows: list[Mapping[str, Any]]) -> Iterator[str]:
    for row in rows:
        score, change, sigmas = mapping(row["score"]), number(row.get("change")), number(row.get("sigmas"))
        better = score.get("higher_is_better")
        if number(score.get("value")) is None:
            yield f"{score.get('task')} {score.get('metric')} is {score.get('value')}: no number"
        if change is None or sigmas is None or better is None:
            continue
        gain = sigmas if better else -sigmas
        if gain > _SIGMAS:
            yield (
                f"{score.get('task')} {score.get('metric')} is {gain:.1f} standard errors better than the baseline's: "
                "no compression does that"
            )


def _anomalies(scores: Mapping[str, Any], figures: list[_Figure]) -> Iterator[str]:
    for key, value in scores.items():
        if isinstance(value, float) and not math.isfinite(value):
            yield f"{key} is {value}"
    lacking = [key for key in ("perplexity_base", "perplexity_quantized") if number(scores.get(key)) is None]
    if lacking:
        yield f"{' and '.join(lacking)}: no number"
        return
    low = [key for key in ("perplexity_base", "perplexity_quantized") if scores[key] < 1]
    if low:
        yield f"{low[0]} is {scores[low[0]]:.3g}, and none is below one"
    named = {figure.limit: figure for figure in figures}
    kl, agreement, increase = (named.get(name) for name in ("max_kl", "min_agreement", "max_increase"))
    agrees = kl and kl.value == 0.0 and agreement and agreement.value == 1.0
    if agrees or (increase and increase.value == 0.0):
        yield "every output is the model's own, to the last bit: nothing was quantized, or it was scored against itself"
    if kl and kl.value < 0:
        yield f"the divergence is {kl.value:.3g}, and none is below zero"
    if agreement and not 0 <= agreement.value <= 1:
        yield f"the agreement is {agreement.value:.3g}, and it is a share"
    if increase and (increase.value < -_TOO_GOOD or (increase.high is not None and increase.high < 0)):
        between = "" if increase.high is None else f" ({increase.low:+.2%} to {increase.high:+.2%})"
        yield f"the perplexity is {increase.value:+.2%}{between} of the model's: better than what it was made of"
