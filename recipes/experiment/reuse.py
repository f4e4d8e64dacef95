"""Stages that were run before: of what they are told apart by their fingerprints, and what of it was another value."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from recipes.experiment.fingerprint import differences, fingerprint
from recipes.experiment.index import Index
from recipes.experiment.job import Job
from recipes.experiment.runs import Run, look
from recipes.experiment.store import RunFolder
from scripts.args.meaning import value_of
from scripts.evaluation.gate import GATE_FAILED
from scripts.evaluation.verdict import Limits, judge
from scripts.run.problems import JobError, Problem
from scripts.run.record import DamagedRecordError
from scripts.run.schema import listed, mapping
from scripts.stores.objects import is_url, is_whole

#: So many values are named that are others than they were.
_NAMED = 6


@dataclass(kw_only=True)
class Reused:
    """What is found of the stages of a pipeline as they are looked at, one after the other."""

    index: Index
    fresh: bool = False
    runs: dict[str, Run] = field(default_factory=dict)  # by stage: what stands for it
    changed: dict[str, tuple[str, ...]] = field(default_factory=dict)  # by stage: why it is run
    _tokens: dict[str, str] = field(default_factory=dict)  # by path that a stage leaves: what says what that will be

    def look_at(self, job: Job, parents: Sequence[str]) -> tuple[Job, list[Problem]]:
        """The job with its fingerprint; `runs` has the one that stands for it, where there is one.

        `parents`: the stages that it comes after.
        """
        found = fingerprint(job, self._tokens, self.index)
        if found.unknown:
            self.changed[job.name] = found.unknown
            return job, []
        job = job.noting(fingerprint={"digest": found.digest, "of": found.of})
        run = None if self.fresh else self._equal(job, parents)
        gate = value_of(job.resolved, "gate")
        if run is not None and gate is not None and run.ended:
            verdict = judge("succeeded", run.report, Limits.of(gate))
            if verdict.answer != "accept":
                cause = f"{run.id}, which is the same stage, would fail it: {'; '.join(verdict.reasons)}"
                remedy = "Set another limit; --fresh runs the stage again."
                return job, [Problem(name=GATE_FAILED, key="args.gate", value=gate, cause=cause, remedy=remedy)]
        if run is not None and run.ended and run.state != "succeeded" and gate is None:
            run = None  # what its own gate failed, without another that it keeps
        if run is not None:
            self.runs[job.name] = run
        else:
            self.changed[job.name] = ("--fresh",) if self.fresh else self._why(job, parents)
        left = job.expects if run is None else outputs_of(run.record)
        self._tokens |= {one["path"]: f"{found.digest}:{one['type']}" for one in left}
        return job, []

    def _equal(self, job: Job, parents: Sequence[str]) -> Run | None:
        """The newest run of the same, whole or under way, on the same disks."""
        assert job.fingerprint is not None
        if any(name not in self.runs for name in parents):
            return None  # what it is made of is made anew
        for run_id in self.index.with_fingerprint(job.fingerprint["digest"]):
            run = look([RunFolder.of(run_id)])[0]
            if run.job is None or run.folder.is_foreign or run.job.place.storage != job.place.storage:
                continue
            under_way = not run.ended and set(run.job.after) <= {self.runs[name].id for name in parents}
            made = run.state == "succeeded" or mapping(run.record.get("error")).get("name") == GATE_FAILED
            if under_way or (run.ended and made and self._whole(run) and self._same_inputs(run, parents)):
                return run
        return None

    def _whole(self, run: Run) -> bool:
        """Whether everything that it left is there, to the last bit; in a store, as far as manifest and sizes say."""
        assert run.job is not None
        for output in run.record.get("outputs") or []:
            if is_url(output["path"]):
                try:
                    if is_whole(output["path"], output.get("digest")):
                        continue
                except JobError:  # nobody can tell
                    pass
                return False
            place = run.job.place.path_here(output["path"], run.job.run_dir)
            if place is None or self.index.content(place) != output.get("digest"):
                return False
        return True

    def _same_inputs(self, run: Run, parents: Sequence[str]) -> bool:
        """Whether what it was made of is what stands for its parents now."""
        rows = [row for row in map(mapping, listed(run.record.get("inputs"))) if row.get("run")]
        held = {output.get("digest") for name in parents for output in outputs_of(self.runs[name].record)}
        return not parents or {row.get("digest") for row in rows} <= held

    def _why(self, job: Job, parents: Sequence[str]) -> tuple[str, ...]:
        anew = [name for name in parents if name not in self.runs]
        if anew:
            return (f"{' and '.join(anew)} {'is' if len(anew) == 1 else 'are'} run",)
        assert job.fingerprint is not None
        for run_id in self.index.of_recipe(job.recipe):
            try:
                before = Run.read(RunFolder.of(run_id)).job
            except DamagedRecordError:
                continue
            if before is None or before.name != job.name or before.fingerprint is None:
                continue
            lines = differences(mapping(before.fingerprint.get("of")), job.fingerprint["of"])
            if not lines:
                return (f"{run_id} was the same, and is not whole, or ended badly",)
            more = [f"and {len(lines) - _NAMED} more"] if len(lines) > _NAMED else []
            return (*lines[:_NAMED], *more)
        return ("it was not run before",)


def outputs_of(record: Mapping[str, Any]) -> Sequence[Mapping[str, str]]:
    """What a run left, or is going to leave."""
    found: Sequence[Mapping[str, str]] = record.get("outputs") or record.get("expects") or []
    return found
