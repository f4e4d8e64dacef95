"""What the submitting machine keeps of its runs: a folder each, below NeMo-Run's home."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal

from scripts.run.files import locked
from scripts.run.problems import Problem, ProblemsError, nearest


def runs_dir() -> Path:
    """Where this machine keeps its runs: `runs` in NeMo-Run's home."""
    from nemo_run.config import get_nemorun_home

    return Path(get_nemorun_home()) / "runs"


class RunFolder:
    """Every path that the submitting machine keeps of one run."""

    def __init__(self, *, dir: Path) -> None:
        self.dir, self.id = dir, dir.name
        self.job = dir / "job.json"  # and how to ask about it; written on the submitting machine only
        self.partial = dir / "partial.zlib"  # the recipe, as NeMo-Run serializes it, to start the run (again)
        self.archive = dir / "code.tar.gz"  # the code that travels with the job
        self.supervisor_log = dir / "logs" / "supervisor.log"
        self.supervisor_heartbeat = dir / "supervisor.heartbeat"  # for observers on other machines

    @classmethod
    def of(cls, run_id: str) -> "RunFolder":
        """The folder of a run on this machine."""
        return cls(dir=runs_dir() / run_id)

    def turn(self, of: Literal["job", "resume"] = "job") -> AbstractContextManager[None]:
        """Writers of job.json take turns: a supervisor, and somebody who cancels. So do those who resume a run."""
        return locked(self.dir / f".{of}.lock")


def find_run(word: str) -> RunFolder:
    """The run that `word` names: its id, or the beginning of exactly one. Raises ProblemsError."""
    folders = [path.parent for path in sorted(runs_dir().glob("*/run.json"))]
    matches = [folder for folder in folders if folder.name == word] or [
        folder for folder in folders if word and folder.name.startswith(word)
    ]
    if len(matches) == 1:
        return RunFolder(dir=matches[0])
    cause = "several runs begin like that" if matches else "no run of that id is recorded here"
    names = [folder.name for folder in (matches or folders)][-8:]
    remedy = nearest(word, names) if names else "nemo experiment ps --all lists them."
    raise ProblemsError([Problem(name="unknown_run", key="ID", value=word, cause=cause, remedy=remedy)])
