"""From recipes and profiles to checked submissions, or to every Problem at once; nothing is written."""

import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from executors import load_profile, place_of
from executors.base import Launch, Place
from recipes.experiment.job import Job, job_of, outputs_of
from recipes.experiment.references import Outputs, names_in, with_paths
from recipes.experiment.runs import find_run
from recipes.experiment.store import RunFolder
from recipes.planner.gpus import gpu_problems
from recipes.preflight.history import experiment_problems
from recipes.preflight.subjects import preflight
from scripts.run.problems import Problem, ProblemsError
from scripts.run.registry import Skipped

if TYPE_CHECKING:
    import nemo_run as run


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A recipe inside an experiment: its name there, and the stages (or earlier runs) that must succeed first."""

    name: str
    partial: "run.Partial[Any]"
    executor: str | None = None  # None: the experiment's
    after: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Submission:
    """A checked job that has not been handed over yet; making one writes nothing."""

    id: str
    name: str  # the stage's
    partial: "run.Partial[Any]"
    executor: str
    place: Place
    job: Job
    after: tuple[str, ...] = ()  # run ids
    force_squash: bool = False
    element: tuple[str, int] | None = None  # of a job array: its run id, and which one
    warnings: tuple[Problem, ...] = ()  # those that somebody forced among them
    skipped: tuple[Skipped, ...] = ()

    @property
    def run_dir(self) -> Path:
        """Where the job will record itself, as it sees it."""
        return self.job.run_dir

    @property
    def folder(self) -> RunFolder:
        """What this machine will keep of it."""
        return RunFolder.of(self.id)

    def launch(self, archive: Path | None) -> Launch:
        """The job's names and shape."""
        shape = self.job.shape
        secrets = self.place.secrets_path(self.element[0] if self.element else self.id)
        return Launch(
            run_id=self.id,
            task=self.job.recipe,
            run_dir=str(self.run_dir),
            nodes=shape.nodes,
            processes=shape.processes,
            torchrun=shape.torchrun,
            secrets=f"{secrets}.{self.element[1]}" if secrets and self.element else secrets,
            archive=archive,
            force_squash=self.force_squash,
        )


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to submit, whatever is submitted."""

    profiles: Path | None = None  # a file of executor profiles, instead of the user's own
    online: bool = True  # ask the hub about models that are not here
    force_squash: bool = False
    overrides: Mapping[str, str] = field(default_factory=dict)  # of the executor profile
    force: frozenset[str] = frozenset()  # Problems that do not stop the job, by name


@dataclass(frozen=True, kw_only=True)
class Examined:
    """Stages as they were found: what can be submitted where there is no error, and every Problem."""

    submissions: tuple[Submission, ...]
    problems: tuple[Problem, ...]

    @property
    def errors(self) -> tuple[Problem, ...]:
        """What stands in the way."""
        return tuple(problem for problem in self.problems if problem.severity == "error")


def prepare(
    partial: "run.Partial[Any]", executor: str = "local", profile: Mapping[str, str] | None = None, **options: Any
) -> Submission:
    """Check `partial` on the executor profile named. Raises ProblemsError with every Problem; writes nothing."""
    stage = Stage(name=partial.recipe, partial=partial, after=options.pop("after", ()))
    (submission,) = prepare_all([stage], executor, Options(overrides=profile or {}, **options))
    return submission


def prepare_all(stages: Sequence[Stage], executor: str = "local", options: Options = Options()) -> list[Submission]:
    """Check every stage, in an order in which parents come first. Raises ProblemsError; writes nothing."""
    examined = examine(stages, executor, options)
    if examined.errors:
        raise ProblemsError(examined.errors)
    return list(examined.submissions)


def examine(stages: Sequence[Stage], executor: str = "local", options: Options = Options()) -> Examined:
    """Check every stage and say what was found; raises nothing for it, and writes nothing."""
    problems: list[Problem] = []
    ids = {stage.name: _new_id(stage.partial.recipe) for stage in stages}
    submissions: list[Submission] = []
    stages = [replace(stage, after=_parents(stage)) for stage in stages]
    places = {name: _place_of(name, options) for name in {stage.executor or executor for stage in stages}}
    for stage in _in_order(stages, problems):
        name = stage.executor or executor
        made = {submission.name: outputs_of(submission.job) for submission in submissions}
        submission, found = _prepare_one(stage, name, *places[name], ids, options, made)
        problems += [problem for problem in found if problem not in problems]
        submissions += [submission] if submission else []
    if len(submissions) > 1:  # a stage by itself was looked at with its other checks
        together = experiment_problems([(submission.name, submission.job) for submission in submissions])
        problems += [problem for problem in together if problem not in problems]
    problems = [_forced(problem, options.force) for problem in problems]
    return Examined(submissions=tuple(submissions), problems=(*problems, *_idle(problems, options.force)))


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
    return place, [*problems, *place.problems(), *gpu_problems(profile)]


def _prepare_one(
    stage: Stage,
    executor: str,
    place: Place,
    wrong: Sequence[Problem],
    ids: Mapping[str, str],
    options: Options,
    made: Mapping[str, Outputs],
) -> tuple[Submission | None, list[Problem]]:
    referenced = with_paths(stage.partial, made)
    problems = [*wrong, *referenced.problems]
    after = []
    for name in stage.after:
        try:
            after.append(ids[name] if name in ids else find_run(name).id)
        except ProblemsError as error:
            problems += error.problems
    job, unresolved = job_of(
        referenced.partial,
        place,
        options.overrides,
        ids[stage.name],
        online=options.online,
        promised=referenced.promised,
    )
    problems += unresolved
    if job is None:
        return None, problems
    findings = preflight(job)
    problems += findings.problems
    if not findings.usable:
        return None, problems
    submission = Submission(
        id=ids[stage.name],
        name=stage.name,
        partial=_with_engine(referenced.partial, job),
        executor=executor,
        place=place,
        job=job,
        after=tuple(after),
        force_squash=options.force_squash,
        warnings=tuple(one for found in problems if (one := _forced(found, options.force)).severity != "error"),
        skipped=findings.skipped,
    )
    return submission, problems


def _with_engine(partial: "run.Partial[Any]", job: Job) -> "run.Partial[Any]":
    """The recipe as the job gets it: what was decided here is not decided again on the node."""
    from fiddle import copy_with

    if job.engine is None:
        return partial
    if getattr(job.args, "ep", None) != getattr(partial.args, "ep", None):
        partial = copy_with(partial, args=copy_with(partial.args, ep=job.args.ep))
    return copy_with(partial, engine=job.engine)


def _new_id(recipe: str) -> str:
    return f"{recipe}_{time.time_ns() // 1_000_000}-{secrets.token_hex(3)}"


def _in_order(stages: Sequence[Stage], problems: list[Problem]) -> list[Stage]:
    """The stages, parents first; a cycle or a name used twice is a Problem."""
    from graphlib import CycleError, TopologicalSorter

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
