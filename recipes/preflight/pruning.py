"""Whether a pruned model can be made of its source: Minitron's own limits (ModelOpt prune.plugins.mcore_minitron).

A width can only become a smaller multiple of what kernels like, and a search does not go beyond what it is allowed.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from recipes.experiment.job import Job
from recipes.models import ModelFacts
from recipes.models.architecture import MEGATRON_SIZES
from scripts.args.meaning import Role, fields_of
from scripts.args.prune import MMLU_SHARE
from scripts.run.problems import Problem, nearest
from scripts.run.registry import check

#: Sizes that can be pruned, by what the result must be a multiple of: a number, or the fact that has it. Sources: what
#: prune_minitron.py sets for a fixed architecture; heads stay whole groups (nas.plugins.megatron).
_MULTIPLES: Mapping[str, int | str] = {
    **dict.fromkeys(MEGATRON_SIZES, 1),
    **dict.fromkeys(("hidden_size", "ffn_hidden_size"), 64),
    **dict.fromkeys(("moe_ffn_hidden_size", "moe_shared_expert_intermediate_size"), 64),
    **dict.fromkeys(("mamba_head_dim", "num_moe_experts"), 8),
    "num_attention_heads": "query_groups",
    "mamba_num_heads": "mamba_groups",
}
#: What a search may change.
_SEARCHED = [name for name in MEGATRON_SIZES if name != "num_query_groups"]
_SHARES: tuple[Role, ...] = ("width_share", "depth_share")
_KEPT: tuple[Role, ...] = ("kept_parameters", "kept_active_parameters")


def _sizes(job: Job) -> Iterator[tuple[str, str, Any]]:
    """The sizes of a fixed architecture: key, Megatron-Core's word, value. Before core 0.18 the script of
    Megatron-LM took each size as an argument."""
    for name, value in job.get("pruned_sizes", {}).items():
        yield f"{job.key('pruned_sizes')}.{name}", name, value
    for field in fields_of(job.resolved, "pruned_size"):
        value = getattr(job.resolved, field)
        if value is not None:
            yield f"args.{field}", field.removeprefix("target_"), value


@check("unknown_key", "wrong_value", algorithms=("prune",))
def names(job: Job) -> Iterator[Problem]:
    for key, name, value in _sizes(job):
        if name not in MEGATRON_SIZES:
            cause = "ModelOpt prunes no such thing"
            yield Problem(key=key, value=value, cause=cause, remedy=nearest(name, MEGATRON_SIZES))
        elif not isinstance(value, int) or isinstance(value, bool) or value < 1:
            yield Problem(name="wrong_value", key=key, value=value, cause="a number above 0 is expected")
    key = job.key("unpruned") or ""
    for name in job.get("unpruned", []):
        if name not in _SEARCHED:
            cause = "the search changes no such thing"
            had = [one for one in _SEARCHED if job.model is None or getattr(job.model, MEGATRON_SIZES[one])]
            yield Problem(key=key, value=name, cause=cause, remedy=nearest(str(name), had))


@check("wrong_value", algorithms=("prune",), engines=("bridge",))
def score_function(job: Job) -> Iterator[Problem]:
    value = job.resolved.prune_score_func
    if value is not None and value != "loss" and not MMLU_SHARE.fullmatch(value):
        cause = "the bridge engine has no such score"
        remedy = "Use loss, or mmlu_5pct for 5 percent of MMLU."
        yield Problem(key="args.prune_score_func", value=value, cause=cause, remedy=remedy)


@check(
    "pruned_size_out_of_reach",
    needs=("model",),
    algorithms=("prune",),
    can_force=True,
    applies=lambda job: any(_sizes(job)),
)
def pruned_sizes(job: Job) -> Iterator[Problem]:
    assert job.model is not None
    for key, name, value in _sizes(job):
        source = getattr(job.model, MEGATRON_SIZES[name]) if name in MEGATRON_SIZES else None
        if source is None or not isinstance(value, int) or value == source or value < 1:
            continue
        if value > source:
            cause = f"the model has {source}, and pruning only takes away"
            remedy = f"Use a number below {source}, or leave it out."
        elif name not in _SEARCHED:
            cause = f"the model has {source}, and ModelOpt prunes no query groups since 0.41"
            remedy = "Leave it out."
        elif value % (multiple := _multiple(name, job.model)):
            cause = f"it is no multiple of {multiple}"
            near = {max(value // multiple, 1) * multiple, -(-value // multiple) * multiple}
            remedy = f"Try {', or '.join(map(str, sorted(near)))}."
        else:
            continue
        yield Problem(key=key, value=value, cause=cause, remedy=remedy)


def _multiple(name: str, facts: ModelFacts) -> int:
    multiple = _MULTIPLES[name]
    return multiple if isinstance(multiple, int) else getattr(facts, multiple) or 1


@check("out_of_range", roles=_SHARES)
def shares(job: Job) -> Iterator[Problem]:
    """A part that may go is below 1: nothing would be left."""
    for role in _SHARES:
        key, value = job.key(role), job.get(role)
        if key and not 0 <= value < 1:
            yield Problem(key=key, value=value, cause="it is a part: from 0 to below 1")
    for role in (*_KEPT, "kept_memory"):
        key, value = job.key(role), job.get(role)
        if key and value is not None and not value > 0:
            yield Problem(key=key, value=value, cause="a number above 0 is expected")


def _searches(job: Job) -> bool:
    return any(job.get(role) is not None for role in _KEPT)


@check("target_out_of_reach", needs=("model.blocks",), algorithms=("prune",), applies=_searches)
def targets(job: Job) -> Iterator[Problem]:
    """What a search is to keep, against what the model has."""
    assert job.model is not None
    parameters = job.model.architecture.parameters
    total, active = (job.get(role) for role in _KEPT)
    if total is not None and active is not None and active > total:
        cause = f"a token cannot activate more than the {total:g} parameters that are to be kept"
        yield Problem(key=job.key("kept_active_parameters") or "", value=active, cause=cause)
    if parameters is None:
        return
    for role, source in zip(_KEPT, (parameters.total, parameters.active), strict=True):
        key, target = job.key(role), job.get(role)
        if key is None or target is None or target <= 0:
            continue
        least = source * _left(job)
        if target >= source:
            cause = f"the model has {source:.4g}: there is nothing to prune"
        elif target < least:
            cause = (
                f"a search within max_width_pruning and max_depth_pruning keeps at least {least:.3g} of {source:.4g}"
            )
        else:
            continue
        remedy = f"Use a number between {least:.3g} and {source:.4g}."
        yield Problem(key=key, value=f"{target:g}", cause=cause, remedy=remedy, can_force=True)


@check("target_out_of_reach", needs=("model.blocks",), algorithms=("prune",), roles=("kept_memory",), can_force=True)
def memory_target(job: Job) -> Iterator[Problem]:
    """Weights in BF16 are the least that a model takes, in MB; its cache comes on top."""
    assert job.model is not None
    parameters = job.model.architecture.parameters
    target = job.get("kept_memory")
    if parameters is None or not target > 0:
        return
    whole = parameters.total * 2 / 1e6
    key, least = job.key("kept_memory") or "", whole * _left(job)
    if target < least:
        cause = f"a search within its shares keeps weights of at least {least:,.0f} MB, of {whole:,.0f}"
        yield Problem(key=key, value=f"{target:g}", cause=cause, remedy=f"Use a number above {least:.0f}.")
    elif target > 2 * whole:
        cause = f"the model's weights have {whole:,.0f} MB: there is nothing to prune"
        yield Problem(key=key, value=f"{target:g}", cause=cause, remedy=f"Use a number below {whole:.0f}.")


def _left(job: Job) -> float:
    """At least this part of the parameters is left by the smallest candidate of a search.

    A matrix loses on both of its sides; experts lose by number as well, Mamba's heads by number and by width.
    """
    assert job.model is not None
    width, depth = (min(max(job.get(role), 0), 1) for role in _SHARES)
    sides = 3 if job.model.experts or job.model.count_of("mamba") else 2
    return float((1 - width) ** sides * (1 - depth))
