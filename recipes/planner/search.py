"""Layouts that work: the nearest ones to what somebody asked for, and the smallest one that a job fits in."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import combinations, product
from math import log2
from typing import Any

from recipes.experiment.job import Job
from recipes.models import ModelFacts
from recipes.planner.gpus import gpus_per_node
from recipes.planner.layout import EVEN, SIZES, Layout, Size, violations
from recipes.planner.megatron_memory import RankMemory, rank_memory, unknown_of
from recipes.planner.workload import Workload, workload_of
from scripts.args.meaning import MEGATRON

#: GPUs of a machine where its profile does not say, as in every HGX and DGX of eight; and machines that are tried.
_MACHINE, _MACHINES = 8, 16
#: Sizes that are changed to whatever divides, where an alternative is looked for.
_FREELY = 2
#: Bytes of a parameter: its weight; in a training, with gradient, master copy and moments (Megatron Core).
_BF16, _TRAINED = 2, 18
_SHOWN = 3
_GIB = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Rejected:
    """A layout that does not do, and why."""

    layout: Layout
    reason: str


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """The smallest layout that a job fits in, its fullest rank, and the best of the next smaller number of GPUs."""

    layout: Layout
    memory: RankMemory
    smaller: tuple[Rejected, ...]

    def as_data(self) -> dict[str, Any]:
        """As JSON has it."""
        smaller = [{"layout": vars(rejected.layout), "reason": rejected.reason} for rejected in self.smaller]
        return {"layout": vars(self.layout), "memory": self.memory.total, "smaller": smaller}


@dataclass(frozen=True, kw_only=True)
class _Search:
    """What to look for: the job's work, the room of a rank, the machines there are and the sizes that can be set."""

    work: Workload
    asked: Layout  # sizes that cannot be set, or that nothing is gained by, are as here
    room: int  # bytes
    machine: int  # GPUs
    machines: int
    sizes: frozenset[Size]
    copies: bool  # whether ranks beyond one copy of the model are of use
    padded: bool  # whether the vocabulary is filled up to what tensor parallelism needs

    def worlds(self) -> Iterator[int]:
        """Numbers of GPUs: powers of two within a machine and all of it, then machines, twice as many each time."""
        world = 1
        while world < self.machine:
            yield world
            world *= 2
        number = 1
        while number <= self.machines:
            yield number * self.machine
            number *= 2

    def layouts(self, world: int) -> Iterator[Layout]:
        """Those that divide, least pipeline and tensor parallelism first, experts spread as far as they go."""
        nodes = -(-world // self.machine)
        processes = world // nodes
        cp = self.asked.cp
        for pp in self._choices("pp", world):
            for tp in self._choices("tp", min(processes, world // pp)):
                for ep in reversed(self._choices("ep", world // pp)):
                    layout = Layout(
                        nodes=nodes, processes=processes, tp=tp, pp=pp, cp=cp, ep=ep, etp=min(self.asked.etp, tp)
                    )
                    if layout.divides and self._is_of_use(layout):
                        yield layout

    def memory(self, layout: Layout) -> RankMemory | None:
        """The fullest rank; None where the model's numbers do not suit the layout."""
        return None if self.against(layout) else rank_memory(self._placed(layout), layout)

    def against(self, layout: Layout) -> str | None:
        """What of the models does not suit a layout; each rule is about one size."""
        sizes: tuple[Size, ...] = ("tp", "pp", "ep", "etp")
        return next(filter(None, (self._cause(size, getattr(layout, size)) for size in sizes)), None)

    @cached_property
    def least(self) -> int:
        """Bytes of what is there at least once, however it is split: the models' weights, and what a training has for
        each."""
        model, teacher = (
            facts.architecture.parameters if facts else None for facts in (self.work.model, self.work.teacher)
        )
        own = (_TRAINED if self.work.kind == "training" else _BF16) * (model.total if model else 0)
        return own + _BF16 * (teacher.total if teacher else 0)

    def rejected(self, world: int) -> tuple[Rejected, ...]:
        """What comes nearest on so many GPUs, and why it does not do; nothing where there is nothing to try."""
        tried = [(layout, self.memory(layout)) for layout in self.layouts(world)]
        known = [(layout, memory) for layout, memory in tried if memory is not None]
        if known:
            layout, memory = min(known, key=lambda one: one[1].total)
            return (Rejected(layout=layout, reason=too_much(memory, self.room)),)
        return tuple(Rejected(layout=layout, reason=self.against(layout) or "") for layout, _ in tried[-1:])

    def _choices(self, size: str, most: int) -> list[int]:
        asked: int = getattr(self.asked, size)
        return [one for one in range(1, most + 1) if most % one == 0] if size in self.sizes else [asked]

    def _is_of_use(self, layout: Layout) -> bool:
        """Whether no rank is idle or repeats another, and a training's samples divide."""
        if layout.dp == 1:
            return True
        if not self.copies:
            return False
        if self.work.kind == "training":
            return self.work.global_batch % (self.work.batch * layout.dp) == 0
        return layout.expert_model == layout.world

    def _placed(self, layout: Layout) -> Workload:
        """The work with the stages that were asked for, where there are as many of them."""
        return self.work if layout.pp == self.asked.pp else replace(self.work, stages=EVEN)

    @cached_property
    def _cause(self) -> Callable[[Size, int], str | None]:
        """What of the models does not suit one size; many layouts share it."""

        @cache
        def find(size: Size, value: int) -> str | None:
            alone = replace(Layout(nodes=1, processes=value), **{size: value})
            stages = self._placed(alone).stages
            models = [facts for facts in (self.work.model, self.work.teacher) if facts is not None]
            found = (violations(alone, facts, stages=stages, padded=self.padded) for facts in models)
            return next((violation.cause for each in found for violation in each), None)

        return find


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
        for layout in () if search.least > world * search.room else search.layouts(world):
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
    for changed in range(len(SIZES) + 1):
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


def _search(job: Job) -> _Search | None:
    work = workload_of(job) if job.engine in MEGATRON else None
    if work is None or job.gpu is None or unknown_of(work):
        return None
    args = job.resolved
    ranked = args.RANKED and not (job.addressed and job.addressed.script in args.ONE_PROCESS)
    return _Search(
        work=work,
        asked=job.layout,
        room=job.gpu.usable,
        machine=(gpus_per_node(job.place) or max(_MACHINE, job.torchrun.nproc_per_node)) if ranked else 1,
        machines=_MACHINES if ranked and job.place.capabilities.multi_node else 1,
        # An exporter takes tensor parallelism, and writes nonsense with it.
        sizes=frozenset(job.asked.keys) - (set() if args.DATA_PARALLEL else {"tp", "etp"}),
        copies=args.DATA_PARALLEL,
        padded=args.PADS_VOCABULARY,
    )


def _varied(layout: Layout, changed: int) -> Iterator[Layout]:
    """Layouts that differ in exactly so many sizes. Experts and sequences that are not spread stay so.

    Where three sizes and more have to change, each only to 1 or to what is next to it: there are enough of these.
    """
    divisors = [one for one in range(1, layout.world + 1) if layout.world % one == 0]
    sizes = [size for size in SIZES if size in ("tp", "pp") or getattr(layout, size) > 1]
    for some in combinations(sizes, changed):
        asked = [getattr(layout, size) for size in some]
        choices = [[one for one in divisors if one != value] for value in asked]
        if changed > _FREELY:
            near = (
                ([one for one in choice if 1 < one < value][-1:], [one for one in choice if one > value][:1])
                for value, choice in zip(asked, choices, strict=True)
            )
            choices = [[1, *below, *above] for below, above in near]
        for choice in product(*choices):
            yield replace(layout, **dict(zip(some, choice, strict=True)))


def _distance(one: Layout, other: Layout) -> tuple[bool, float, tuple[int, ...]]:
    """Whether it is split less than the other, by how much it differs, and a fixed order of what is equally near."""
    ratios = [log2(getattr(one, size) / getattr(other, size)) for size in SIZES]
    return sum(ratios) < 0, sum(abs(ratio) for ratio in ratios), tuple(getattr(one, size) for size in SIZES)


def too_much(memory: RankMemory, room: int) -> str:
    """Its largest parts, what they come to, and what there is."""
    parts = sorted(memory.parts.items(), key=lambda part: -part[1])
    said = [f"{size / _GIB:.1f} GiB of {name}" for name, size in parts[:_SHOWN]]
    rest = sum(size for _, size in parts[_SHOWN:])
    said += [f"{rest / _GIB:.1f} GiB more"] if rest else []
    return f"{' + '.join(said)} = {memory.total / _GIB:.1f} GiB > {room / _GIB:.1f} GiB"
