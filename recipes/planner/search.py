"""The layouts that a job could have on so many GPUs, in order of preference, and why one does not do."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, cached_property

from recipes.planner.divisibility import EVEN, Size, violations
from recipes.planner.layout import Layout
from recipes.planner.memory import RankMemory, fullest
from recipes.planner.parameters import count
from recipes.planner.work import Work

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
class Search:
    """What to look for: the job's work, the room of a rank, the machines there are and the sizes that can be set."""

    work: Work
    asked: Layout  # sizes that cannot be set, or that nothing is gained by, are as here
    room: int  # bytes
    machine: int  # GPUs
    machines: int
    sizes: frozenset[str]
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
        return None if self.against(layout) else fullest(self._placed(layout), layout)

    def against(self, layout: Layout) -> str | None:
        """What of the models does not suit a layout; each rule is about one size."""
        sizes: tuple[Size, ...] = ("tp", "pp", "ep", "etp")
        return next(filter(None, (self._cause(size, getattr(layout, size)) for size in sizes)), None)

    def is_hopeless(self, world: int) -> bool:
        """Whether so many GPUs together have no room for what is there at least once, however it is split."""
        return self._least > world * self.room

    @cached_property
    def _least(self) -> int:
        """Bytes of the models' weights, and of what a training has for each."""
        model, teacher = count(self.work.model), count(self.work.teacher) if self.work.teacher else None
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

    def _placed(self, layout: Layout) -> Work:
        """The work with the stages that were asked for, where there are as many of them."""
        return self.work if layout.pp == self.asked.pp else replace(self.work, stages=EVEN)

    @cached_property
    def _cause(self) -> Callable[[Size, int], str | None]:
        return cache(self._find_cause)

    def _find_cause(self, size: Size, value: int) -> str | None:
        alone = replace(Layout(nodes=1, processes=value), **{size: value})
        stages = self._placed(alone).stages
        models = [facts for facts in (self.work.model, self.work.teacher) if facts is not None]
        found = (violations(alone, facts, stages=stages, padded=self.padded) for facts in models)
        return next((violation.cause for each in found for violation in each), None)


def too_much(memory: RankMemory, room: int) -> str:
    """Its largest parts, what they come to, and what there is."""
    parts = sorted(memory.parts.items(), key=lambda part: -part[1])
    said = [f"{size / _GIB:.1f} GiB of {name}" for name, size in parts[:_SHOWN]]
    rest = sum(size for _, size in parts[_SHOWN:])
    said += [f"{rest / _GIB:.1f} GiB more"] if rest else []
    return f"{' + '.join(said)} = {memory.total / _GIB:.1f} GiB > {room / _GIB:.1f} GiB"
