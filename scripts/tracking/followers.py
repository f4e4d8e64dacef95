"""The processes that follow a run for its trackers, as the job that starts them sees them: it never waits for long."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scripts.engines.supervise import end_group
from scripts.run.files import opened
from scripts.run.problems import Problem
from scripts.run.record import read_json
from scripts.run.secrets import VARIABLE as SECRETS_FILE
from scripts.tracking.known import FOLDER, NAMES, TRACKED, VARIABLE, Name

#: What would make them look like ranks of the job, or take what is the job's.
_OF_THE_JOB = ("NEMO_RUN_DIR", SECRETS_FILE, VARIABLE, "RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_GRACE_SECONDS = 1.0


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
            except OSError as error:
                self._faults[name] = f"its process cannot be started: {error}"

    def tracked(self) -> dict[str, dict[str, Any]]:
        """How it stands with each, as run.json has it."""
        found: dict[str, dict[str, Any]] = {}
        for name in self.names:
            said = read_json(self.run_dir / FOLDER / f"{name}.json", TRACKED) or {"state": "following"}
            fault = self._faults.get(name)
            found[name] = said | {"state": "failed", "error": fault} if fault else said
        return found

    def warnings(self) -> list[dict[str, Any]]:
        """What could not be sent, as run.json has it."""
        remedy = f"Look at logs/track-NAME.log; nemo experiment track {self.run_dir.name} --to NAME sends it again."
        return [
            Problem(
                name="tracking_failed",
                key="executor.track",
                value=name,
                cause=str(one.get("error") or "it said nothing"),
                remedy=remedy.replace("NAME", name),
                severity="warning",
            ).as_data()
            for name, one in self.tracked().items()
            if one["state"] == "failed"
        ]

    def end(self, seconds: float, hurried: Callable[[], bool] = lambda: False) -> None:
        """Wait until they have told the run's end, for so long or until somebody is in a hurry; then they are gone."""
        deadline, began = time.monotonic() + seconds, time.monotonic()
        while self._living() and time.monotonic() < deadline and not hurried():
            time.sleep(0.05)
        for name in self._living():
            self._faults[name] = f"it had not been told all of the run {time.monotonic() - began:.0f} s after its end"
        for name, process in self._processes.items():
            for child in _children(process.pid):
                with suppress(OSError):
                    os.kill(child, 9)
            end_group(process, _GRACE_SECONDS)
            said = read_json(self.run_dir / FOLDER / f"{name}.json", TRACKED) or {"state": "following"}
            if name not in self._faults and said["state"] == "following":
                how = f"status {process.returncode}" if process.returncode >= 0 else f"signal {-process.returncode}"
                self._faults[name] = f"{said.get('error') or 'its process ended'} ({how})"
        self._processes.clear()

    def _living(self) -> list[Name]:
        return [name for name, process in self._processes.items() if process.poll() is None]


def _children(pid: int) -> Iterable[int]:
    """What it started in groups of their own, while it can be found."""
    import psutil

    with suppress(psutil.Error):
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    return ()
