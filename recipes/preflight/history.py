"""What a job's inputs went through before: orders that undo work, doubtful data, another model's checkpoint."""

import posixpath
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

from executors.base import is_below
from recipes.experiment.job import Job
from recipes.preflight.origins import Find, Origin, lineage, origin_of_spec, recorded_origin
from recipes.preflight.paths import overlap, real
from recipes.preflight.quality import doubts
from scripts.args.meaning import meaning_of, meanings
from scripts.run.problems import Problem
from scripts.run.registry import check

#: Algorithms whose result somebody reads as a model's quality, or ships.
_JUDGED = ("evaluate", "serve", "export")
_QUANTIZES = ("quantize", "qat")
#: What leaves a checkpoint in the shape of the model that its arguments name; pruning changes the shape.
_KEEPS_SHAPE = ("quantize", "distill", "qat", "convert")


@check("prune_after_distill", "already_quantized", "input_of_a_running_run", "wrong_base_model")
def history(job: Job) -> Iterator[Problem]:
    """Problems that the records of earlier runs tell."""
    for key, origin in lineage(job):
        yield from _of_origin(job, key, origin)
        if not origin.ended and key.removeprefix("args.") not in job.promised:
            yield _unfinished(key, job, origin)
    yield from _wrong_base(job, recorded_origin)


def experiment_problems(stages: Sequence[tuple[str, Job]]) -> Iterator[Problem]:
    """Problems between the stages of one experiment, parents first: each with its name and its job."""
    yield from _collisions(stages)
    before: list[Origin] = []

    def find(path: str) -> Origin | None:
        made = (origin for origin in before if any(is_below(path, output) for output in origin.outputs))
        return next(made, None) or recorded_origin(path)

    for name, job in stages:
        for key, origin in lineage(job, find):
            yield from _of_origin(job, key, origin)
        yield from _wrong_base(job, find)
        before.insert(0, origin_of_spec(name, job))


def _collisions(stages: Sequence[tuple[str, Job]]) -> Iterator[Problem]:
    """Two stages that would leave something in the same folder."""
    taken: list[tuple[Origin, str]] = []
    for name, job in stages:
        own = origin_of_spec(name, job)
        for key, _, path in job.outputs:
            for other, folder in taken:
                if other.storage == own.storage and overlap(path, folder):
                    cause = f"{other.name} leaves something in {folder}"
                    yield Problem(
                        name="outputs_collide", key=key, value=path, cause=cause, remedy="Name another folder."
                    )
        taken += [(own, output) for output in own.outputs]


def _of_origin(job: Job, key: str, origin: Origin) -> Iterator[Problem]:
    value = getattr(job.resolved, key.removeprefix("args."))
    if job.algorithm == "prune" and origin.algorithm == "distill":
        yield Problem(
            name="prune_after_distill",
            key=key,
            value=value,
            cause=f"it comes from the distillation {origin.name}, and pruning would throw away what that taught",
            remedy="Prune first, then distill.",
            can_force=True,
        )
    if job.algorithm == "prune" and origin.algorithm in _QUANTIZES:
        yield Problem(
            name="already_quantized",
            key=key,
            value=value,
            cause=f"it was quantized by {origin.name}, and pruning scores and cuts weights of full precision",
            remedy="Prune the checkpoint that was quantized, then quantize what is left.",
            can_force=True,
        )
    if job.algorithm in _JUDGED:
        for doubt in doubts(origin.kind, origin.algorithm, origin.args, origin.extra_args):
            cause = f"{origin.name}, which it comes from, ran with args.{doubt.field}"
            cause += f"={doubt.value}: {doubt.why}" if doubt.value is not None else f": {doubt.why}"
            yield Problem(name=doubt.name, key=key, value=value, cause=cause, severity="warning")


def _unfinished(key: str, job: Job, origin: Origin) -> Problem:
    name = key.removeprefix("args.")
    cause = f"{origin.name}, which leaves it, is {origin.state} as far as is recorded"
    remedy = f"Write ${{artifact:{origin.name}}}, and this job waits for it. Or look: nemo experiment status"
    remedy += f" {origin.name}"
    value = getattr(job.resolved, name)
    return Problem(name="input_of_a_running_run", key=key, value=value, cause=cause, remedy=remedy, can_force=True)


def _wrong_base(job: Job, find: Find) -> Iterator[Problem]:
    """A checkpoint of one model with the configuration of another: its shape and its name would be wrong."""
    said, meaning = job.get("model"), meaning_of(job.resolved, "model")
    if said is None or meaning is None or meaning.consumes or meaning.card:
        return  # its model is an input itself, or known by its card
    for field, meaning in meanings(job.resolved):
        path = getattr(job.resolved, field.name)
        if meaning.consumes != "checkpoint_megatron" or not isinstance(path, str):
            continue
        origin = find(path)
        if origin is None or origin.algorithm not in _KEEPS_SHAPE or origin.base is None:
            continue
        if not same_model(said, origin.base):
            yield Problem(
                name="wrong_base_model",
                key=job.key("model") or "",
                value=said,
                cause=f"args.{field.name} was made of {origin.base} by {origin.name}",
                remedy=f"Use {job.key('model')}={origin.base}.",
                can_force=True,
            )


def same_model(one: str, other: str) -> bool:
    """Whether two names may mean the same model: the same path, or names that end alike (a hub's, and its copy's)."""
    if posixpath.isabs(one) and posixpath.isabs(other) and real(one) == real(other):
        return True
    return PurePosixPath(one).name.lower() == PurePosixPath(other).name.lower()
