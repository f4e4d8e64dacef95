"""What a search tries next, and what it takes in the end: pure functions of what was tried."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from scripts.evaluation.verdict import Limits
from scripts.formats import LEFT

#: formats: each alone, on few samples. halved: the better half of those, on all of them. Then mixtures of that half:
#: mixtures, by the noise of each group of layers; auto_quantize, by what ModelOpt's AutoQuantize says of it.
Stage = Literal["formats", "halved", "mixtures", "auto_quantize"]
#: Which mixtures of Optuna's are AutoQuantize's.
AUTO: Stage = "auto_quantize"
#: Limits of what was lost, besides that of the size.
_QUALITY = {"max_kl": "kl", "max_increase": "increase"}
#: Trials that Optuna's sampler draws at random before it models what it has seen.
_STARTUP = 6
#: Sizes that AutoQuantize is asked for, before Optuna decides between both.
_PROPOSED = 4


@dataclass(frozen=True, kw_only=True)
class Unit:
    """Layers that get one format, because servers fuse them; `sizes`: their bytes by format, LEFT among them."""

    layers: tuple[str, ...]
    sizes: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What was tried: a format for each unit; `calibrated` and `scored` samples; what came of it."""

    number: int
    stage: Stage
    formats: tuple[str, ...]
    size: int  # bytes of the export, as computed
    calibrated: int
    scored: int
    kl: float
    increase: float  # of the perplexity, as a share of the model's own
    agreement: float
    seconds: float
    asked: Mapping[str, Any] = field(default_factory=dict)  # of a mixture: what Optuna chose

    @property
    def only(self) -> str:
        """The format that all of it has; empty of a mixture."""
        return self.formats[0] if len(set(self.formats)) == 1 else ""


def over(trial: Trial, limits: Limits, source_bytes: int) -> dict[str, float]:
    """By how much it is above each limit, as a share of it; at most 0 is what passes."""
    found = {name: getattr(trial, key) for name, key in _QUALITY.items()}
    found["max_size"] = trial.size / source_bytes
    return {name: (found[name] - limit) / max(limit, 1e-9) for name, limit in limits.asked.items() if name in found} | (
        {} if limits.min_agreement is None else {"min_agreement": limits.min_agreement - trial.agreement}
    )


def passes(trial: Trial, limits: Limits, source_bytes: int) -> bool:
    """Whether it keeps every limit."""
    return all(value <= 0 for value in over(trial, limits, source_bytes).values())


def beats(one: Trial, other: Trial) -> bool:
    """Whether it is at least as good in both, and better in one."""
    better = one.size < other.size or one.kl < other.kl
    return better and one.size <= other.size and one.kl <= other.kl


def front(trials: Sequence[Trial]) -> list[Trial]:
    """Those that no other beats, the smallest first."""
    return sorted((one for one in trials if not any(beats(other, one) for other in trials)), key=lambda one: one.size)


def half_of(formats: int) -> int:
    """How many of so many formats go on: the half, two at least."""
    return max(2, -(-formats // 2))


def halved(trials: Sequence[Trial]) -> list[str]:
    """The better half of the formats, two at least: those that no other beats, then those that only they beat."""
    left, kept = list(trials), list[str]()
    wanted = half_of(len(left))
    while left and len(kept) < wanted:
        ahead = sorted(front(left), key=lambda one: one.kl)
        kept += [one.only for one in ahead]
        left = [one for one in left if one not in ahead]
    return kept[:wanted] if len(trials) > 2 else [one.only for one in trials]


def mixture(
    units: Sequence[Unit], noise: Mapping[str, Sequence[float]], most: float, options: Sequence[str]
) -> tuple[str, ...]:
    """The options that add least noise for at most so many bytes; the smallest there is, where those are too few.

    `noise`: what each unit adds to the divergence, by format; sums are taken for that of the whole, which holds as long
    as they are small. Each step lifts the unit that gains most for its bytes, as Lagrange's multiplier would have it.
    """
    cost = [{name: 0.0 if name == LEFT else noise[name][at] for name in options} for at in range(len(units))]
    chosen = [min(options, key=lambda name: (unit.sizes[name], cost[at][name])) for at, unit in enumerate(units)]
    room = most - sum(unit.sizes[name] for unit, name in zip(units, chosen, strict=True))
    while True:
        steps = []
        for at, unit in enumerate(units):
            for name in options:
                gain = cost[at][chosen[at]] - cost[at][name]
                more = unit.sizes[name] - unit.sizes[chosen[at]]
                if gain > 0 and more <= room:
                    steps.append((gain / max(more, 1e-9) if more > 0 else float("inf"), gain, at, name))
        if not steps:
            return tuple(chosen)
        _, _, at, name = max(steps)
        room -= units[at].sizes[name] - units[at].sizes[chosen[at]]
        chosen[at] = name


def auto_quantized(
    units: Sequence[Unit], scores: Mapping[str, Sequence[float]], most: float, options: Sequence[str]
) -> tuple[str, ...]:
    """The mixture that AutoQuantize makes of its scores for at most so many bytes, by ModelOpt's solver.

    As `mixture` has it where the solver finds none: so few bytes that there is none.
    """
    from modelopt.torch.opt.searcher import LPS

    sizes = [[float(unit.sizes[name]) for name in options] for unit in units]
    losses = [[0.0 if name == LEFT else scores[name][at] for name in options] for at in range(len(units))]
    chosen, status = LPS("AutoQuantize", {"bytes": most}, {"bytes": sizes}, losses)()
    if status != "Optimal":
        return mixture(units, scores, most, options)
    return tuple(options[at] for at in chosen)


def subsets(options: Sequence[str]) -> list[str]:
    """What a mixture can be made of: two or more of the options, joined by `+`."""
    sizes = range(len(options), 1, -1)
    return ["+".join(some) for size in sizes for some in itertools.combinations(options, size)]


@dataclass(frozen=True, kw_only=True)
class Space:
    """What Optuna chooses from: bytes of the units, as a share of what they are now, and what to mix."""

    units: tuple[Unit, ...]
    noise: Mapping[str, Sequence[float]]
    options: tuple[str, ...]
    fixed: int  # bytes of all the rest
    most: float  # bytes of an export, at most
    scores: Mapping[str, Sequence[float]] = field(default_factory=dict)  # AutoQuantize's, where it was asked

    def bounds(self) -> tuple[float, float]:
        """The least and the most that mixtures can have, in bytes of an export."""
        least, largest = (
            self.fixed + sum(pick(unit.sizes[name] for name in self.options) for unit in self.units)
            for pick in (min, max)
        )
        # One byte less than everything left as it is.
        return float(least), float(max(least, min(largest - 1, self.most)))

    def formats(self, asked: Mapping[str, Any]) -> tuple[str, ...]:
        """The mixture that was asked for."""
        most, options = asked["bytes"] - self.fixed, asked["of"].split("+")
        if asked.get("by") == AUTO:
            return auto_quantized(self.units, self.scores, most, options)
        return mixture(self.units, self.noise, most, options)

    def predicted(self, formats: Sequence[str]) -> float:
        """The divergence of a mixture, as the sum of what its units add."""
        return sum(0.0 if name == LEFT else self.noise[name][at] for at, name in enumerate(formats))


def room(alone: Sequence[Trial], limits: Limits, source_bytes: int) -> float:
    """The most bytes that a mixture is looked for at: those of the smallest format that passes alone, or the limit."""
    most = source_bytes * (limits.max_size or 1.0)
    asks_quality = bool(limits.asked.keys() - {"max_size"})
    good = [one.size for one in alone if asks_quality and passes(one, limits, source_bytes)]
    return min([most, *good])


def first_guess(space: Space, max_kl: float | None) -> dict[str, Any] | None:
    """What to begin with: the fewest bytes whose predicted divergence is allowed; halfway where no limit is set."""
    least, most = space.bounds()
    everything = subsets(space.options)[0]
    steps = [least + (most - least) * at / 64 for at in range(65)]
    for one in steps if max_kl is not None else steps[32:33]:
        asked = {"bytes": one, "of": everything, "by": "mixtures"}
        if max_kl is None or space.predicted(space.formats(asked)) <= max_kl:
            return asked
    return None


def asked_of_auto_quantize(
    tried: Sequence[Trial], space: Space, limits: Limits, source_bytes: int
) -> dict[str, Any] | None:
    """The next size for AutoQuantize: halfway between what failed of its mixtures and what passes of them.

    Where the size alone is limited, that size, once. None: it was asked often enough.
    """
    own = [one for one in tried if one.asked.get("by") == AUTO]
    least, most = space.bounds()
    asks_quality = bool(limits.asked.keys() - {"max_size"})
    if not space.scores or len(own) >= (_PROPOSED if asks_quality else 1):
        return None
    good = [one for one in own if passes(one, limits, source_bytes)]
    low = max([least, *(one.asked["bytes"] for one in own if one not in good)])
    high = min([most, *(float(one.size) for one in good)])
    if high <= low:
        return None
    return {"bytes": (low + high) / 2 if asks_quality else most, "of": subsets(space.options)[0], "by": AUTO}


def proposal(tried: Sequence[Trial], space: Space, limits: Limits, source_bytes: int, seed: int) -> dict[str, Any]:
    """What Optuna's TPE sampler proposes after the mixtures that were tried; the same ones give the same proposal.

    Two objectives: bytes and divergence. Nothing of Optuna's is kept: a study is made of the trials each time.
    """
    if not tried and (guess := first_guess(space, limits.max_kl)) is not None:
        return guess
    if (asked_next := asked_of_auto_quantize(tried, space, limits, source_bytes)) is not None:
        return asked_next
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    least, most = space.bounds()
    distributions = {
        "bytes": optuna.distributions.FloatDistribution(least, max(most, least + 1.0)),
        "of": optuna.distributions.CategoricalDistribution(subsets(space.options)),
        "by": optuna.distributions.CategoricalDistribution(["mixtures", *([AUTO] if space.scores else [])]),
    }
    sampler = optuna.samplers.TPESampler(
        seed=seed + len(tried), n_startup_trials=_STARTUP, constraints_func=lambda trial: trial.user_attrs["over"]
    )
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)
    for one in tried:
        study.enqueue_trial(dict(one.asked))
        asked = study.ask(distributions)
        asked.set_user_attr("over", [*over(one, limits, source_bytes).values()])
        study.tell(asked, [float(one.size), one.kl])
    return dict(study.ask(distributions).params)


def order(trial: Trial, limits: Limits) -> tuple[float, float]:
    """What is taken first of those that pass: the smallest; where the size alone is limited, what loses least."""
    asks_quality = bool(limits.asked.keys() - {"max_size"})
    return (trial.size, trial.kl) if asks_quality else (trial.kl, trial.size)


def winner(trials: Sequence[Trial], limits: Limits, source_bytes: int) -> Trial | None:
    """The one to take of those that were scored on all samples."""
    good = [one for one in trials if one.stage != "formats" and passes(one, limits, source_bytes)]
    return min(good, key=lambda one: order(one, limits), default=None)


def nearest(trials: Sequence[Trial], limits: Limits, source_bytes: int) -> Trial:
    """Where none passes, the one that breaks its limits least."""
    return min(trials, key=lambda one: (max(over(one, limits, source_bytes).values()), order(one, limits)))
