"""Hand an experiment to Slurm through NeMo-Run, and find out what became of it when that fails.

NeMo-Run reaches the cluster through its tunnel's `session`. It gets one of ours: the `ssh` command
in place of paramiko, which checks no host key, asks for passwords and ends the process; and sbatch
without the submitter's secrets, because Slurm keeps a job's environment in its state folder.
"""

import io
import os
import posixpath
import shlex
import shutil
import time
from collections.abc import Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from executors.base import AnyJob, SchedulerJob, SubmitError, UnreachableError
from executors.shell import Answer, Shell
from executors.slurm.jobs import UNKNOWN_ID, job_name, row_of, unfit_parent
from executors.slurm.profile import SlurmProfile, sbatch_values

#: A submission whose answer was lost may still be on its way; its sbatch is given this long.
_SETTLE_SECONDS = 20.0
_POLL_SECONDS = 0.5
#: sbatch reads these too, and they count more than the script. The first are of what each job has of its own.
_OF_EVERY_JOB = ("JOB_NAME", "ARRAY_INX", "OPEN_MODE", "OUTPUT", "ERROR", "INPUT", "WAIT", "NO_REQUEUE", "REQUEUE")
_OF_A_KEY = {
    "account": ("ACCOUNT",),
    "partition": ("PARTITION",),
    "qos": ("QOS",),
    "time": ("TIMELIMIT",),
    "exclusive": ("EXCLUSIVE",),
    "constraint": ("CONSTRAINT",),
    "reservation": ("RESERVATION",),
    "gres": ("GRES",),
    "gpus_per_node": ("GPUS", "GPUS_PER_NODE"),
    "mem": ("MEM_PER_NODE", "MEM_PER_CPU", "MEM_PER_GPU"),
    "export": ("EXPORT",),
}
#: sbatch's words, and what they mean for whoever submits.
_REFUSALS = (
    ("Invalid account", "invalid_account", "Set executor.account and executor.partition to ones that are yours."),
    ("invalid partition", "invalid_partition", "Choose a partition that `sinfo` lists: executor.partition=NAME."),
    ("Invalid qos", "invalid_qos", "Choose one that `sacctmgr show assoc` lists: executor.qos=NAME."),
    ("dependency problem", "dependency_problem", "A job that it waits for is not known to Slurm any more."),
    ("Unable to contact slurm controller", "slurm_down", "Slurm's controller does not run; try again later."),
    ("No space left", "disk_full", "Free space in executor.job_dir, or choose another."),
    ("Disk quota exceeded", "disk_full", "Free space in executor.job_dir, or choose another."),
    ("not available", "invalid_request", "Ask for what the partition has: executor.gpus, executor.nodes."),
)
#: After these sbatch does not know itself whether the controller has the job.
_UNDECIDED = ("timed out", "Zero Bytes were transmitted", "communication failure")


class SubmissionUnknownError(SubmitError):
    """The cluster went silent while it was handed a job; `job` has no id, and `states` finds it by its name."""

    def __init__(self, name: str, cause: str, remedy: str, job: SchedulerJob) -> None:
        super().__init__(name, cause, remedy)
        self.job = job


class _CommandError(Exception):
    """A command of NeMo-Run's on the login node that failed."""

    def __init__(self, command: str, answer: Answer) -> None:
        super().__init__(f"{command.split()[0]}: {answer.last_words}")
        self.answer = answer


@dataclass(frozen=True, kw_only=True)
class _Result:
    """What NeMo-Run reads of a command's end."""

    command: str
    stdout: str
    stderr: str
    return_code: int


class Session:
    """What NeMo-Run's tunnels use of a fabric Connection or an invoke Context, on top of a Shell."""

    is_connected = True

    def __init__(self, shell: Shell, unset: Sequence[str], copy: tuple[str, str] | None) -> None:
        self._shell, self._unset, self._copy = shell, unset, copy
        self.user, self.host, self.port = shell.user, shell.host or "localhost", shell.port
        self.connect_kwargs: dict[str, Any] = {}
        self.asked = False  # whether sbatch was ever begun

    def run(self, command: str, hide: bool = True, warn: bool = False, **_: Any) -> _Result:
        """Run a shell line of NeMo-Run's on the login node."""
        if self._copy is not None:  # a local tunnel's folder is not filled by NeMo-Run
            shutil.copytree(*self._copy, symlinks=True, dirs_exist_ok=True)
        self.asked = self.asked or command.startswith("sbatch ")
        return self._result(command, self._shell.sh(f"unset {' '.join(self._unset)}; {command}", timeout=120), warn)

    def local(self, command: str, **_: Any) -> _Result:
        """Run NeMo-Run's rsync, the one command that it runs here, over the connection that is there already."""
        source, target = shlex.split(command)[-2:]
        target = f"{self._shell.where}:{target[target.index(':/') + 1 :]}"
        ssh = shlex.join(self._shell.ssh())
        argv = ["rsync", "--recursive", "--links", "--perms", "--times", "--compress", f"--rsh={ssh}", source, target]
        return self._result("rsync", Shell().run(argv, timeout=600))

    def _result(self, command: str, answer: Answer, warn: bool = False) -> _Result:
        if answer.code and not warn:
            raise _CommandError(command, answer)
        text = answer.out.decode(errors="replace")
        return _Result(command=command, stdout=text, stderr=answer.err, return_code=answer.code)

    def close(self) -> None:
        """The connection is shared, and ends by itself."""

    clear = close


def submit(profile: SlurmProfile, shell: Shell, experiment: Any, job: AnyJob) -> SchedulerJob:
    """Submit the experiment's one job. Raises SubmitError, after which nothing of it is left unless it says so."""
    if job.waits_for and profile.dependency_type == "afterok":
        cause = unfit_parent(shell, job.waits_for)
        if cause is not None:
            raise SubmitError("dependency_failed", cause, "Submit again without it, or run it again first.")
    task = experiment.jobs[0]
    executor = task.executor
    lost = unnumbered(experiment, job)
    folders = (executor.experiment_dir, executor.tunnel.job_dir)
    elsewhere = profile.host is None and len({*map(os.path.realpath, folders)}) == 2
    executor.tunnel.session = session = Session(shell, _unset(profile), folders if elsewhere else None)
    try:
        with redirect_stdout(io.StringIO()):  # NeMo-Run reports each of its steps there
            experiment.run(detach=True)
        job_id = task.handle.rpartition("/")[2].partition(";")[0]  # a cluster of several adds its name
    except (Exception, SystemExit) as error:
        # Where sbatch itself said so, there is no job.
        refused = isinstance(error, _CommandError) and not any(sign in error.answer.err for sign in _UNDECIDED)
        if refused or not session.asked:
            raise _as_submit_error(error) from error
        job_id = _look_for(shell, job, lost, error)
        _complete(experiment, task, job_id)
    except KeyboardInterrupt:
        with suppress(SubmitError):
            shell.run(["scancel", _look_for(shell, job, lost, None)])
        raise
    return replace(lost, id=job_id)


def unnumbered(experiment: Any, job: AnyJob) -> SchedulerJob:
    """The experiment's job before it has a number: it is found by its name, which `folder` tells."""
    executor = experiment.jobs[0].executor
    folder = posixpath.join(executor.tunnel.job_dir, Path(executor.job_dir).name)
    return SchedulerJob.of(job, UNKNOWN_ID, folder)


def script_of(experiment: Any) -> str:
    """The sbatch script of an experiment that was added to but not run."""
    task = experiment.jobs[0]
    if task._dryrun_info is None:
        with redirect_stdout(io.StringIO()):
            experiment.dryrun(log=False, exist_ok=True, delete_exp_dir=False)
    return str(task._dryrun_info.request.materialize())


def _unset(profile: SlurmProfile) -> tuple[str, ...]:
    """Variables of the login shell that neither the job nor sbatch may see."""
    given = [name for key, names in _OF_A_KEY.items() if key in sbatch_values(profile) for name in names]
    return (*profile.secrets, *(f"SBATCH_{name}" for name in (*_OF_EVERY_JOB, *given)))


def _as_submit_error(error: BaseException) -> SubmitError:
    words = _words(error)
    for sign, name, remedy in _REFUSALS:
        if sign in words:
            return SubmitError(name, words, remedy)
    if isinstance(error, UnreachableError):
        return SubmitError(error.name, f"nothing was submitted: {words}", error.remedy)
    return SubmitError("submission_failed", f"nothing was submitted: {words}", "Correct that and submit again.")


def _words(error: BaseException | None) -> str:
    if error is None:
        return "stopped by Ctrl-C"
    if isinstance(error, UnreachableError):
        return error.cause
    if isinstance(error, _CommandError):
        return error.answer.last_words
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _look_for(shell: Shell, job: AnyJob, lost: SchedulerJob, error: BaseException | None) -> str:
    """The id of a job whose submission was cut off. Raises SubmitError when there is none, or nobody to ask."""
    deadline = time.monotonic() + _SETTLE_SECONDS
    try:
        while _is_submitting(shell, job) and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
        found = row_of(shell, replace(lost, id=f"{UNKNOWN_ID}_0") if job.array else lost)
        if found is None and _is_submitting(shell, job):
            raise UnreachableError("unreachable", "sbatch still runs there", "")
    except UnreachableError as silence:
        cause = f"{shell.where} went silent during the submission, which may have succeeded ({silence.cause})"
        remedy = f"Ask for its status later; at the cluster it would be called {job_name(lost)}."
        raise SubmissionUnknownError("submission_unknown", cause, remedy, lost) from error
    if found is None:
        raise SubmitError("submission_failed", f"nothing was submitted: {_words(error)}", "Submit again.") from error
    return found.id.partition("_")[0]


def _is_submitting(shell: Shell, job: AnyJob) -> bool:
    """Whether an sbatch of ours still runs there; its command line names the run."""
    pattern = f"sbatch.*[{job.id[0]}]{job.id[1:]}"  # written so that it does not match itself
    return shell.run(["pgrep", "-f", pattern]).code == 0


def _complete(experiment: Any, task: Any, job_id: str) -> None:
    """Tell NeMo-Run's own files of a job that was found, so that its commands know it too."""
    task.handle, task.launched, task.state = f"slurm_tunnel://nemo_run/{job_id}", True, type(task.state).SUBMITTED
    experiment._launched = True
    with suppress(OSError):
        experiment._save_jobs()
