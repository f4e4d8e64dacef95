"""Which ranks hold which layers."""

from dataclasses import dataclass

from recipes.experiment.job import Job
from recipes.planner.jobs import work_of
from recipes.planner.layout import Layout
from recipes.planner.stages import anatomy


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """Consecutive ranks that hold the same layers: one stage of the pipeline."""

    first: int
    last: int
    holds: str | None  # None where the model's layers are not known

    def __str__(self) -> str:
        ranks = f"ranks {self.first}-{self.last}" if self.last > self.first else f"rank {self.first}"
        return ranks if self.holds is None else f"{ranks}: {self.holds}"


def ranks_of(job: Job, layout: Layout) -> tuple[Ranks, ...]:
    """The ranks of each pipeline stage, in Megatron-Core's order (tp-cp-ep-dp-pp: the pipeline varies slowest)."""
    if not layout.divides:
        return ()
    each = layout.world // layout.pp
    work = work_of(job)
    model = work and anatomy(work.model, quantized=work.fake_quantized)
    stages = model.stages(layout.pp, work.stages) if work and model else None
    held = [str(stage) for stage in stages] if stages else [None] * layout.pp
    return tuple(Ranks(first=n * each, last=(n + 1) * each - 1, holds=holds) for n, holds in enumerate(held))
