"""Whether ranks can share a model: the world, as Megatron-Core's parallel_state counts it, and the model's numbers."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from math import lcm, prod
from typing import Any, Literal

from recipes.experiment.job import Job
from recipes.models import ModelFacts
from recipes.planner.divisibility import (
    EVEN,
    RULES,
    VOCABULARY,
    Rule,
    Stages,
    Violation,
    layers_violation,
    uneven_stages,
)
from recipes.planner.layout import Layout, layout_of, sizes_of
from recipes.planner.layouts import alternatives
from recipes.planner.work import layout_of_work
from scripts.args.megatron_lm import MegatronLmArgs
from scripts.run.problems import Problem
from scripts.run.registry import Check

Owner = Literal["model", "teacher"]
#: Sizes in the configuration that a script of Megatron-Bridge's own recipes takes.
_CONFIGURED = {
    "tp": "tensor_model_parallel_size",
    "pp": "pipeline_model_parallel_size",
    "cp": "context_parallel_size",
    "ep": "expert_model_parallel_size",
    "etp": "expert_tensor_parallel_size",
}
#: Sizes whose product is a copy of the model, and one of its experts.
_GROUPS = (("tp", "pp", "cp"), ("etp", "ep", "pp"))
_STAGES = (
    ("num_layers_in_first_pipeline_stage", "num_layers_in_last_pipeline_stage"),
    ("decoder_first_pipeline_num_layers", "decoder_last_pipeline_num_layers"),
)
_COUNTS = (
    *("calib_size", "calib_num_samples", "calib_seq_length", "calib_max_sequence_length", "calib_batch_size"),
    *("seq_length", "mbs", "gbs", "micro_batch_size", "global_batch_size", "train_iters", "osl"),
    *(name for names in _STAGES for name in names),
)
#: Nobody is offered a layout of more ranks than this: looking for one would take longer than reading the rest.
_OFFERED = 4096


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The layout that a job's values ask for, whether it can be or not, and the key that sets each size."""

    layout: Layout
    keys: Mapping[str, str]
    stages: Stages = EVEN
    stage_keys: tuple[str, ...] = ()

    def key_of(self, violation: Violation) -> str:
        """What to change."""
        return self.stage_keys[0] if violation.size == "pp" and self.stage_keys else self.keys[violation.size]

    def written(self, layout: Layout, named: Iterable[str] = tuple(_CONFIGURED)) -> str:
        """A layout in the script's own words: the sizes `named`, where there are several ranks, and what differs."""
        pairs = {size: (getattr(self.layout, size), getattr(layout, size)) for size in self.keys}
        used = [size for size, (old, new) in pairs.items() if old != new or (size in named and new > 1)]
        return " ".join(f"{self.keys[size].rpartition('.')[2]}={pairs[size][1]}" for size in used)


def asked(job: Job) -> Asked:
    """What `job` asks for: by its arguments, or by the configuration that its script takes."""
    if hasattr(job.resolved, "config"):
        keys = {size: f"args.config.model.{name}" for size, name in _CONFIGURED.items()}
        return Asked(layout=layout_of_work(job), keys=keys)
    keys = {size: key for size, (key, _) in sizes_of(job.args).items()}
    layout = layout_of(job.args, job.shape.nodes, job.torchrun.nproc_per_node)
    for first, last in _STAGES:
        if hasattr(job.args, first):
            given = tuple(f"args.{name}" for name in (first, last) if getattr(job.args, name) is not None)
            stages = (getattr(job.args, first), getattr(job.args, last))
            return Asked(layout=layout, keys=keys, stages=stages, stage_keys=given)
    return Asked(layout=layout, keys=keys)


def ranked(job: Job) -> bool:
    """Whether ranks share a model at all, by sizes that are sizes."""
    return job.engine == "script" and job.args.RANKED and bool(asked(job).keys) and not list(_sizes(job))


def _sizes(job: Job) -> Iterator[Problem]:
    want = asked(job)
    numbers = {key: getattr(want.layout, size) for size, key in want.keys.items()}
    numbers |= {f"args.{name}": value for name in _COUNTS if (value := getattr(job.args, name, None)) is not None}
    for key, value in numbers.items():
        if value < 1:
            yield Problem(name="out_of_range", key=key, value=value, cause="at least 1 is needed")


def _world(job: Job) -> Iterator[Problem]:
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


def _not_divisible(job: Job, want: Asked, used: Mapping[str, int]) -> Problem:
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


def _offer(job: Job, want: Asked, named: Iterable[str]) -> str:
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
    own = all(getattr(layout, size) == 1 for size in _CONFIGURED if size not in want.keys)
    return own and layout != want.layout and (job.args.DATA_PARALLEL or layout.world == layout.model)


def _exporter(job: Job) -> Iterator[Problem]:
    """ModelOpt's exporter writes each rank's shard of a tensor as if it were the whole, without an error."""
    for size, (key, value) in sizes_of(job.args).items():
        if size in ("tp", "etp") and value > 1:
            cause = (
                "the exporter does not gather tensor-parallel shards: the checkpoint would be corrupt, without an error"
            )
            remedy = f"Use {key}=1, and pp for size."
            yield Problem(name="export_needs_tp1", key=key, value=value, cause=cause, remedy=remedy)


def _writes_quantized(job: Job) -> bool:
    """The exporters of quantized checkpoints; Megatron-Bridge's own, of plain ones, gathers shards."""
    from scripts.args.meaning import meanings

    quantized = any(meaning.consumes and meaning.quantized for _, meaning in meanings(job.args))
    return job.engine == "script" and job.algorithm == "export" and quantized


def _rule(owner: Owner, rule: Rule, job: Job) -> Iterator[Problem]:
    facts: ModelFacts = getattr(job, owner)
    want = asked(job)
    if violation := rule.violation(want.layout, facts):
        yield _unsuitable(job, owner, want, violation)


def _layers(owner: Owner, job: Job) -> Iterator[Problem]:
    facts: ModelFacts = getattr(job, owner)
    want = asked(job)
    if violation := layers_violation(want.layout, facts, want.stages):
        yield _unsuitable(job, owner, want, violation, _stages_offer(job, want, facts))


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
    return getattr(want.layout, size) if size else getattr(job.args, key.removeprefix("args."))


def _stages_offer(job: Job, want: Asked, facts: ModelFacts) -> str:
    """Uneven stages, where the script can have some."""
    assert facts.layers is not None
    names = next((names for names in _STAGES if hasattr(job.args, names[0])), None)
    ends = uneven_stages(facts.layers, want.layout.pp) if names else None
    if names is None or ends is None:
        return ""
    return " ".join(["Try", " ".join(f"{name}={end}" for name, end in zip(names, ends, strict=True))]) + "."


def split(size: str, job: Job) -> bool:
    return ranked(job) and getattr(asked(job).layout, size) > 1


def _rule_applies(owner: Owner, rule: Rule, job: Job) -> bool:
    """A model's part that is known not to be there needs no number; nor does a vocabulary that is filled up.

    A layout that does not divide is told once: what is offered instead suits the model.
    """
    if not _owned(owner, job) or not split(rule.size, job) or not asked(job).layout.divides:
        return False
    facts = getattr(job, owner)
    padded = rule is VOCABULARY and isinstance(job.args, MegatronLmArgs)
    return not padded and (facts is None or rule.applies(facts))


def _layers_apply(owner: Owner, job: Job) -> bool:
    if not _owned(owner, job) or not ranked(job):
        return False
    want = asked(job)
    return want.layout.divides and (want.layout.pp > 1 or want.stages != EVEN)


def _owned(owner: Owner, job: Job) -> bool:
    return owner == "model" or hasattr(job.args, "teacher_hf_path")


def _of_rules(owner: Owner) -> Iterator[Check]:
    for rule in RULES:
        needs = (f"{owner}.{rule.fact}",)
        applies: Callable[[Job], bool] = partial(_rule_applies, owner, rule)
        yield Check(name=rule.name, run=partial(_rule, owner, rule), needs=needs, applies=applies)
    run, applies = partial(_layers, owner), partial(_layers_apply, owner)
    yield Check(name="layers_not_divisible", run=run, needs=(f"{owner}.layers",), applies=applies)


CHECKS: tuple[Check, ...] = (
    Check(name="out_of_range", run=_sizes, applies=lambda job: job.engine == "script"),
    Check(name="world_size_not_divisible", run=_world, applies=ranked),
    Check(name="export_needs_tp1", run=_exporter, applies=_writes_quantized),
    *_of_rules("model"),
    *_of_rules("teacher"),
)
