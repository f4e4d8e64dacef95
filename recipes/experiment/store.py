"""The submitting machine's side of a run: one folder below NeMo-Run's home, and who looks after the job."""

import dataclasses
import fcntl
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from executors.base import Launch, Place, SchedulerJob
from scripts.run.files import write_json
from scripts.run.problems import JobError
from scripts.run.record import DamagedRecordError


def runs_dir() -> Path:
    """Where this machine keeps its runs: `runs` in NeMo-Run's home."""
    from nemo_run.config import get_nemorun_home

    return Path(get_nemorun_home()) / "runs"


def scheduler_of(profile: Mapping[str, Any]) -> tuple[Any, ...]:
    """Equal for profiles whose jobs the same scheduler knows, and can make wait for each other."""
    return tuple(profile.get(key) for key in ("kind", "host", "port", "user"))


@dataclass(frozen=True, kw_only=True)
class Handle:
    """job.json: how to ask about a run, and to start it again. Written on the submitting machine only."""

    executor: str  # the profile's name
    profile: dict[str, Any]
    launch: dict[str, Any]
    after: list[str] = field(default_factory=list)  # run ids that must succeed first
    job: dict[str, Any] | None = None  # what the scheduler calls it, or is going to
    submitting: bool = False  # whether the scheduler has not confirmed that yet
    supervisor: dict[str, Any] | None = None  # identity of the process that looks after it, where one must
    cancel_asked: bool = False
    settled: bool = False  # nothing about it can change any more

    @property
    def known_job(self) -> SchedulerJob | None:
        """The scheduler's job; None before submission."""
        return SchedulerJob(**self.job) if self.job else None

    @property
    def scheduler(self) -> tuple[Any, ...]:
        """Equal for runs that can be asked about together."""
        return (*scheduler_of(self.profile), self.profile.get("identity"))

    def as_launch(self) -> Launch:
        """The Launch this was made from."""
        values = dict(self.launch)
        archive = values.pop("archive")
        after = tuple(values.pop("after"))
        return Launch(**values, after=after, archive=Path(archive) if archive else None)

    def place(self) -> Place:
        """The place it runs in. Raises ProblemsError when its kind is gone."""
        from executors.kinds import place_of, profile_from_record

        return place_of(profile_from_record(self.profile))


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """Every path that the submitting machine keeps of one run."""

    dir: Path

    @classmethod
    def of(cls, run_id: str) -> "RunFolder":
        """The folder of a run on this machine."""
        return cls(dir=runs_dir() / run_id)

    @property
    def id(self) -> str:
        return self.dir.name

    @property
    def handle_file(self) -> Path:
        return self.dir / "job.json"

    @property
    def partial(self) -> Path:
        """The recipe, as NeMo-Run serializes it, to start the run (again)."""
        return self.dir / "partial.zlib"

    @property
    def archive(self) -> Path:
        """The code that travels with the job."""
        return self.dir / "code.tar.gz"

    @property
    def supervisor_log(self) -> Path:
        return self.dir / "logs" / "supervisor.log"

    def handle(self) -> Handle | None:
        """job.json; None for a run that was not submitted by us. Raises DamagedRecordError."""
        try:
            values = json.loads(self.handle_file.read_text(encoding="utf-8"))
            handle = Handle(**values)
            handle.as_launch(), handle.known_job, handle.place()
            return handle
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError, AttributeError, JobError) as error:
            raise DamagedRecordError(f"{self.handle_file}: {error}") from error

    def handle_settled(self) -> bool:
        """Whether nothing about the run can change any more."""
        handle = self.handle()
        return handle is not None and handle.settled

    def write_handle(self, handle: Handle) -> None:
        """Replace job.json."""
        write_json(self.handle_file, dataclasses.asdict(handle))

    def update_handle(self, **fields: Any) -> Handle:
        """Change some of job.json; writers take turns (a supervisor, and somebody who cancels)."""
        with self._turn():
            handle = self.handle()
            if handle is None:
                raise DamagedRecordError(f"{self.handle_file}: gone")
            handle = dataclasses.replace(handle, **fields)
            self.write_handle(handle)
            return handle

    @contextmanager
    def _turn(self) -> Iterator[None]:
        with (self.dir / ".job.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def launch_values(launch: Launch) -> dict[str, Any]:
    """A Launch as job.json keeps it."""
    values = dataclasses.asdict(launch)
    return values | {"archive": str(launch.archive) if launch.archive else None, "after": list(launch.after)}


def handle_of(folder: RunFolder) -> Handle:
    """job.json of a run that is known to have one."""
    handle = folder.handle()
    assert handle is not None, folder.dir
    return handle
