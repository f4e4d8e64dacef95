"""From what is asked for to jobs, or every Problem: stages are wired for the place where they run, and checked."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from executors.base import Place
from recipes.experiment.chain import likely_engine, wired
from recipes.experiment.examine import Examined, examine, in_order, place_named
from recipes.experiment.job import Job, engine_at
from recipes.experiment.stage import Options, Stage
from scripts.evaluation.checks import takes_first
from scripts.run.problems import Problem, ProblemsError

if TYPE_CHECKING:
    import nemo_run as run


def prepare(
    partial: "run.Partial[Any]", executor: str = "local", profile: Mapping[str, str] | None = None, **options: Any
) -> Job:
    """Check `partial` on the executor profile named. Raises ProblemsError with every Problem; writes nothing."""
    from fiddle import Partial

    if not isinstance(partial, Partial):
        remedy = "Call the function: submit(quantize_fp8())."
        cause = "a recipe is what a function of `recipes` returns"
        raise ProblemsError([Problem(name="wrong_value", key="recipe", value=partial, cause=cause, remedy=remedy)])
    stage = Stage(name=partial.recipe, partial=partial, after=options.pop("after", ()))
    (job,) = prepare_all([stage], executor, Options(overrides=profile or {}, **options))
    return job


def prepare_all(stages: Sequence[Stage], executor: str = "local", options: Options = Options()) -> list[Job]:
    """Check every stage, in an order in which parents come first. Raises ProblemsError; writes nothing."""
    return list(checked(stages, executor, options).jobs)


def checked(stages: Sequence[Stage], executor: str, options: Options = Options()) -> Examined:
    """The same with what stands already, and with those of a chain fed by each other. Raises ProblemsError."""
    if not all(stage.wired for stage in stages):
        stages = wired_at(stages, executor, options)
    examined = examine(stages, executor, options)
    if examined.errors:
        raise ProblemsError(examined.errors)
    return examined


def wired_at(stages: Sequence[Stage], executor: str, options: Options) -> list[Stage]:
    """Stages, each on what those before it leave by the engines that they will have where they are to run.

    Raises ProblemsError as `wired` does, and where they are in no order.
    """

    def place_and_values(stage: Stage) -> tuple[Place | None, Mapping[str, str]]:
        overrides = options.overrides if stage.profile is None else stage.profile
        named = executor if stage.executor is None else stage.executor
        return place_named(named, replace(options, overrides=overrides))[0], overrides

    def engine_of(stage: Stage) -> str | None:
        place, overrides = place_and_values(stage)
        return likely_engine(stage) if place is None else engine_at(stage.partial, place, overrides)[1]

    def preferred(stage: Stage) -> str:
        place, _ = place_and_values(stage)
        here = place is not None and place.runs_here
        return takes_first(stage.partial.args.__fn_or_cls__) if here else ""

    problems: list[Problem] = []
    ordered = in_order(stages, problems)
    if problems:
        raise ProblemsError(problems)
    return wired(ordered, engine_of, preferred)
