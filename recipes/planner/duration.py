"""How long a job takes on its GPUs, roughly: a range, from a machine that does well to one that does not."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any

from recipes.experiment.job import Job
from recipes.models.architecture import Parameters
from recipes.planner.gpus import Gpu
from recipes.planner.layout import Layout
from recipes.planner.workload import Workload, workload_of
from scripts.args.meaning import Work

#: On a good machine, and on a bad one: seconds, bytes per second, or a part of a peak.
Range = tuple[float, float]

#: Importing torch and Megatron from an image that is there already, and joining ranks.
_START: Range = (60.0, 360.0)
#: A parallel file system that has its disks to itself, and one that is shared by many.
_READ: Range = (5e9, 5e8)
_WRITE: Range = (3e9, 3e8)
#: Part of the dense BF16 peak. Training: 0.44 to 0.52 in Narayanan et al. 2021 (arXiv:2104.04473), less with experts.
_TRAINING: Range = (0.5, 0.15)
#: Forward passes over a few samples, with quantizers between the products, keep a GPU less busy.
_FORWARD: Range = (0.4, 0.08)
#: What it costs to start a layer's kernels from Python, however little they compute.
_LAYER: Range = (2e-4, 3e-3)
#: Forward passes of awq_lite: one for the inputs' scales, then one for each of its eleven exponents.
_SEARCH_PASSES = 12
#: An MMLU question after five examples has about so many tokens.
_QUESTION_TOKENS = 800
_BF16 = 2
#: Weights, their master copy and two moments in float32, as a distributed checkpoint of a training has them.
_TRAINED = 14


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Hours, and the terms they are made of; each a range."""

    low: float
    high: float
    terms: Mapping[str, Range]

    def __str__(self) -> str:
        terms = ", ".join(f"{name} {_span(*span)}" for name, span in self.terms.items() if span[1] > 1 / 60)
        return f"{_span(self.low, self.high)} ({terms})"

    def as_data(self) -> dict[str, Any]:
        """As JSON has it."""
        return {**vars(self), "terms": {name: list(span) for name, span in self.terms.items()}}


@dataclass(frozen=True, kw_only=True)
class Load:
    """What is to be computed, and on what."""

    work: Workload
    layout: Layout
    model: Parameters
    teacher: Parameters | None
    gpu: Gpu
    shared: bool = False  # copies of the model share the samples, for certain

    def computing(self, operations: float, ranks: int) -> float:
        """Seconds at the peak of so many GPUs."""
        return operations / (ranks * self.gpu.bf16_tflops * 1e12)

    @property
    def reading(self) -> float:
        """Seconds in which a GPU reads its share of the weights once."""
        share = _BF16 * self.model.total / (self.layout.tp * self.layout.ep)
        return share / (self.gpu.bandwidth * 1e12)


def hours_of(job: Job) -> Estimate | None:
    """How long a job takes, waiting in a queue left out; None where its work, parameters or GPU are not known.

    Its first checkpoint is in it, further ones while it trains are not.
    """
    work = workload_of(job)
    model = None if work is None else work.model.architecture.parameters
    if work is None or model is None or job.gpu is None:
        return None
    teacher = None if work.teacher is None else work.teacher.architecture.parameters
    load = Load(work=work, layout=job.layout, model=model, teacher=teacher, gpu=job.gpu, shared=job.engine == "hf")
    read = _BF16 * (model.total + (teacher.total if teacher else 0))
    written = {"training": _TRAINED, "generation": 0}.get(work.kind, _BF16) * model.total
    seconds = {
        "start": _START,
        "loading": _at(read, _READ),
        "computing": _COMPUTING[work.kind](load),
        "saving": _at(written, _WRITE),
    }
    if work.minutes:
        seconds["searching"] = (0.0, 60 * work.minutes)
    hours = {name: (low / 3600, high / 3600) for name, (low, high) in seconds.items()}
    low, high = (sum(span[end] for span in hours.values()) for end in (0, 1))
    return Estimate(low=low, high=high, terms=hours)


def _training(load: Load) -> Range:
    """6 operations for each active parameter and token, 8 where the forward pass is computed twice, 2 for a teacher.

    Kaplan et al. 2020 (arXiv:2001.08361); for the recomputation Korthikanti et al. 2022 (arXiv:2205.05198).
    """
    own = (8 if load.work.recompute else 6) * load.model.active
    operations = own + 2 * (load.teacher.active if load.teacher else 0)
    return _at(load.computing(operations * load.work.tokens * load.work.samples, load.layout.world), _TRAINING)


def _calibration(load: Load) -> Range:
    work = load.work
    passes = ceil(work.samples / work.batch) * (_SEARCH_PASSES if work.searched else work.rounds)
    low, high = _passes(load, passes, work.tokens * work.batch)
    of_layers = work.passes_of_layer * (work.model.layers or 0)  # AutoQuantize scores one sample at a time
    scored = _passes(load, work.scored * (work.passes_scored + of_layers), work.tokens)
    return low + scored[0], high + scored[1]


def _scoring(load: Load) -> Range:
    """The samples, then the questions that every candidate of a search is asked."""
    scored, asked = _calibration(load), _passes(load, load.work.questions, _QUESTION_TOKENS)
    return scored[0] + asked[0], scored[1] + asked[1]


def _generation(load: Load) -> Range:
    """The prompts, then a pass for each token."""
    prompts, tokens = _calibration(load), _passes(load, load.work.samples * load.work.new_tokens, 1)
    return prompts[0] + tokens[0], prompts[1] + tokens[1]


def _passes(load: Load, passes: int, tokens: int) -> Range:
    """Forward passes of so many tokens: 2 operations for each, or the time to read the weights or to start the kernels.

    Through one stage of the pipeline after the other. Copies of the model share the samples, or do the same again.
    """
    active = load.model.total if load.work.every_expert else load.model.active
    computing = load.computing(2 * active * tokens, load.layout.tp)
    layers = load.work.model.layers or 0
    low, high = (
        passes * max(computing / part, load.reading, layers * layer)
        for part, layer in zip(_FORWARD, _LAYER, strict=True)
    )
    copies = load.layout.dp if load.layout.divides else 1
    return low / copies, high / copies if load.shared else high


_COMPUTING: Mapping[Work, Callable[[Load], Range]] = {
    "calibration": _calibration,
    "scoring": _scoring,
    "training": _training,
    "generation": _generation,
    "transfer": lambda _: (0.0, 0.0),
}


def _at(amount: float, rates: Range) -> Range:
    return amount / rates[0], amount / rates[1]


def _span(low: float, high: float) -> str:
    """Hours as a person says them: in minutes below two hours."""
    if high < 2:
        return f"{max(1, round(low * 60))} to {max(1, ceil(high * 60))} minutes"
    return f"{low:.1f} to {high:.1f} hours"
