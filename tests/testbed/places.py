"""Somebody who submits: a home and a working folder of their own, a file of profiles, and the CLI as a subprocess."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.conftest import NEMO, Done
from tests.testbed.docker import IMAGE, Engine, host_mounts, host_path
from tests.testbed.lepton import NODE_GROUP, LeptonWorkspace
from tests.testbed.slurm import Cluster, Login
from tests.testbed.warm import Command, Warm

#: The job's Python is this one, as a user's `source venv/bin/activate` would have it.
JOB_PATH = f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}"
SECRETS = ["HF_TOKEN", "SITE_KEY"]  # one that is well known, and one of the profile's own
#: Nothing here takes that long; a loaded machine may make it slow.
SECONDS = 240.0


@dataclass(frozen=True, kw_only=True)
class Desk:
    """One person's view: what they submit from here, and what is recorded of it."""

    folder: Path
    env: Mapping[str, str]
    warm: Warm
    _begun: "list[Command | subprocess.Popen[str]]" = field(default_factory=list)

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def work(self) -> Path:
        return self.folder / "work"

    def with_env(self, **values: str) -> "Desk":
        return replace(self, env={**self.env, **values})

    def without(self, *names: str) -> "Desk":
        return replace(self, env={name: value for name, value in self.env.items() if name not in names})

    def begin(self, *words: str, cwd: Path | None = None) -> Command:
        """Start `nemo experiment WORDS...` with no terminal, in a process group of its own."""
        command = self.warm.begin(["experiment", *words], self.env, cwd or self.work)
        self._begun.append(command)
        return command

    def begin_cold(self, *words: str, cwd: Path | None = None) -> "subprocess.Popen[str]":
        """The same by the script `nemo`: its words are a process's, and its modules those of its environment."""
        process = subprocess.Popen(
            [NEMO, "experiment", *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=cwd or self.work,
            env=dict(self.env),
            start_new_session=True,
        )
        self._begun.append(process)
        return process

    def nemo(self, *words: str, cwd: Path | None = None) -> Done:
        """Run `nemo experiment WORDS...` to its end."""
        return ended(self.begin(*words, cwd=cwd))

    def together(self, *commands: Sequence[str]) -> list[Done]:
        """Run commands at the same time, as impatient people do."""
        return [ended(process) for process in [self.begin(*words) for words in commands]]

    def detached(self, *words: str) -> str:
        """Hand a probe over, and return its id."""
        done = self.nemo("run", "probe", *words, "--detach", "--json")
        assert done.code == 0, done
        return str(done.json["id"])

    def write_profiles(self, profiles: Mapping[str, Any]) -> None:
        (self.work / "executors.yaml").write_text(json.dumps(dict(profiles), indent=2))  # which is YAML

    def folder_of(self, run_id: str) -> Path:
        """What the submitting machine keeps of a run."""
        return self.home / "runs" / run_id

    def handle(self, run_id: str) -> Any:
        return json.loads((self.folder_of(run_id) / "job.json").read_text())

    def record(self, run_id: str) -> Any:
        """run.json as this machine has it; None before it is there, or while it is replaced."""
        return read(self.folder_of(run_id))

    def end(self) -> None:
        """Stop commands that a failing test left, and supervisors."""
        for process in self._begun:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
        for file in self.home.glob("runs/*/job.json"):
            supervisor = json.loads(file.read_text()).get("supervisor")
            if supervisor and _is_ours(supervisor["pid"], file.parent.name):
                os.kill(supervisor["pid"], signal.SIGKILL)


@contextmanager
def desk(folder: Path, profiles: Mapping[str, Any], env: Mapping[str, str], warm: Warm) -> Iterator[Desk]:
    """A desk below `folder`, with `profiles` as the nearest executors.yaml and nothing of whoever runs the tests."""
    own = {"NEMORUN_HOME": str(folder / "home"), "HOME": str(folder / "user"), "TMPDIR": str(folder / "tmp")}
    own |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    foreign = ("SLURM", "SBATCH", "LEPTON", "DOCKER", "NEMO", "XDG", "HF_", "WANDB", "NGC", "PYTHONPATH", "MODELOPT")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    for name in ("home", "user", "tmp", "work"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    made = Desk(folder=folder, env={**kept, **own, **env}, warm=warm)
    made.write_profiles(profiles)
    try:
        yield made
    finally:
        made.end()


def slurm_profile(**values: Any) -> dict[str, Any]:
    env = {"PATH": JOB_PATH, "OMP_NUM_THREADS": "1"}
    return {"kind": "slurm", "account": "acct", "time": "20", "env": env, "secrets": SECRETS, "image": None, **values}


def remote_profile(login: Login, folder: Path, **values: Any) -> dict[str, Any]:
    """The same cluster, for somebody who is elsewhere."""
    where = {"host": login.host, "port": login.port, "user": login.user, "identity": login.identity}
    return slurm_profile(**where, job_dir=str(folder), **values)


def docker_profile(engine: Engine, **values: Any) -> dict[str, Any]:
    env = {"PATH": host_path(), "OMP_NUM_THREADS": "1"}
    own = {"image": IMAGE, "host": engine.host, "gpus": 0, "pull": "never", "env": env, "mounts": host_mounts()}
    return {"kind": "docker", **own, "secrets": SECRETS, **values}


def lepton_profile(**values: Any) -> dict[str, Any]:
    mounts = [{"path": "/project", "mount_path": "/mnt/shared", "from": "node-nfs:testbed"}]
    own: dict[str, Any] = {"image": "registry.example/image:1", "node_group": NODE_GROUP, "resource_shape": "cpu.small"}
    own |= {"nemo_run_dir": "/mnt/shared/nemo", "secret_names": {"SITE_KEY": "site-key"}}
    return {"kind": "lepton", **own, "mounts": mounts, "secrets": SECRETS, "env": {"OMP_NUM_THREADS": "1"}, **values}


def lepton_run_dir(workspace: LeptonWorkspace, run_id: str) -> Path:
    """A run directory on the workspace's storage, from outside."""
    return workspace.storage(f"/project/nemo/runs/{run_id}")


def slurm_env(cluster: Cluster) -> dict[str, str]:
    return {"SLURM_CONF": cluster.env["SLURM_CONF"], "PATH": cluster.env["PATH"]}


def ended(process: "Command | subprocess.Popen[str]") -> Done:
    """A command's exit status and what it printed, once it has ended."""
    out, err = process.communicate(timeout=SECONDS)
    return Done(process.returncode, out, err)


def read(run_dir: Path) -> Any:
    """A run directory's record; None before it is there."""
    try:
        return json.loads((run_dir / "run.json").read_text())
    except (OSError, ValueError):
        return None


def report(run_dir: Path) -> list[dict[str, Any]]:
    """What the ranks of a probe reported."""
    ranks: list[dict[str, Any]] = json.loads((run_dir / "report" / "probe.json").read_text())["ranks"]
    return ranks


def files_with(marker: str, *folders: Path) -> list[Path]:
    """Every file below `folders` that contains `marker`."""
    wanted = marker.encode()
    found = []
    for folder in folders:
        for file in folder.rglob("*"):
            if file.is_file() and not file.is_symlink() and wanted in _content(file):
                found.append(file)
    return found


class Watch:
    """Looks at every process's command line again and again, and at whatever else it is told to look at."""

    def __init__(self, *words: str, others: Sequence[Callable[[], str]] = ()) -> None:
        self._words = words
        self._others = others
        self.seen: set[str] = set()  # those of the words that stood on a command line, or in what `others` say
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._thread.join(30)

    def _run(self) -> None:
        while not self._over.wait(0.3):
            for file in Path("/proc").glob("[0-9]*/cmdline"):
                self._look(_content(file).decode(errors="replace"))
            for other in self._others:
                self._look(other())

    def _look(self, text: str) -> None:
        self.seen |= {word for word in self._words if word in text}


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:  # it has gone since
        return b""


def _is_ours(pid: int, run_id: str) -> bool:
    words = _content(Path(f"/proc/{pid}/cmdline"))
    return b"recipes.experiment" in words and run_id.encode() in words
