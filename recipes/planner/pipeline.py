"""The plan of a pipeline: its stages in their order, what each needs, which stand already, and why others are run."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from recipes.experiment.examine import Examined
from recipes.experiment.stage import Stage
from recipes.planner.plan import Plan, plan_of
from scripts.run.drawing import Table, size_text, tables_as_text
from scripts.run.problems import Problem

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """A stage: what stands for it, or its plan; neither where nothing can be said of it."""

    name: str
    recipe: str
    after: tuple[str, ...]
    run: str | None  # the id of the run that stands for it
    plan: Plan | None
    why: tuple[str, ...]  # it is run

    def as_data(self) -> dict[str, Any]:
        facts = {"stage": self.name, "recipe": self.recipe, "after": list(self.after), "reused": self.run}
        return facts | {"why": list(self.why), "plan": self.plan and self.plan.as_data()}


@dataclass(frozen=True, kw_only=True)
class PipelinePlan:
    """All stages, parents first, and what is wrong with any of them."""

    name: str
    stages: tuple[StagePlan, ...]
    problems: tuple[Problem, ...]

    @property
    def refused(self) -> bool:
        """Whether `run` would refuse it."""
        return any(problem.severity == "error" for problem in self.problems)

    def as_data(self) -> dict[str, Any]:
        """For --json."""
        stages = [stage.as_data() for stage in self.stages]
        problems = [problem.as_data() for problem in self.problems]
        return {
            "schema": SCHEMA,
            "pipeline": self.name,
            "stages": stages,
            "refused": self.refused,
            "problems": problems,
        }

    def __str__(self) -> str:
        columns: Any = dict.fromkeys(("stage", "recipe", "on", "after", "machines", "memory", "fits", "time"), "left")
        table = Table(title="", columns=columns, rows=[_row(stage) for stage in self.stages])
        drawn = tables_as_text([table], width=4096).splitlines()
        lines = [f"pipeline   {self.name}", "", *(line.rstrip() for line in drawn if line.strip()), ""]
        width = max(len(stage.name) for stage in self.stages)
        for stage in self.stages:
            why = f"stands: {stage.run}" if stage.run else f"is run: {'; '.join(stage.why) or 'it is refused'}"
            lines.append(f"{stage.name:{width}}  {why}")
        for stage in self.stages:
            lines += [f"note: {stage.name}: {note}" for note in (stage.plan.notes if stage.plan else ())]
        errors = sum(problem.severity == "error" for problem in self.problems)
        end = (
            f"{errors} problem{'s' if errors != 1 else ''}; run would refuse it." if errors else "run would submit it."
        )
        return "\n".join([*lines, *map(str, self.problems), end])


def pipeline_plan(stages: Sequence[Stage], examined: Examined) -> PipelinePlan:
    """Of stages that were examined."""
    jobs = {job.name: job for job in examined.jobs}
    made = []
    for stage in stages:
        run, job = examined.reused.get(stage.name), jobs.get(stage.name)
        own = tuple(one for one in examined.problems if one.key.startswith(f"{stage.name}."))
        plan = plan_of(replace(examined, jobs=(job,), problems=own)) if job is not None else None
        named = tuple(name for name in stage.after if any(one.name == name for one in stages))
        made.append(
            StagePlan(
                name=stage.name,
                recipe=stage.partial.recipe,
                after=named,
                run=run.id if run else None,
                plan=plan,
                why=examined.changed.get(stage.name, ()),
            )
        )
    name = stages[0].pipeline or stages[0].partial.recipe
    return PipelinePlan(name=name, stages=tuple(made), problems=examined.problems)


def _row(stage: StagePlan) -> list[str]:
    plan = stage.plan
    after = ", ".join(stage.after) or "-"
    if plan is None:
        return [stage.name, stage.recipe, "-", after, "-", "-", "-", "-"]
    memory = "-" if plan.memory is None else size_text(plan.memory.total)
    fits = {None: "not known", True: "yes", False: "no"}[plan.fits]
    where = plan.executor + (f", {plan.engine}" if plan.engine else "")
    machines = f"{plan.layout.nodes} x {plan.layout.processes}"
    return [stage.name, stage.recipe, where, after, machines, memory, fits, str(plan.time) if plan.time else "-"]
