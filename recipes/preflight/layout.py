"""Whether ranks can share a model: the world, as Megatron-Core's parallel_state counts it, the model's numbers, and in
a training the batches and sequences that they get.

Sources of the last: Megatron-Core's num_microbatches_calculator and moe_layer, Megatron-LM's arguments,
Megatron-Bridge's training configuration.
"""

from collections.abc import Iterable, Iterator
from math import lcm, prod
from typing import Literal, get_args

from recipes.experiment.job import Job
from recipes.models import ModelFacts
from recipes.planner.layout import (
    ENDS,
    EVEN,
    RULES,
    SIZES,
    Layout,
    Size,
    Violation,
    layers_violation,
    rules_of,
    uneven_stages,
)
from recipes.planner.search import alternatives
from scripts.args.meaning import MEGATRON, Role, meanings
from scripts.run.problems import Problem
from scripts.run.registry import Skipped, check

Owner = Literal["model", "teacher"]
#: Sizes whose product is a copy of the model, and one of its experts.
_GROUPS: tuple[tuple[Size, ...], ...] = (("tp", "pp", "cp"), ("etp", "ep", "pp"))
_COUNTS: tuple[Role, ...] = (
    "samples", "sequence", "calib_sequence", "batch", "micro_batch", "global_batch", "iterations", "new_tokens",
)  # fmt: skip
_LENGTHS: tuple[Role, ...] = ("sequence", "calib_sequence")
#: Nobody is offered a layout of more ranks than this: looking for one would take longer than reading the rest.
_OFFERED = 4096


def ranked(job: Job) -> bool:
    """Whether ranks share a model at all, by sizes that are sizes."""
    return job.engine in MEGATRON and job.args.RANKED and bool(job.asked.keys) and min(_sizes(job).values()) > 0


def divided(job: Job) -> bool:
    """Whether they do so evenly. A layout that does not is told of once: what is offered instead suits the model."""
    return ranked(job) and job.asked.layout.divides


@check("out_of_range", engines=MEGATRON)
def sizes(job: Job) -> Iterator[Problem]:
    """Sizes and counts below 1."""
    for key, value in (_sizes(job) | _said(job, _COUNTS)).items():
        if value < 1:
            yield Problem(key=key, value=value, cause="at least 1 is needed")


def _sizes(job: Job) -> dict[str, int]:
    """What a layout is made of, by key."""
    return {key: getattr(job.asked.layout, size) for size, key in job.asked.keys.items()} | _said(job, ENDS)


def _said(job: Job, roles: Iterable[Role]) -> dict[str, int]:
    return {key: value for role in roles if (key := job.key(role)) and (value := job.get(role)) is not None}


@check("world_size_not_divisible", "invalid_parallel_divisibility", applies=ranked)
def world(job: Job) -> Iterator[Problem]:
    """World size = tp x pp x cp x dp, and the experts' own layout: etp x ep x pp x edp."""
    layout, keys = job.asked.layout, job.asked.keys
    for group in _GROUPS:
        used = {size: value for size in group if (value := getattr(layout, size)) > 1}
        if layout.world % prod(used.values()):
            # The size that is wrong whatever the others are; where each divides, the largest.
            size = max(used, key=lambda one: (layout.world % used[one] > 0, used[one]))
            cause = f"{layout.world} processes do not divide by {' x '.join(used)} = {prod(used.values())}."
            name, remedy = _named(job, "world_size_not_divisible"), _offer(job, used)
            yield Problem(name=name, key=keys[size], value=used[size], cause=cause, remedy=remedy)
            return
    if not job.args.DATA_PARALLEL and layout.world != layout.model:
        product = " x ".join(size for size in ("tp", "pp", "cp") if size in keys)
        cause = f"{layout.world} processes, and this script makes use of {layout.model}: {product}, no data parallelism"
        name, key, value = _named(job, "world_size_not_divisible"), "torchrun.nproc_per_node", layout.processes
        yield Problem(name=name, key=key, value=value, cause=cause, remedy=_exactly(layout))


def _named(job: Job, name: str) -> str:
    """Pruning calls all of these the same."""
    return "invalid_parallel_divisibility" if job.algorithm == "prune" else name


def _exactly(layout: Layout) -> str:
    """A script without data parallelism needs as many processes as its model has parts."""
    return f"Use torchrun.nproc_per_node={layout.model}, on one machine." if layout.model <= 8 else ""


def _offer(job: Job, named: Iterable[Size]) -> str:
    """The nearest layouts that work, in the words of the script; else the processes that would."""
    layout, models = job.asked.layout, [facts for facts in (job.model, job.teacher) if facts]
    near = alternatives(layout, models, limit=8) if layout.world <= _OFFERED else ()
    if found := [one for one in near if _can_be(job, one)]:
        return f"Try {', or '.join(job.asked.written(one, named) for one in found[:2])}."
    if not job.args.DATA_PARALLEL:
        return _exactly(layout)
    needed = layout.fewest
    return f"Use a multiple of {needed} processes (torchrun.nnodes x torchrun.nproc_per_node)."


def _can_be(job: Job, layout: Layout) -> bool:
    """Whether the script has the sizes that differ, and use for all ranks."""
    own = all(getattr(layout, size) == 1 for size in SIZES if size not in job.asked.keys)
    return own and layout != job.asked.layout and (job.args.DATA_PARALLEL or layout.world == layout.model)


def _unsuitable(job: Job, owner: Owner, violation: Violation, remedy: str = "") -> Problem:
    whose = "" if job.teacher is None else "the teacher's " if owner == "teacher" else "the student's "
    values = {key: getattr(job.asked.layout, size) for size, key in job.asked.keys.items()}
    values |= {key: job.get(end) for end in ENDS if (key := job.key(end))}
    key = job.asked.key_of(violation.size)
    return Problem(
        name=_named(job, violation.name),
        key=key,
        value=values[key],
        cause=f"{whose}{violation.cause}",
        remedy=remedy or _offer(job, next(group for group in _GROUPS if violation.size in group)),
        can_force=True,
    )


def _stages_offer(job: Job, facts: ModelFacts) -> str:
    """Uneven stages, where the script can have some."""
    assert facts.layers is not None
    keys = [key.removeprefix("args.") for end in ENDS if (key := job.key(end))]
    ends = uneven_stages(facts.layers, job.asked.layout.pp) if keys else None
    return f"Try {' '.join(f'{key}={end}' for key, end in zip(keys, ends, strict=True))}." if ends else ""


@check("export_needs_tp1", engines=MEGATRON, algorithms=("export",))
def exporter(job: Job) -> Iterator[Problem]:
    """ModelOpt's exporter writes each rank's shard of a tensor as if it were the whole, without an error; Megatron-
    Bridge's own, of plain checkpoints, gathers shards."""
    if not any(meaning.consumes and meaning.quantized for _, meaning in meanings(job.args)):
        return
    for size in ("tp", "etp"):
        key, value = job.key(size), job.get(size, 1)
        if key is not None and value > 1:
            cause = "the exporter does not gather tensor-parallel shards: the checkpoint would be corrupt"
            remedy = f"Use {key}=1, and pp for size."
            yield Problem(key=key, value=value, cause=f"{cause}, without an error", remedy=remedy)


@check(*(rule.name for rule in RULES), "layers_not_divisible", "invalid_parallel_divisibility", applies=divided)
def suited(job: Job) -> Iterator[Problem | Skipped]:
    """The numbers of the models, one after the other. A part that is known not to be there needs no number; nor does a
    vocabulary that is filled up."""
    want = job.asked
    for owner in get_args(Owner):
        if owner == "teacher" and job.key("teacher") is None:
            continue
        facts: ModelFacts | None = getattr(job, owner)
        for rule, size in rules_of(facts or ModelFacts(source=""), padded=job.args.PADS_VOCABULARY):
            if getattr(want.layout, size) > 1 and (facts is None or getattr(facts, rule.fact) is None):
                yield Skipped(name=rule.name, missing=(f"{owner}.{rule.fact}",))
            elif facts is not None and (violation := rule.violation(size, want.layout, facts)):
                yield _unsuitable(job, owner, violation)
        if want.layout.pp == 1 and want.stages == EVEN:
            continue
        if facts is None or facts.layers is None:
            yield Skipped(name="layers_not_divisible", missing=(f"{owner}.layers",))
        elif violation := layers_violation(want.layout, facts, want.stages):
            yield _unsuitable(job, owner, violation, _stages_offer(job, facts))


def _trains(job: Job) -> bool:
    """By counts that are counts: whoever divides by them can."""
    return bool(job.args.WORK == "training" and ranked(job) and next(sizes(job), None) is None)


@check("batch_not_divisible", applies=lambda job: _trains(job) and divided(job))
def batch(job: Job) -> Iterator[Problem]:
    """Megatron-Core's number of micro-batches is a whole number."""
    micro, number, copies = job.get("micro_batch", 1), job.get("global_batch"), job.asked.layout.dp
    step, key = micro * copies, job.key("global_batch")
    if key is not None and number is not None and number % step:
        cause = f"it is no multiple of {micro} samples at a time on each of {copies} copies of the model"
        lower, upper = number // step * step, -(-number // step) * step
        remedy = f"Try {' or '.join(str(one) for one in (lower, upper) if one)}."
        yield Problem(key=key, value=number, cause=cause, remedy=remedy)


@check("sequence_not_divisible", applies=_trains)
def sequence(job: Job) -> Iterator[Problem]:
    """Context parallelism cuts a sequence into 2 cp parts, sequence parallelism each rank's into tp."""
    layout, key, length = job.asked.layout, job.key("sequence"), job.get("sequence")
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


@check("sequence_longer_than_context", needs=("model.context",), applies=lambda job: any(_lengths(job)))
def context(job: Job) -> Iterator[Problem]:
    """Rotary positions go on beyond what a model was trained for, but what it says there is not its quality."""
    assert job.model is not None and job.model.context is not None
    for role, key, value in _lengths(job):
        most = job.model.context
        if value <= most:
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


def _lengths(job: Job) -> Iterator[tuple[Role, str, int]]:
    """The lengths that a job says, each with its role and its key."""
    for role in _LENGTHS:
        key, value = job.key(role), job.get(role)
        if key is not None and value is not None:
            yield role, key, value


@check(
    "experts_need_sequence_parallel",
    needs=("model.experts",),
    applies=lambda job: _trains(job) and job.get("sequence_parallel") is False and job.asked.layout.tp > 1,
)
def sequence_parallel(job: Job) -> Iterator[Problem]:
    """Megatron-Core's moe_layer raises in the first training step."""
    key = job.key("sequence_parallel")
    if key is not None and job.model is not None and job.model.experts:
        cause = "experts cannot be trained with tensor parallelism alone"
        yield Problem(key=key, value=False, cause=cause, remedy=f"Use {key}=true.")
