"""Chains: recipes one after the other, each on what the one before it left, with conversions where they are needed.

    submit_all(chain(prune(), distill(), evaluate()), "slurm", detach=True)

A chain crosses between Hugging Face and Megatron checkpoints by a stage of its own: the quantized exporter
where an earlier stage quantized, the plain converter where none did.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from recipes.catalogue import RECIPES
from recipes.experiment.stage import Stage
from scripts.args.meaning import Meaning, meanings
from scripts.run.problems import Problem, ProblemsError

if TYPE_CHECKING:
    import nemo_run as run

_DATA = "binidx"


def chain(*partials: "run.Partial[Any]") -> list[Stage]:
    """Stages for `submit_all`, each fed by the one before it and waiting for it.

    Raises ProblemsError `nothing_to_hand_over` where a recipe cannot take what the one before it leaves,
    and `prune_after_distill`: what distillation taught would be thrown away.
    """
    names = [partial.recipe for partial in partials]
    algorithms = [RECIPES[name].algorithm for name in names]
    if "distill" in algorithms and "prune" in algorithms[algorithms.index("distill") :]:
        cause, remedy = "it would throw away what the distillation before it taught", "Prune first, then distill."
        value = " -> ".join(names)
        raise ProblemsError([Problem(name="prune_after_distill", key="chain", value=value, cause=cause, remedy=remedy)])
    stages: list[Stage] = []
    exporter = ""  # of the last stage that quantized
    for partial in partials:
        if stages:
            stages += _conversion(stages, partial, exporter, partials[0])
        stages.append(_stage(partial, stages))
        exporter = partial.args.__fn_or_cls__.EXPORTER or exporter
    return stages


def _conversion(
    earlier: Sequence[Stage], partial: "run.Partial[Any]", exporter: str, first: "run.Partial[Any]"
) -> list[Stage]:
    """The stage between two that do not speak of the same kind of checkpoint; none where they do."""
    before = earlier[-1]
    made, taken = _made(before.partial), _taken(partial)
    if made & {kind for _, kind in taken}:
        return []
    wanted = {kind for _, kind in taken}
    if "checkpoint_megatron" in made and "checkpoint_hf" in wanted:
        name = exporter or "megatron_to_hf"
    elif "checkpoint_hf" in made and "checkpoint_megatron" in wanted:
        name = "hf_to_megatron"
    else:
        left = ", ".join(sorted(made)) or "nothing"
        cause = f"{before.name} leaves {left}, and {partial.recipe} takes {', '.join(sorted(wanted)) or 'nothing'}"
        raise ProblemsError([Problem(name="nothing_to_hand_over", key="chain", value=partial.recipe, cause=cause)])
    converter = RECIPES[name].build()
    if (base := _base_of(earlier, first)) is not None:
        for field in _bases(converter):
            setattr(converter.args, field, base)
    return [_stage(converter, earlier)]


def _base_of(earlier: Sequence[Stage], first: "run.Partial[Any]") -> str | None:
    """The Hugging Face model whose shape a checkpoint has: the last one that a stage left, else the chain's first."""
    for stage in reversed(earlier):
        if "checkpoint_hf" in _made(stage.partial):
            return f"${{artifact:{stage.name}.checkpoint_hf}}"
    return next((value for name in _bases(first) if (value := getattr(first.args, name))), None)


def _stage(partial: "run.Partial[Any]", stages: Sequence[Stage]) -> Stage:
    """A stage that takes what the last one leaves, under a name that no other one has."""
    from fiddle import copy_with

    name = partial.recipe
    while any(stage.name == name for stage in stages):
        name += "_again"
    if not stages:
        return Stage(name=name, partial=partial)
    before = stages[-1]
    made = _made(before.partial)
    field, kind = next((field, kind) for field, kind in _taken(partial) if kind in made)
    reference = f"${{artifact:{before.name}.{kind}}}"
    args = copy_with(partial.args, **{field: [reference] if kind == _DATA else reference})
    return Stage(name=name, partial=copy_with(partial, args=args), after=[before.name])


def _made(partial: "run.Partial[Any]") -> set[str]:
    """The artifact types that its arguments ask for."""
    return {
        meaning.produces
        for field, meaning in meanings(partial.args.__fn_or_cls__)
        if meaning.produces and getattr(partial.args, field.name) is not None and _writes(partial, meaning)
    }


def _writes(partial: "run.Partial[Any]", meaning: Meaning) -> bool:
    """Whether the engine that is to be used writes it; where that is open, the script's outputs count."""
    hf = partial.engine == "hf" or any(str(getattr(partial.args, name)).startswith("tiny:") for name in _bases(partial))
    return meaning.used_by("hf" if hf and partial.engine != "bridge" else "script")


def _taken(partial: "run.Partial[Any]") -> list[tuple[str, str]]:
    """The arguments that take what the stage before leaves, with its type; the preferred one first."""
    preferred = sorted(meanings(partial.args.__fn_or_cls__), key=lambda one: not one[1].chained)
    takes = [(field.name, meaning.consumes) for field, meaning in preferred]
    return [(name, kind) for name, kind in takes if kind.startswith("checkpoint_") or kind == _DATA]


def _bases(partial: "run.Partial[Any]") -> list[str]:
    """The arguments that name the model which a checkpoint is, or was made of."""
    return [
        field.name
        for field, meaning in meanings(partial.args.__fn_or_cls__)
        if meaning.role == "model" and not meaning.card
    ]
