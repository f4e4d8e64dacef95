"""NVIDIA DGX Cloud Lepton: NeMo-Run's LeptonExecutor, without its second job, its downloads and its name clashes.

NeMo-Run packages and keeps its books; the submission itself is ours. It carries the package inside the
job, so that one call to the service is the whole of it, and the job's name is unique to the run.
"""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from executors.base import (
    AnyJob,
    Capabilities,
    JobState,
    Mount,
    Place,
    Probe,
    SchedulerJob,
    SubmitError,
    UnreachableError,
    job_variables,
)
from executors.lepton.api import LeptonApi, NameTakenError, NotThereError, may_have_happened
from executors.lepton.job import job_name, job_specification, launch_script, pack, readable, stock_rendezvous, too_large
from executors.lepton.probes import probe_workspace
from executors.lepton.profile import LeptonProfile, secret_references
from executors.packaging.code import packager_of
from scripts.run.record import DamagedRecordError, as_record

if TYPE_CHECKING:
    import nemo_run as run
    from leptonai.api.v1.types.job import LeptonJob, LeptonJobStatus

#: Has the job print its final record into the log: its run directory cannot be read from here.
_PRINT_RECORD = "MODELOPT_RECIPES_PRINT_RECORD"
_RECORD_LINE = b"run.json: "
_WAITING = frozenset({"Starting", "Queueing", "Awaiting", "Restarting", "PendingRetry"})
_ENDED_BY_HAND = frozenset({"Stopped", "Stopping", "Deleting", "Deleted"})
_FEW = 3  # jobs asked for one by one; more are looked up in one list
#: Values that NeMo-Run's executor calls as the profile does.
_ALIKE = (
    "nemo_run_dir", "node_group", "resource_shape", "node_reservation", "shared_memory_size", "image_pull_secrets",
    "queue_priority", "can_be_preempted", "can_preempt",
)  # fmt: skip


@dataclass(frozen=True)
class LeptonPlace(Place):
    """A Lepton node group as a place to run."""

    profile: LeptonProfile
    api: LeptonApi = field(default_factory=LeptonApi)
    expects_gpus: ClassVar[bool] = True
    has_one_log: ClassVar[bool] = True
    reserved: ClassVar[frozenset[str]] = Place.reserved | {_PRINT_RECORD}
    capabilities = Capabilities(detach="native", multi_node=True, containers=True)
    job_ids: ClassVar[str] = r"\w[\w.-]*"
    image = Place.from_profile("image")
    gpus = Place.from_profile("gpus")
    node_shape = Place.from_profile("resource_shape")

    @property
    def setup(self) -> dict[str, list[str]]:
        return {"pre_launch": self.profile.pre_launch}

    def mounts(self, run_dir: str | Path) -> tuple[Mount, ...]:
        return tuple(
            Mount(
                source=str(mount.get("from")),
                target=str(mount["mount_path"]),
                flags="ro" if isinstance(how := mount.get("mount_options"), dict) and how.get("read_only") else "",
            )
            for mount in self.profile.mounts
            if mount.get("mount_path")
        )

    def mount_remedy(self, path: str) -> str:
        return "Name a folder below the mount_path of one of executor.mounts, or mount its storage there."

    def secret(self, name: str) -> Literal["given", "unlisted"]:
        return "given" if name in self.profile.secrets else "unlisted"  # the workspace keeps them

    def secret_remedy(self, name: str) -> str:
        return f"make a secret {name} in the workspace and add {name} to executor.secrets."

    def run_root(self) -> str:
        return self.profile.run_folders or str(PurePosixPath(self.profile.nemo_run_dir) / "runs")

    def executor(self, job: AnyJob | None) -> "run.LeptonExecutor":
        import nemo_run as run

        profile = self.profile
        values: dict[str, Any] = {name: getattr(profile, name) for name in _ALIKE}
        if job is None:
            values |= {"nodes": profile.nodes or 1, "gpus_per_node": profile.gpus, "env_vars": dict(profile.env)}
            values["pre_launch_commands"] = [stock_rendezvous(), *profile.pre_launch]
        else:
            # gpus_per_node would go before nprocs_per_node as the number of processes; the shape has the GPUs.
            values |= {"nodes": job.nodes, "nprocs_per_node": job.processes, "gpus_per_node": 0}
            values |= {"env_vars": self._environment(job), "packager": packager_of(job)}
            values |= {"launcher": "torchrun"} if job.ranked else {}
        values["mounts"] = [dict(mount) for mount in profile.mounts]
        return run.LeptonExecutor(container_image=profile.image, secret_vars=secret_references(profile), **values)

    def text(self, experiment: Any, job: AnyJob) -> str:
        """The API call's JSON, then the launch script from inside the package. Reaches nothing.

        Two things are named instead of shown: the pieces of the package, and the id of the node group,
        which only the service knows.
        """
        task = experiment.jobs[0]
        executor = task.executor
        made_here = not Path(executor.experiment_dir).exists()
        try:
            if made_here:
                experiment.dryrun(log=False, delete_exp_dir=False)
            _package(executor)
            script = self._script(job, task._dryrun_info.request.cmd)
            package = pack(Path(executor.job_dir), script)
        finally:
            if made_here:
                shutil.rmtree(executor.experiment_dir, ignore_errors=True)
        group = f"<id of node group {self.profile.node_group}>"
        specification = job_specification(self.profile, job, self._environment(job), package, group)
        text = f"{json.dumps(readable(specification), indent=2)}\n\n# launch.sh, in the package:\n{script}"
        if error := too_large(package):
            error.text = text
            raise error
        return text

    def refused_code(self, archive: bytes) -> SubmitError | None:
        return too_large(archive)  # what a job carries holds the same, and its scripts

    def expected(self, experiment: Any, job: AnyJob) -> SchedulerJob:
        return SchedulerJob.of(job, job_name(job.id), "/nemo_run")

    def submit(self, experiment: Any, job: AnyJob) -> SchedulerJob:
        executor = experiment.jobs[0].executor
        created: list[str] = []

        def launch(name: str, cmd: list[str]) -> tuple[str, str]:
            package = pack(Path(executor.job_dir), self._script(job, cmd))
            if error := too_large(package):
                raise error
            created.append(str(self._create(job, package).metadata.id_))
            return created[0], "Starting"

        # Of this one executor. NeMo-Run's own `package` reads the terminal's input and takes a path with a
        # space for two; its own `launch` moves the package by another job.
        executor.package = lambda packager, job_name: _package(executor)
        executor.launch = launch
        try:
            experiment.run(detach=True)
        except UnreachableError as error:
            raise SubmitError(error.name, error.cause, error.remedy) from error
        except Exception:
            if not created:
                raise
            # The job is there. NeMo-Run failed only to note it in books of its own, which nothing of ours reads.
        return replace(self.expected(experiment, job), id=created[0])

    def states(self, jobs: Sequence[SchedulerJob]) -> dict[str, JobState | None]:
        listed = {} if len(jobs) <= _FEW else {job.metadata.id_: job for job in self.api.jobs()}
        states: dict[str, JobState | None] = {}
        for job in jobs:
            known = listed.get(job.id) or self.api.job(job.id)  # an archived one is in no list
            states[job.run_id] = _state(known.status) if known and known.status else None
        return states

    def records(self, jobs: Sequence[SchedulerJob]) -> dict[str, dict[str, Any]]:
        """From the logs of those that have ended: a job prints its final record as one line."""
        states = self.states(jobs)
        found = {}
        for job in jobs:
            state = states[job.run_id]
            if state and state.state in ("succeeded", "failed", "cancelled"):
                record = _last_record(self.api.log(job.id, 0, 0, whole=True), PurePosixPath(job.run_dir).name)
                if record:
                    found[job.run_id] = record
        return found

    def log(self, job: SchedulerJob, name: str, offset: int) -> bytes:
        """What a whole node printed: `rank0.log` is the first one's, `node<N>.log` any other's."""
        match = re.fullmatch(r"(rank0|node(\d+))\.log", name)
        if not match:
            return b""
        printed = self.api.log(job.id, int(match[2] or 0), 0)
        return re.sub(rb"^run\.json: .*\n?", b"", printed, flags=re.MULTILINE)[offset:]  # for `records` alone

    def cancel(self, job: SchedulerJob) -> None:
        state = self.states([job])[job.run_id]
        if state and state.state in ("submitted", "running"):  # stopping an ended job might rename how it ended
            self.api.stop(job.id)

    def probes(self) -> Iterator[Probe]:
        yield from probe_workspace(self.profile, self.api, self.problems())

    def _environment(self, job: AnyJob) -> dict[str, str]:
        env = job_variables(job, self.profile, self.profile.env)
        path = env.pop("PYTHONPATH")
        return {**env, _PRINT_RECORD: "1", "PYTHONPATH": path}

    def _script(self, job: AnyJob, command: Sequence[str]) -> str:
        return launch_script(self.profile, job, self._environment(job), command)

    def _create(self, job: AnyJob, package: bytes) -> "LeptonJob":
        """Create the job, or take up the one that an attempt whose answer was lost has made."""
        group = self.api.node_group_id(self.profile.node_group)
        specification = job_specification(self.profile, job, self._environment(job), package, group)
        name = job_name(job.id)
        for last in self.api.attempts(self.api.tries):
            try:
                return self.api.create(specification)
            except NameTakenError as error:
                with suppress(NotThereError):
                    return self._own(name, job)
                raise SubmitError("name_taken", f"{error} (creating the job {name}).", "Submit again.") from error
            except NotThereError as error:
                raise SubmitError("lepton_refused", f"{error} (creating the job).", "Check the profile.") from error
            except UnreachableError as error:
                if not may_have_happened(error):
                    raise
                with suppress(NotThereError):
                    return self._own(name, job, after=error)
                if last:
                    raise
        raise AssertionError(self.api.tries)

    def _own(self, name: str, job: AnyJob, after: UnreachableError | None = None) -> "LeptonJob":
        """The job `name`, if it is this run's. Raises NotThereError, and SubmitError for another's or in doubt."""
        try:
            found = self.api.job(name, tries=1 if after and after.name == "lepton_timeout" else None)
        except UnreachableError as error:
            if after is None:
                raise
            cause = f"{after.cause} Whether job {name} was made all the same cannot be told: {error.cause}"
            remedy = f"See `lep job get --id {name}` before you submit again; `lep job remove --id {name}` removes it."
            raise SubmitError(after.name, cause, remedy) from error
        if found is None:
            raise NotThereError(name)
        if ("NEMO_RUN_DIR", str(job.run_dir)) not in {(env.name, env.value) for env in found.spec.envs or []}:
            cause = f"The workspace has another job {name}, which is not this run's."
            raise SubmitError("name_taken", cause, "Submit again; a new run gets a new name.")
        return found


def _package(executor: "run.LeptonExecutor") -> None:
    """Have the packager deliver the code, and lay it out in code/ of NeMo-Run's folder for the job."""
    code = Path(executor.job_dir) / "code"
    code.mkdir(exist_ok=True)
    archive = executor.packager.package(Path.cwd(), executor.job_dir, executor.job_name)
    if archive:
        subprocess.run(["tar", "-xzf", archive, "-C", str(code)], check=True, stdin=subprocess.DEVNULL)


def _state(status: "LeptonJobStatus") -> JobState | None:
    word = str(status.state.value if status.state else "UNK")
    workers = f"{word}: {status.ready} ready, {status.succeeded} succeeded, {status.failed} failed"
    if word in _WAITING:
        return JobState(state="submitted", detail=word)
    if word in _ENDED_BY_HAND:
        return JobState(state="cancelled", name="cancelled", detail=word)
    if word == "Archived" and not status.failed and not status.succeeded:
        return None  # it is over, and how is not known any more
    if word == "Completed" or (word == "Archived" and not status.failed):
        return JobState(state="succeeded", detail=word)
    if word in ("Failed", "Archived"):
        return JobState(state="failed", name="job_failed", detail=workers)
    return JobState(state="running", detail=workers)  # a state newer than the SDK is not taken for an end


def _last_record(log: bytes, run_name: str) -> dict[str, Any] | None:
    """The record of the run `run_name` that a job printed last."""
    for line in reversed(log.splitlines()):
        if line.startswith(_RECORD_LINE):
            with suppress(DamagedRecordError):
                value = as_record(line[len(_RECORD_LINE) :], "run.json")
                if value.get("id") == run_name:
                    return value
    return None
