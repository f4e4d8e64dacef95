"""Whether the fullest process of a job has room on its device."""

from collections.abc import Iterator

from recipes.experiment.job import Job
from recipes.planner.memory import Need, need_of
from recipes.planner.search import smallest
from recipes.planner.workload import is_of_gpus
from recipes.preflight.layout import asked
from scripts.run.problems import Problem, Severity
from scripts.run.registry import Skipped, check

#: What is over by less may fit all the same: the formulas leave out what an allocator wastes, and what it saves.
_MARGIN = 1.1
_GIB = 1 << 30


def _needs_memory(job: Job) -> bool:
    """Jobs that compute; where a layout is impossible, other checks say so, and there is nothing to count."""
    return job.engine == "hf" or (is_of_gpus(job) and job.layout.divides)


@check("does_not_fit", "may_not_fit", can_force=True, applies=_needs_memory)
def fits_device(job: Job) -> Iterator[Problem | Skipped]:
    need = need_of(job)
    missing = ("model",) if need is None else () if need.room is not None else ("gpu",)
    if missing:
        yield Skipped(missing=missing)
    if need is None or need.room is None or need.fits:
        return
    over = need.total > _MARGIN * need.room
    assumed = need.device == "GPU" and not (job.gpu and job.gpu.certain)
    severity: Severity = "error" if over and not assumed else "warning"
    key, value = ("executor.gpu", job.gpu.name if job.gpu else None) if need.device == "GPU" else ("executor", "local")
    yield Problem(
        name="does_not_fit" if over else "may_not_fit",
        key=key,
        value=value,
        cause=_cause(need),
        remedy=_remedy(job),
        severity=severity,
    )


def _cause(need: Need) -> str:
    assert need.room is not None
    largest = sorted(need.parts.items(), key=lambda part: -part[1])[:3]
    parts = ", ".join(f"{name} {size / _GIB:.1f}" for name, size in largest)
    whose = need.where if need.device == "host" else f"a GPU ({need.where})"
    return f"{whose} needs {need.total / _GIB:.1f} GiB and has {need.room / _GIB:.1f} GiB: {parts}"


def _remedy(job: Job) -> str:
    if job.engine == "hf":
        return "Lower args.calib_batch_size or args.calib_seq_length, or use the script engine on several GPUs."
    proposal = smallest(job)
    if proposal is None:
        return "No layout that was tried fits: use a GPU with more memory, or shorter samples."
    layout = proposal.layout
    shape = f"torchrun.nnodes={layout.nodes} torchrun.nproc_per_node={layout.processes}"
    return f"The smallest that fits: {shape} {asked(job).written(layout)}".rstrip() + "."
