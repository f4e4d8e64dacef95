"""What every kind of executor provides. One module per kind implements it; nothing above knows which one it holds.

A *profile* says where to run (typed values from YAML). A *place* is a profile that can act: it
builds the NeMo-Run executor of a job, submits it, and later says how the job stands.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from scripts.run.errors import JobError
from scripts.run.problems import Problem

if TYPE_CHECKING:
    import nemo_run as run

Packaging = Literal["auto", "git", "pattern", "none"]
#: Where NeMo-Run puts a job's code on the node; outside containers it writes the real folder in its place.
CODE = "/nemo_run/code"
#: Our own packages, beside the user's code and not among it: `scripts` and `configs` are common names.
OWN_CODE = f"{CODE}/.recipes"
#: The variable that names the 0600 file with the job's secrets.
SECRETS_VARIABLE = "MODELOPT_RECIPES_SECRETS"


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Values that every kind of profile has."""

    kind: str
    nodes: int | None = None  # None: what the recipe's torchrun.nnodes says
    gpu: str | None = None  # of configs/gpus.yaml: what checks and the plan count with; None: not known
    output_root: str | None = None  # where run directories are made; None: the kind's own default
    env: dict[str, str] = field(default_factory=dict)
    secrets: list[str] = field(default_factory=list)  # names of variables, never their values
    packager: Packaging = "auto"  # auto: git inside a repository, else pattern with `include`, else none
    include: list[str] = field(default_factory=list)  # glob patterns: of `pattern`, or beside what git tracks


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """What a kind of executor can do, as `nemo experiment executors` shows it."""

    detach: Literal["native", "supervisor"]  # who looks after a detached job
    dependencies: Literal["native", "supervisor"]
    arrays: bool  # many runs as one job of the scheduler
    multi_node: bool
    containers: bool
    local_files: bool  # the job sees the submitting machine's files under the same paths
    reads_run_dir: bool  # the run directory can be read from the submitting machine


@dataclass(frozen=True, kw_only=True)
class Launch:
    """One job as a kind of executor needs to know it: names, shape, and what it waits for."""

    run_id: str  # unique; letters, digits, `_` and `-`
    task: str  # NeMo-Run's task name: the recipe
    run_dir: str  # NEMO_RUN_DIR, as the job sees it
    nodes: int = 1
    processes: int = 1  # on each node
    torchrun: bool = False  # nodes x processes ranks; else one process on the first node
    array: int = 0  # elements of a sweep; 0 is a plain job
    after: tuple[str, ...] = ()  # job ids of the same scheduler that must succeed first
    secrets: str | None = None  # path of the 0600 file, as the job sees it
    archive: Path | None = None  # the packaged code
    force_squash: bool = False


@dataclass(frozen=True, kw_only=True)
class SchedulerJob:
    """A submitted job, as job.json keeps it for whoever asks hours later."""

    run_id: str
    id: str  # the scheduler's: 123, 123_4, a container name, a Lepton job id
    run_dir: str  # as the job sees it
    folder: str  # what NeMo-Run made for it on the machine where it runs: launcher logs lie here


@dataclass(frozen=True, kw_only=True)
class JobState:
    """How the scheduler sees a job."""

    state: Literal["submitted", "running", "succeeded", "failed", "cancelled"]
    name: str = ""  # of the error, where the job could not record it: timeout, out_of_memory, node_failed ...
    detail: str = ""  # the scheduler's own words


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One thing that `executors check` tried."""

    name: str
    passed: bool
    detail: str
    remedy: str = ""


class UnreachableError(JobError):
    """The scheduler, engine or API did not answer: nothing is known about its jobs right now."""


class SubmitError(JobError):
    """A submission that failed. Nothing of it is left at the scheduler, unless the cause says so.

    `job` is set when nobody knows: the place went silent, and will find the job by its name, if it is there.
    """

    job: "SchedulerJob | None" = None


class Place(Protocol):
    """A profile that can act. Every method may raise UnreachableError; `executor` and `problems` reach nothing."""

    @property
    def profile(self) -> Profile: ...

    @property
    def capabilities(self) -> Capabilities: ...

    def problems(self) -> list[Problem]:
        """What is wrong with the profile, as far as its values alone tell."""

    def run_root(self) -> str:
        """Where run directories are made, as the job sees it."""

    def secrets_path(self, run_id: str) -> str | None:
        """Where a job's 0600 file of secrets would lie; None where secrets travel otherwise."""

    def executor(self, launch: Launch) -> "run.Executor":
        """The NeMo-Run executor for one job."""

    def text(self, experiment: Any, launch: Launch) -> str:
        """Exactly what would be submitted, of an experiment that was added to but not run."""

    def stage(self, files: Mapping[str, bytes]) -> None:
        """Put whole files (mode 0600, folders made) where the job will look for them, before it is submitted."""

    def unstage(self, paths: Sequence[str]) -> None:
        """Remove files that `stage` put; those already gone are no error."""

    def expected(self, experiment: Any, launch: Launch) -> SchedulerJob | None:
        """What a submission is going to return, or how its job will be found; None where only NeMo-Run decides.

        Noted before the submission, so that no job is lost with a process that dies in the middle of it.
        """

    def submit(self, experiment: Any, launch: Launch) -> SchedulerJob:
        """Run an experiment of one task, return when the scheduler has it. Raises SubmitError."""

    def states(self, jobs: Sequence[SchedulerJob]) -> dict[str, JobState | None]:
        """By run id; None for a job that the scheduler does not know (any more)."""

    def records(self, jobs: Sequence[SchedulerJob]) -> dict[str, dict[str, Any]]:
        """run.json by run id, of those that can be read."""

    def log(self, job: SchedulerJob, name: str, offset: int) -> bytes:
        """What logs/`name` of the run directory (or, before it exists, the launcher) holds from byte `offset` on."""

    def cancel(self, job: SchedulerJob) -> None:
        """Ask for the end of a job; returns when that is under way."""

    def probes(self) -> Iterator[Probe]:
        """Try whether a job could really run here, one thing after another."""
