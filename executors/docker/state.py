"""How a job ended: what its command left in logs/, read together with what the engine remembers."""

import json
from pathlib import Path

from executors.base import JobState, SchedulerJob

#: In logs/ of the run directory: what the job printed, its exit status, and whether it was to end before its time.
LOG, STATUS, CANCELLED = "launcher.log", "launcher.status", "launcher.cancelled"


def exit_status(job: SchedulerJob) -> int | None:
    """The exit status that the job's command left; None before, and for one that was killed with its container."""
    try:
        return int(json.loads((Path(job.run_dir) / "logs" / STATUS).read_text(encoding="utf-8"))["exit_code"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def ended(job: SchedulerJob, code: int | None, out_of_memory: bool) -> JobState | None:
    cancelled = (Path(job.run_dir) / "logs" / CANCELLED).exists()
    if code is None:
        return JobState(state="cancelled", detail="its container was removed") if cancelled else None
    if code == 0:
        return JobState(state="succeeded")
    detail = f"exit status {code}"
    if cancelled:
        return JobState(state="cancelled", detail=detail)
    if out_of_memory:
        return JobState(state="failed", name="out_of_memory", detail=f"{detail}; the kernel killed it for memory")
    if code in (130, 143):
        return JobState(state="cancelled", detail=f"{detail}: SIG{'INT' if code == 130 else 'TERM'}")
    if code == 137:
        return JobState(state="failed", name="killed", detail=f"{detail}: SIGKILL")
    return JobState(state="failed", name="job_failed", detail=detail)
