"""Whether a pruned model can be made of its source: Minitron's own limits (ModelOpt prune.plugins.mcore_minitron).

A width can only become a smaller multiple of what kernels like, and a search does not go beyond what it is allowed.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from recipes.experiment.job import Job
from recipes.models import ModelFacts
from recipes.planner.parameters import count
from scripts.run.problems import Problem, nearest
from scripts.run.registry import Check


@dataclass(frozen=True, kw_only=True)
class Hparam:
    """A size that can be pruned: where the source's is, and what the result must be a multiple of."""

    fact: str
    multiple: int | str  # a number, or the fact that has it
    searched: bool = True  # whether a search may change it


#: Multiples: what prune_minitron.py sets for a fixed architecture; heads stay whole groups (nas.plugins.megatron).
_HPARAMS: Mapping[str, Hparam] = {
    "hidden_size": Hparam(fact="hidden_size", multiple=64),
    "ffn_hidden_size": Hparam(fact="ffn_hidden_size", multiple=64),
    "num_attention_heads": Hparam(fact="heads", multiple="query_groups"),
    "num_query_groups": Hparam(fact="query_groups", multiple=1, searched=False),
    "mamba_num_heads": Hparam(fact="mamba_heads", multiple="mamba_groups"),
    "mamba_head_dim": Hparam(fact="mamba_head_dim", multiple=8),
    "moe_ffn_hidden_size": Hparam(fact="expert_ffn_size", multiple=64),
    "moe_shared_expert_intermediate_size": Hparam(fact="shared_expert_ffn_size", multiple=64),
    "num_moe_experts": Hparam(fact="experts", multiple=8),
    "num_layers": Hparam(fact="layers", multiple=1),
}
#: Before core 0.18 the script of Megatron-LM took each size as an argument.
_TARGETS = {
    "target_hidden_size": "hidden_size",
    "target_ffn_hidden_size": "ffn_hidden_size",
    "target_num_attention_heads": "num_attention_heads",
    "target_num_query_groups": "num_query_groups",
    "target_mamba_num_heads": "mamba_num_heads",
    "target_mamba_head_dim": "mamba_head_dim",
    "target_num_moe_experts": "num_moe_experts",
    "target_moe_ffn_hidden_size": "moe_ffn_hidden_size",
    "target_moe_shared_expert_intermediate_size": "moe_shared_expert_intermediate_size",
    "target_num_layers": "num_layers",
}
_ACTIVE, _TOTAL = "prune_target_active_params", "prune_target_params"


def _asked(job: Job) -> Iterator[tuple[str, str, Any]]:
    """The sizes of a fixed architecture: the key, the hparam, its value."""
    for name, value in (getattr(job.resolved, "prune_export_config", None) or {}).items():
        yield f"args.prune_export_config.{name}", name, value
    for field, name in _TARGETS.items():
        value = getattr(job.args, field, None)
        if value is not None:
            yield f"args.{field}", name, value


def _names(job: Job) -> Iterator[Problem]:
    for key, name, value in _asked(job):
        if name not in _HPARAMS:
            cause = "ModelOpt prunes no such thing"
            yield Problem(name="unknown_key", key=key, value=value, cause=cause, remedy=nearest(name, _HPARAMS))
        elif not isinstance(value, int) or isinstance(value, bool) or value < 1:
            yield Problem(name="wrong_value", key=key, value=value, cause="a number above 0 is expected")
    searched = [name for name, hparam in _HPARAMS.items() if hparam.searched]
    for name in getattr(job.args, "hparams_to_skip", None) or []:
        if name not in searched:
            cause = "the search changes no such thing"
            key = "args.hparams_to_skip"
            yield Problem(name="unknown_key", key=key, value=name, cause=cause, remedy=nearest(str(name), searched))


def _sizes(job: Job) -> Iterator[Problem]:
    assert job.model is not None
    for key, name, value in _asked(job):
        source = getattr(job.model, _HPARAMS[name].fact) if name in _HPARAMS else None
        if source is None or not isinstance(value, int) or value == source or value < 1:
            continue
        if value > source:
            cause = f"the model has {source}, and pruning only takes away"
            remedy = f"Use a number below {source}, or leave it out."
        elif not _HPARAMS[name].searched:
            cause = f"the model has {source}, and ModelOpt prunes no query groups since 0.41"
            remedy = "Leave it out."
        elif value % (multiple := _multiple(_HPARAMS[name], job.model)):
            cause = f"it is no multiple of {multiple}"
            remedy = f"Try {max(value // multiple, 1) * multiple}, or {-(-value // multiple) * multiple}."
        else:
            continue
        name = "pruned_size_out_of_reach"
        yield Problem(name=name, key=key, value=value, cause=cause, remedy=remedy, can_force=True)


def _multiple(hparam: Hparam, facts: ModelFacts) -> int:
    if isinstance(hparam.multiple, int):
        return hparam.multiple
    return getattr(facts, hparam.multiple) or 1


def _shares(job: Job) -> Iterator[Problem]:
    """A part that may go is below 1: nothing would be left."""
    for name in ("max_width_pruning", "max_depth_pruning"):
        value = getattr(job.args, name)
        if not 0 <= value < 1:
            cause = "it is a part: from 0 to below 1"
            yield Problem(name="out_of_range", key=f"args.{name}", value=value, cause=cause)
    for name in (_TOTAL, _ACTIVE, "prune_target_memory_mb"):
        value = getattr(job.args, name)
        if value is not None and not value > 0:
            yield Problem(name="out_of_range", key=f"args.{name}", value=value, cause="a number above 0 is expected")


def _targets(job: Job) -> Iterator[Problem]:
    assert job.model is not None
    parameters = count(job.model)
    total, active = getattr(job.args, _TOTAL), getattr(job.args, _ACTIVE)
    if total is not None and active is not None and active > total:
        cause = f"a token cannot activate more than the {total:g} parameters that are to be kept"
        yield Problem(name="target_out_of_reach", key=f"args.{_ACTIVE}", value=active, cause=cause)
    if parameters is None:
        return
    for name, target, source in ((_TOTAL, total, parameters.total), (_ACTIVE, active, parameters.active)):
        if target is None or target <= 0:
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
        yield Problem(
            name="target_out_of_reach",
            key=f"args.{name}",
            value=f"{target:g}",
            cause=cause,
            remedy=remedy,
            can_force=True,
        )


def _left(job: Job) -> float:
    """At least this part of the parameters is left by the smallest candidate of a search.

    A matrix loses on both of its sides; experts lose by number as well, Mamba's heads by number and by width.
    """
    assert job.model is not None
    width, depth = (min(max(getattr(job.args, f"max_{one}_pruning"), 0), 1) for one in ("width", "depth"))
    sides = 3 if job.model.experts or job.model.count_of("mamba") else 2
    return float((1 - width) ** sides * (1 - depth))


def _searches(job: Job) -> bool:
    targets = (getattr(job.args, name, None) for name in (_TOTAL, _ACTIVE))
    return job.algorithm == "prune" and any(target is not None for target in targets)


def _is_prune(job: Job) -> bool:
    return job.algorithm == "prune"


CHECKS: tuple[Check, ...] = (
    Check(name="unknown_key", run=_names, applies=_is_prune),
    Check(
        name="pruned_size_out_of_reach",
        run=_sizes,
        needs=("model",),
        applies=lambda job: _is_prune(job) and next(_asked(job), None) is not None,
    ),
    Check(name="out_of_range", run=_shares, applies=lambda job: hasattr(job.args, "max_width_pruning")),
    Check(name="target_out_of_reach", run=_targets, needs=("model.blocks",), applies=_searches),
)
