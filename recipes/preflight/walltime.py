"""Whether a job's time limit leaves it the time that it will need."""

import re
from collections.abc import Iterator

from recipes.experiment.job import Job
from recipes.planner.duration import hours_of
from scripts.args.meaning import meanings
from scripts.run.problems import Problem
from scripts.run.registry import check

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


@check(
    "time_limit_too_short",
    needs=("gpu", "model"),
    can_force=True,
    applies=lambda job: bool(job.place.time_limit),
)
def too_short(job: Job) -> Iterator[Problem]:
    """Below the estimate for a machine that does well."""
    asked = job.place.time_limit or ""
    limit, estimate = limit_hours(asked), hours_of(job)
    if limit is None or estimate is None or limit >= estimate.low:
        return
    stops, key = job.get("stop_minutes"), job.key("stop_minutes")
    if stops is not None and stops / 60 < limit:
        return  # it is meant to go on in another job
    goes_on = any(meaning.in_place for _, meaning in meanings(job.args))
    days, hours = divmod(int(estimate.high) + 1, 24)  # as Slurm is asked for them, rounded up
    remedy = f"Ask for {f'{days}-{hours:02d}' if days else hours}:00:00"
    remedy += f", or let it stop and go on: {key}." if key else "."
    yield Problem(
        key="executor.time",
        value=asked,
        cause=f"the job is estimated to take {estimate}",
        remedy=remedy,
        severity="error" if limit * _HOPELESS < estimate.low and not goes_on else "warning",
    )
