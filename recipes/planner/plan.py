"""A job's plan: whether it fits, where its memory goes, what its ranks run, what it leaves, and what is wrong with it.

One object behind the command line, Python and JSON (configs/schemas/plan.json).
"""

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Any

from recipes.experiment.examine import Examined, examine
from recipes.experiment.job import Job
from recipes.experiment.stage import Options, Stage
from recipes.models.weights import exact_total
from recipes.planner.disk import outputs_bytes
from recipes.planner.duration import Estimate, hours_of
from recipes.planner.gpus import Gpu
from recipes.planner.layout import Layout
from recipes.planner.megatron_memory import anatomy
from recipes.planner.memory import Need, need_of
from recipes.planner.search import Proposal, smallest
from recipes.planner.workload import workload_of
from recipes.preflight.paths import model_folder
from recipes.preflight.subjects import notes
from scripts.args.meaning import MEGATRON
from scripts.run.problems import Problem, ProblemsError
from scripts.run.registry import Skipped

if TYPE_CHECKING:
    import nemo_run as run

SCHEMA = 1
_KEY = 10
_BAR = 30
_GIB, _MIB = 1 << 30, 1 << 20


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """Consecutive ranks that hold the same layers: one stage of the pipeline."""

    first: int
    last: int
    holds: str | None  # None where the model's layers are not known

    def __str__(self) -> str:
        ranks = f"ranks {self.first}-{self.last}" if self.last > self.first else f"rank {self.first}"
        return ranks if self.holds is None else f"{ranks}: {self.holds}"


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
    parameters: dict[str, int] | None
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
            "models": [vars(model) for model in self.models],
            "memory": self.memory and self.memory.as_data(),
            "fits": self.fits,
            "proposal": self.proposal and self.proposal.as_data(),
            "time": self.time and self.time.as_data(),
            "outputs": [vars(output) for output in self.outputs],
            "refused": self.refused,
            "problems": [problem.as_data() for problem in self.problems],
            "skipped": [{"name": one.name, "missing": list(one.missing)} for one in self.skipped],
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        """For a person: a table, with its memory as bars."""
        return "\n".join(_lines(self))


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
    if not examined.jobs:
        raise ProblemsError(problems)
    (job,) = examined.jobs
    layout, memory, sizes = job.layout, need_of(job), outputs_bytes(job)
    on_gpus = memory is None or memory.device == "GPU"
    return Plan(
        recipe=job.recipe,
        executor=job.executor,
        engine=job.engine,
        script=job.addressed.script if job.addressed else None,
        release=job.addressed.release if job.addressed else None,
        command=job.words,
        layout=layout,
        ranks=_ranks(job, layout) if job.engine in MEGATRON else tuple(_shares(job)),
        gpu=job.gpu if on_gpus else None,
        models=tuple(_models(job)),
        memory=memory,
        proposal=smallest(job),
        time=hours_of(job) if on_gpus else None,
        run_dir=str(job.run_dir),
        outputs=tuple(
            Output(key=key, type=kind, path=str(path), bytes=sizes.get(key)) for key, kind, path in job.outputs
        ),
        problems=problems,
        skipped=job.skipped,
        notes=tuple(notes(job)),
    )


def _ranks(job: Job, layout: Layout) -> tuple[Ranks, ...]:
    """The ranks of each pipeline stage, in Megatron-Core's order (tp-cp-ep-dp-pp: the pipeline varies slowest)."""
    if not layout.divides:
        return ()
    each = layout.world // layout.pp
    work = workload_of(job)
    model = None
    if work and not work.model.architecture.missing:
        model = anatomy(work.model, quantized=work.fake_quantized)
    stages = model.stages(layout.pp, work.stages) if work and model else None
    held = [str(stage) for stage in stages] if stages else [None] * layout.pp
    return tuple(Ranks(first=n * each, last=(n + 1) * each - 1, holds=holds) for n, holds in enumerate(held))


def _shares(job: Job) -> Iterator[Ranks]:
    """Those of the hf engine."""
    if job.engine == "hf" and (world := job.layout.world) > 1:
        parts = [f"{ceil(count / world)} of {count} samples {use}" for count, use in _uses(job) if count]
        model = f"1/{world} of every layer" if job.get("fsdp") else "the whole model"
        yield Ranks(first=0, last=world - 1, holds=f"each {model}, {' and '.join(parts)}, at most")


def _uses(job: Job) -> Iterator[tuple[int, str]]:
    yield job.get("samples"), "to calibrate"
    yield job.get("eval_samples"), "to score"


def _models(job: Job) -> Iterator[Model]:
    for key, facts in job.models.items():
        counted, name = facts.architecture.parameters, getattr(job.resolved, key)
        folder = model_folder(job, name) if counted is None else None
        yield Model(
            key=f"args.{key}",
            name=name,
            source=facts.source,
            layers=facts.layers,
            parameters=dict(counted.sections) if counted else None,
            total=counted.total if counted else exact_total(folder) if folder else None,
            active=counted.active if counted else None,
        )


def _lines(plan: Plan) -> Iterator[str]:
    """A line for each thing worth knowing; Problems come last, where the eye ends."""
    yield from _row(
        "recipe", [f"{plan.recipe} on {plan.executor}" + (f", engine {plan.engine}" if plan.engine else "")]
    )
    yield from _row(
        "model", [line for model in plan.models for line in _model_lines(model)] or ["nothing is known of it"]
    )
    yield from _row("machines", [_machines(plan)])
    if plan.memory is not None:
        yield from _row("memory", _memory_lines(plan.memory))
    yield from _row("fits", [_verdict(plan)])
    if plan.proposal is not None:
        yield from _row("smallest", _proposal_lines(plan))
    if plan.command is not None:
        yield from _row("each rank", [shlex.join(plan.command)])
    for ranks in plan.ranks:
        yield from _row("", [str(ranks)])
    yield from _row("time", [str(plan.time)] if plan.time else [])
    yield from _row("run dir", [plan.run_dir])
    yield from _row("leaves", [_output_line(output) for output in plan.outputs])
    yield from (f"note: {note}" for note in plan.notes)
    yield from map(str, plan.skipped)
    yield from map(str, plan.problems)
    errors = sum(problem.severity == "error" for problem in plan.problems)
    yield f"{errors} problem{'s' if errors != 1 else ''}; run would refuse it." if errors else "run would submit it."


def _row(key: str, values: Iterable[str]) -> Iterator[str]:
    for value in values:
        yield f"{key:{_KEY}} {value}"
        key = ""


def _model_lines(model: Model) -> Iterator[str]:
    layers = f", {model.layers} layers" if model.layers else ""
    size = "parameters not known" if model.total is None else f"{_billions(model.total)} parameters"
    active = f", {_billions(model.active)} active" if model.active and model.active != model.total else ""
    yield f"{model.name}: {size}{active}{layers} ({model.source})"
    if model.parameters is not None:
        yield ", ".join(f"{part} {_billions(number)}" for part, number in model.parameters.items())


def _machines(plan: Plan) -> str:
    layout = plan.layout
    gpu = ", GPU not known"
    if plan.gpu is not None:
        gpu = f" with {plan.gpu.name}, {plan.gpu.memory / _GIB:.0f} GiB ({plan.gpu.known_by})"
    elif plan.memory is not None and plan.memory.device == "host":
        gpu = " on the host's processors"
    copies = f", {layout.dp} copies" if layout.divides and layout.world > 1 else ""
    return f"{_layout(layout)}{copies}{gpu}"


def _layout(layout: Layout) -> str:
    """`2 x 8 processes, tp=2 ep=8`: machines and processes, and the sizes that are not 1."""
    machines = f"{layout.nodes} x {layout.processes} process" + ("es" if layout.world != 1 else "")
    return ", ".join(filter(None, (machines, str(layout))))


def _memory_lines(need: Need) -> Iterator[str]:
    yield f"{need.where}: {_gib(need.total)}" + (f" of {_gib(need.room)}" if need.room else "")
    most = max(need.room or 0, need.total)
    width = max(map(len, need.parts))
    for part, size in need.parts.items():
        yield f"  {part:{width}} {_gib(size):>10}  {'█' * round(_BAR * size / most)}".rstrip()


def _verdict(plan: Plan) -> str:
    if plan.fits is None:
        return "not known: " + (
            "its memory cannot be told" if plan.memory is None else "which GPU it gets is not known"
        )
    return "yes" if plan.fits else "no"


def _proposal_lines(plan: Plan) -> Iterator[str]:
    assert plan.proposal is not None
    yield f"{_layout(plan.proposal.layout)}: {_gib(plan.proposal.memory.total)} on the fullest rank"
    for rejected in plan.proposal.smaller:
        yield f"  not {_layout(rejected.layout)}: {rejected.reason}"


def _output_line(output: Output) -> str:
    return f"{output.type}  {output.path}  ({'size not known' if output.bytes is None else _bytes(output.bytes)})"


def _bytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def _billions(number: int) -> str:
    if number >= 5e7:
        return f"{number / 1e9:.2f} B"
    return f"{number / 1e6:.2f} M" if number >= 5e4 else f"{number / 1e3:.2f} k"


def _gib(size: int) -> str:
    return f"{size / _GIB:.1f} GiB" if size >= _GIB / 10 else f"{size / _MIB:.1f} MiB"
