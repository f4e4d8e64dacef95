"""A pipeline's rehearsal: each stage made small, chained anew by what the small ones leave, and run in order.

Which conversions a chain needs depends on the engines: so the small stages are wired as any pipeline is, by their own.
"""

import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from recipes.catalogue import RECIPES
from recipes.experiment.chain import free_name
from recipes.experiment.examine import examine
from recipes.experiment.job import Job
from recipes.experiment.prepare import wired_at
from recipes.experiment.run_ids import MOST_OF_PIPELINE
from recipes.experiment.runs import Watcher
from recipes.experiment.stage import Options, Stage, values_of_recipe
from recipes.rehearsal.perform import Outcome, Prepared, Rehearsal, overrides_of, run_all, sent_for
from recipes.rehearsal.scale import Scaled, refers, scaled
from scripts.args.evaluate import EvaluateArgs
from scripts.args.meaning import meanings
from scripts.evaluation.checks import has_vllm
from scripts.run.problems import Problem, ProblemsError
from scripts.run.schema import mapping

_HERE = "local"
_NAMED = re.compile(r"\$\{artifact:([^.}]+)")
_UNPACKS = "recipes.rehearsal.unpack"


@dataclass(frozen=True, kw_only=True)
class PreparedPipeline:
    """A pipeline, and what is run in its place."""

    name: str
    parts: Mapping[str, Prepared]  # by stage, those among them that the chain puts between
    notes: Mapping[str, str]  # of stages that the pipeline's file does not have: what they are
    made_before: tuple[Stage, ...]  # what makes the data or the checkpoint that stands in for another
    replaced: tuple[str, ...]  # what the pipeline will do for which something else is done here
    jobs: tuple[Job, ...]


@dataclass(frozen=True, kw_only=True)
class PipelineRehearsal(Outcome):
    """How it went."""

    prepared: PreparedPipeline

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Each stage in the order in which it was run."""
        found = []
        for job, run in zip(self.prepared.jobs, self.runs, strict=True):
            part = self.prepared.parts.get(job.name)
            error = mapping(run.record.get("error"))
            found.append(
                {
                    "stage": job.name,
                    "recipe": job.recipe,
                    "engine": job.engine,
                    "note": self.prepared.notes.get(job.name, ""),
                    "changes": part.scaled.changes_as_data if part else [],
                    "seconds": None if run.seconds is None else round(run.seconds, 1),
                    "outputs": [output["type"] for output in run.record.get("outputs", [])],
                    "state": run.state,
                    "error": f"{error['name']}: {error['message']}" if error else "",
                    "run": run.id,
                }
            )
        return found

    @property
    def broken(self) -> dict[str, Any] | None:
        """The row of the first stage that did not succeed."""
        return next((row for row in self.rows if row["state"] != "succeeded"), None)

    @property
    def _rehearsals(self) -> list[Rehearsal]:
        ran = {job.name: run for job, run in zip(self.prepared.jobs, self.runs, strict=True)}
        parts = self.prepared.parts.items()
        return [Rehearsal(prepared=one, runs=(ran[name],), seconds=0.0) for name, one in parts if name in ran]

    @property
    def stand_ins(self) -> list[str]:
        """What was made for it, in words."""
        return list(dict.fromkeys(line for one in self.prepared.parts.values() for line in one.scaled.stand_ins))

    @property
    def exercised(self) -> list[str]:
        """What was done for real; what was run is in the rows."""
        return list(dict.fromkeys(line for one in self.prepared.parts.values() for line in one.checked))

    @property
    def missing(self) -> list[str]:
        """What the pipeline will do that nothing here has done."""
        lines = [line for one in self._rehearsals for line in one.missing]
        return list(dict.fromkeys([*self.prepared.replaced, *lines]))

    def as_data(self) -> dict[str, Any]:
        """For --json."""
        return {
            "pipeline": self.prepared.name,
            "state": self.state,
            "seconds": round(self.seconds, 1),
            "stages": self.rows,
            "stand_ins": self.stand_ins,
            "exercised": self.exercised,
            "not_exercised": self.missing,
            "runs": [run.record | {"dir": str(run.dir)} for run in self.runs],
        }


def prepared_pipeline(asked: Sequence[Stage], jobs: Sequence[Job]) -> PreparedPipeline:
    """The rehearsal of a pipeline, before it begins. `asked`: its stages before they are wired; `jobs`: sound ones.

    Raises ProblemsError with everything that cannot be rehearsed here, by stage, before anything is run.
    """
    small = made_small(asked, jobs)
    sent = {}
    for job in jobs:
        with small.problems_of(job.name):
            sent[job.name] = sent_for(job)
    small.refuse()
    examined = examine(small.chained(), _HERE, Options(online=False, fresh=True))
    if examined.errors:
        raise ProblemsError(examined.errors)
    made = {job.name: job for job in examined.jobs}
    parts = {}
    for job in (job for job in jobs if job.name in made):
        here = made[job.name]
        as_it_is = Scaled(stages=(), engine=here.engine, processes=here.processes, changes=(), stand_ins=())
        one = small.scaled.get(job.name, as_it_is)
        parts[job.name] = Prepared(job=job, scaled=one, examined=examined, sent=sent[job.name])
    return PreparedPipeline(
        name=asked[0].pipeline,
        parts=parts,
        notes={name: small.notes.get(name, "put between") for name in made if name not in small.scaled},
        made_before=tuple(small.before),
        replaced=(
            *(f"{job.name}, which engines there need and those here do not" for job in jobs if job.name not in made),
            *(f"vLLM, which loads what {name} leaves: its weights were unpacked" for name in small.unpacked),
        ),
        # What a rehearsal leaves is nothing that a pipeline may take for its own.
        jobs=tuple(job.noting(fingerprint=None) for job in examined.jobs),
    )


def made_small(asked: Sequence[Stage], jobs: Sequence[Job]) -> "SmallPipeline":
    """The small form of each stage. Raises ProblemsError, by stage, with which others can be rehearsed."""
    small = SmallPipeline(names=[job.name for job in jobs])
    checked = {job.name: job for job in jobs}
    for stage in asked:
        small.add(checked[stage.name], stage)
    small.refuse([stage.name for stage in asked if stage.name not in small.broken])
    return small


def perform_pipeline(one: PreparedPipeline, watch: Watcher | None = None) -> PipelineRehearsal:
    """Run it, and wait for its end. Raises JobError where it could not be started."""
    began = time.monotonic()
    runs = run_all(one.jobs, one.made_before, watch)
    return PipelineRehearsal(prepared=one, runs=runs, seconds=time.monotonic() - began)


@dataclass(kw_only=True)
class SmallPipeline:
    """The small stages of a pipeline, one after the other, and why some cannot be made."""

    names: Sequence[str]  # of all stages that are asked for
    scaled: dict[str, Scaled] = field(default_factory=dict)
    stages: list[Stage] = field(default_factory=list)
    before: list[Stage] = field(default_factory=list)
    broken: dict[str, list[Problem]] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    unpacked: list[str] = field(default_factory=list)  # stages whose exports are scored
    _stand_ins: dict[str, dict[str, Any]] = field(default_factory=dict)  # by stage: arguments that take one

    def add(self, job: Job, asked: Stage) -> None:
        """The small form of a stage that was checked, still without what other stages leave."""
        with self.problems_of(job.name):
            held = {name: getattr(asked.partial.args, name) for name in job.promised}
            chained = {name: value for name, value in held.items() if not refers(value) or self._is_ours(value)}
            small = scaled(job, chained)
            *before, last = small.stages
            profile = overrides_of(job)
            called = f"rehearsal-{asked.pipeline}"[:MOST_OF_PIPELINE].rstrip("_-")
            names = {one.name: self._made_before(replace(one, profile=profile, pipeline=called)) for one in before}
            told = {name: _renamed(value, names) for name, value in _values_of(last).items() if name not in chained}
            # Set once the chain is: with a reference, a stage counts as one that is fed already.
            self._stand_ins[job.name] = {name: value for name, value in told.items() if refers(value)}
            made = _with(last, dict.fromkeys(self._stand_ins[job.name]))
            self.stages.append(replace(asked, partial=made.partial, executor=_HERE, profile=profile, pipeline=called))
            self.scaled[job.name] = small

    @contextmanager
    def problems_of(self, stage: str) -> Iterator[None]:
        """What is wrong with one stage does not keep another from being looked at."""
        try:
            yield
        except ProblemsError as error:
            self.broken.setdefault(stage, []).extend(replace(one, key=f"{stage}.{one.key}") for one in error.problems)

    def refuse(self, others: Sequence[str] = ()) -> None:
        """Raises ProblemsError where there is a stage that cannot be rehearsed; `others` can."""
        problems = [one for found in self.broken.values() for one in found]
        if problems and others:
            words = " ".join(f"--only {name}" for name in others)
            problems[-1] = replace(problems[-1], remedy=f"{problems[-1].remedy}  The others: {words}".strip())
        if problems:
            raise ProblemsError(problems)

    def chained(self) -> list[Stage]:
        """All stages of the rehearsal, on what they leave each other. Raises ProblemsError."""
        stages = []
        for stage in wired_at(self.stages, _HERE, Options(online=False)):
            free = {
                name: value
                for name, value in self._stand_ins.get(stage.name, {}).items()
                if _values_of(stage)[name] is None
            }
            stages.append(_with(stage, free))
        return [*self.before, *self._read_back(stages)]

    def _is_ours(self, value: Any) -> bool:
        return any(name in self.names for name in _NAMED.findall(str(value)))

    def _made_before(self, stage: Stage) -> str:
        """The name of a stage that makes what stands in, which is made once for all that take the same."""
        for one in self.before:
            if (one.partial.recipe, values_of_recipe(one.partial)) == (
                stage.partial.recipe,
                values_of_recipe(stage.partial),
            ):
                return one.name
        name = free_name(stage.name, [*self.names, *(one.name for one in self.before)])
        self.before.append(replace(stage, name=name))
        self.notes[name] = "makes what stands in"
        return name

    def _read_back(self, stages: Sequence[Stage]) -> list[Stage]:
        """With a stage before each that scores an export, where nothing here loads one: its weights, unpacked."""
        exports = {stage.name for stage in stages if _leaves_an_export(stage)}
        found: list[Stage] = []
        for stage in stages:
            named = _NAMED.findall(str(_values_of(stage).get("checkpoint")))
            if stage.partial.args.__fn_or_cls__ is EvaluateArgs and not has_vllm() and exports.intersection(named):
                name = free_name("read_back", [one.name for one in (*stages, *found, *self.before)])
                command = [sys.executable, "-m", _UNPACKS, "{checkpoint}", "{output_hf}"]
                partial = RECIPES["program"].build()
                told = {"command": command, "checkpoint": stage.partial.args.checkpoint}
                found.append(_with(replace(stage, name=name, partial=partial, after=named), told))
                self.notes[name] = f"unpacks what {named[0]} leaves, which only vLLM would load"
                self.unpacked.append(named[0])
                stage = _with(stage, {"checkpoint": f"${{artifact:{name}.checkpoint_hf}}"})
            found.append(stage)
        return found


def _values_of(stage: Stage) -> dict[str, Any]:
    return {one.name: getattr(stage.partial.args, one.name) for one, _ in meanings(stage.partial.args.__fn_or_cls__)}


def _with(stage: Stage, values: Mapping[str, Any]) -> Stage:
    from fiddle import copy_with

    partial = stage.partial
    return replace(stage, partial=copy_with(partial, args=copy_with(partial.args, **values))) if values else stage


def _leaves_an_export(stage: Stage) -> bool:
    told = meanings(stage.partial.args.__fn_or_cls__)
    return any(meaning.produces == "checkpoint_hf" and meaning.quantized for _, meaning in told)


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    """With references to stages under the names that they have in the rehearsal."""
    if isinstance(value, list):
        return [_renamed(one, names) for one in value]
    if not isinstance(value, str):
        return value
    return _NAMED.sub(lambda match: f"${{artifact:{names.get(match[1], match[1])}", value)
