"""Whether a job's time limit leaves it the time that it will need."""

import re
from collections.abc import Iterator

from recipes.experiment.job import Job
from recipes.planner.duration import hours_of
from scripts.args.meaning import meanings
from scripts.run.problems import Problem
from scripts.run.registry import Check

_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<fields>\d+(?::\d+){0,2})")
#: A limit below the estimate for a machine that does well is too short; this far below it nothing can save the job.
_HOPELESS = 4


def limit_hours(text: str) -> float | None:
    """A limit as sbatch reads it: minutes, M:S, H:M:S, D-H, D-H:M or D-H:M:S; None for no limit."""
    match = _TIME.fullmatch(text)
    if match is None:
        return None
    fields = [int(one) for one in match["fields"].split(":")]
    first = 0 if match["days"] is not None or len(fields) == 3 else 1  # hours come first, or minutes
    hours = sum(value / 60.0**place for place, value in enumerate(fields, start=first))
    return float(hours + 24 * int(match["days"] or 0))


def _too_short(job: Job) -> Iterator[Problem]:
    asked = job.place.time_limit or ""
    limit, estimate = limit_hours(asked), hours_of(job)
    if limit is None or estimate is None or limit >= estimate.low:
        return
    stops = getattr(job.args, "exit_duration_in_mins", None)
    if stops is not None and stops / 60 < limit:
        return  # it is meant to go on in another job
    goes_on = any(meaning.in_place for _, meaning in meanings(job.args))
    remedy = f"Ask for {_slurm(estimate.high)}"
    remedy += ", or let it stop and go on: args.exit_duration_in_mins." if _can_stop(job) else "."
    yield Problem(
        name="time_limit_too_short",
        key="executor.time",
        value=asked,
        cause=f"the job is estimated to take {estimate}",
        remedy=remedy,
        severity="error" if limit * _HOPELESS < estimate.low and not goes_on else "warning",
        can_force=True,
    )


def _can_stop(job: Job) -> bool:
    return hasattr(job.args, "exit_duration_in_mins")


def _slurm(hours: float) -> str:
    """Hours as Slurm is asked for them, rounded up."""
    whole = int(hours) + 1
    return f"{whole // 24}-{whole % 24:02d}:00:00" if whole >= 24 else f"{whole}:00:00"


def _is_limited(job: Job) -> bool:
    return bool(job.place.time_limit)


CHECKS: tuple[Check, ...] = (
    Check(name="time_limit_too_short", run=_too_short, needs=("gpu", "model"), applies=_is_limited),
)
