"""What every kind of executor provides. One module per kind implements it; nothing above knows which one it holds.

A *profile* says where to run (typed values from YAML). A *place* is a profile that can act: it
builds the NeMo-Run executor of a job, submits it, says what the job sees of this machine, and later how it stands.
"""

import os
import posixpath
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_type_hints

from executors.constraints import environment_problems, key, value_problems
from scripts.run.files import expanded, regular, write_private
from scripts.run.problems import JobError, Problem
from scripts.run.record import DamagedRecordError, read_record
from scripts.run.secrets import VARIABLES as SECRETS
from scripts.run.secrets import variables_of
from scripts.stores.objects import fault, is_url
from scripts.stores.publish import KEEP, STORE, address
from scripts.tracking.known import VARIABLE as TRACK
from scripts.tracking.known import Name as Tracker

if TYPE_CHECKING:
    import nemo_run as run

#: Jobs at a time of a place that nobody but a supervisor of ours looks after; auto: see recipes/experiment/room.py.
Parallel = int | Literal["auto"]
Packaging = Literal["auto", "git", "pattern", "none"]
State = Literal["submitted", "running", "succeeded", "failed", "cancelled"]
#: Where NeMo-Run puts a job's code on the node; outside containers it writes the real folder in its place.
CODE = "/nemo_run/code"
#: Our own packages, beside the user's code and not among it: `scripts` and `configs` are common names.
OWN_CODE = f"{CODE}/.recipes"
#: Of a log.
PIECE_BYTES = 64 << 20
_VOLUME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
#: Characters of a path that arrive as they are wherever NeMo-Run writes it.
_PLAIN = re.compile(r"[\w@%+=:,./~-]")


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Values that every kind of profile has."""

    kind: str = ""  # each class says its own
    nodes: int | None = key(None, least=1)  # None: what the recipe's torchrun.nnodes says
    gpu: str | None = None  # of configs/gpus.yaml: what checks and the plan count with; None: not known
    #: Where run directories are made; None: the kind's own default. A URL (s3://bucket/prefix): they are made there
    #: as by default, outputs are published below it, and what was read back whole is removed from the run directory.
    output_root: str | None = None
    keep_outputs: bool = False  # of an output_root that is a URL: the run directory keeps them as well
    env: dict[str, str] = field(default_factory=dict)  # a number is the text that it is written as
    secrets: list[str] = field(default_factory=list)  # names of variables, never their values
    track: list[Tracker] = field(default_factory=list)  # whom a run is told to while it lasts
    packager: Packaging = "auto"  # auto: git inside a repository, else pattern with `include`, else none
    include: list[str] = field(default_factory=list)  # glob patterns: of `pattern`, or beside what git tracks

    @property
    def run_folders(self) -> str | None:
        """`output_root` where it is a folder."""
        return None if is_url(self.output_root) else self.output_root

    @property
    def output_store(self) -> str | None:
        """`output_root` where it is a URL."""
        return self.output_root if is_url(self.output_root) else None

    def contradictions(self) -> Iterable[Problem]:
        """What is wrong with values together, or beyond what each key says of itself; reaches nothing."""
        return ()


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """What a kind of executor can do, as `nemo experiment executors` shows it."""

    detach: Literal["native", "supervisor"] = "supervisor"  # who looks after a detached job
    dependencies: Literal["native", "supervisor"] = "supervisor"
    arrays: bool = False  # many runs as one job of the scheduler
    multi_node: bool = False
    containers: bool = False
    local_files: bool = False  # the job sees the submitting machine's files under the same paths
    reads_run_dir: bool = False  # the run directory can be read from the submitting machine


@dataclass(frozen=True, kw_only=True)
class Mount:
    """A folder that a job's container is given."""

    source: str  # an absolute path of the machine; else a volume or storage by a name of its own
    target: str
    flags: str = ""  # ro, rw

    @classmethod
    def parse(cls, text: str, *, any_flags: bool = False) -> "Mount":
        """`SOURCE:TARGET[:ro|rw]`, `~` allowed in SOURCE. Raises ValueError saying what is wrong with it."""
        parts = text.split(":")
        if len(parts) not in (2, 3):
            raise ValueError("SOURCE:TARGET or SOURCE:TARGET:ro is expected, and no path with a `:` in it")
        source, target, flags = parts[0], parts[1], (parts[2:] or ["rw"])[0]
        source = posixpath.expanduser(source)
        if not source.startswith("/") and not _VOLUME.fullmatch(source):
            raise ValueError("the source is neither an absolute path nor the name of a volume")
        if not target.startswith("/"):
            raise ValueError("the target is no absolute path")
        if not any_flags and flags not in ("ro", "rw"):
            raise ValueError(f"{flags} is neither ro nor rw")
        return cls(source=source, target=target, flags=flags)

    @classmethod
    def parse_all(cls, texts: Sequence[str]) -> "Iterator[Mount]":
        """Those that can be read; a profile's own checks say what is wrong with the others."""
        for text in texts:
            with suppress(ValueError):
                yield cls.parse(text, any_flags=True)

    @classmethod
    def same(cls, folder: str | Path, flags: str = "rw") -> "Mount":
        """A folder under its own path."""
        return cls(source=str(folder), target=str(folder), flags=flags)

    @property
    def is_path(self) -> bool:
        """Whether the source is a folder of the machine."""
        return self.source.startswith("/")

    @property
    def read_only(self) -> bool:
        return "ro" in re.split(r"[,+]", self.flags)

    def __str__(self) -> str:
        return f"{self.source}:{self.target}:{self.flags}"


def is_below(path: str, folder: str) -> bool:
    """Whether `path` is `folder` or lies in it, by its words alone."""
    path, folder = posixpath.normpath(path), posixpath.normpath(folder)
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def mount_of(path: str, mounts: Sequence[Mount]) -> Mount | None:
    """The mount that a path of the container lies on: of several the one deepest down, and there the last."""
    found = [mount for mount in reversed(mounts) if is_below(path, mount.target)]
    return max(found, key=lambda mount: len(posixpath.normpath(mount.target)), default=None)


def path_through(path: str | Path, mounts: Sequence[Mount] | None) -> Path | None:
    """Where a path of a job lies on this machine, as `Place.seen_through` has the mounts; None where it is not seen."""
    if mounts is None:
        return Path(path)
    mount = mount_of(str(path), mounts)
    if mount is None or not mount.is_path or not posixpath.isdir(mount.source):
        return None
    below = posixpath.relpath(posixpath.normpath(str(path)), posixpath.normpath(mount.target))
    return Path(mount.source) / below


@dataclass(frozen=True, kw_only=True)
class AnyJob:
    """What a place needs to know of a job: its names, its shape, and what it waits for; recipes' `Job` adds to it."""

    id: str  # the run's, unique: letters, digits, `_` and `-`
    recipe: str  # NeMo-Run's name for the task
    run_dir: Path  # NEMO_RUN_DIR, as the job sees it; of an array the folder in which each element has its own
    nodes: int = 1
    processes: int = 1  # on each node
    ranked: bool = False  # torchrun starts nodes x processes ranks; else one process runs, on the first node
    array: int = 0  # elements of a sweep; 0 is a plain job
    waits_for: tuple[str, ...] = ()  # jobs that must succeed first, as their common scheduler calls them
    secrets: str | None = None  # path of the 0600 file, as the job sees it
    archive: Path | None = None  # the packaged code
    devices: tuple[str, ...] = ()  # the GPUs that it may see, of those of the machine that submits; none: all
    force_squash: bool = False  # the image is imported although its file is there


@dataclass(frozen=True, kw_only=True)
class SchedulerJob:
    """A submitted job, as job.json keeps it for whoever asks hours later."""

    run_id: str
    id: str  # the scheduler's: 123, 123_4, a container name, a Lepton job id
    run_dir: str  # as the job sees it
    folder: str  # what NeMo-Run made for it on the machine where it runs: launcher logs lie here

    @classmethod
    def of(cls, job: AnyJob, id_: str, folder: str) -> "SchedulerJob":
        """A job by what its scheduler calls it."""
        return cls(run_id=job.id, id=id_, run_dir=str(job.run_dir), folder=folder)


@dataclass(frozen=True, kw_only=True)
class JobState:
    """How the scheduler sees a job."""

    state: State
    name: str = ""  # of the error, where the job could not record it: timeout, out_of_memory, node_failed ...
    detail: str = ""  # the scheduler's own words


@dataclass(frozen=True)
class Probe:
    """One thing that `executors check` tried."""

    name: str
    passed: bool
    detail: str
    remedy: str = ""  # of one that did not pass

    def __post_init__(self) -> None:
        if self.passed:
            object.__setattr__(self, "remedy", "")

    @classmethod
    def unanswered(cls, name: str, error: "UnreachableError") -> "Probe":
        """One for which nobody answered."""
        return cls(name, False, error.cause, error.remedy)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of executor, as its module or an entry point names it; see executors.kinds."""

    profile: type[Profile]
    place: "Callable[..., Place]"  # of a profile
    template: str = ""  # a commented profile for `executors init` to write; "": its kind alone


def keys_of(cls: type[Profile]) -> dict[str, Any]:
    """The keys that a kind of profile takes, with their types."""
    hints = get_type_hints(cls)
    return {one.name: hints[one.name] for one in fields(cls)}


class UnreachableError(JobError):
    """The scheduler, engine or API did not answer: nothing is known about its jobs right now."""


class SubmitError(JobError):
    """A submission that failed. Nothing of it is left at the scheduler, unless the cause says so.

    `job` is set when nobody knows: the place went silent, and will find the job by its name, if it is there. `text`
    is what would have been sent, where the place refuses it as it is: a dry run shows both.
    """

    job: "SchedulerJob | None" = None
    text: str = ""


class Place(ABC):
    """A profile that can act, and what it knows of its jobs; nothing above asks which kind it is.

    Abstract methods may raise UnreachableError, but for `executor` and `problems`, which reach nothing. The others
    answer for run directories on this machine, and from the profile's values; a kind overrides what differs.
    """

    profile: Profile

    @staticmethod
    def from_profile(key: str) -> Any:
        """A property that is what the profile holds under a key."""
        return property(attrgetter(f"profile.{key}"))

    @property
    @abstractmethod
    def capabilities(self) -> Capabilities: ...

    @abstractmethod
    def executor(self, job: AnyJob | None) -> "run.Executor":
        """The NeMo-Run executor for one job; None: for an experiment of somebody's own."""

    @abstractmethod
    def text(self, experiment: Any, job: AnyJob) -> str:
        """Exactly what would be submitted, of an experiment that was added to but not run."""

    def refused_code(self, archive: bytes) -> JobError | None:
        """Why no job here can be given this packaged code."""
        return None

    @abstractmethod
    def expected(self, experiment: Any, job: AnyJob) -> SchedulerJob | None:
        """What a submission is going to return, or how its job will be found; None where only NeMo-Run decides.

        Noted before the submission, so that no job is lost with a process that dies in the middle of it.
        """

    @abstractmethod
    def submit(self, experiment: Any, job: AnyJob) -> SchedulerJob:
        """Run an experiment of one task, return when the scheduler has it. Raises SubmitError."""

    @abstractmethod
    def states(self, jobs: Sequence[SchedulerJob]) -> dict[str, JobState | None]:
        """By run id; None for a job that the scheduler does not know (any more)."""

    @abstractmethod
    def cancel(self, job: SchedulerJob) -> None:
        """Ask for the end of a job; returns when that is under way."""

    @abstractmethod
    def probes(self) -> Iterator[Probe]:
        """Try whether a job could really run here, one thing after another."""

    def problems(self) -> list[Problem]:
        """What is wrong with the profile, as far as its values alone tell."""
        profile = self.profile
        found = [*value_problems(profile), *environment_problems(profile, self.reserved), *profile.contradictions()]
        wrong = fault(profile.output_store) if profile.output_store else None
        return [*found, *([wrong.as_problem("executor.output_root")] if wrong else [])]

    def run_root(self) -> str:
        """Where run directories are made, as the job sees it."""
        return str(expanded(self.profile.run_folders or f"{nemorun_home()}/runs").absolute())

    def secrets_path(self, run_id: str) -> str | None:
        """Where a job's 0600 file of secrets would lie; None where secrets travel otherwise."""
        return None

    def stage(self, files: Mapping[str, bytes]) -> None:
        """Put whole files (mode 0600, folders made) where the job will look for them, before it is submitted."""
        for path, content in files.items():
            write_private(Path(path), content)

    def unstage(self, paths: Sequence[str]) -> None:
        """Remove files that `stage` put, and the folder of each that is empty then; what is gone is no error."""
        for path in map(Path, paths):
            path.unlink(missing_ok=True)
            with suppress(OSError):  # a folder that holds something else, or is gone
                path.parent.rmdir()

    def records(self, jobs: Sequence[SchedulerJob]) -> dict[str, dict[str, Any]]:
        """run.json by run id, of those that can be read."""
        found = {}
        for job in jobs:
            with suppress(DamagedRecordError):
                found[job.run_id] = read_record(Path(job.run_dir))
        return found

    def log(self, job: SchedulerJob, name: str, offset: int) -> bytes:
        """What logs/`name` of the run directory (or, before it exists, the launcher) holds from byte `offset` on."""
        return read_from(Path(job.run_dir) / "logs" / name, offset)

    #: Variables that a job is given by its executor.
    reserved: ClassVar[frozenset[str]] = frozenset({"NEMO_RUN_DIR", "PYTHONSAFEPATH", *SECRETS, TRACK, STORE, KEEP})
    #: What its scheduler's ids of jobs look like, all of them: a recorded one that does not is not used.
    job_ids: ClassVar[str] = r"\w\S*"
    #: Whether a job runs in the environment that submits it: nothing has to travel, and what is installed is seen.
    runs_here: ClassVar[bool] = False
    #: Whether what a launcher prints and what its job prints is one text.
    has_one_log: ClassVar[bool] = False
    #: Whether its machines may have disks that this one has not.
    has_own_disks: ClassVar[bool] = False
    #: Whether its machines have GPUs, as far as nobody says otherwise.
    expects_gpus: ClassVar[bool] = False

    @property
    def scheduler(self) -> tuple[Any, ...]:
        """Equal for places whose jobs the same scheduler knows, and can make wait for each other."""
        return (self.profile.kind,)

    @property
    def connection(self) -> tuple[Any, ...]:
        """Equal for places of which each can ask about the jobs of all."""
        return self.scheduler

    @property
    def storage(self) -> tuple[Any, ...]:
        """Equal for places whose jobs see the same files under the same paths."""
        return ("here",) if self.capabilities.local_files else self.scheduler

    @property
    def parallel(self) -> Parallel:
        """How many jobs of a submission go on at a time, where it is not for a scheduler to say."""
        return "auto"

    @property
    def gpus(self) -> int | None:
        """GPUs of one machine, as the profile counts them: -1 is all that there are, None not said."""
        return None

    @property
    def node_shape(self) -> str:
        """What its scheduler calls one machine; empty where it has no names for them."""
        return ""

    @property
    def title(self) -> str:
        """What the kind is called where people read it."""
        return self.profile.kind

    @property
    def image(self) -> str | None:
        """What its containers are made of; None for a place without."""
        return None

    @property
    def time_limit(self) -> str | None:
        """How long a job may take, as its scheduler writes it; None where nothing ends it."""
        return None

    @property
    def setup(self) -> Mapping[str, Sequence[str]]:
        """Shell lines that run before a job, by the key of the profile that has them."""
        return {}

    def mounts(self, run_dir: str | Path) -> tuple[Mount, ...] | None:
        """What a job's container is given, its own run directory included; None for jobs without a container."""
        return None

    def mount_remedy(self, path: str) -> str:
        """How to have a job see `path`, which it does not."""
        folder = posixpath.dirname(path.rstrip("/")) or "/"
        return f"Add {folder}:{folder} (or what holds it) to executor.mounts."

    def path_here(self, path: str | Path, run_dir: str | Path) -> Path | None:
        """Where a path of the job lies on this machine; None where that is elsewhere, or cannot be told."""
        return path_through(path, self.seen_through(run_dir))

    def seen_through(self, run_dir: str | Path) -> Sequence[Mount] | None:
        """The mounts through which paths of the job are seen from here; None where they are this machine's own."""
        if self.capabilities.local_files:
            return None
        return (self.mounts(run_dir) if self.capabilities.reads_run_dir else None) or ()

    def published(self, path: str, run_dir: str | Path) -> str:
        """Where an output of a job is when it has ended: its URL, where the profile has a store for it."""
        store = self.profile.output_store
        return (address(store, run_dir, path) if store else None) or path

    def missing_sources(self) -> list[str]:
        """Folders to mount that are not there, where that can be told from here."""
        return []

    def secret(self, name: str) -> Literal["given", "unset", "unlisted"]:
        """Whether a job gets the secret `name`; `unset`: it is to travel, and there is none where one submits."""
        if name not in self.profile.secrets:
            return "unlisted"
        return "given" if os.environ.get(name) else "unset"

    def secret_remedy(self, name: str) -> str:
        """How to have a job get the secret `name`, which it does not."""
        if self.secret(name) == "unset":
            return f"set {name} where you submit."
        return f"add {name} to executor.secrets and set it."

    def breaks_on(self, home: str) -> str:
        """Characters in the path of NeMo-Run's home that its commands for this kind do not survive."""
        return "".join(sorted(set(_PLAIN.sub("", home))))


def nemorun_home() -> str:
    """Where NeMo-Run keeps what it makes on this machine; where it is not imported, what it would say."""
    config = sys.modules.get("nemo_run.config")
    home = config.get_nemorun_home() if config else os.environ.get("NEMORUN_HOME", "~/.nemo_run")
    return str(Path(home).expanduser().absolute())


def job_variables(job: AnyJob, profile: Profile, env: Mapping[str, str]) -> dict[str, str]:
    """What a job inside a container is given beside `env`, the profile's; its own code counts more than the image's."""
    path = ":".join(filter(None, [OWN_CODE, CODE, env.get("PYTHONPATH")]))
    return {**env, "PYTHONPATH": path, **own_variables(job, profile)}


def own_variables(job: AnyJob, profile: Profile) -> dict[str, str]:
    """What every job is given. Its working directory is not on its path: `configs` and `scripts` are common names."""
    own = {"PYTHONSAFEPATH": "1", "NEMO_RUN_DIR": str(job.run_dir)}
    own |= {TRACK: ",".join(profile.track)} if profile.track else {}
    own |= {STORE: profile.output_store} if profile.output_store else {}
    own |= {KEEP: "1"} if profile.output_store and profile.keep_outputs else {}
    return own | variables_of(job.secrets, profile.secrets)


def threads_beside(parallel: Parallel) -> dict[str, str]:
    """Of a job that may have others beside it, its share of the processors: torch would take all of them."""
    if parallel == "auto" or parallel == 1:
        return {}
    return {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // parallel))}


def read_from(path: Path, offset: int) -> bytes:
    """A file of this machine from byte `offset` on, as much as is read at a time; empty when it is not there yet.

    Raises UnreachableError, also for what is no file.
    """
    try:
        with open(path, "rb", opener=regular) as handle:
            handle.seek(offset)
            return handle.read(PIECE_BYTES)
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise UnreachableError("log_unreadable", f"{path}: {error.strerror}.") from error
