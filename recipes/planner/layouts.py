"""Layouts that work: the nearest ones to what somebody asked for, and the smallest one that a job fits in."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product
from math import log2

from recipes.experiment.job import Job
from recipes.models import ModelFacts
from recipes.planner.divisibility import violations
from recipes.planner.gpus import Gpu, gpus_per_node
from recipes.planner.jobs import work_of
from recipes.planner.layout import Layout, sizes_of
from recipes.planner.memory import RankMemory, unknown_of
from recipes.planner.search import Rejected, Search
from recipes.planner.work import layout_of_work
from scripts.args.megatron_lm import MegatronLmArgs

__all__ = ["Proposal", "Rejected", "alternatives", "is_valid", "smallest", "usable"]

_SIZES = ("tp", "pp", "cp", "ep", "etp")
#: Part of a GPU's memory that tensors can have: the rest is lost between an allocator's blocks, or taken for a moment.
_USABLE = 0.92
#: GPUs of a machine where its profile does not say, as in every HGX and DGX of eight; and machines that are tried.
_MACHINE, _MACHINES = 8, 16
#: Sizes that are changed to whatever divides, where an alternative is looked for.
_FREELY = 2


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """The smallest layout that a job fits in, its fullest rank, and the best of the next smaller number of GPUs."""

    layout: Layout
    memory: RankMemory
    smaller: tuple[Rejected, ...]


def usable(gpu: Gpu) -> int:
    """Bytes of a GPU that a rank's tensors may fill."""
    return int(gpu.memory * _USABLE)


def smallest(job: Job) -> Proposal | None:
    """The layout of fewest GPUs, then of fewest pipeline stages, then of least tensor parallelism that a job fits in.

    Tensor parallelism stays within a machine. None where a fact or the GPU is not known, or nothing that
    was tried fits.
    """
    search = _search(job)
    if search is None:
        return None
    smaller: int | None = None
    for world in search.worlds():
        for layout in () if search.is_hopeless(world) else search.layouts(world):
            memory = search.memory(layout)
            if memory is not None and memory.total <= search.room:
                rejected = () if smaller is None else search.rejected(smaller)
                return Proposal(layout=layout, memory=memory, smaller=rejected)
        smaller = world
    return None


def alternatives(layout: Layout, models: Sequence[ModelFacts], *, limit: int = 2) -> tuple[Layout, ...]:
    """The valid layouts of the same processes that are nearest to `layout`: fewest sizes changed, larger ones first.

    Larger, because a model that is split further needs no more memory than was meant.
    """
    for changed in range(len(_SIZES) + 1):
        found = [one for one in _varied(layout, changed) if is_valid(one, models)]
        if found:
            return tuple(sorted(found, key=lambda one: _distance(one, layout))[:limit])
    return ()


def is_valid(layout: Layout, models: Sequence[ModelFacts]) -> bool:
    """Whether ranks divide, tensor parallelism stays within a machine, and no model's known facts speak against it."""
    return (
        layout.divides
        and layout.tp <= layout.processes
        and all(next(violations(layout, facts), None) is None for facts in models)
    )


def _search(job: Job) -> Search | None:
    work = work_of(job) if job.engine == "script" else None
    if work is None or job.gpu is None or unknown_of(work):
        return None
    args = job.resolved
    ranked = args.RANKED and not (job.addressed and job.addressed.script in args.ONE_PROCESS)
    return Search(
        work=work,
        asked=layout_of_work(job),
        room=usable(job.gpu),
        machine=(gpus_per_node(job.profile) or max(_MACHINE, job.torchrun.nproc_per_node)) if ranked else 1,
        machines=_MACHINES if ranked and job.place.capabilities.multi_node else 1,
        sizes=_settable(job),
        copies=args.DATA_PARALLEL,
        padded=isinstance(args, MegatronLmArgs),
    )


def _settable(job: Job) -> frozenset[str]:
    """Sizes that the job's script takes. An exporter takes tensor parallelism, and writes nonsense with it."""
    if hasattr(job.resolved, "config"):
        return frozenset(_SIZES)
    return frozenset(sizes_of(job.args)) - (set() if job.args.DATA_PARALLEL else {"tp", "etp"})


def _varied(layout: Layout, changed: int) -> Iterator[Layout]:
    """Layouts that differ in exactly so many sizes. Experts and sequences that are not spread stay so.

    Where three sizes and more have to change, each only to 1 or to what is next to it: there are enough of these.
    """
    divisors = [one for one in range(1, layout.world + 1) if layout.world % one == 0]
    sizes = [size for size in _SIZES if size in ("tp", "pp") or getattr(layout, size) > 1]
    for some in combinations(sizes, changed):
        asked = [getattr(layout, size) for size in some]
        choices = [[one for one in divisors if one != value] for value in asked]
        if changed > _FREELY:
            choices = [[1, *_next_to(value, choice)] for value, choice in zip(asked, choices, strict=True)]
        for choice in product(*choices):
            yield replace(layout, **dict(zip(some, choice, strict=True)))


def _next_to(value: int, choices: Sequence[int]) -> list[int]:
    below, above = [one for one in choices if 1 < one < value], [one for one in choices if one > value]
    return [*below[-1:], *above[:1]]


def _distance(one: Layout, other: Layout) -> tuple[bool, float, tuple[int, ...]]:
    """Whether it is split less than the other, by how much it differs, and a fixed order of what is equally near."""
    ratios = [log2(getattr(one, size) / getattr(other, size)) for size in _SIZES]
    return sum(ratios) < 0, sum(abs(ratio) for ratio in ratios), tuple(getattr(one, size) for size in _SIZES)
