"""Chains: stages that take what those before them leave, with conversions where they are needed.

    submit_all(chain(prune(), distill(), evaluate()), "slurm", detach=True)

A chain crosses between Hugging Face and Megatron checkpoints by a stage of its own: the quantized exporter
where an earlier stage quantized, the plain converter where none did.
"""

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from recipes.catalogue import RECIPES
from recipes.experiment.stage import Stage
from recipes.experiment.sweep import varied
from scripts.args.meaning import Meaning, fields_of, meanings
from scripts.engines.choice import is_built_in
from scripts.run.problems import Problem, ProblemsError

if TYPE_CHECKING:
    import nemo_run as run

_DATA = "binidx"
_SCORES = "eval_results"
_REFERENCE = re.compile(r"\$\{artifact:([^.}]+)")
#: Which engine a stage will have.
EngineOf = Callable[[Stage], str | None]
#: Of several types that a stage can take, the one that it takes first; empty: the one that it is made for.
KindOf = Callable[[Stage], str]


def chain(*partials: "run.Partial[Any]") -> list[Stage]:
    """Stages for `submit_all`, each waiting for the one before it, and fed by it as the place needs where they run.

    Raises ProblemsError as `wired` does.
    """
    stages: list[Stage] = []
    for partial in partials:
        name = free_name(partial.recipe, [stage.name for stage in stages])
        stages.append(Stage(name=name, partial=partial, after=[stages[-1].name] if stages else []))
    wired(stages)  # what makes no sense anywhere
    return [replace(stage, wired=False) for stage in stages]


def likely_engine(stage: Stage) -> str | None:
    """The one that is asked for; where that is open, hf for a built-in model or where no script does it."""
    partial = stage.partial
    kind = partial.args.__fn_or_cls__
    alone = kind.HF_ENGINE and not kind.SCRIPTS
    tiny = any(is_built_in(getattr(partial.args, name)) for name in _bases(partial))
    return partial.engine if partial.engine != "auto" else "hf" if tiny or alone else "script"


def wired(
    stages: Sequence[Stage], engine_of: EngineOf = likely_engine, preferred: KindOf = lambda stage: ""
) -> list[Stage]:
    """Stages, parents first, whose inputs are what the stages that they are after leave.

    An argument that holds a reference keeps it. Raises ProblemsError with `nothing_to_hand_over` where a stage takes
    nothing of what comes before it, `prune_after_distill` and `distill_after_quantize`: what was reached before would
    be thrown away.
    """
    wiring = _Wiring(engine_of=engine_of, preferred=preferred)
    for stage in stages:
        wiring.add(stage)
    if wiring.problems:
        raise ProblemsError(wiring.problems)
    return list(wiring.stages.values())


@dataclass(kw_only=True)
class _Wiring:
    """Stages as they are wired, one after the other."""

    engine_of: EngineOf
    preferred: KindOf
    stages: dict[str, Stage] = field(default_factory=dict)
    made: dict[str, set[str]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def add(self, stage: Stage) -> None:
        """With a stage before it that converts, where one is needed."""
        named = {match[1] for text in _texts(stage.partial) for match in _REFERENCE.finditer(text)}
        parents = [name for name in stage.after if name in self.stages]
        self._refuse_nonsense(stage, [*parents, *(name for name in named if name in self.stages)])
        fed = bool(named)
        for name in (name for name in parents if name not in named):
            taken = self._fed(stage, name)
            fed, stage = fed or taken is not None, taken or stage
        # Scores of another stage are what something is held against; they are not what a stage works on.
        leaving = [name for name in parents if self.made[name] - {_SCORES}]
        # In a pipeline a stage may wait for one that leaves nothing: a probe of the place, say.
        lacking = parents and not fed and not (stage.pipeline and not leaving)
        if (leaving and not _works_on_another(stage.partial)) or lacking:
            stage = self._converted(stage, leaving or parents)
        self.stages[stage.name] = replace(stage, wired=True)
        self.made[stage.name] = _made(stage.partial, self.engine_of(stage))

    def _fed(self, stage: Stage, parent: str) -> Stage | None:
        """The stage with what `parent` leaves; None where it takes none of that."""
        from fiddle import copy_with

        first = self.preferred(stage)
        taken = sorted(_taken(stage.partial), key=lambda one: one[1] != first)
        free = [(name, kind) for name, kind in taken if "${artifact:" not in str(_held(stage.partial, name))]
        fitting = next(((name, kind) for name, kind in free if kind in self.made[parent]), None)
        if fitting is None:
            return None
        name, kind = fitting
        reference = f"${{artifact:{parent}.{kind}}}"
        args = copy_with(stage.partial.args, **{name: [reference] if kind == _DATA else reference})
        return replace(stage, partial=copy_with(stage.partial, args=args))

    def _converted(self, stage: Stage, parents: Sequence[str]) -> Stage:
        """The stage fed by a conversion of what one of its parents leaves."""
        wanted = {kind for _, kind in _taken(stage.partial)}
        for parent in parents:
            made = self.made[parent]
            if "checkpoint_megatron" in made and "checkpoint_hf" in wanted:
                recipe = self._exporter(parent) or "megatron_to_hf"
            elif "checkpoint_hf" in made and "checkpoint_megatron" in wanted:
                recipe = "hf_to_megatron"
            else:
                continue
            name = self._convert(parent, recipe)
            after = [name if one == parent else one for one in stage.after]
            return self._fed(replace(stage, after=after), name) or stage
        left = ", ".join(sorted(kind for parent in parents for kind in self.made[parent])) or "nothing"
        takes = ", ".join(sorted(wanted - {_SCORES})) or "nothing"
        cause = f"{' and '.join(parents)} leaves {left}, and {stage.partial.recipe} takes {takes}"
        remedy = "Put them in another order, or a stage between that makes it; what only waits for a run: --after ID."
        self._problem("nothing_to_hand_over", stage, cause, remedy)
        return stage

    def _convert(self, parent: str, recipe: str) -> str:
        """The stage that converts what `parent` leaves, made once however many take it."""
        before = self.stages[parent]
        same = (
            one.name for one in self.stages.values() if one.partial.recipe == recipe and list(one.after) == [parent]
        )
        if (known := next(same, None)) is not None:
            return known
        name = free_name(varied(recipe, before.variant), self.stages)
        converter = RECIPES[recipe].build()
        if before.partial.engine == "bridge" and converter.args.__fn_or_cls__.BRIDGE:
            converter.engine = "bridge"
        if (base := self._base(parent)) is not None:
            for one in _bases(converter):
                setattr(converter.args, one, base)
        self.add(replace(before, name=name, partial=converter, after=[parent], title=""))
        return name

    def _lineage(self, name: str) -> Iterator[Stage]:
        """A stage and those that it comes after, the nearest first."""
        ahead, seen = [name], set()
        while ahead:
            one = ahead.pop(0)
            if one in self.stages and one not in seen:
                seen.add(one)
                yield self.stages[one]
                ahead += self.stages[one].after

    def _exporter(self, name: str) -> str:
        """The recipe that exports what the last stage left that quantized; empty where none did."""
        exporters = (stage.partial.args.__fn_or_cls__.EXPORTER for stage in self._lineage(name))
        return next(filter(None, exporters), "")

    def _base(self, name: str) -> str | None:
        """The Hugging Face model whose shape a checkpoint has: the last one that a stage left, else the first one's."""
        lineage = list(self._lineage(name))
        for stage in lineage:
            if "checkpoint_hf" in self.made[stage.name]:
                return f"${{artifact:{stage.name}.checkpoint_hf}}"
        found = (
            value
            for stage in reversed(lineage)
            for one in _bases(stage.partial)
            if (value := _held(stage.partial, one))
        )
        return next(found, None)

    def _refuse_nonsense(self, stage: Stage, parents: Sequence[str]) -> None:
        algorithm = RECIPES[stage.partial.recipe].algorithm
        before = {one.name: one for parent in parents for one in self._lineage(parent)}.values()
        names = " -> ".join(reversed([stage.partial.recipe, *(one.partial.recipe for one in before)]))
        earlier = {RECIPES[one.partial.recipe].algorithm for one in before}
        if algorithm == "prune" and "distill" in earlier:
            cause, remedy = "it would throw away what the distillation before it taught", "Prune first, then distill."
            self._problem("prune_after_distill", stage, cause, remedy, names)
        quantized = any(one.partial.args.__fn_or_cls__.EXPORTER for one in before)
        if algorithm == "distill" and quantized and not stage.partial.args.__fn_or_cls__.EXPORTER:
            cause = "a distillation trains the weights anew, and leaves nothing of how they were quantized"
            remedy = "Distill first; or take qad, which distills a quantized student."
            self._problem("distill_after_quantize", stage, cause, remedy, names)

    def _problem(self, name: str, stage: Stage, cause: str, remedy: str, value: str = "") -> None:
        key = stage.name if stage.pipeline else "chain"
        said = value or stage.partial.recipe
        self.problems.append(Problem(name=name, key=key, value=said, cause=cause, remedy=remedy))


def free_name(name: str, taken: Collection[str]) -> str:
    """A name for a stage that no other one has."""
    while name in taken:
        name += "_again"
    return name


def _held(partial: "run.Partial[Any]", name: str) -> Any:
    return getattr(partial.args, name)


def _works_on_another(partial: "run.Partial[Any]") -> bool:
    """Whether a checkpoint or data of another stage, or of a run, is what it takes."""
    taken = (name for name, kind in _taken(partial) if kind != _SCORES)
    return any("${artifact:" in str(_held(partial, name)) for name in taken)


def _texts(partial: "run.Partial[Any]") -> Iterator[str]:
    for one, _ in meanings(partial.args.__fn_or_cls__):
        value = _held(partial, one.name)
        yield from (item for item in (value if isinstance(value, list) else [value]) if isinstance(item, str))


def _made(partial: "run.Partial[Any]", engine: str | None) -> set[str]:
    """The artifact types that its arguments ask for, of an engine; scores that others can be held against."""
    scores = {_SCORES} if RECIPES[partial.recipe].algorithm == "evaluate" else set()
    kind = partial.args.__fn_or_cls__
    return scores | {
        meaning.produces
        for one, meaning in meanings(kind)
        if meaning.produces and _held(partial, one.name) is not None and meaning.used_by(engine)
        if not any(_held(partial, other) for role in meaning.unless for other in fields_of(kind, role))
    }


def _taken(partial: "run.Partial[Any]") -> list[tuple[str, str]]:
    """The arguments that take what a stage before leaves, with its type; the preferred one first."""

    def preferred(one: tuple[Any, Meaning]) -> bool:
        return not one[1].chained

    takes = [
        (held.name, kind)
        for held, meaning in sorted(meanings(partial.args.__fn_or_cls__), key=preferred)
        for kind in (meaning.consumes, *meaning.accepts)
    ]
    return [(name, kind) for name, kind in takes if kind.startswith("checkpoint_") or kind in (_DATA, _SCORES)]


def _bases(partial: "run.Partial[Any]") -> list[str]:
    """The arguments that name the model which a checkpoint is, or was made of."""
    return [
        one.name
        for one, meaning in meanings(partial.args.__fn_or_cls__)
        if meaning.role == "model" and not meaning.card
    ]
