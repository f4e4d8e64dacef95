"""From stages and profiles to jobs, or to every Problem at once; nothing is written."""

import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING, Any

from executors import load_profile, place_of
from executors.base import Place
from recipes.experiment.job import Job, job_of
from recipes.experiment.references import names_in, with_paths
from recipes.experiment.stage import Options, Stage
from recipes.experiment.store import find_run
from recipes.planner.gpus import gpu_problems
from recipes.preflight.history import experiment_problems
from recipes.preflight.subjects import preflight
from scripts.run.problems import Problem, ProblemsError

if TYPE_CHECKING:
    import nemo_run as run


@dataclass(frozen=True, kw_only=True)
class Examined:
    """Stages as they were found: what can be submitted where there is no error, and every Problem."""

    jobs: tuple[Job, ...]
    problems: tuple[Problem, ...]

    @property
    def errors(self) -> tuple[Problem, ...]:
        """What stands in the way."""
        return tuple(problem for problem in self.problems if problem.severity == "error")


def prepare(
    partial: "run.Partial[Any]", executor: str = "local", profile: Mapping[str, str] | None = None, **options: Any
) -> Job:
    """Check `partial` on the executor profile named. Raises ProblemsError with every Problem; writes nothing."""
    stage = Stage(name=partial.recipe, partial=partial, after=options.pop("after", ()))
    (job,) = prepare_all([stage], executor, Options(overrides=profile or {}, **options))
    return job


def prepare_all(stages: Sequence[Stage], executor: str = "local", options: Options = Options()) -> list[Job]:
    """Check every stage, in an order in which parents come first. Raises ProblemsError; writes nothing."""
    examined = examine(stages, executor, options)
    if examined.errors:
        raise ProblemsError(examined.errors)
    return list(examined.jobs)


def examine(stages: Sequence[Stage], executor: str = "local", options: Options = Options()) -> Examined:
    """Check every stage and say what was found; raises nothing for it, and writes nothing."""
    problems: list[Problem] = []
    ids = {stage.name: _new_id(stage.partial.recipe) for stage in stages}
    jobs: dict[str, Job] = {}
    stages = [replace(stage, after=_parents(stage)) for stage in stages]
    places = {name: _place_of(name, options) for name in {stage.executor or executor for stage in stages}}
    for stage in _in_order(stages, problems):
        name = stage.executor or executor
        job, found = _examine_one(stage, name, *places[name], ids, options, jobs)
        problems += [problem for problem in found if problem not in problems]
        if job is not None:
            jobs[stage.name] = job
    if len(jobs) > 1:  # a stage by itself was looked at with its other checks
        together = experiment_problems(list(jobs.items()))
        problems += [problem for problem in together if problem not in problems]
    problems = [_forced(problem, options.force) for problem in problems]
    return Examined(jobs=tuple(jobs.values()), problems=(*problems, *_idle(problems, options.force)))


def _forced(problem: Problem, names: frozenset[str]) -> Problem:
    """A problem that somebody said to go on with, where that can be."""
    if problem.name not in names or problem.severity != "error":
        return problem
    if problem.can_force:
        return replace(problem, severity="forced")
    return replace(problem, remedy=f"{problem.remedy}  It cannot be forced.".strip())


def _idle(problems: Sequence[Problem], names: frozenset[str]) -> Iterator[Problem]:
    """Names to force that no problem has: a word with a typo, or a job that is right by now."""
    can = sorted({problem.name for problem in problems if problem.can_force and problem.severity == "error"})
    hint = f"Of what was found, these can be forced: {', '.join(can)}." if can else ""
    for name in sorted(names - {problem.name for problem in problems}):
        cause = "no such problem was found"
        yield Problem(name="nothing_to_force", key="--force", value=name, cause=cause, remedy=hint, severity="warning")


def _parents(stage: Stage) -> list[str]:
    """The stages and runs that must succeed first: those it names, and those whose artifacts it takes."""
    return list(dict.fromkeys([*stage.after, *names_in(stage.partial)]))


def _place_of(executor: str, options: Options) -> tuple[Place, list[Problem]]:
    """The place of that name; this machine where there is none, so that other checks can go on."""
    profile, problems = load_profile(executor, options.overrides, files=options.profiles)
    if any(problem.name == "unknown_executor" for problem in problems):
        return place_of(load_profile("local", {})[0]), problems
    place = place_of(profile)
    return place, [*problems, *place.problems(), *gpu_problems(place)]


def _examine_one(
    stage: Stage,
    executor: str,
    place: Place,
    wrong: Sequence[Problem],
    ids: Mapping[str, str],
    options: Options,
    before: Mapping[str, Job],
) -> tuple[Job | None, list[Problem]]:
    """The job of one stage, `before` it those of earlier ones, and every Problem; no job where it says too little."""
    referenced = with_paths(stage.partial, {name: job.expects for name, job in before.items()})
    problems = [*wrong, *referenced.problems]
    after = []
    for name in stage.after:
        try:
            after.append(ids[name] if name in ids else find_run(name).id)
        except ProblemsError as error:
            problems += error.problems
    stage = replace(stage, partial=referenced.partial, after=after)
    job, unresolved = job_of(stage, ids[stage.name], executor, place, options, referenced.promised)
    problems += unresolved
    if job is None:
        return None, problems
    findings = preflight(job)
    problems += findings.problems
    if not findings.usable:
        return None, problems
    forced = (_forced(found, options.force) for found in problems)
    warnings = tuple(found for found in forced if found.severity != "error")
    return job.noting(warnings=warnings, skipped=findings.skipped), problems


def _new_id(recipe: str) -> str:
    return f"{recipe}_{time.time_ns() // 1_000_000}-{secrets.token_hex(3)}"


def _in_order(stages: Sequence[Stage], problems: list[Problem]) -> list[Stage]:
    """The stages, parents first; a cycle or a name used twice is a Problem."""
    by_name = {stage.name: stage for stage in stages}
    if len(by_name) < len(stages):
        names = [stage.name for stage in stages]
        twice = next(name for name in names if names.count(name) > 1)
        problems.append(Problem(name="stage_twice", key="stage", value=twice, cause="two stages have this name"))
        return []
    graph = {stage.name: [name for name in stage.after if name in by_name] for stage in stages}
    try:
        return [by_name[name] for name in TopologicalSorter(graph).static_order()]
    except CycleError as error:
        cause = f"these stages wait for each other: {' -> '.join(error.args[1])}"
        problems.append(Problem(name="stages_in_a_circle", key="after", value=None, cause=cause))
        return []
