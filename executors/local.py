"""This machine: NeMo-Run's LocalExecutor, with the Python that submits."""

import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from executors.base import (
    AnyJob,
    Capabilities,
    JobState,
    Kind,
    Place,
    Probe,
    Profile,
    SchedulerJob,
    SubmitError,
)
from scripts.run.identity import is_alive
from scripts.run.record import DamagedRecordError, read_record
from scripts.run.secrets import VARIABLE as SECRETS

if TYPE_CHECKING:
    import nemo_run as run

_DIED = "its process ended without recording how: it was killed, or it crashed"
_PACKAGES = ("torch", "transformers", "modelopt", "datasets")


@dataclass(frozen=True, kw_only=True)
class LocalProfile(Profile):
    """Values of a `kind: local` profile. `secrets` need not be named: a job inherits the environment."""

    kind: Literal["local"] = "local"


class LocalPlace(Place):
    """This machine as a place to run."""

    runs_here = True
    capabilities = Capabilities(
        detach="supervisor",
        dependencies="supervisor",
        arrays=False,
        multi_node=False,
        containers=False,
        local_files=True,
        reads_run_dir=True,
    )

    def __init__(self, profile: LocalProfile) -> None:
        self.profile: LocalProfile = profile
        self._experiments: dict[str, Any] = {}  # only the process that started a job can ask NeMo-Run about it

    def secret(self, name: str) -> Literal["given", "unset"]:
        return "given" if os.environ.get(name) else "unset"

    def breaks_on(self, home: str) -> str:
        return ""

    def run_root(self) -> str:
        from nemo_run.config import get_nemorun_home

        return str(Path(self.profile.output_root or f"{get_nemorun_home()}/runs").expanduser().absolute())

    def secrets_path(self, run_id: str) -> str | None:
        return None  # inherited

    def executor(self, launch: AnyJob | None) -> "run.LocalExecutor":
        import nemo_run as run

        # NeMo-Run starts the `python` and `torchrun` that it finds on PATH; those of the interpreter that
        # submits come first there, so that a job of an environment that was never activated runs inside it.
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
        env = {"PATH": path, **self.profile.env}
        if launch is None:
            return run.LocalExecutor(env_vars=env)
        env["NEMO_RUN_DIR"] = str(launch.run_dir)
        if launch.secrets:
            env[SECRETS] = launch.secrets
        launcher = "torchrun" if launch.ranked else None
        return run.LocalExecutor(ntasks_per_node=launch.processes, launcher=launcher, env_vars=env)

    def text(self, experiment: Any, launch: AnyJob) -> str:
        request = experiment.jobs[0]._dryrun_info.request
        (replica,) = (replica for replicas in request.role_params.values() for replica in replicas)
        own = {**self.profile.env, "NEMO_RUN_DIR": str(launch.run_dir)}
        return json.dumps({"command": replica.args, "env": own}, indent=2, ensure_ascii=False)

    def expected(self, experiment: Any, launch: AnyJob) -> SchedulerJob | None:
        return None  # the job says itself, in its run directory, that it is there

    def submit(self, experiment: Any, launch: AnyJob) -> SchedulerJob:
        try:
            experiment.run()
        except Exception as error:
            raise SubmitError("launch_failed", f"{type(error).__name__}: {error}") from error
        self._experiments[launch.id] = experiment
        folder = str(Path(experiment._exp_dir) / launch.recipe)
        return SchedulerJob(run_id=launch.id, id=experiment.jobs[0].handle, run_dir=str(launch.run_dir), folder=folder)

    def states(self, jobs: Sequence[SchedulerJob]) -> dict[str, JobState | None]:
        """NeMo-Run's answer in the process that started the job; elsewhere None, and the record decides."""
        return {job.run_id: self._state(job) for job in jobs}

    def _state(self, job: SchedulerJob) -> JobState | None:
        experiment = self._experiments.get(job.run_id)
        if experiment is None:
            return None
        state = experiment.jobs[0].status(experiment._runner).name
        known: dict[str, JobState] = {
            "SUCCEEDED": JobState(state="succeeded"),
            "FAILED": JobState(state="failed", name="job_died", detail=_DIED),
            "CANCELLED": JobState(state="cancelled"),
        }
        return known.get(state, JobState(state="running"))

    def cancel(self, job: SchedulerJob) -> None:
        """SIGTERM to the job's process; it records that it was cancelled."""
        experiment = self._experiments.get(job.run_id)
        if experiment is not None:
            experiment.cancel(experiment.jobs[0].id)
            return
        with suppress(DamagedRecordError, ProcessLookupError):
            owner = read_record(Path(job.run_dir))["process"]
            if is_alive(owner, Path(job.run_dir) / "heartbeat"):
                os.kill(owner["pid"], signal.SIGTERM)

    def probes(self) -> Iterator[Probe]:
        missing = [name for name in _PACKAGES if util.find_spec(name) is None]
        detail = f"{sys.executable} lacks {', '.join(missing)}" if missing else sys.executable
        remedy = 'pip install "modelopt-recipes[hf]"'
        yield Probe(name="packages", passed=not missing, detail=detail, remedy=remedy)
        root = Path(self.run_root())
        existing = next(parent for parent in (root, *root.parents) if parent.exists())
        writable = os.access(existing, os.W_OK)
        remedy = "Set output_root, or NEMORUN_HOME."
        yield Probe(name="output_root", passed=writable, detail=f"{root}, in {existing}", remedy=remedy)
        free = shutil.disk_usage(existing).free
        yield Probe(name="disk", passed=free > 1 << 30, detail=f"{free / 1e9:.1f} GB free", remedy="Free some space.")


KIND = Kind(profile=LocalProfile, place=LocalPlace)
