"""Whether batches and sequences suit the ranks of a training, and sequences the model.

Sources: Megatron-Core's num_microbatches_calculator and moe_layer, Megatron-LM's arguments, Megatron-Bridge's training
configuration.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import lcm

from recipes.experiment.job import Job
from recipes.planner.configured import configured
from recipes.preflight.layout import asked, ranked, split
from scripts.args.megatron_lm import MegatronLmArgs, MlmFinetuneArgs
from scripts.run.problems import Problem
from scripts.run.registry import Check

#: What the arguments of different scripts call the longest sequence.
_LENGTHS = ("seq_length", "calib_seq_length", "calib_max_sequence_length")


@dataclass(frozen=True, kw_only=True)
class Training:
    """The batches of a training, as its keys and values; a value that its script chooses itself is None."""

    length: tuple[str, int | None]
    micro: tuple[str, int | None]
    batch: tuple[str, int | None]
    sequence_parallel: bool


def training_of(job: Job) -> Training | None:
    """The batches of `job`; None where it trains nothing."""
    args = job.args
    if hasattr(args, "gbs"):
        return _training(job, "seq_length", "mbs", "gbs", sequence_parallel=True)
    if isinstance(args, MlmFinetuneArgs):
        names = ("seq_length", "micro_batch_size", "global_batch_size")
        return _training(job, *names, sequence_parallel=args.sequence_parallel)
    if not hasattr(args, "config"):
        return None
    config, words = job.resolved.config, job.extra_args
    keys = ("model.seq_length", "train.micro_batch_size", "train.global_batch_size")
    length, micro, batch = ((f"args.config.{key}", configured(config, words, key, 0) or None) for key in keys)
    parallel = configured(config, words, "model.sequence_parallel", False)
    return Training(length=length, micro=micro, batch=batch, sequence_parallel=parallel)


def _training(job: Job, *names: str, sequence_parallel: bool) -> Training:
    length, micro, batch = ((f"args.{name}", getattr(job.args, name)) for name in names)
    return Training(length=length, micro=micro, batch=batch, sequence_parallel=sequence_parallel)


def _batch(job: Job) -> Iterator[Problem]:
    """Megatron-Core's number of micro-batches is a whole number."""
    training, layout = training_of(job), asked(job).layout
    if training is None or not layout.divides:
        return
    (_, micro), (key, batch) = training.micro, training.batch
    step = (micro or 1) * layout.dp
    if batch is not None and batch % step:
        cause = f"it is no multiple of {micro or 1} samples at a time on each of {layout.dp} copies of the model"
        lower, upper = batch // step * step, -(-batch // step) * step
        remedy = f"Try {' or '.join(str(one) for one in (lower, upper) if one)}."
        yield Problem(name="batch_not_divisible", key=key, value=batch, cause=cause, remedy=remedy)


def _sequence(job: Job) -> Iterator[Problem]:
    """Context parallelism cuts a sequence into 2 cp parts, sequence parallelism each rank's into tp."""
    training, layout = training_of(job), asked(job).layout
    if training is None or training.length[1] is None:
        return
    key, length = training.length
    assert length is not None
    cut = {"2 x cp": 2 * layout.cp} if layout.cp > 1 else {}
    if training.sequence_parallel and layout.tp > 1:
        cut["cp x tp" if layout.cp > 1 else "tp"] = layout.cp * layout.tp
    for product, parts in cut.items():
        if length % parts:
            cause = f"{length} tokens do not divide by {product} = {parts}"
            whole = lcm(*cut.values())
            remedy = f"Try {-(-length // whole) * whole}."
            yield Problem(name="sequence_not_divisible", key=key, value=length, cause=cause, remedy=remedy)
            return


def _context(job: Job) -> Iterator[Problem]:
    """Rotary positions go on beyond what a model was trained for, but what it says there is not its quality."""
    assert job.model is not None
    for name in _LENGTHS:
        value = getattr(job.args, name, None)
        if value is not None and value > (job.model.context or value):
            refused = isinstance(job.args, MegatronLmArgs) and name == "seq_length"
            cause = f"the model has {job.model.context} positions" + (
                ", and Megatron-LM refuses more" if refused else ""
            )
            remedy = f"Use args.{name}={job.model.context} or fewer."
            yield Problem(
                name="sequence_longer_than_context",
                key=f"args.{name}",
                value=value,
                cause=cause,
                remedy=remedy,
                severity="error" if refused else "warning",
                can_force=refused,
            )


def _sequence_parallel(job: Job) -> Iterator[Problem]:
    """Megatron-Core's moe_layer raises in the first training step."""
    assert job.model is not None
    if job.model.experts:
        cause = "experts cannot be trained with tensor parallelism alone"
        remedy = "Use args.sequence_parallel=true."
        key = "args.sequence_parallel"
        yield Problem(name="experts_need_sequence_parallel", key=key, value=False, cause=cause, remedy=remedy)


def _trains_without_sequence_parallel(job: Job) -> bool:
    return isinstance(job.args, MlmFinetuneArgs) and not job.args.sequence_parallel and split("tp", job)


def _trains(job: Job) -> bool:
    return ranked(job) and training_of(job) is not None


CHECKS: tuple[Check, ...] = (
    Check(name="batch_not_divisible", run=_batch, applies=_trains),
    Check(name="sequence_not_divisible", run=_sequence, applies=_trains),
    Check(
        name="sequence_longer_than_context",
        run=_context,
        needs=("model.context",),
        applies=lambda job: any(getattr(job.args, name, None) is not None for name in _LENGTHS),
    ),
    Check(
        name="experts_need_sequence_parallel",
        run=_sequence_parallel,
        needs=("model.experts",),
        applies=_trains_without_sequence_parallel,
    ),
)
