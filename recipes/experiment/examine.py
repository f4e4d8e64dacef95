"""From stages and profiles to jobs, or to every Problem at once; nothing is written.

`${artifact:NAME}` in a value is what another stage, or an earlier run, leaves behind. Where a run will leave its
outputs is known when it is submitted, and so are these. NAME is a stage of the same experiment or a run's id;
`${artifact:NAME.checkpoint_hf}` says which, where there are several.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING, Any

from executors import find_profile, place_of
from executors.base import Place
from recipes.experiment.index import refreshed
from recipes.experiment.job import Job, job_of
from recipes.experiment.reuse import Reused, outputs_of
from recipes.experiment.run_ids import find_run, new_ids
from recipes.experiment.runs import Run
from recipes.experiment.stage import Options, Stage, flat_values, values_of_recipe
from recipes.experiment.tags import tag_of
from recipes.planner.gpus import gpu_problems
from recipes.preflight.history import experiment_problems
from recipes.preflight.memory import fitted, takes_whole
from recipes.preflight.subjects import is_usable, of_values, preflight
from recipes.values import SECTIONS, type_problems, with_defaults
from scripts.args.meaning import meanings
from scripts.run.problems import Problem, ProblemsError, nearest
from scripts.run.record import DamagedRecordError

if TYPE_CHECKING:
    import nemo_run as run

#: Stands for what an unknown artifact would be, so that the rest of the job can be looked at.
_NOTHING = "/unknown-artifact"
#: What another stage, or an earlier run, leaves: its name, and the type where that is said.
REFERENCE = re.compile(r"\$\{artifact:([^.}]+)(?:\.(\w+))?\}")
Outputs = Sequence[Mapping[str, str]]  # {"type": ..., "path": ...}


@dataclass(frozen=True, kw_only=True)
class Examined:
    """Stages as they were found: what can be submitted where there is no error, and every Problem."""

    jobs: tuple[Job, ...]
    problems: tuple[Problem, ...]
    reused: Mapping[str, Run] = field(default_factory=dict)  # of a pipeline: stages that stand already
    changed: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # and why each other one is run

    @property
    def errors(self) -> tuple[Problem, ...]:
        """What stands in the way."""
        return tuple(problem for problem in self.problems if problem.severity == "error")


def examine(stages: Sequence[Stage], executor: str = "local", options: Options = Options()) -> Examined:
    """Check every stage and say what was found; raises nothing for it, and writes nothing."""
    mistyped = [type_problems(stage.partial) for stage in stages]
    if any(mistyped):
        found = list(_beside(mistyped, stages, executor, options))
        return Examined(jobs=(), problems=tuple(one for at, one in enumerate(found) if one not in found[:at]))
    problems: list[Problem] = []
    ids = new_ids(stages)
    jobs: dict[str, Job] = {}
    told: list[tuple[Stage, Problem]] = []
    waiting = []
    takers: dict[str, dict[str, list[str]]] = {stage.name: {} for stage in stages}
    for stage in stages:  # those that it names must succeed first, and those whose artifacts it takes
        taken = []
        for key, text in _texts(stage.partial):
            for name, kind in (_named(match, ids) for match in REFERENCE.finditer(text)):
                taken.append(name)
                takers.setdefault(name, {}).setdefault(kind or "", []).append(f"{stage.name}.args.{key}")
        where = executor if stage.executor is None else stage.executor
        waiting.append(replace(stage, executor=where, after=list(dict.fromkeys([*stage.after, *taken]))))
    places = {_where(stage): place_named(stage.executor or "", options_of(stage, options)) for stage in waiting}
    with _looked_for(stages, options) as reused:
        stands: Mapping[str, Run] = reused.runs if reused else {}
        for stage in in_order(waiting, problems):
            name = stage.executor or ""  # an empty word names no profile, and is not the default
            made: dict[str, Outputs] = {one: job.expects for one, job in jobs.items()}
            made |= {one: outputs_of(run.record) for one, run in stands.items()}
            known = ids | {one: run.id for one, run in stands.items()}
            over = frozenset(one for one, run in stands.items() if run.ended)
            at = places[_where(stage)]
            job, found = _examine_one(stage, name, *at, known, options, made, takers[stage.name], over, reused)
            told += [(stage, problem) for problem in found]
            if job is not None and stage.name not in stands:
                jobs[stage.name] = job
    problems += _of_stages(told, len(stages))
    if len(jobs) > 1:  # a stage by itself was looked at with its other checks
        together = experiment_problems(list(jobs.items()))
        problems += [problem for problem in together if problem not in problems]
    problems = [_forced(_with_tag(problem), options.force) for problem in problems]
    # Names to force that no problem has: a word with a typo, or a job that is right by now.
    can = sorted({problem.name for problem in problems if problem.can_force and problem.severity == "error"})
    idle = sorted(options.force - {problem.name for problem in problems})
    hint = f"Of what was found, these can be forced: {', '.join(can)}." if can else ""
    cause = "no such problem was found"
    for name in idle:
        problems.append(
            Problem(name="nothing_to_force", key="--force", value=name, cause=cause, remedy=hint, severity="warning")
        )
    changed = reused.changed if reused else {}
    stood = {name: run.id for name, run in stands.items()}
    made_of = tuple(job.noting(stands=stood) for job in jobs.values())
    return Examined(jobs=made_of, problems=tuple(problems), reused=stands, changed=changed)


def _beside(
    mistyped: Sequence[Sequence[Problem]], stages: Sequence[Stage], executor: str, options: Options
) -> Iterator[Problem]:
    """Values of other types than their keys', and what is wrong with the stages as they would be without those."""
    pairs = list(zip(stages, mistyped, strict=True))
    yield from (problem for problems in mistyped for problem in problems)
    others = [with_defaults(stage.partial, {problem.key for problem in problems}) for stage, problems in pairs]
    whole = [replace(stage, partial=one) for stage, one in zip(stages, others, strict=True) if one is not None]
    if len(whole) == len(stages):
        told = {key for stage, problems in pairs for one in problems for key in (one.key, f"{stage.name}.{one.key}")}
        yield from (one for one in examine(whole, executor, options).problems if one.key not in told)
    else:
        for name in sorted({stage.executor or executor for stage in stages}):
            yield from place_named(name, options)[1]


@contextmanager
def _looked_for(stages: Sequence[Stage], options: Options) -> Iterator[Reused | None]:
    """Runs that stand for stages, where the stages are a pipeline's."""
    if not any(stage.pipeline for stage in stages):
        yield None
        return
    with refreshed() as index:
        yield Reused(index=index, fresh=options.fresh)


def _where(stage: Stage) -> tuple[str, str]:
    return stage.executor or "", repr(stage.profile)


def options_of(stage: Stage, options: Options) -> Options:
    """Those that count for a stage: one with an executor of its own has its own values of it."""
    return options if stage.profile is None else replace(options, overrides=stage.profile)


def _of_stages(told: Sequence[tuple[Stage, Problem]], count: int) -> list[Problem]:
    """What was found of `count` stages, each once; of those of a pipeline, with the stage as the command line has it.

    What is wrong with an executor is told once for all of the stages that it is wrong for.
    """
    found: list[Problem] = []
    for stage, problem in told:
        section = problem.key.partition(".")[0]
        if stage.pipeline and section in SECTIONS:
            problem = replace(problem, key=f"{stage.name}.{problem.key}")
        elif stage.pipeline and section == "executor":
            names = [other.name for other, same in told if same == problem]
            if len(names) == 1 < count:
                problem = replace(problem, key=f"{stage.name}.{problem.key}")
            elif len(names) < count:
                problem = replace(problem, cause=f"{problem.cause} (of {', '.join(names)})")
        if problem not in found:
            found.append(problem)
    return found


def _forced(problem: Problem, names: frozenset[str]) -> Problem:
    """A problem that somebody said to go on with, where that can be."""
    if problem.name not in names or problem.severity != "error":
        return problem
    if problem.can_force:
        return replace(problem, severity="forced")
    return replace(problem, remedy=f"{problem.remedy}  It cannot be forced.".strip())


def place_named(executor: str, options: Options) -> tuple[Place | None, list[Problem]]:
    """The place of that name; None where nobody can say what it is, and so nothing of a job there."""
    profile, problems = find_profile(executor, options.overrides, files=options.profiles)
    if profile is None:
        return None, problems
    place = place_of(profile)
    return place, [*problems, *place.problems(), *gpu_problems(profile.gpu, "executor.gpu")]


def _examine_one(
    stage: Stage,
    executor: str,
    place: Place | None,
    wrong: Sequence[Problem],
    ids: Mapping[str, str],
    options: Options,
    made: Mapping[str, Outputs],
    takers: Mapping[str, Sequence[str]],
    over: frozenset[str] = frozenset(),
    reused: Reused | None = None,
) -> tuple[Job | None, list[Problem]]:
    """The job of one stage and every Problem; no job where it says too little.

    `made`: what stages before it leave; `over`: those of them that have left it, and are not waited for; `takers`: see
    Job. What stands by `reused` is not going to run, and so it is not checked whether it could.
    """
    parents = [one for one in stage.after if one in ids]
    if place is None:
        return None, [*wrong, *of_values(stage.partial)]
    asked = stage
    partial, promised, problems = _with_paths(stage.partial, made)
    problems = [*wrong, *problems]
    after = []
    for name in (name for name in stage.after if name not in over):
        try:
            after.append(ids[name] if name in ids else str(_recorded(name)["id"]))
        except ProblemsError as error:
            said = any(one.name == "unknown_artifact" and f":{name}" in str(one.value) for one in problems)
            problems += [one for one in error.problems if not said or one.name != "unknown_run"]
    stage = replace(stage, partial=partial, after=after)
    lost = {one.key for one in problems if one.name == "unknown_artifact"}
    job, unresolved = job_of(stage, ids[stage.name], executor, place, options, promised)
    problems += unresolved
    if job is None:
        return None, problems
    job = job.noting(takers=takers)
    if takes_whole(job) and "does_not_fit" not in options.force and is_usable(job):
        job, more = fitted(job)
        problems += more
    sound = all(_forced(one, options.force).severity != "error" for one in problems)
    if reused is not None and sound and is_usable(job):
        job, more = reused.look_at(job, parents)
        problems += more
        if job.name in reused.runs:
            return job, problems
    findings = preflight(job)
    problems += [one for one in findings.problems if not (one.key in lost or (lost and _NOTHING in str(one)))]
    if not findings.usable:
        return None, problems
    forced = (_forced(found, options.force) for found in problems)
    warnings = tuple(found for found in forced if found.severity != "error")
    return job.noting(warnings=warnings, skipped=findings.skipped, request=_request(asked, job, ids, options)), problems


def _request(stage: Stage, job: Job, ids: Mapping[str, str], options: Options) -> dict[str, Any]:
    """What of a stage was decided here: by key the values that were asked for, what was said of the executor, parents.

    With it, the same can be asked for again, elsewhere too.
    """
    told = options.overrides if stage.profile is None else stage.profile
    flat = dict(flat_values(job.values))
    values = {key: value for key, value in flat_values(values_of_recipe(stage.partial)) if value != flat[key]}
    return {"values": values, "executor": dict(told), "after": {one: ids[one] for one in stage.after if one in ids}}


def _with_tag(problem: Problem) -> Problem:
    """Where there is nothing of a name, and a tag is called so: how that is written."""
    if problem.name not in ("missing_input", "missing_model") or not isinstance(problem.value, str):
        return problem
    remedy = f"An artifact is tagged so: {problem.key}='${{artifact:{problem.value}}}'."
    return replace(problem, remedy=remedy) if tag_of(problem.value) else problem


def _named(reference: re.Match[str], stages: Collection[str]) -> tuple[str, str | None]:
    """The stage or run of a reference, and the type that it names; of a tag, those that it stands for."""
    name, kind = reference.groups()
    tag = None if name in stages else tag_of(name)
    return (tag.run, kind or tag.type) if tag else (name, kind)


def _recorded(word: str) -> Mapping[str, Any]:
    """The record of the run that a word names. Raises ProblemsError, also for one that cannot be read."""
    folder = find_run(word)
    try:
        return {**Run.read(folder).record, "id": folder.id}
    except DamagedRecordError as error:
        remedy = f"Put the file right, or remove {folder.dir}."
        wrong = Problem(name="damaged_record", key="ID", value=word, cause=str(error), remedy=remedy)
        raise ProblemsError([wrong]) from error


def in_order(stages: Sequence[Stage], problems: list[Problem]) -> list[Stage]:
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


# --- references ------------------------------------------------------------------------------------------------------


def _with_paths(
    partial: "run.Partial[Any]", made: Mapping[str, Outputs]
) -> "tuple[run.Partial[Any], frozenset[str], list[Problem]]":
    """`partial` with every reference replaced, and the args that name what is not there yet; `made` holds the outputs
    of the stages before it."""
    from fiddle import copy_with

    problems: list[Problem] = []
    named = dict.fromkeys(name for name, text in _texts(partial) if REFERENCE.search(text))
    if not named:
        return partial, frozenset(), problems
    consumed = {one.name: meaning.consumes for one, meaning in meanings(partial.args.__fn_or_cls__)}
    values = {
        name: _replaced(getattr(partial.args, name), f"args.{name}", consumed[name], made, problems) for name in named
    }
    args = copy_with(partial.args, **values)
    return copy_with(partial, args=args), frozenset(named), list(dict.fromkeys(problems))


def _texts(partial: "run.Partial[Any]") -> Iterator[tuple[str, str]]:
    for one in fields(partial.args.__fn_or_cls__):
        value = getattr(partial.args, one.name)
        for item in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(item, str):
                yield one.name, item


def _replaced(value: Any, key: str, consumed: str, made: Mapping[str, Outputs], problems: list[Problem]) -> Any:
    """`consumed`: the type of artifact that the key stands for, which is taken where the reference names none."""
    if isinstance(value, (list, tuple)):
        return [_replaced(item, key, consumed, made, problems) for item in value]
    if not isinstance(value, str):
        return value

    def path(match: re.Match[str]) -> str:
        name, kind = _named(match, made)
        outputs: Outputs = made.get(name, ())
        try:
            if name not in made:  # what a run left, or is going to leave
                outputs = outputs_of(_recorded(name))
        except ProblemsError as error:
            cause = f"there is no stage or run {name}"
            remedy = nearest(name, made) if made else error.problems[0].remedy
            if error.problems[0].name == "damaged_record":
                cause, remedy = error.problems[0].cause, error.problems[0].remedy
        else:
            fitting = [output for output in outputs if kind is None or output["type"] == kind]
            if kind is None:
                fitting = [output for output in fitting if output["type"] == consumed] or fitting
            if len({output["path"] for output in fitting}) == 1:
                return fitting[0]["path"]
            types = ", ".join(output["type"] for output in outputs)
            cause = f"{name} leaves {types or 'nothing'}" + ("" if fitting or kind is None else f", no {kind}")
            remedy = f"Say which: ${{artifact:{name}.TYPE}}." if fitting else ""
        problems.append(Problem(name="unknown_artifact", key=key, value=match[0], cause=cause, remedy=remedy))
        return _NOTHING

    return REFERENCE.sub(path, value)
