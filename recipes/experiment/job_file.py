"""job.json: what the submitting machine keeps of a job that it handed over, read with a schema and believed in part."""

import re
from collections.abc import Mapping
from typing import Any

from executors.base import SchedulerJob
from recipes.experiment.job import Job
from recipes.experiment.store import RunFolder
from scripts.run import schema
from scripts.run.problems import JobError

#: What changes while a run goes on.
FLAGS = ("submitting", "supervisor", "cancel_asked", "settled")
#: What reading a file that somebody damaged can raise.
DAMAGE = (OSError, ValueError, TypeError, KeyError, AttributeError, JobError)

#: job.json, as far as somebody relies on it.
_JOB = {
    **dict.fromkeys(("name", "recipe", "algorithm", "executor", "run_dir"), str),
    **{"id": schema.run_id, "engine": (str, None), "secrets": (str, None), "archive": (str, None)},
    **{"nodes": int, "processes": int, "array": int, "ranked": bool, "force_squash": bool, "online": bool},
    "values": {"args": (dict, None), "script": (dict, None), "torchrun": (dict, None), "extra_args": [str]},
    **{"pipeline?": (schema.run_id, None), "stands?": dict, "fingerprint?": (dict, None)},
    "needs?": (dict.fromkeys(("memory", "cores", "gpus"), int), None),
    "request?": ({"values": dict, "executor": dict, "after": dict}, None),
    **{"profile": dict, "resolved": (dict, None), "promised": [str], "given": [str]},
    **{"after": [schema.run_id], "waits_for": [str], "warnings": [dict], "skipped": [dict]},
}
_JOB_FILE = {
    **{"job": _JOB, "scheduler": (dict.fromkeys(("run_id", "id", "run_dir", "folder"), str), None)},
    **{"submitting": bool, "supervisor": (schema.IDENTITY, None), "cancel_asked": bool, "settled": bool},
}


def job_file(folder: RunFolder, record: Mapping[str, Any]) -> dict[str, Any]:
    """What job.json holds; one that was written before it held a whole job, as today's would be."""
    data = schema.read(folder.job)
    if "launch" in data:
        launch = data["launch"]
        same = ("nodes", "processes", "run_dir", "secrets", "archive", "array", "force_squash")
        job = {
            **{"id": launch["run_id"], "name": launch["task"], "recipe": launch["task"], "ranked": launch["torchrun"]},
            **{name: launch[name] for name in same},
            **{"executor": data["executor"], "profile": data["profile"], "after": data["after"], "waits_for": []},
            **{"algorithm": record.get("algorithm", ""), "engine": None, "values": record.get("values")},
            **{"resolved": None, "online": True, "promised": [], "given": [], "skipped": []},
            **{"warnings": record.get("warnings", [])},
        }
        data = {"job": job, "scheduler": data["job"], **{name: data[name] for name in FLAGS}}
    found: dict[str, Any] = schema.fitting(data, _JOB_FILE)
    return found


def own_job(folder: RunFolder, data: Mapping[str, Any]) -> Job:
    """The job of job.json, which names nothing that this product would not have named. Raises ValueError."""
    job, attempt = Job.from_data(data["job"]), re.escape(folder.id) + r"(-r\d+)?"
    if not re.fullmatch(attempt, job.id) or not re.fullmatch(attempt, job.run_dir.name):
        raise ValueError(f"job.id {job.id} and job.run_dir {job.run_dir} are not this run's")
    if job.archive is not None and job.archive.name != folder.archive.name:
        raise ValueError(f"job.archive {job.archive} is no packaged code")
    patterns = [re.escape(path) for one in (folder.id, job.id) if (path := job.place.secrets_path(one))]
    if array := job.place.secrets_path("ARRAY"):  # an element's lie beside those of the others
        patterns.append(re.escape(array).replace("ARRAY", r"[\w.-]+-array") + r"\.\d+")
    own = any(re.fullmatch(pattern, job.secrets or "") for pattern in patterns)
    return job if own else job.noting(secrets=None)


def flags_of(data: Mapping[str, Any], job: Job | None) -> dict[str, Any]:
    """Of job.json, what changes while the run goes on. Raises ValueError."""
    scheduled = SchedulerJob(**data["scheduler"]) if data["scheduler"] else None
    own = scheduled is None or job is None or scheduled.run_dir == str(job.run_dir)
    if not own or (scheduled and job and not re.fullmatch(job.place.job_ids, scheduled.id)):
        raise ValueError(f"scheduler {data['scheduler']} is not this run's")
    return {"scheduled": scheduled, **{name: data[name] for name in FLAGS}}
