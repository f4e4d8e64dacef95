"""The processes that follow a run for its trackers, as the job that starts them sees them: it never waits for long."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scripts.engines.supervise import end_group
from scripts.run.files import opened
from scripts.run.problems import JobError
from scripts.run.record import read_json
from scripts.run.secrets import VARIABLE as SECRETS_FILE
from scripts.tracking.known import FOLDER, NAMES, TRACKED, VARIABLE, Name

#: What would make them look like ranks of the job, or take what is the job's.
_OF_THE_JOB = ("NEMO_RUN_DIR", SECRETS_FILE, VARIABLE, "RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def asked_for() -> tuple[Name, ...]:
    """The trackers that this job was told of; a word that is none of them is nobody's."""
    said = os.environ.get(VARIABLE, "").split(",")
    return tuple(name for name in NAMES if name in said)


@dataclass
class Followers:
    """Of one run directory."""

    run_dir: Path
    names: tuple[Name, ...]
    _processes: dict[Name, "subprocess.Popen[bytes]"] = field(default_factory=dict)
    _faults: dict[Name, str] = field(default_factory=dict)

    def start(self) -> None:
        """One process each, detached from the job's terminal and its ranks. What fails is told by `tracked`."""
        env = {name: value for name, value in os.environ.items() if name not in _OF_THE_JOB}
        env |= {"CUDA_VISIBLE_DEVICES": "", "PYTHONUNBUFFERED": "1"}
        for name in self.names:
            words = [sys.executable, "-m", "scripts.tracking.follow", str(self.run_dir), name, str(os.getpid())]
            try:
                (self.run_dir / FOLDER).mkdir(exist_ok=True)
                (self.run_dir / FOLDER / f"{name}.json").unlink(missing_ok=True)
                with opened(self.run_dir / "logs" / f"track-{name}.log", "ab") as log:
                    silent: Any = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": subprocess.STDOUT}
                    self._processes[name] = subprocess.Popen(words, env=env, start_new_session=True, **silent)
            except Exception as error:  # whatever it is, the job goes on
                self._faults[name] = f"its process cannot be started: {error}"

    def tracked(self) -> dict[str, dict[str, Any]]:
        """How it stands with each, as run.json has it."""
        files = {name: self.run_dir / FOLDER / f"{name}.json" for name in self.names}
        said = {name: read_json(file, TRACKED) or {"state": "following"} for name, file in files.items()}
        return said | {name: said[name] | {"state": "failed", "error": why} for name, why in self._faults.items()}

    def warnings(self) -> list[dict[str, Any]]:
        """What could not be sent, as run.json has it."""
        causes = {name: one.get("error") for name, one in self.tracked().items() if one["state"] == "failed"}
        again = f"nemo experiment track {self.run_dir.name}{''.join(f' --to {name}' for name in causes)}"
        error = JobError("tracking_failed", "", f"Look at logs/track-*.log; {again} sends it once more.")
        facts = {name: {"severity": "warning", "cause": str(cause)} for name, cause in causes.items()}
        return [error.as_problem("executor.track", name, **of).as_data() for name, of in facts.items()]

    def end(self, seconds: float, hurried: Callable[[], bool] = lambda: False) -> None:
        """Wait until they have told the run's end, for so long or until somebody is in a hurry; then they are gone."""
        import psutil

        deadline, began = time.monotonic() + seconds, time.monotonic()
        while self._living() and time.monotonic() < deadline and not hurried():
            time.sleep(0.05)
        for name in self._living():
            self._faults[name] = f"it had not been told all of the run {time.monotonic() - began:.0f} s after its end"
        for process in self._processes.values():
            with suppress(psutil.Error):
                for child in psutil.Process(process.pid).children(recursive=True):  # W&B's has a group of its own
                    child.kill()
            end_group(process, 0)
        for name in (name for name in self.names if self.tracked()[name]["state"] == "following"):
            ended = self._processes.get(name)  # none where the job was stopped that moment
            status = f"its process ended with status {ended.returncode}" if ended else "its process had not started"
            self._faults[name] = ": ".join(filter(None, [self.tracked()[name].get("error"), status]))
        self._processes.clear()

    def _living(self) -> list[Name]:
        return [name for name, process in self._processes.items() if process.poll() is None]
