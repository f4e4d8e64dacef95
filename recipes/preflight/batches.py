"""Whether batches and sequences suit the ranks of a training, and sequences the model.

Sources: Megatron-Core's num_microbatches_calculator and moe_layer, Megatron-LM's arguments, Megatron-Bridge's training
configuration.
"""

from collections.abc import Iterator
from math import lcm

from recipes.experiment.job import Job
from recipes.preflight.layout import asked, divided, ranked
from scripts.args.meaning import Role
from scripts.run.problems import Problem
from scripts.run.registry import check

_LENGTHS: tuple[Role, ...] = ("sequence", "calib_sequence")


def _trains(job: Job) -> bool:
    return bool(job.args.WORK == "training" and ranked(job))


@check("batch_not_divisible", applies=lambda job: _trains(job) and divided(job))
def batch(job: Job) -> Iterator[Problem]:
    """Megatron-Core's number of micro-batches is a whole number."""
    micro, number, copies = job.get("micro_batch", 1), job.get("global_batch"), asked(job).layout.dp
    step, key = micro * copies, job.key("global_batch")
    if key is not None and number is not None and number % step:
        cause = f"it is no multiple of {micro} samples at a time on each of {copies} copies of the model"
        lower, upper = number // step * step, -(-number // step) * step
        remedy = f"Try {' or '.join(str(one) for one in (lower, upper) if one)}."
        yield Problem(key=key, value=number, cause=cause, remedy=remedy)


@check("sequence_not_divisible", applies=_trains)
def sequence(job: Job) -> Iterator[Problem]:
    """Context parallelism cuts a sequence into 2 cp parts, sequence parallelism each rank's into tp."""
    layout, key, length = asked(job).layout, job.key("sequence"), job.get("sequence")
    if key is None or length is None:
        return
    cut = {"2 x cp": 2 * layout.cp} if layout.cp > 1 else {}
    if job.get("sequence_parallel", False) and layout.tp > 1:
        cut["cp x tp" if layout.cp > 1 else "tp"] = layout.cp * layout.tp
    for product, parts in cut.items():
        if length % parts:
            cause = f"{length} tokens do not divide by {product} = {parts}"
            whole = lcm(*cut.values())
            yield Problem(key=key, value=length, cause=cause, remedy=f"Try {-(-length // whole) * whole}.")
            return


def _says_length(job: Job) -> bool:
    return any(job.get(role) is not None for role in _LENGTHS if job.key(role))


@check("sequence_longer_than_context", needs=("model.context",), applies=_says_length)
def context(job: Job) -> Iterator[Problem]:
    """Rotary positions go on beyond what a model was trained for, but what it says there is not its quality."""
    assert job.model is not None and job.model.context is not None
    for role in _LENGTHS:
        key, value, most = job.key(role), job.get(role), job.model.context
        if key is None or value is None or value <= most:
            continue
        refused = job.args.REFUSES_LONG and role == "sequence"
        yield Problem(
            key=key,
            value=value,
            cause=f"the model has {most} positions" + (", and Megatron-LM refuses more" if refused else ""),
            remedy=f"Use {key}={most} or fewer.",
            severity="error" if refused else "warning",
            can_force=refused,
        )


def _trains_without_sequence_parallel(job: Job) -> bool:
    return _trains(job) and job.get("sequence_parallel") is False and asked(job).layout.tp > 1


@check("experts_need_sequence_parallel", needs=("model.experts",), applies=_trains_without_sequence_parallel)
def sequence_parallel(job: Job) -> Iterator[Problem]:
    """Megatron-Core's moe_layer raises in the first training step."""
    key = job.key("sequence_parallel")
    if key is not None and job.model is not None and job.model.experts:
        cause = "experts cannot be trained with tensor parallelism alone"
        yield Problem(key=key, value=False, cause=cause, remedy=f"Use {key}=true.")
