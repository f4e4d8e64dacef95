"""This machine: NeMo-Run's LocalExecutor, with the Python that submits."""

import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from executors.base import (
    AnyJob,
    Capabilities,
    JobState,
    Kind,
    Parallel,
    Place,
    Probe,
    Profile,
    SchedulerJob,
    SubmitError,
    own_variables,
    read_from,
    threads_beside,
)
from executors.constraints import key
from scripts.engines.installed import HF_PACKAGES, is_installed
from scripts.run.identity import is_alive, started_with, terminate, terminate_started_with
from scripts.run.problems import install
from scripts.run.record import DamagedRecordError, read_record

if TYPE_CHECKING:
    import nemo_run as run

_DIED = "its process ended without recording how: it was killed, or it crashed"


@dataclass(frozen=True, kw_only=True)
class LocalProfile(Profile):
    """Values of a `kind: local` profile. `secrets` need not be named: a job inherits the environment."""

    kind: Literal["local"] = "local"
    parallel: Parallel = key("auto", least=1)


class LocalPlace(Place):
    """This machine as a place to run."""

    runs_here = True
    capabilities = Capabilities(local_files=True, reads_run_dir=True)
    parallel = Place.from_profile("parallel")

    def __init__(self, profile: LocalProfile) -> None:
        self.profile: LocalProfile = profile
        #: By the handle of an attempt's job: only who started it can ask NeMo-Run about it.
        self._experiments: dict[str, Any] = {}

    def secret(self, name: str) -> Literal["given", "unset"]:
        return "given" if os.environ.get(name) else "unset"

    def breaks_on(self, home: str) -> str:
        return ""

    def executor(self, job: AnyJob | None) -> "run.LocalExecutor":
        import nemo_run as run

        # NeMo-Run starts the `python` and `torchrun` that it finds on PATH; those of the interpreter that
        # submits come first there, so that a job of an environment that was never activated runs inside it.
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
        env = {"PATH": path, **self.profile.env}
        if job is None:
            return run.LocalExecutor(env_vars=env)
        env |= self._variables(job)
        launcher = "torchrun" if job.ranked else None
        return run.LocalExecutor(ntasks_per_node=job.processes, launcher=launcher, env_vars=env)

    def _variables(self, job: AnyJob) -> dict[str, str]:
        """Its own, and its share of a machine on which it has others beside it."""
        said = {**os.environ, **self.profile.env}
        shares = {name: n for name, n in threads_beside(self.profile.parallel).items() if name not in said}
        shares |= {"CUDA_VISIBLE_DEVICES": ",".join(job.devices)} if job.devices else {}
        return own_variables(job, self.profile) | shares

    def text(self, experiment: Any, job: AnyJob) -> str:
        request = experiment.jobs[0]._dryrun_info.request
        (replica,) = (replica for replicas in request.role_params.values() for replica in replicas)
        own = {**self.profile.env, **self._variables(job)}
        return json.dumps({"command": replica.args, "env": own}, indent=2, ensure_ascii=False)

    def expected(self, experiment: Any, job: AnyJob) -> SchedulerJob | None:
        return None  # the job says itself, in its run directory, that it is there

    def submit(self, experiment: Any, job: AnyJob) -> SchedulerJob:
        try:
            experiment.run()
        except OSError:
            raise  # it has a name of its own: a disk that is full, a folder that may not be written
        except Exception as error:
            raise SubmitError("launch_failed", f"{type(error).__name__}: {error}") from error
        handle = experiment.jobs[0].handle
        self._experiments[handle] = experiment
        return SchedulerJob.of(job, handle, str(Path(experiment._exp_dir) / job.recipe))

    def states(self, jobs: Sequence[SchedulerJob]) -> dict[str, JobState | None]:
        """NeMo-Run's answer in the process that started the job; elsewhere None, and the record decides."""
        return {job.run_id: self._state(job) for job in jobs}

    def _state(self, job: SchedulerJob) -> JobState | None:
        experiment = self._experiments.get(job.id)
        if experiment is None:
            return None
        said = self._said(experiment)
        if said is not None and (said.state != "failed" or self._owner(job) is None):  # else its launcher alone is gone
            return said
        # Where NeMo-Run cannot write down an end, as on a full disk, it takes the job for running for ever.
        lives = self._owner(job) is not None or job.run_dir in started_with("NEMO_RUN_DIR")
        return JobState(state="running") if lives else self._said(experiment) or self._left(job)

    def _said(self, experiment: Any) -> JobState | None:
        """How NeMo-Run saw the job's launcher end; None before."""
        known: dict[str, JobState] = {
            "SUCCEEDED": JobState(state="succeeded"),
            "FAILED": JobState(state="failed", name="job_died", detail=_DIED),
            "CANCELLED": JobState(state="cancelled"),
        }
        return known.get(experiment.jobs[0].status(experiment._runner).name)

    def _owner(self, job: SchedulerJob) -> dict[str, Any] | None:
        """The process that records the job, if it lives. Until the job has begun the record is its submitter's."""
        with suppress(DamagedRecordError):
            record = read_record(Path(job.run_dir))
            owner: dict[str, Any] = record["process"]
            if "started_at" in record and is_alive(owner, Path(job.run_dir) / "heartbeat"):
                return owner
        return None

    def _left(self, job: SchedulerJob) -> JobState:
        """How a job has ended that is gone: it succeeded if it says so.

        Rank 0 says `cancelled` when somebody asked for that, and also when its launcher stops it for another rank's
        end: who knows whether anybody asked tells the two apart.
        """
        with suppress(DamagedRecordError):
            if read_record(Path(job.run_dir))["state"] == "succeeded":
                return JobState(state="succeeded")
        return JobState(state="failed", name="job_died", detail=_DIED)

    def log(self, job: SchedulerJob, name: str, offset: int) -> bytes:
        own = Path(job.run_dir) / "logs" / name
        launcher = () if os.path.lexists(own) else Path(job.folder).glob("nemo_run/*/*/0/combined.log")
        return read_from(max(launcher, key=lambda file: file.stat().st_mtime, default=own), offset)

    def cancel(self, job: SchedulerJob) -> None:
        """SIGTERM to the job's process; it records that it was cancelled."""
        experiment, owner = self._experiments.get(job.id), self._owner(job)
        if experiment is not None and (self._said(experiment) is None or owner is None):
            experiment.cancel(experiment.jobs[0].id)
        elif owner is not None:
            terminate(owner)
        else:
            terminate_started_with("NEMO_RUN_DIR", job.run_dir)  # it has not begun to record itself

    def probes(self) -> Iterator[Probe]:
        missing = [name for name in HF_PACKAGES if not is_installed(name)]
        detail = f"{sys.executable} lacks {', '.join(missing)}" if missing else sys.executable
        yield Probe("packages", not missing, detail, install("hf"))
        root = Path(self.run_root())
        existing = next(parent for parent in (root, *root.parents) if parent.exists())
        detail, remedy = f"{root}, in {existing}", "Set output_root, or NEMORUN_HOME."
        yield Probe("output_root", os.access(existing, os.W_OK), detail, remedy)
        free = shutil.disk_usage(existing).free
        yield Probe("disk", free > 1 << 30, f"{free / 1e9:.1f} GB free", "Free some space.")


KIND = Kind(profile=LocalProfile, place=LocalPlace)
