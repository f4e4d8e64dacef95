"""Whether a job has room in the memory of its device, and what is done where a whole model has none.

A job of the hf engine then goes layer by layer without being asked to, where it can: args.memory=auto.
"""

from collections.abc import Iterator
from dataclasses import replace
from math import ceil

from recipes.experiment.job import Job
from recipes.planner.memory import need_of
from recipes.planner.search import smallest
from recipes.planner.workload import kind_of
from recipes.preflight.hf_engine import layer_by_layer, ranks_of_hf, sharded_layers
from scripts.args.meaning import AS_STORED, MEGATRON, values_of
from scripts.args.sizes import AUTO
from scripts.checkpoints.causal import WHOLE_MODEL
from scripts.formats import FORMATS
from scripts.processor import gpus_here
from scripts.run.problems import Problem
from scripts.run.registry import Skipped, check

#: What is over by less may fit all the same: the formulas leave out what an allocator wastes, and what it saves.
_MARGIN = 1.1
_GIB = 1 << 30
_SEVERAL = "use the script engine on several GPUs."


def _needs_memory(job: Job) -> bool:
    """Jobs that compute; where a layout is impossible, other checks say so, and there is nothing to count."""
    return job.engine == "hf" or (job.engine in MEGATRON and kind_of(job) is not None and job.layout.divides)


@check("does_not_fit", "may_not_fit", can_force=True, applies=_needs_memory)
def fits_device(job: Job) -> Iterator[Problem | Skipped]:
    need = need_of(job)
    if need is None or need.room is None:
        yield Skipped(missing=("gpu" if need else "model",))
        return
    if need.fits:
        return
    over, on_gpu = need.total > _MARGIN * need.room, need.device == "GPU"
    limited = job.get("memory") not in (None, AUTO)
    whose, has = f"a GPU ({need.where})" if on_gpu and not limited else need.where, "may have" if limited else "has"
    key = "args.memory" if limited else "executor.gpu" if on_gpu else "executor"
    values = {"args.memory": job.get("memory"), "executor.gpu": job.gpu.name if job.gpu else None, "executor": "local"}
    largest = sorted(need.parts.items(), key=lambda part: -part[1])[:3]
    parts = ", ".join(f"{name} {size / _GIB:.1f}" for name, size in largest)
    yield Problem(
        name="does_not_fit" if over else "may_not_fit",
        key=key,
        value=values[key],
        cause=f"{whose} needs {need.total / _GIB:.1f} GiB and {has} {need.room / _GIB:.1f} GiB: {parts}",
        remedy=f"Use args.memory={ceil(need.total / _GIB)}GiB, or auto." if limited else _remedy(job),
        severity="error" if over and not (on_gpu and not (job.gpu and job.gpu.certain)) else "warning",
    )


def _remedy(job: Job) -> str:
    if takes_whole(job):
        kept, several = " ".join(_hindrances(job)), _SEVERAL
        if job.ranked and not any(sharded_layers(replace(job, resolved=replace(job.resolved, fsdp=True)))):
            several = f"use args.fsdp=true, which shards the layers over its ranks, or {_SEVERAL}"
        return f"{kept} Or {several}" if kept else f"Use args.memory=auto, which goes layer by layer, or {several}"
    if job.engine == "hf":
        return f"Lower args.calib_batch_size or args.calib_seq_length, or {_SEVERAL}"
    if (proposal := smallest(job)) is None:
        return "No layout that was tried fits: use a GPU with more memory, or shorter samples."
    layout = proposal.layout
    shape = f"torchrun.nnodes={layout.nodes} torchrun.nproc_per_node={layout.processes}"
    return f"The smallest that fits: {shape} {job.asked.written(layout)}".rstrip() + "."


def takes_whole(job: Job) -> bool:
    """Whether the whole model is in memory of a job that might go layer by layer."""
    return bool(job.engine == "hf" and job.key("memory") and not any(map(job.get, AS_STORED)))


def fitted(job: Job) -> tuple[Job, list[Problem]]:
    """A job that `takes_whole`; layer by layer where the whole does not fit, with a warning that says so."""
    too_large = next(_errors(fits_device(job)), None)
    if too_large is None or any(_hindrances(job)):
        return job, []
    dropped = "".join(f"args.{name} is not written. " for name, _ in _unwritten(job))
    told = Problem(
        name="goes_layer_by_layer",
        key="args.memory",
        value=AUTO,
        cause=f"it goes layer by layer, as the whole model does not fit: {too_large.cause}",
        remedy=f"{dropped}--force does_not_fit takes the whole model.",
        severity="warning",
    )
    return _in_layers(job), [told]


def _in_layers(job: Job) -> Job:
    """The job that it is with args.memory=auto: one process."""
    from fiddle import copy_with

    assert job.partial is not None
    return replace(
        job,
        args=replace(job.args, memory=AUTO),
        resolved=replace(job.resolved, memory=AUTO),
        partial=copy_with(job.partial, args=copy_with(job.partial.args, memory=AUTO)),
        processes=1,
        ranked=False,
    )


def _hindrances(job: Job) -> Iterator[str]:
    """What keeps it from going layer by layer unasked, and what to change, a sentence or two each."""
    for name, kind in _unwritten(job):
        if name in job.given:
            yield f"Layer by layer args.{name} is not written: use args.{name}=null."
        for taker in job.takers.get(kind, ()):
            other = f"${{artifact:{job.name}.checkpoint_hf}}"
            yield f"Layer by layer no {kind} is left, which {taker} takes: use {taker}={other}."
    if job.place.runs_here and job.get("device") != "cpu" and gpus_here() != 0 and not (job.gpu and job.gpu.certain):
        yield "Which GPU this machine has is not known: executor.gpu=h100-80gb says it."
    if job.resolved.export_quant_cfg not in FORMATS:
        yield f"Whether {job.resolved.export_quant_cfg} can be had layer by layer is not known: args.memory=auto tries."
    smaller = _in_layers(job)
    for one in (*layer_by_layer(smaller), *ranks_of_hf(smaller)):
        # Nobody asked for args.memory, so that it can be left out is no news.
        remedy = one.remedy.replace(WHOLE_MODEL, "").replace(", or args.memory=null", "")
        yield f"Not layer by layer, for {one.key}={one.value}: {one.cause}. {remedy}".rstrip()
    yield from (f"Layer by layer too {one.cause}." for one in _errors(fits_device(smaller)))


def _unwritten(job: Job) -> list[tuple[str, str]]:
    """Arguments that name what layer by layer is not written, with the type of that."""
    return [
        (name, meaning.produces or "")
        for name, value, meaning in values_of(job.resolved)
        if value and "memory" in meaning.unless
    ]


def _errors(found: Iterator[Problem | Skipped]) -> Iterator[Problem]:
    return (one for one in found if isinstance(one, Problem) and one.severity == "error")
