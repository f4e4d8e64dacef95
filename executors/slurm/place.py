"""A Slurm cluster, from its login node or over SSH: NeMo-Run's SlurmExecutor, with values that arrive as written."""

import dataclasses
import getpass
import json
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from zlib import crc32

from executors.base import AnyJob, Capabilities, JobState, Mount, Place, Probe, SchedulerJob, UnreachableError
from executors.packaging.code import packager_of
from executors.shell import Shell
from executors.slurm.jobs import is_unknown, job_states, raw_id, row_of
from executors.slurm.probes import probes
from executors.slurm.profile import SlurmProfile, contradictions, root_folder, sbatch_values
from executors.slurm.script import (
    RENDEZVOUS_PORT,
    container_env,
    container_image,
    container_mounts,
    other_runs,
    quote,
    setup_lines,
)
from executors.slurm.submit import script_of, submit, unnumbered
from scripts.run.problems import JobError, Problem

if TYPE_CHECKING:
    import nemo_run as run

_LOG = """
file="$1"
if [ ! -f "$file" ]; then
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
    def shell(self) -> Shell:
        """The login node."""
        profile = self.profile
        return Shell(host=profile.host, user=profile.user, port=profile.port, identity=profile.identity)

    def problems(self) -> list[Problem]:
        return [*super().problems(), *contradictions(self.profile)]

    @property
    def image(self) -> str | None:
        return self.profile.image

    @property
    def time_limit(self) -> str | None:
        return self.profile.time

    @property
    def setup(self) -> dict[str, list[str]]:
        return {"setup": self.profile.setup}

    def mounts(self, run_dir: str | Path) -> tuple[Mount, ...] | None:
        if self.profile.image is None:
            return None
        others = other_runs(self.profile, posixpath.dirname(str(run_dir)))
        return (*Mount.parse_all([*others, *self.profile.mounts]), Mount.same(run_dir))

    def run_root(self) -> str:
        return self.profile.output_root or posixpath.join(root_folder(self.profile), "runs")

    def secrets_path(self, run_id: str) -> str | None:
        # A folder for each run: it is mounted into the container, and holds no other run's.
        return posixpath.join(root_folder(self.profile), ".secrets", run_id, "secrets.json")

    def executor(self, launch: AnyJob | None) -> "run.SlurmExecutor":
        return _executor(self.profile, launch)

    def text(self, experiment: Any, launch: AnyJob) -> str:
        return script_of(experiment)

    def stage(self, files: Mapping[str, bytes]) -> None:
        self.shell.store(files)

    def unstage(self, paths: Sequence[str]) -> None:
        self.shell.remove(paths)

    def expected(self, experiment: Any, launch: AnyJob) -> SchedulerJob:
        return unnumbered(experiment, launch)

    def submit(self, experiment: Any, launch: AnyJob) -> SchedulerJob:
        return submit(self.profile, self.shell, experiment, launch)

    def states(self, jobs: Sequence[SchedulerJob]) -> dict[str, JobState | None]:
        return job_states(self.shell, jobs)

    def records(self, jobs: Sequence[SchedulerJob]) -> dict[str, dict[str, Any]]:
        texts = self.shell.read([posixpath.join(job.run_dir, "run.json") for job in jobs])
        found = {}
        for job, text in zip(jobs, texts, strict=False):
            try:
                value = json.loads(text)
            except ValueError:
                continue
            if isinstance(value, dict):
                found[job.run_id] = value
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


def _executor(profile: SlurmProfile, launch: AnyJob | None) -> "run.SlurmExecutor":
    import nemo_run as run

    fields = {item.name for item in dataclasses.fields(run.SlurmExecutor)}
    # sbatch reads a backslash in its #SBATCH lines as an escape, even inside the quotes that NeMo-Run adds.
    values = {k: v.replace("\\", "\\\\") if isinstance(v, str) else v for k, v in sbatch_values(profile).items()}
    others = {key: value for key, value in values.items() if key not in fields}
    nodes = launch.nodes if launch else profile.nodes or 1
    srun_args = list(profile.srun_args)
    if launch is not None:
        if launch.waits_for:
            others["dependency"] = f"{profile.dependency_type}:{':'.join(launch.waits_for)}"
            others["kill_on_invalid_dep"] = "yes"
        if not launch.ranked and nodes > 1:
            srun_args += ["--nodes=1", "--ntasks=1"]
    if profile.workdir:
        srun_args += ["env", f"--chdir={profile.workdir}"]  # the last thing before the job's command
    torchrun = launch is not None and launch.ranked
    image = container_image(profile)
    return run.SlurmExecutor(
        **{"account": None, "time": None, **{key: value for key, value in values.items() if key in fields}},
        nodes=nodes,
        ntasks_per_node=launch.processes if launch is not None and torchrun else 1,
        launcher=_torchrun(launch) if launch is not None and torchrun else None,
        job_name_prefix=f"{launch.id}." if launch else None,
        array=f"0-{launch.array - 1}" if launch and launch.array else None,
        retries=profile.retries,
        dependency_type=profile.dependency_type,
        # NeMo-Run means to quote srun's words, and does not.
        container_image=None if image is None else quote(image),
        container_mounts=[quote(mount) for mount in container_mounts(profile, launch)],
        container_env=container_env(profile, launch) if profile.image else None,
        setup_lines=setup_lines(profile, launch),
        srun_args=[quote(word) for word in srun_args],
        additional_parameters=others or None,
        packager=packager_of(launch),
        tunnel=_tunnel(profile),
        poll_estimated_start_time=False,  # a thread that prints to the terminal
    )


def _torchrun(launch: AnyJob) -> "run.Torchrun":
    import nemo_run as run

    # NeMo-Run writes the port into the script as it is: an expression that each job evaluates.
    return run.Torchrun(rdzv_port=RENDEZVOUS_PORT, rdzv_id=crc32(launch.id.encode()))


def _tunnel(profile: SlurmProfile) -> "run.SSHTunnel | run.LocalTunnel":
    import nemo_run as run

    experiments = posixpath.join(profile.job_dir, "experiments") if profile.job_dir else ""
    if profile.host is None:
        return run.LocalTunnel(job_dir=str(Path(experiments).expanduser()) if experiments else "")
    return run.SSHTunnel(
        host=profile.host,
        user=profile.user or getpass.getuser(),
        port=profile.port,
        identity=str(Path(profile.identity).expanduser()) if profile.identity else None,
        job_dir=experiments,
    )
