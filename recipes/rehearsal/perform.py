"""A rehearsal: a job's stages at a small size, run here as any job is, and what that showed of the job."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from recipes.experiment.examine import Examined, examine
from recipes.experiment.job import Job
from recipes.experiment.removal import holding_of, remove
from recipes.experiment.runs import Run, Watcher
from recipes.experiment.stage import Options, Stage
from recipes.experiment.submit import disk_failures, start, would_send
from recipes.rehearsal.kept import keep
from recipes.rehearsal.scale import Scaled, scaled
from scripts.args.meaning import value_of
from scripts.engines.choice import TITLES
from scripts.run.problems import ProblemsError


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A job, what is run in its place, and what would be sent if it were submitted."""

    job: Job
    scaled: Scaled
    examined: Examined
    sent: dict[str, Any]

    @property
    def jobs(self) -> tuple[Job, ...]:
        return self.examined.jobs

    @property
    def checked(self) -> list[str]:
        """What was done for real before anything was run."""
        found = [f"the checks of {self.job.recipe} on {self.job.executor}, as it was asked for"]
        if not self.job.place.runs_here:
            code = f"{self.sent['code']['files']} files of code, " if self.sent.get("code") else ""
            found.append(f"packaging for {self.job.executor}: {code}the text that it would be sent")
        return found


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a rehearsal went, of one job or of a pipeline."""

    runs: tuple[Run, ...]
    seconds: float

    @property
    def state(self) -> str:
        """succeeded where every stage did, else the state of the first that did not."""
        return state_of(self.runs)


@dataclass(frozen=True, kw_only=True)
class Rehearsal(Outcome):
    """How it went."""

    prepared: Prepared

    @property
    def stand_ins(self) -> tuple[str, ...]:
        """What was made for it, in words."""
        return self.prepared.scaled.stand_ins

    @property
    def exercised(self) -> list[str]:
        """What was done for real."""
        found = self.prepared.checked
        for run in self.runs:
            kinds = ", ".join(output["type"] for output in run.record.get("outputs", []))
            engine = run.record.get("engine")
            by = f" by {TITLES[engine]}" if engine in TITLES else ""
            took = f" in {run.seconds:.0f} s" if run.seconds else ""
            left = f", which left {kinds}, looked at" if kinds else ""
            found.append(f"{run.record['recipe']}{by}{took}: {run.state}{left}")
        return found

    @property
    def missing(self) -> list[str]:
        """What the job will do that nothing here has done."""
        job, scaled = self.prepared.job, self.prepared.scaled
        found = []
        if not job.place.runs_here:
            where = f"{job.place.title}: its queue, its machines" + (", the container" if job.place.image else "")
            found.append(where + ("" if job.here else ", its file systems"))
        if job.engine == "script" != scaled.engine and job.addressed is not None:
            found.append(f"NVIDIA's own script, {job.addressed.script}")
        if left := job.place.profile.env.keys() - _variables(job).keys():
            found.append(f"variables that name files there: {', '.join(sorted(left))}")
        if scaled.stand_ins:
            random = any("random weights" in one for one in scaled.stand_ins)
            scores = "; what is scored here are random weights" if random else ""
            found.append(f"the weights, data and checkpoints that it names{scores}")
        if value_of(job.resolved, "gate") is not None:
            found.append("its gate: limits are for the scores of the real model")
        if job.nodes * job.processes != scaled.processes:
            found.append(f"{job.nodes * job.processes} ranks on {job.nodes} machines, and the memory of any of them")
        return [*found, *dict.fromkeys(line for run in self.runs for line in run.record.get("not_shown", ()))]

    def as_data(self) -> dict[str, Any]:
        """For --json."""
        job, scaled = self.prepared.job, self.prepared.scaled
        return {
            "recipe": job.recipe,
            "executor": job.executor,
            "state": self.state,
            "seconds": round(self.seconds, 1),
            "engine": scaled.engine,
            "processes": scaled.processes,
            "changes": scaled.changes_as_data,
            "stand_ins": list(self.stand_ins),
            "exercised": self.exercised,
            "not_exercised": self.missing,
            "runs": [run.record | {"dir": str(run.dir)} for run in self.runs],
        }


def prepared(job: Job) -> Prepared:
    """A sound job's rehearsal, before it begins.

    Raises ProblemsError where none can be held, where the small job is refused, or the job's place would refuse it.
    """
    sent = sent_for(job)
    stages = scaled(job)
    examined = examine(stages.stages, options=Options(online=False, overrides=overrides_of(job)))
    if examined.errors:
        raise ProblemsError(examined.errors)
    return Prepared(job=job, scaled=stages, examined=examined, sent=sent)


def sent_for(job: Job) -> dict[str, Any]:
    """What would be submitted; empty for a job that runs here. Raises ProblemsError where its place would refuse it."""
    sent = {} if job.place.runs_here else would_send(job)
    if (problem := sent.get("problem")) is not None:
        raise ProblemsError([problem])
    return sent


def overrides_of(job: Job) -> dict[str, str]:
    """Of the executor here, what a job's own place would set that holds here."""
    return {f"env.{name}": value for name, value in _variables(job).items()}


def _variables(job: Job) -> dict[str, str]:
    """Those of the job's environment that hold here: of a profile for other machines, without the names of files."""
    env: dict[str, str] = job.place.profile.env
    return {name: value for name, value in env.items() if job.place.runs_here or "/" not in value}


def perform(one: Prepared, watch: Watcher | None = None) -> Rehearsal:
    """Run it, and wait for its end. Raises JobError where it could not be started."""
    began = time.monotonic()
    runs = run_all(one.jobs, one.scaled.stages[:-1], watch)
    return Rehearsal(prepared=one, runs=runs, seconds=time.monotonic() - began)


def run_all(jobs: Sequence[Job], made_before: Sequence[Stage], watch: Watcher | None) -> tuple[Run, ...]:
    """Run jobs to their end; what stages made to begin with is kept for other rehearsals. Raises JobError.

    Of a rehearsal that somebody stopped nothing is left.
    """
    runs = tuple(start(jobs, watch=watch))
    by_name = {job.name: run for job, run in zip(jobs, runs, strict=True)}
    for stage in made_before:
        keep(stage, by_name[stage.name])
    if state_of(runs) == "cancelled":
        with disk_failures():
            for run in runs:
                remove(holding_of(run).going())
    return runs


def state_of(runs: Sequence[Run]) -> str:
    """succeeded where every run did, else the state of the first that did not."""
    return next((run.state for run in runs if run.state != "succeeded"), "succeeded")
