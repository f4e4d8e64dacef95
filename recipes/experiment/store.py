"""What the submitting machine keeps of its runs: a folder each, below NeMo-Run's home.

Runs that are submitted together are recorded aside, and are there together by one rename: whenever whoever records
them is killed, either none is a run, or all are, once somebody looks.
"""

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Literal

from executors.base import nemorun_home
from scripts.run.files import locked
from scripts.run.problems import JobError
from scripts.run.record import DamagedRecordError

#: Whoever writes job.json is done in a moment, on a slow disk in seconds.
LOCK_SECONDS = 30.0
#: How a folder is called in which runs are being recorded, and one in which all are, on their way to the others.
RECORDING, RECORDED = ".recording-", ".recorded-"


def runs_dir() -> Path:
    """Where this machine keeps its runs: `runs` in NeMo-Run's home."""
    return Path(nemorun_home()) / "runs"


class RunFolder:
    """Every path that the submitting machine keeps of one run."""

    def __init__(self, *, dir: Path) -> None:
        self.dir, self.id = dir, dir.name

    @property
    def job(self) -> Path:
        """The job, and how to ask about it; written on the submitting machine only."""
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
        """What the process that looks after it prints."""
        return self.dir / "logs" / "supervisor.log"

    @property
    def supervisor_heartbeat(self) -> Path:
        """For observers on other machines."""
        return self.dir / "supervisor.heartbeat"

    @classmethod
    def of(cls, run_id: str) -> "RunFolder":
        """The folder of a run on this machine."""
        return cls(dir=runs_dir() / run_id)

    @contextmanager
    def turn(self, of: Literal["job", "resume"] = "job") -> Iterator[None]:
        """Writers of job.json take turns: a supervisor, and somebody who cancels. So do those who resume a run.

        Raises DamagedRecordError where something else lies in the place of the lock, or nobody ever gives it back.
        """
        self.refuse_planted()
        with ExitStack() as stack:
            try:
                stack.enter_context(locked(self.dir / f".{of}.lock", seconds=LOCK_SECONDS))
            except TimeoutError as error:
                raise DamagedRecordError(str(error)) from error
            yield

    def refuse_planted(self) -> None:
        """Raise DamagedRecordError where a lock is no file."""
        for name in (".job.lock", ".resume.lock"):
            with suppress(FileNotFoundError, NotADirectoryError):
                if not stat.S_ISREG((self.dir / name).lstat().st_mode):
                    raise DamagedRecordError(f"{self.dir / name}: it is no regular file")

    @property
    def is_foreign(self) -> bool:
        """Whether it is another user's: then it is shown, and nothing is done that it asks for."""
        return os.getuid() not in (0, self.dir.lstat().st_uid)


@contextmanager
def recorded_together() -> Iterator[Path]:
    """A folder for the folders of runs, all of which are there once the block is done, or none where it raises."""
    runs_dir().mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=RECORDING, dir=runs_dir()))
    try:
        yield aside
        for folder in aside.iterdir():
            if RunFolder.of(folder.name).dir.exists():
                raise JobError("run_dir_taken", f"{RunFolder.of(folder.name).dir} is another run's.", "Submit again.")
        whole = aside.rename(aside.with_name(aside.name.replace(RECORDING, RECORDED)))
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    _appear(whole)


def _appear(whole: Path) -> None:
    """Move recorded runs to the others; whoever finds them may do so, at the same time as another one."""
    with suppress(FileNotFoundError):
        for folder in list(whole.iterdir()):
            with suppress(FileNotFoundError):
                folder.rename(whole.parent / folder.name)
        whole.rmdir()


def let_appear() -> None:
    """Bring to the others what somebody recorded who was killed before that, or is about to do it."""
    for whole in runs_dir().glob(f"{RECORDED}*"):
        with suppress(OSError):
            _appear(whole)


def run_folders() -> list[RunFolder]:
    """Every folder that a run has on this machine, by name; one whose files are damaged or gone has one too.

    Raises JobError where the folder of them cannot be read.
    """
    try:
        let_appear()
        folders = sorted(runs_dir().iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise JobError.of_os_error(error) from error
    named = [path for path in folders if not path.name.startswith(".")]  # being made, or removed
    return [folder for path in named if has_records(folder := RunFolder(dir=path))]


def has_records(folder: RunFolder) -> bool:
    """Whether it is a run's, be what lies there damaged or not."""
    return any(os.path.lexists(folder.dir / name) for name in ("run.json", "job.json"))


def folders_there() -> frozenset[str]:
    """The ids of what lies among the runs; nothing is read."""
    try:
        return frozenset(os.listdir(runs_dir()))  # noqa: PTH208 - of thousands
    except OSError:
        return frozenset()


def last_written(entry: "os.DirEntry[str]") -> int:
    """When anything was put into a run's folder last, in nanoseconds; 0 of one that is being removed."""
    try:
        return entry.stat().st_mtime_ns
    except OSError:
        return 0


def stamp(folder: str) -> str:
    """Of a run's folder: another one when anything was put into it, or its records are other files."""
    return " ".join(map(_stamp, (folder, f"{folder}/run.json", f"{folder}/job.json")))


def _stamp(path: str) -> str:
    try:
        state = os.lstat(path)
    except OSError:  # it is not there, or is being removed
        return "-"
    return f"{state.st_mtime_ns}.{state.st_ctime_ns}.{state.st_ino}.{state.st_size}"
