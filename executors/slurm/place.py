"""A Slurm cluster, from its login node or over SSH: NeMo-Run's SlurmExecutor, with values that arrive as written."""

import posixpath
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from executors.base import AnyJob, Capabilities, JobState, Mount, Place, Probe, SchedulerJob, UnreachableError
from executors.shell import Shell
from executors.slurm.jobs import JOB_IDS, is_unknown, job_states, raw_id, row_of
from executors.slurm.probes import probes
from executors.slurm.profile import SlurmProfile, root_folder
from executors.slurm.script import build_executor, other_runs
from executors.slurm.submit import script_of, submit, unnumbered
from scripts.run.problems import JobError
from scripts.run.record import DamagedRecordError, as_record

if TYPE_CHECKING:
    import nemo_run as run

_LOG = """
file="$1"
if [ ! -f "$file" ] || [ -h "$file" ]; then
    file=$(ls -t -- "$2"/log-*_"$3"_*.out 2>/dev/null | head -n 1)
    [ -n "$file" ] || file=$(ls -t -- "$2"/sbatch_*_"$4".out 2>/dev/null | head -n 1)
    [ -n "$file" ] || exit 0
fi
tail -c +"$5" -- "$file"
"""


@dataclass(frozen=True, kw_only=True)
class SlurmPlace(Place):
    """A Slurm cluster that can act."""

    profile: SlurmProfile
    has_own_disks: ClassVar[bool] = True
    expects_gpus: ClassVar[bool] = True
    job_ids: ClassVar[str] = JOB_IDS
    image = Place.from_profile("image")
    gpus = Place.from_profile("gpus")
    time_limit = Place.from_profile("time")

    @property
    def capabilities(self) -> Capabilities:
        here = self.profile.host is None
        return Capabilities(
            detach="native",
            dependencies="native",
            arrays=True,
            multi_node=True,
            containers=True,
            local_files=here and self.profile.image is None,
            reads_run_dir=here,
        )

    @property
    def scheduler(self) -> tuple[Any, ...]:
        return (self.profile.kind, self.profile.host, self.profile.port, self.profile.user)

    @property
    def connection(self) -> tuple[Any, ...]:
        return (*self.scheduler, self.profile.identity)

    @property
    def shell(self) -> Shell:
        """The login node."""
        profile = self.profile
        return Shell(host=profile.host, user=profile.user, port=profile.port, identity=profile.identity)

    @property
    def setup(self) -> dict[str, list[str]]:
        return {"setup": self.profile.setup}

    def mounts(self, run_dir: str | Path) -> tuple[Mount, ...] | None:
        if self.profile.image is None:
            return None
        others = other_runs(self.profile, posixpath.dirname(str(run_dir)))
        return (*Mount.parse_all([*others, *self.profile.mounts]), Mount.same(run_dir))

    def run_root(self) -> str:
        return self.profile.run_folders or posixpath.join(root_folder(self.profile), "runs")

    def secrets_path(self, run_id: str) -> str | None:
        # A folder for each run: it is mounted into the container, and holds no other run's.
        return posixpath.join(root_folder(self.profile), ".secrets", run_id, "secrets.json")

    def executor(self, job: AnyJob | None) -> "run.SlurmExecutor":
        return build_executor(self.profile, job)

    def text(self, experiment: Any, job: AnyJob) -> str:
        return script_of(experiment)

    def stage(self, files: Mapping[str, bytes]) -> None:
        self.shell.store(files)

    def unstage(self, paths: Sequence[str]) -> None:
        self.shell.remove(paths)

    def expected(self, experiment: Any, job: AnyJob) -> SchedulerJob:
        return unnumbered(experiment, job)

    def submit(self, experiment: Any, job: AnyJob) -> SchedulerJob:
        return submit(self.profile, self.shell, experiment, job)

    def states(self, jobs: Sequence[SchedulerJob]) -> dict[str, JobState | None]:
        return job_states(self.shell, jobs)

    def records(self, jobs: Sequence[SchedulerJob]) -> dict[str, dict[str, Any]]:
        texts = self.shell.read([posixpath.join(job.run_dir, "run.json") for job in jobs])
        found = {}
        for job, text in zip(jobs, texts, strict=False):
            with suppress(DamagedRecordError):
                found[job.run_id] = as_record(text, job.run_dir)
        return found

    def log(self, job: SchedulerJob, name: str, offset: int) -> bytes:
        shell = self.shell
        own = posixpath.join(job.run_dir, "logs", name)
        raw = raw_id(shell, job)
        return shell.sh(_LOG, own, job.folder, raw, raw if is_unknown(job) else job.id, str(offset + 1)).out

    def cancel(self, job: SchedulerJob) -> None:
        shell, target = self.shell, job.id
        if is_unknown(job):
            row = row_of(shell, job)
            if row is None:
                return
            target = row.id
        # The script asks for another attempt when its command fails, which it does when it is cancelled.
        script = 'scontrol update JobId="$1" Requeue=0 2>/dev/null; scancel "$1"'
        answer = shell.sh(script, target)
        if answer.code and "Invalid job id" not in answer.err and "already completing" not in answer.err:
            if "Unable to contact" in answer.err or "timed out" in answer.err:
                raise UnreachableError("slurm_down", f"job {target} goes on: {answer.last_words}", "Try again later.")
            cause = f"Slurm did not cancel {target}: {answer.last_words}"
            raise JobError("cancel_failed", cause, f"Try: scancel {target}")

    def probes(self) -> Iterator[Probe]:
        return probes(self.profile, self.shell, root_folder(self.profile), self.run_root())
