"""Whom a job is to tell of itself: whether it could, as far as that is known where it is submitted."""

import os
import re
from collections.abc import Iterator

from executors.base import Place
from recipes.experiment.job import Job
from scripts.engines.installed import is_installed
from scripts.run.problems import Problem, install
from scripts.run.registry import check
from scripts.tracking.known import MLFLOW_URI


@check("tool_not_installed")
def trackers_installed(job: Job) -> Iterator[Problem]:
    """Elsewhere a library may be there that is not here; a run whose tracker has none goes on."""
    if job.place.runs_here and (missing := [name for name in job.profile.track if not is_installed(name)]):
        cause = f"the job runs in this environment, which lacks {', '.join(missing)}"
        yield Problem(key="executor.track", value=missing, cause=cause, remedy=install("track"))


@check("tracker_not_set", can_force=True)
def mlflow_server(job: Job) -> Iterator[Problem]:
    """MLflow without an address writes to a folder where the job happens to be."""
    if "mlflow" in job.profile.track and not _has_address(job.place):
        cause = f"the job would not have {MLFLOW_URI}, which says where MLflow's server is"
        remedy = f"Put env: {{{MLFLOW_URI}: https://...}} into the profile"
        otherwise = ". Where an image sets it: --force tracker_not_set."
        remedy += ", or set it here." if job.place.runs_here else otherwise
        yield Problem(key="executor.track", value="mlflow", cause=cause, remedy=remedy)


@check("secret_in_env")
def password_in_address(job: Job) -> Iterator[Problem]:
    address = job.profile.env.get(MLFLOW_URI, "")
    if re.match(r"[^/]*//[^/@]*:[^/]*@", address):
        cause = "the address holds a password, and `env` is written to scripts and records"
        remedy = f"List its name instead: secrets: [{MLFLOW_URI}], and set it where you submit."
        yield Problem(key=f"executor.env.{MLFLOW_URI}", value=None, cause=cause, remedy=remedy)


def _has_address(place: Place) -> bool:
    stated = place.profile.env.get(MLFLOW_URI) or place.secret(MLFLOW_URI) == "given"
    said = any(MLFLOW_URI in line for lines in place.setup.values() for line in lines)
    return bool(stated or said or (place.runs_here and os.environ.get(MLFLOW_URI)))
