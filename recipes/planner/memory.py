"""Memory of the fullest rank of a Megatron job. Sizes of tensors: what an allocator leaves unused is not in it."""

from collections.abc import Mapping
from dataclasses import dataclass

from recipes.experiment.job import Job
from recipes.planner.jobs import work_of
from recipes.planner.layout import Layout
from recipes.planner.parameters import missing
from recipes.planner.rank import SOURCES, Rank
from recipes.planner.stages import anatomy
from recipes.planner.work import Work, layout_of_work


@dataclass(frozen=True, kw_only=True)
class RankMemory:
    """Bytes of the fullest rank, by part. Where facts are `unknown` there are no parts."""

    stage: str
    parts: Mapping[str, int]
    unknown: tuple[str, ...] = ()  # model.vocab_size, teacher.blocks

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    @property
    def sources(self) -> Mapping[str, str]:
        """What each part is, and where its formula is from."""
        return {part: SOURCES[part] for part in self.parts}


def memory_of(job: Job) -> RankMemory | None:
    """What a job of the script engine needs of each GPU.

    None where it needs none, its layout does not divide, or nothing at all is known of its model.
    """
    work = work_of(job) if job.engine == "script" else None
    return None if work is None else rank_memory(work, layout_of_work(job))


def rank_memory(work: Work, layout: Layout) -> RankMemory | None:
    """The fullest rank of a layout, or the facts that are unknown; None where ranks or layers do not divide."""
    unknown = unknown_of(work)
    return RankMemory(stage="", parts={}, unknown=unknown) if unknown else fullest(work, layout)


def fullest(work: Work, layout: Layout) -> RankMemory | None:
    """The fullest rank of a layout, where no fact is unknown. A teacher is cut as the student is."""
    model = anatomy(work.model, quantized=work.fake_quantized)
    teacher = anatomy(work.teacher, quantized=False) if work.teacher else None
    stages = model.stages(layout.pp, work.stages) if model and layout.divides else None
    if model is None or stages is None:
        return None
    rank = Rank(work=work, layout=layout, model=model, teacher=teacher)
    if teacher and rank.teacher_stages is None:
        return None
    found = [(stage, dict(rank.parts(stage))) for stage in stages]
    stage, parts = max(found, key=lambda one: sum(one[1].values()))
    return RankMemory(stage=str(stage), parts={name: round(parts[name]) for name in SOURCES if parts.get(name)})


def unknown_of(work: Work) -> tuple[str, ...]:
    """The facts without which nothing can be said of a job's memory."""
    teacher = missing(work.teacher) if work.teacher else ()
    return (*(f"model.{name}" for name in missing(work.model)), *(f"teacher.{name}" for name in teacher))
