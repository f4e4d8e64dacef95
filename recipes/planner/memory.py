"""What the fullest process of a job needs, whichever engine carries it out, and whether its device has that much."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from recipes.experiment.job import Job
from recipes.planner import hf_memory
from recipes.planner.megatron_memory import memory_of
from scripts.args.meaning import MEGATRON
from scripts.args.sizes import bytes_of


@dataclass(frozen=True, kw_only=True)
class Need:
    """Memory of the fullest process in bytes, by what it is for, each with the source of its formula."""

    where: str
    device: Literal["GPU", "host"]
    parts: Mapping[str, int]
    sources: Mapping[str, str]
    room: int | None  # what a process may use of its device; None: not known

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    @property
    def fits(self) -> bool | None:
        return None if self.room is None else self.total <= self.room

    def as_data(self) -> dict[str, Any]:
        """As JSON has it."""
        return {**vars(self), "parts": dict(self.parts), "sources": dict(self.sources), "total": self.total}


def need_of(job: Job) -> Need | None:
    """None where nothing of the kind can be told: a tool, an unknown model, a layout that does not divide."""
    room = job.gpu.usable if job.gpu else None
    if job.engine in MEGATRON:
        memory = memory_of(job)
        if memory is None or memory.unknown:
            return None
        return Need(where=memory.stage, device="GPU", parts=memory.parts, sources=memory.sources, room=room)
    if (predicted := hf_memory.predict(job)) is None:
        return None
    if predicted.device == "host":
        import psutil

        # All of it: what is free now says little of when the job runs.
        room = int(psutil.virtual_memory().total) // job.processes if job.place.runs_here else None
    with suppress(ValueError):  # a check says that it is no size
        room = min((size for size in (bytes_of(job.get("memory")), room) if size is not None), default=None)
    workers = job.get("processes", 1)
    alone = f"it and its {workers} workers" if workers > 1 else "its one process"
    return Need(
        where=f"{'each process' if job.ranked else alone}, in {predicted.peak_phase}",
        device=predicted.device,
        parts=predicted.parts,
        sources=predicted.sources,
        room=room,
    )
