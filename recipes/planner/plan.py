"""A job's plan: whether it fits, where its memory goes, what its ranks run, what it leaves, and what is wrong with it.

One object behind the command line, Python and JSON (configs/schemas/plan.json).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from recipes.experiment.examine import Examined, Options, Stage, examine
from recipes.experiment.job import Job, written
from recipes.planner.disk import outputs_bytes
from recipes.planner.duration import Estimate, hours_of
from recipes.planner.gpus import Gpu
from recipes.planner.layout import Layout
from recipes.planner.layouts import Proposal, smallest
from recipes.planner.need import Need, need_of
from recipes.planner.parameters import count, exact_total
from recipes.planner.ranks import Ranks, ranks_of
from recipes.planner.work import layout_of_work
from recipes.preflight.paths import model_folder
from recipes.preflight.scripts import command
from recipes.preflight.subjects import notes
from scripts.run.problems import JobError, Problem, ProblemsError
from scripts.run.registry import Skipped

if TYPE_CHECKING:
    import nemo_run as run

SCHEMA = 1
PARTS = ("attention", "mlp", "experts", "router", "mamba", "embeddings", "output", "norms", "vision")


@dataclass(frozen=True, kw_only=True)
class Output:
    """Something that a job is going to leave; `bytes` is None where its size cannot be told."""

    key: str
    type: str
    path: str
    bytes: int | None


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model that a job reads: where its facts are from, and its parameters where its architecture is known."""

    key: str  # the argument that names it
    name: str
    source: str
    layers: int | None
    parameters: Mapping[str, int] | None
    total: int | None
    active: int | None  # parameters that one token goes through


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a job would need and do. Sizes in bytes, times in hours; None is what cannot be told."""

    recipe: str
    executor: str
    engine: str | None
    script: str | None
    release: str | None
    command: tuple[str, ...] | None  # the words that every rank runs
    layout: Layout
    ranks: tuple[Ranks, ...]
    gpu: Gpu | None
    models: tuple[Model, ...]
    memory: Need | None
    proposal: Proposal | None
    time: Estimate | None
    run_dir: str
    outputs: tuple[Output, ...]
    problems: tuple[Problem, ...]  # warnings among them
    skipped: tuple[Skipped, ...]
    notes: tuple[str, ...]

    @property
    def refused(self) -> bool:
        """Whether `run` would refuse the job."""
        return any(problem.severity == "error" for problem in self.problems)

    @property
    def fits(self) -> bool | None:
        """Whether the fullest process has room; None where its need or its device is not known."""
        return None if self.memory is None else self.memory.fits

    def as_data(self) -> dict[str, Any]:
        """The plan as configs/schemas/plan.json describes it."""
        return {
            "schema": SCHEMA,
            **{name: getattr(self, name) for name in ("recipe", "executor", "engine", "script", "release", "run_dir")},
            "command": None if self.command is None else list(self.command),
            "layout": vars(self.layout) | {"world": self.layout.world, "dp": self.layout.copies},
            "ranks": [vars(ranks) for ranks in self.ranks],
            "gpu": self.gpu and vars(self.gpu),
            "models": [{**vars(model), "parameters": _dict(model.parameters)} for model in self.models],
            "memory": self.memory and self.memory.as_data(),
            "fits": self.fits,
            "proposal": self.proposal and _proposal(self.proposal),
            "time": self.time and _time(self.time),
            "outputs": [vars(output) for output in self.outputs],
            "refused": self.refused,
            "problems": [problem.as_data() for problem in self.problems],
            "skipped": [{"name": one.name, "missing": list(one.missing)} for one in self.skipped],
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        from recipes.planner.text import as_text

        return as_text(self)


def plan(
    partial: "run.Partial[Any]",
    executor: str = "local",
    profile: Mapping[str, str] | None = None,
    *,
    force: Sequence[str] = (),
) -> Plan:
    """The plan of `partial` on the executor profile named, without a GPU or a network; `print` it, or take `as_data()`.

    What is wrong with the job is among its `problems`. Raises ProblemsError where the values are such
    that there is no job to speak of.
    """
    options = Options(overrides=profile or {}, online=False, force=frozenset(force))
    return plan_of(examine([Stage(name=partial.recipe, partial=partial)], executor, options))


def plan_of(examined: Examined, others: Sequence[Problem] = ()) -> Plan:
    """The plan of a stage that was examined; `others` are Problems that were found before. Raises ProblemsError."""
    problems = (*others, *examined.problems)
    if not examined.submissions:
        raise ProblemsError(problems)
    (submission,) = examined.submissions
    job = submission.job
    layout, memory = layout_of_work(job), need_of(job)
    on_gpus = memory is None or memory.device == "GPU"
    return Plan(
        recipe=job.recipe,
        executor=submission.executor,
        engine=job.engine,
        script=job.addressed.script if job.addressed else None,
        release=job.addressed.release if job.addressed else None,
        command=_command(job),
        layout=layout,
        ranks=ranks_of(job, layout) if job.engine == "script" else (),
        gpu=job.gpu if on_gpus else None,
        models=tuple(_models(job)),
        memory=memory,
        proposal=smallest(job),
        time=hours_of(job) if on_gpus else None,
        run_dir=str(job.run_dir),
        outputs=tuple(_outputs(job)),
        problems=problems,
        skipped=submission.skipped,
        notes=tuple(notes(job)),
    )


def _command(job: Job) -> tuple[str, ...] | None:
    """Without the launcher: what a person would type on one rank. None where there is no script, or no such card."""
    if job.addressed is None:
        return None
    try:
        return ("python", *job.addressed.path.split(" ", 1), *command(job).words)
    except JobError:
        return None


def _models(job: Job) -> Iterator[Model]:
    for key, facts in job.models.items():
        counted, name = count(facts), getattr(job.resolved, key)
        folder = model_folder(job, name) if counted is None else None
        yield Model(
            key=f"args.{key}",
            name=name,
            source=facts.source,
            layers=facts.layers,
            parameters={part: size for part in PARTS if (size := getattr(counted, part))} if counted else None,
            total=counted.total if counted else exact_total(folder) if folder else None,
            active=counted.active if counted else None,
        )


def _outputs(job: Job) -> Iterator[Output]:
    sizes = outputs_bytes(job)
    for key, kind, path in written(job):
        yield Output(key=key, type=kind, path=str(path), bytes=sizes.get(key))


def _proposal(proposal: Proposal) -> dict[str, Any]:
    smaller = [{"layout": vars(rejected.layout), "reason": rejected.reason} for rejected in proposal.smaller]
    return {"layout": vars(proposal.layout), "memory": proposal.memory.total, "smaller": smaller}


def _time(estimate: Estimate) -> dict[str, Any]:
    terms = {name: list(span) for name, span in estimate.terms.items()}
    return {"low": estimate.low, "high": estimate.high, "terms": terms}


def _dict(mapping: Mapping[str, int] | None) -> dict[str, int] | None:
    return None if mapping is None else dict(mapping)
