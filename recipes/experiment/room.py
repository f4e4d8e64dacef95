"""Room for several jobs at a time on the machine that submits them: what one takes of it, and which fit together."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from recipes.experiment.job import Job
from recipes.planner.memory import need_of
from scripts.processor import gpus_here

_THREADS = "OMP_NUM_THREADS"
_DEVICES = "CUDA_VISIBLE_DEVICES"


def needs_of(job: Job) -> dict[str, int] | None:
    """Bytes of memory, processors and GPUs that a job takes of this machine; None: nobody can tell.

    On GPUs a process takes one of each. A job without takes as many processors as it has threads, which are all where
    nobody said otherwise: two of those at a time take twice as long as one after the other, and longer.
    """
    need, gpus = need_of(job), gpus_here()
    if need is None or gpus is None:
        return None
    processes = job.processes if job.ranked else 1
    memory = need.total * processes  # what goes to a GPU is read here first
    if need.device == "GPU" and gpus:
        visible = len(_visible(job))
        return {"memory": memory, "cores": processes, "gpus": processes if job.place.runs_here else visible}
    return {"memory": memory, "cores": _threads(job) * processes, "gpus": 0}


def _threads(job: Job) -> int:
    """Of a process of torch."""
    said = job.profile.env.get(_THREADS) or (os.environ.get(_THREADS) if job.place.runs_here else None)
    return int(said) if said and said.isdecimal() and int(said) else os.cpu_count() or 1


def _visible(job: Job) -> list[str]:
    """The GPUs of this machine that a job may see, as CUDA calls them."""
    said = job.profile.env.get(_DEVICES) or (os.environ.get(_DEVICES) if job.place.runs_here else None)
    return said.split(",") if said else [str(number) for number in range(gpus_here() or 0)]


class Room:
    """What is free while none of one's jobs goes on, and so what all together may take."""

    def __init__(self) -> None:
        self._memory = 0

    def fits(self, job: Job, going: Sequence[Job]) -> bool:
        """Whether a job may begin beside those that go on. By itself any may: checks have looked at that.

        Its profile's `parallel` says how many go on at a time. Where that is `auto`, as many as are sure to have
        processors and GPUs of their own, and one by one those of which nobody can tell.
        """
        import psutil

        if not going:
            self._memory = psutil.virtual_memory().available
            return True
        all_jobs, said = [job, *going], job.place.parallel
        if said != "auto" and len(going) >= said:
            return False
        told = [one.needs for one in all_jobs if one.needs is not None]
        if _sum(told, "memory") > self._memory:
            return False
        if said != "auto":
            return True
        devices = len(_visible(job))
        fit = _sum(told, "cores") <= (os.cpu_count() or 1) and _sum(told, "gpus") <= devices
        return fit and len(told) == len(all_jobs)

    def devices(self, job: Job, going: Sequence[Job]) -> tuple[str, ...]:
        """The GPUs for a job, none of which another has; none: it sees what it would see alone."""
        needed = job.needs["gpus"] if job.needs else 0
        taken = {device for one in going for device in one.devices}
        free = [device for device in _visible(job) if device not in taken]
        return tuple(free[:needed]) if job.place.runs_here and len(free) >= needed else ()


def _sum(needs: Sequence[Mapping[str, Any]], key: str) -> int:
    return sum(int(one[key]) for one in needs)
