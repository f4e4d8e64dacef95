"""Whether ranks can share a model: the world, as Megatron-Core's parallel_state counts it, and the model's numbers."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import lcm, prod
from typing import Any, Literal, get_args

from recipes.experiment.job import Job
from recipes.models import ModelFacts
from recipes.planner.layout import (
    EVEN,
    RULES,
    SIZES,
    Layout,
    Size,
    Stages,
    Violation,
    layers_violation,
    layout_of,
    rules_of,
    uneven_stages,
)
from recipes.planner.search import alternatives
from scripts.args.meaning import Role, meanings
from scripts.run.problems import Problem
from scripts.run.registry import Skipped, check

Owner = Literal["model", "teacher"]
#: Sizes whose product is a copy of the model, and one of its experts.
_GROUPS: tuple[tuple[Size, ...], ...] = (("tp", "pp", "cp"), ("etp", "ep", "pp"))
_ENDS: tuple[Role, ...] = ("first_stage", "last_stage")
_COUNTS: tuple[Role, ...] = (
    *("samples", "sequence", "calib_sequence", "batch", "micro_batch", "global_batch", "iterations", "new_tokens"),
    *_ENDS,
)
#: Nobody is offered a layout of more ranks than this: looking for one would take longer than reading the rest.
_OFFERED = 4096


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The layout that a job's values ask for, whether it can be or not, and the key that sets each size."""

    layout: Layout
    keys: Mapping[Size, str]
    stages: Stages = EVEN
    stage_keys: tuple[str, ...] = ()

    def key_of(self, violation: Violation) -> str:
        """What to change."""
        return self.stage_keys[0] if violation.size == "pp" and self.stage_keys else self.keys[violation.size]

    def written(self, layout: Layout, named: Iterable[Size] = SIZES) -> str:
        """A layout in the script's own words: the sizes `named`, where there are several ranks, and what differs."""
        pairs = {size: (getattr(self.layout, size), getattr(layout, size)) for size in self.keys}
        used = [size for size, (old, new) in pairs.items() if old != new or (size in named and new > 1)]
        return " ".join(f"{self.keys[size].rpartition('.')[2]}={pairs[size][1]}" for size in used)


def asked(job: Job) -> Asked:
    """What `job` asks for: by its arguments, or by the configuration that its script takes."""
    first, last = (job.get(end) for end in _ENDS)
    return Asked(
        layout=layout_of(job.get, job.nodes, job.torchrun.nproc_per_node),
        keys={size: key for size in SIZES if (key := job.key(size))},
        stages=(first, last),
        stage_keys=tuple(key for end in _ENDS if (key := job.key(end)) and job.get(end) is not None),
    )


def ranked(job: Job) -> bool:
    """Whether ranks share a model at all, by sizes that are sizes."""
    return job.engine == "script" and job.args.RANKED and bool(asked(job).keys) and not list(sizes(job))


def divided(job: Job) -> bool:
    """Whether they do so evenly. A layout that does not is told of once: what is offered instead suits the model."""
    return ranked(job) and asked(job).layout.divides


@check("out_of_range", engines=("script",))
def sizes(job: Job) -> Iterator[Problem]:
    """Sizes and counts below 1."""
    want = asked(job)
    numbers = {key: getattr(want.layout, size) for size, key in want.keys.items()}
    numbers |= {key: value for role in _COUNTS if (key := job.key(role)) and (value := job.get(role)) is not None}
    for key, value in numbers.items():
        if value < 1:
            yield Problem(key=key, value=value, cause="at least 1 is needed")


@check("world_size_not_divisible", "invalid_parallel_divisibility", applies=ranked)
def world(job: Job) -> Iterator[Problem]:
    """World size = tp x pp x cp x dp, and the experts' own layout: etp x ep x pp x edp."""
    want = asked(job)
    layout = want.layout
    for group in _GROUPS:
        used = {size: value for size in group if (value := getattr(layout, size)) > 1}
        if layout.world % prod(used.values()):
            yield _not_divisible(job, want, used)
            return
    if not job.args.DATA_PARALLEL and layout.world != layout.model:
        product = " x ".join(size for size in ("tp", "pp", "cp") if size in want.keys)
        cause = f"{layout.world} processes, and this script makes use of {layout.model}: {product}, no data parallelism"
        key, value = "torchrun.nproc_per_node", job.torchrun.nproc_per_node
        yield Problem(name=_named(job), key=key, value=value, cause=cause, remedy=_exactly(want))


def _not_divisible(job: Job, want: Asked, used: Mapping[Size, int]) -> Problem:
    world, needed = want.layout.world, prod(used.values())
    # The size that is wrong whatever the others are; where each divides, the largest.
    size = max(used, key=lambda one: (world % used[one] > 0, used[one]))
    cause = f"{world} processes do not divide by {' x '.join(used)} = {needed}."
    remedy = _offer(job, want, used)
    return Problem(name=_named(job), key=want.keys[size], value=used[size], cause=cause, remedy=remedy)


def _named(job: Job) -> str:
    return "invalid_parallel_divisibility" if job.algorithm == "prune" else "world_size_not_divisible"


def _exactly(want: Asked) -> str:
    """A script without data parallelism needs as many processes as its model has parts."""
    return f"Use torchrun.nproc_per_node={want.layout.model}, on one machine." if want.layout.model <= 8 else ""


def _offer(job: Job, want: Asked, named: Iterable[Size]) -> str:
    """The nearest layouts that work, in the words of the script; else the processes that would."""
    models = [facts for facts in (job.model, job.teacher) if facts]
    found = [one for one in _alternatives(want.layout, models) if _can_be(job, want, one)]
    if found:
        return f"Try {', or '.join(want.written(one, named) for one in found[:2])}."
    if not job.args.DATA_PARALLEL:
        return _exactly(want)
    needed = lcm(want.layout.model, want.layout.expert_model)
    return f"Use a multiple of {needed} processes (torchrun.nnodes x torchrun.nproc_per_node)."


def _alternatives(layout: Layout, models: list[ModelFacts]) -> tuple[Layout, ...]:
    return alternatives(layout, models, limit=8) if layout.world <= _OFFERED else ()


def _can_be(job: Job, want: Asked, layout: Layout) -> bool:
    """Whether the script has the sizes that differ, and use for all ranks."""
    own = all(getattr(layout, size) == 1 for size in SIZES if size not in want.keys)
    return own and layout != want.layout and (job.args.DATA_PARALLEL or layout.world == layout.model)


def _unsuitable(job: Job, owner: Owner, want: Asked, violation: Violation, remedy: str = "") -> Problem:
    whose = "" if job.teacher is None else "the teacher's " if owner == "teacher" else "the student's "
    key = want.key_of(violation)
    name = "invalid_parallel_divisibility" if job.algorithm == "prune" else violation.name
    return Problem(
        name=name,
        key=key,
        value=_value(job, want, key),
        cause=f"{whose}{violation.cause}",
        remedy=remedy or _offer(job, want, next(group for group in _GROUPS if violation.size in group)),
        can_force=True,
    )


def _value(job: Job, want: Asked, key: str) -> Any:
    size = next((size for size, one in want.keys.items() if one == key), None)
    return getattr(want.layout, size) if size else next(job.get(end) for end in _ENDS if job.key(end) == key)


def _stages_offer(job: Job, want: Asked, facts: ModelFacts) -> str:
    """Uneven stages, where the script can have some."""
    assert facts.layers is not None
    keys = [key.removeprefix("args.") for end in _ENDS if (key := job.key(end))]
    ends = uneven_stages(facts.layers, want.layout.pp) if keys else None
    return f"Try {' '.join(f'{key}={end}' for key, end in zip(keys, ends, strict=True))}." if ends else ""


@check("export_needs_tp1", engines=("script",), algorithms=("export",))
def exporter(job: Job) -> Iterator[Problem]:
    """ModelOpt's exporter writes each rank's shard of a tensor as if it were the whole, without an error; Megatron-
    Bridge's own, of plain checkpoints, gathers shards."""
    if not any(meaning.consumes and meaning.quantized for _, meaning in meanings(job.args)):
        return
    for size in ("tp", "etp"):
        key, value = job.key(size), job.get(size, 1)
        if key is not None and value > 1:
            cause = (
                "the exporter does not gather tensor-parallel shards: the checkpoint would be corrupt, without an error"
            )
            yield Problem(key=key, value=value, cause=cause, remedy=f"Use {key}=1, and pp for size.")


@check(*(rule.name for rule in RULES), "layers_not_divisible", "invalid_parallel_divisibility", applies=divided)
def suited(job: Job) -> Iterator[Problem | Skipped]:
    """The numbers of the models, one after the other. A part that is known not to be there needs no number; nor does a
    vocabulary that is filled up."""
    want = asked(job)
    for owner in get_args(Owner):
        if owner == "teacher" and job.key("teacher") is None:
            continue
        facts: ModelFacts | None = getattr(job, owner)
        for rule, size in rules_of(facts or ModelFacts(source=""), padded=job.args.PADS_VOCABULARY):
            if getattr(want.layout, size) > 1 and (facts is None or getattr(facts, rule.fact) is None):
                yield Skipped(name=rule.name, missing=(f"{owner}.{rule.fact}",))
            elif facts is not None and (violation := rule.violation(size, want.layout, facts)):
                yield _unsuitable(job, owner, want, violation)
        if want.layout.pp == 1 and want.stages == EVEN:
            continue
        if facts is None or facts.layers is None:
            yield Skipped(name="layers_not_divisible", missing=(f"{owner}.layers",))
        elif violation := layers_violation(want.layout, facts, want.stages):
            yield _unsuitable(job, owner, want, violation, _stages_offer(job, want, facts))
