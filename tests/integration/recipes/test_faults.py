"""What goes wrong between a user and a job, by the command line: one clear line, the exit status, and a true record.

Real: Slurm, OpenSSH, dockerd, full disks (a small tmpfs), killed processes. Lepton's service is a stand-in, as
tests/testbed/lepton.py says; enroot and Pyxis are not used.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.answers import data_of
from tests.conftest import Done
from tests.testbed.disk import small_disk
from tests.testbed.docker import IMAGE, Engine, host_mounts, host_path
from tests.testbed.lepton import NODE_GROUP, LeptonWorkspace
from tests.testbed.slurm import Cluster, Login, executable
from tests.testbed.waiting import until
from tests.testbed.warm import Command, Warm

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.geteuid() != 0, reason="private daemons, name spaces and a tmpfs need root"),
]

MARKER = "hf_MARKER_of_faults_77aa"
PATH = f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}"


@dataclass
class User:
    """Somebody at a shell: their profiles, their environment, and what their commands leave."""

    warm: Warm
    home: Path
    folder: Path
    env: dict[str, str] = field(default_factory=dict)
    profiles: dict[str, Any] = field(default_factory=dict)

    def __call__(self, *words: str, code: int | None = 0) -> Done:
        """Run a command; never may it end in a traceback."""
        env = {**os.environ, "NEMORUN_HOME": str(self.home), "HF_HUB_OFFLINE": "1", **self.env}
        done = Done(*self.warm.run(["experiment", *words], env, self.folder))
        assert "Traceback" not in done.err + done.out, done.err + done.out
        if code is not None:
            assert done.code == code, f"{words}: {done.code}\n{done.out}\n{done.err}"
        return done

    @property
    def words(self) -> list[str]:
        """What says which profiles there are."""
        file = self.folder / "profiles.yaml"
        file.write_text(yaml.safe_dump(self.profiles))
        return ["--profiles", str(file)]

    def run(self, *words: str, code: int | None = 0) -> Done:
        return self("run", "probe", *words, *self.words, code=code)

    def detached(self, *words: str) -> str:
        return str(self.run(*words, "--detach", "--json").json["id"])

    def refused(self, *words: str, code: int = 1) -> str:
        """The one line of a command that fails."""
        lines = self.run(*words, code=code).err.splitlines()
        assert len(lines) == 1, lines
        return lines[0]

    def begin(self, *words: str) -> Command:
        env = {**os.environ, "NEMORUN_HOME": str(self.home), **self.env}
        return self.warm.begin(["experiment", *words], env, self.folder)

    def python(self, text: str) -> Done:
        """A user's own script."""
        script = self.folder / "mine.py"
        script.write_text(text)
        env = {**os.environ, "NEMORUN_HOME": str(self.home), **self.env}
        done = subprocess.run(
            [sys.executable, script], cwd=self.folder, env=env, capture_output=True, text=True, timeout=240
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def status(self, run_id: str) -> dict[str, Any]:
        found: dict[str, Any] = self("status", run_id, "--json").json
        return found

    def ended(self, run_id: str, seconds: float = 120) -> dict[str, Any]:
        return until(lambda: (found := self.status(run_id))["state"] not in ("submitted", "running") and found, seconds)

    @property
    def ids(self) -> list[str]:
        return sorted(path.parent.name for path in self.home.glob("runs/*/run.json"))

    def record(self, run_id: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.home / "runs" / run_id / "run.json").read_text())
        return found

    def handle(self, run_id: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.home / "runs" / run_id / "job.json").read_text())
        return found

    def leaks(self) -> list[Path]:
        """Files of this test that hold the secret."""
        files = [path for path in self.folder.rglob("*") if path.is_file() and not path.is_symlink()]
        return [path for path in files if MARKER.encode() in path.read_bytes()]


@pytest.fixture
def user(warm: Warm, home: Path, tmp_path: Path) -> User:
    base = {"env": {"PATH": PATH, "OMP_NUM_THREADS": "1"}}
    found = User(warm=warm, home=home, folder=tmp_path, profiles={"here": {"extends": "local", **base}})
    found.env = {"HF_TOKEN": MARKER, "OMP_NUM_THREADS": "1"}
    return found


# --- Slurm ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def near(user: User, cluster: Cluster) -> User:
    """A user on the login node."""
    env = {"PATH": PATH, "OMP_NUM_THREADS": "1"}
    user.profiles["near"] = {"extends": "slurm", "image": None, "account": "acct", "time": "10", "env": env}
    user.env |= {"SLURM_CONF": cluster.env["SLURM_CONF"]}
    return user


@pytest.fixture
def far(user: User, login: Login, cluster: Cluster) -> Iterator[User]:
    """A user elsewhere, who has only ssh."""
    env = {"PATH": PATH, "OMP_NUM_THREADS": "1"}
    where = {"host": login.host, "port": login.port, "user": login.user, "identity": login.identity}
    where["job_dir"] = str(user.folder / "remote")
    user.profiles["far"] = {"extends": "slurm", "image": None, "account": "acct", "time": "10", "env": env, **where}
    user.profiles["bad"] = {"extends": "far", "partition": "nowhere"}
    user.env |= login.env
    yield user
    for file in login.bin.iterdir():
        file.unlink()
    cluster.revive(login.daemon)


def queued(cluster: Cluster, run_id: str, *states: str) -> list[str]:
    """The jobs that Slurm has of a run."""
    text = cluster.run("squeue", "--noheader", "--states", ",".join(states) or "all", "--format=%j|%T")
    return [line for line in text.splitlines() if line.startswith(f"{run_id}.")]


#: Ends the ssh session in which it runs, or the daemon with it, before, while or after the real command runs.
CUT = """#!/bin/sh
up() { while [ "$(cat /proc/$p/comm)" != sshd ]; do p=$(cut -d ' ' -f 4 /proc/$p/stat); done; }
real=/usr/bin/$(basename "$0")
p=$$; up; session=$p
p=$(cut -d ' ' -f 4 /proc/$p/stat); up; daemon=$p
case WHEN in
before) kill -9 $session ;;
during) trap '' HUP; kill -9 $session; sleep 2; $real "$@" ;;
daemon) kill -9 $daemon $session ;;
both) $real "$@" > /dev/null; kill -9 $daemon $session ;;
esac
"""


def test_a_login_node_that_does_not_answer(far: User) -> None:
    assert far.refused("executor=far", "executor.port=1").startswith("failed: unreachable: root@127.0.0.1:")
    (run_id,) = far.ids
    assert far.record(run_id)["error"]["name"] == "unreachable"
    assert far("ps", "--json").json == []
    assert far.leaks() == []


@pytest.mark.parametrize("command, when", [("rsync", "before"), ("sbatch", "before")])
def test_a_connection_that_breaks_before_slurm_has_the_job(
    far: User, login: Login, cluster: Cluster, command: str, when: str
) -> None:
    executable(login.bin / command, CUT.replace("WHEN", when))
    line = far.refused("executor=far", "--detach")
    assert line.startswith("failed: submission_failed: nothing was submitted: ")
    (run_id,) = far.ids
    found = far.status(run_id)
    assert (found["state"], found["error"]["name"]) == ("failed", "submission_failed")
    assert queued(cluster, run_id) == []
    assert far.leaks() == [], "the file of secrets is gone again"
    assert not list(far.folder.glob("remote/runs/*/run.json")), "no record over there says that it was submitted"


def test_a_connection_that_breaks_while_slurm_takes_the_job(far: User, login: Login, cluster: Cluster) -> None:
    executable(login.bin / "sbatch", CUT.replace("WHEN", "during"))
    run_id = far.detached("executor=far")
    assert far.ended(run_id)["state"] == "succeeded"
    assert len(queued(cluster, run_id)) == 1
    assert far.leaks() == []


def test_a_login_node_that_goes_and_comes_back(far: User, login: Login, cluster: Cluster) -> None:
    executable(login.bin / "sbatch", CUT.replace("WHEN", "both"))
    line = far.refused("executor=far", "args.seconds=300", "--detach")
    assert line.startswith("failed: submission_unknown: root@127.0.0.1 went silent")
    (run_id,) = far.ids
    found = far.status(run_id)
    assert found["state"] == "submitted"
    assert found["note"].startswith("unreachable: root@127.0.0.1")
    logs = far("logs", run_id, code=1)
    assert logs.err.startswith("failed: unreachable:")
    assert far("cancel", run_id, code=1).err.startswith(f"{run_id}: unreachable:")
    cluster.restart(login.daemon)
    (login.bin / "sbatch").unlink()
    until(lambda: not far.status(run_id)["note"])
    until(lambda: far.status(run_id)["state"] == "running")
    until(lambda: "rank 0 of 1" in far("logs", run_id).out)
    assert far("cancel", run_id).code == 0
    assert far.record(run_id)["state"] == "cancelled"
    assert queued(cluster, run_id, "PENDING", "RUNNING") == []
    assert far.leaks() == []


TWO_STAGES = """
from pathlib import Path
from recipes import Stage, probe
from recipes.experiment.prepare import prepare_all
from recipes.experiment.stage import Options
from recipes.experiment.submit import start
from scripts.run.problems import JobError

def stage(name, executor, after=()):
    recipe = probe()
    recipe.args.seconds = 300
    return Stage(name=name, partial=recipe, after=after, executor=executor)

if __name__ == "__main__":
    stages = [stage("first", "far"), stage("second", "SECOND", ["first"])]
    prepared = prepare_all(stages, options=Options(profiles=Path("profiles.yaml")))
    print(*(submission.id for submission in prepared))
    try:
        start(prepared, detach=True)
    except JobError as error:
        print(error)
"""


def test_a_second_stage_that_slurm_refuses_undoes_the_first(far: User, cluster: Cluster) -> None:
    assert far.words
    done = far.python(TWO_STAGES.replace("SECOND", "bad"))
    assert done.code == 0, done.err
    ids, line = done.out.splitlines()
    first, second = ids.split()
    assert line.startswith("invalid_partition: ")
    assert line.endswith("executor.partition=NAME.")
    assert queued(cluster, first, "PENDING", "RUNNING") == []
    assert queued(cluster, second) == []
    states = {row["id"]: (row["state"], row["error"]["name"]) for row in far("ps", "--all", "--json").json}
    assert states == {first: ("cancelled", "cancelled"), second: ("failed", "invalid_partition")}
    assert far.leaks() == []


def test_a_first_stage_that_cannot_be_undone_is_named(far: User, login: Login, cluster: Cluster) -> None:
    assert far.words
    executable(login.bin / "sacct", CUT.replace("WHEN", "daemon"))  # asked about the first before the second goes
    done = far.python(TWO_STAGES.replace("SECOND", "far"))
    assert done.code == 0, done.err
    ids, line = done.out.splitlines()
    first, second = ids.split()
    assert line.startswith("unreachable: ")
    assert f"These are still with the scheduler: {first}." in line
    (login.bin / "sacct").unlink()
    cluster.restart(login.daemon)
    until(lambda: far.status(first)["state"] == "running")
    assert far.record(second)["state"] == "failed"
    assert queued(cluster, second) == []
    far("cancel", first)
    assert far.record(first)["state"] == "cancelled"
    assert far.leaks() == []


def test_a_controller_that_is_down(near: User, cluster: Cluster) -> None:
    run_id = near.detached("executor=near", "args.seconds=300")
    until(lambda: near.record(run_id)["state"] == "running")
    with cluster.without("slurmctld"):
        line = near.refused("executor=near", "--sweep", "args.message=a,b,c", "--detach")
        assert line.startswith("failed: slurm_down: ")
        rows = {row["id"]: row for row in near("ps", "--all", "--json").json}
        assert rows.pop(run_id)["state"] == "running", "its own record and the database know it"
        assert [(row["state"], row["error"]["name"]) for row in rows.values()] == [("failed", "slurm_down")] * 3
        assert near("cancel", run_id, code=1).err.startswith(f"{run_id}: slurm_down: ")
    near("cancel", run_id)
    assert near.record(run_id)["state"] == "cancelled"
    assert near.leaks() == []


def test_accounting_that_is_down(near: User, cluster: Cluster) -> None:
    with cluster.without("slurmdbd"):
        run_id = near.detached("executor=near", "args.exit_code=3", "args.fail_attempts=1")
        found = near.ended(run_id)
        assert (found["state"], found["error"]["name"], found["note"]) == ("failed", "told_to_fail", "")
        near("resume", run_id)
        assert near.ended(run_id)["state"] == "succeeded"


#: Stops in front of the real sbatch, or behind it, until it is let go.
SLOW = """#!/bin/sh
[ WHEN = before ] || answer=$(/usr/bin/sbatch "$@")
touch FOLDER/there
while [ ! -e FOLDER/go ]; do sleep 0.1; done
[ WHEN = after ] || answer=$(/usr/bin/sbatch "$@")
echo "$answer"
touch FOLDER/gone
"""


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_command_that_is_killed_while_it_submits(near: User, cluster: Cluster, when: str) -> None:
    tools = near.folder / "tools"
    tools.mkdir()
    executable(tools / "sbatch", SLOW.replace("WHEN", when).replace("FOLDER", str(tools)))
    near.env["PATH"] = f"{tools}:{PATH}"
    with near.begin("run", "probe", "executor=near", "args.seconds=300", *near.words, "--detach") as command:
        try:
            until(lambda: (tools / "there").exists())
            (run_id,) = near.ids
            assert near.status(run_id)["state"] in ("submitted", "running"), "the command is at it"
        finally:
            command.kill()
            (tools / "go").touch()
    until(lambda: (tools / "gone").exists())
    until(lambda: near.status(run_id)["state"] == "running")
    near("cancel", run_id)
    assert near.status(run_id)["state"] == "cancelled"
    assert len(queued(cluster, run_id)) == 1
    assert queued(cluster, run_id, "PENDING", "RUNNING") == []
    assert near.leaks() == []


# --- Docker --------------------------------------------------------------------------------------------------------


@pytest.fixture
def box(user: User, engine: Engine) -> Iterator[User]:
    """A user of a Docker engine."""
    env = {"PATH": host_path(), "OMP_NUM_THREADS": "1"}
    user.profiles["box"] = {
        "extends": "docker",
        "image": IMAGE,
        "gpus": None,
        "host": engine.host,
        "mounts": host_mounts(),
        "env": env,
        "secrets": ["HF_TOKEN"],
    }
    yield user
    engine.start_if_gone()


def containers(engine: Engine, run_id: str) -> list[str]:
    with engine.client() as client:
        names = [container.name for container in client.containers.list(all=True, ignore_removed=True)]
    return [name for name in names if name.startswith(run_id.replace("_", "-"))]


@pytest.mark.parametrize(
    "change, name",
    [("host=unix:///nonexistent/docker.sock", "docker_unreachable"), ("image=removed:1", "image_missing")],
)
def test_an_engine_or_an_image_that_is_not_there(box: User, engine: Engine, change: str, name: str) -> None:
    assert box.refused("executor=box", f"executor.{change}").startswith(f"failed: {name}: ")
    (run_id,) = box.ids
    assert box.record(run_id)["error"]["name"] == name
    assert box("ps", "--json").json == []
    assert containers(engine, run_id) == []
    assert box.leaks() == []


def test_a_container_that_somebody_kills(box: User, engine: Engine) -> None:
    run_id = box.detached("executor=box", "args.seconds=300")
    until(lambda: box.status(run_id)["state"] == "running")
    with engine.client() as client:
        client.containers.get(box.handle(run_id)["scheduler"]["id"]).kill()
    found = box.ended(run_id)
    assert (found["state"], found["error"]["name"]) == ("failed", "killed")
    assert box.leaks() == []


def test_a_supervisor_that_is_killed_leaves_a_container_that_is_seen_to_its_end(box: User, engine: Engine) -> None:
    run_id = box.detached("executor=box", "args.seconds=8")
    until(lambda: box.status(run_id)["state"] == "running")
    os.kill(box.handle(run_id)["supervisor"]["pid"], signal.SIGKILL)
    found = box.status(run_id)
    assert found["state"] == "running"
    assert box.ended(run_id)["state"] == "succeeded"
    assert containers(engine, run_id) == []
    assert box.leaks() == []


def test_an_engine_that_dies_and_is_started_again(box: User, engine: Engine) -> None:
    run_id = box.detached("executor=box", "args.seconds=300")
    until(lambda: box.record(run_id)["state"] == "running")
    engine.kill()
    found = box.status(run_id)
    assert found["state"] == "running", "as far as anybody knows"
    assert found["note"].startswith("docker_unreachable: ")
    cancelled = box("cancel", run_id, code=1)
    assert "docker_unreachable" in cancelled.out + cancelled.err
    assert box.record(run_id)["state"] == "running", "nothing was ended, and nothing says so"
    engine.start()
    assert box.ended(run_id, 150)["state"] in ("failed", "cancelled", "lost")
    assert containers(engine, run_id) == []
    assert box.leaks() == []


# --- Lepton --------------------------------------------------------------------------------------------------------


@pytest.fixture
def cloud(user: User) -> Iterator[LeptonWorkspace]:
    """A Lepton workspace that the user is logged in to."""
    user.profiles["cloud"] = {
        "extends": "lepton",
        "image": "registry.example/image:1",
        "node_group": NODE_GROUP,
        "resource_shape": "cpu.small",
        "nemo_run_dir": "/mnt/shared/nemo",
        "mounts": [{"path": "/project", "mount_path": "/mnt/shared", "from": "node-nfs:testbed"}],
        "env": {"OMP_NUM_THREADS": "1"},
        "secrets": [],
    }
    with LeptonWorkspace(user.folder / "lepton") as service:
        user.env |= service.environment
        yield service


def test_a_workspace_that_refuses_or_fails(user: User, cloud: LeptonWorkspace) -> None:
    user.env["LEPTON_WORKSPACE_TOKEN"] = "expired"
    assert user.refused("executor=cloud", "--detach").startswith("failed: lepton_unauthorized: ")
    user.env |= cloud.environment
    cloud.fail("create", 500, times=99)
    assert user.refused("executor=cloud", "--detach").startswith("failed: lepton_server_error: ")
    cloud.calm()
    cloud.fail("create", 409)
    assert user.refused("executor=cloud", "--detach").startswith("failed: name_taken: ")
    assert cloud.jobs == {}
    names = [user.record(run_id)["error"]["name"] for run_id in user.ids]
    # Ids of one minute are in no order.
    assert sorted(names) == ["lepton_server_error", "lepton_unauthorized", "name_taken"]
    assert user("ps", "--json").json == []


def test_a_workspace_that_fails_while_a_job_runs(user: User, cloud: LeptonWorkspace) -> None:
    cloud.fail("create", 500)
    run_id = user.detached("executor=cloud", "args.seconds=300")
    until(lambda: user.status(run_id)["state"] == "running")
    for answer, name in ((500, "lepton_server_error"), ("hang", "lepton_timeout")):
        cloud.fail("job", answer, times=99)
        began = time.monotonic()
        found = user.status(run_id)
        assert time.monotonic() - began < 50, "it is not asked again and again"
        assert found["state"] in ("submitted", "running")
        assert found["note"].startswith(f"{name}: ")
        cloud.calm()
    user.env["LEPTON_WORKSPACE_TOKEN"] = "expired"
    assert user("cancel", run_id, code=1).err.startswith(f"{run_id}: lepton_unauthorized: ")
    user.env |= cloud.environment
    user("cancel", run_id)
    assert user.record(run_id)["state"] == "cancelled"


# --- The submitting machine ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kib", [24, 60])
def test_a_run_that_is_followed_ends_on_a_full_disk_too(user: User, kib: int) -> None:
    """Where the run cannot be recorded, and where its job cannot; NeMo-Run takes the latter for running."""
    with small_disk(user.home, kib):
        line, *_ = user.run("executor=here", code=1).err.splitlines()
        assert line.startswith(("failed: disk_full: ", "failed: job_died: "))


@pytest.mark.parametrize("executor, free", [("here", 0), ("near", 0), ("near", 260)])
def test_a_full_disk_here(near: User, cluster: Cluster, executor: str, free: int) -> None:
    with small_disk(near.home, 2048) as leave:
        leave(free)
        line = near.refused(f"executor={executor}", "--detach")
        assert line.startswith(("failed: disk_full: ", "failed: packaging_failed: "))
        assert "No space left on device" in line
        rows = near("ps", "--all", "--json").json
        assert {row["state"] for row in rows} <= {"failed", "lost"}, "the latter where that cannot be written either"
        assert [row["id"] for row in rows] == [path.name for path in near.home.glob("runs/*")]
        assert cluster.run("squeue", "--noheader", "--states=PENDING,RUNNING", "--format=%j") == ""
        assert near.leaks() == []


def test_a_disk_that_fills_while_the_job_runs(user: User) -> None:
    disk = user.folder / "disk"
    with small_disk(disk, 2048) as leave:
        run_id = user.detached("executor=here", f"executor.output_root={disk}", "args.seconds=8")
        until(lambda: user.status(run_id)["state"] == "running")
        leave(0)
        found = user.ended(run_id)
        assert (found["state"], found["error"]["name"]) == ("failed", "disk_full")


def test_homes_that_nemo_run_cannot_use(user: User) -> None:
    user.home = user.folder / "it's a $HOME"
    user.env["NEMORUN_HOME"] = str(user.home)
    done = user.run("executor=here", "--json")
    assert done.json["state"] == "succeeded", "on this machine there is no such limit"
    shared = {"job_dir": "/shared/nemo", "host": "login.example"}
    user.profiles["far"] = {"extends": "slurm", **shared}
    line, last = user.run("executor=far", code=2).err.splitlines()
    assert line.startswith("Problem wrong_home   NEMORUN_HOME=")
    assert last == "1 problem; nothing was submitted."
    assert len(user.ids) == 1


def test_broken_profile_files(user: User) -> None:
    file = user.folder / "broken.yaml"

    def problems(text: str, executor: str) -> str:
        file.write_text(text)
        done = user("run", "probe", f"executor={executor}", "args.second=1", "--profiles", str(file), code=2)
        assert "unknown_key   args.second" in done.err, "the recipe's own mistakes are told beside the file's"
        return done.err

    assert "broken_profile_file" in problems("here: {extends: local,\n  env: [\n", "here")
    assert "circular_extends" in problems("a: {extends: b}\nb: {extends: a}\n", "a")
    said = problems(
        "here:\n  extends: slurm\n  nodes: many\n  acount: me\n  time: 1\n  time: 2\n"
        "  env: {A: '${oc.env:NOT_SET_ANYWHERE}'}\n  additional: 7\nhere: {}\n",
        "here",
    )
    for expected in ("nodes", "Did you mean account", "stands there twice", "NOT_SET_ANYWHERE", "additional", "before"):
        assert expected in said, said
    assert not (user.home / "runs").exists()


def test_records_that_are_damaged(user: User) -> None:
    good = str(user.run("executor=here", "args.exit_code=3", "--json", code=1).json["id"])
    runs = user.home / "runs"
    handle = json.loads((runs / good / "job.json").read_text())
    damage = {
        "probe_half": ("run.json", "{"),
        "probe_list": ("run.json", "[]"),
        "probe_nojob": ("job.json", "\0"),
        "probe_shape": ("job.json", json.dumps(handle | {"launch": {}})),
        "probe_kind": ("job.json", json.dumps(handle | {"job": handle["job"] | {"profile": {"kind": "gone"}}})),
        "probe_part": ("job.json", json.dumps(handle | {"job": {"id": good}})),
        "probe_recipe": ("partial.zlib", "x"),
    }
    for name, (file, text) in damage.items():
        shutil.copytree(runs / good, runs / name)
        for kept in ("run.json", "job.json"):
            (runs / name / kept).write_text((runs / name / kept).read_text().replace(good, name))
        (runs / name / file).write_text(text.replace(good, name))
    bad = sorted(damage.keys() - {"probe_recipe"})
    rows = {row["id"]: row["state"] for row in user("ps", "--all", "--json").json if row["state"] == "unreadable"}
    assert sorted(rows) == bad
    shown = user("ps").out.splitlines()
    assert all(any(line.startswith(name) and " unreadable " in line for line in shown) for name in bad)
    assert good in user("ps", "--all").out
    assert f"cause        damaged_record: {runs}/probe_kind/job.json" in user("status", "probe_kind").out
    assert "rank 0 of 1" in user("logs", "probe_nojob").out
    cancelled = user("cancel", *bad, code=1)
    assert [line.partition(": ")[0] for line in cancelled.err.splitlines()] == bad
    assert f"damaged_record   ID=probe_half: {runs}/probe_half/run.json" in user("resume", "probe_half", code=2).err
    assert user("resume", "probe_recipe", code=1).err.startswith("failed: damaged_recipe: ")
    assert user.record("probe_recipe")["state"] == "failed", "as before"


def test_commands_at_the_same_time(user: User) -> None:
    """Runs end while two commands look at them and record that, and two cancel the last."""
    runs = user.run("executor=here", "--sweep", "args.seconds=0,2,300", "--detach", "--json").json["runs"]
    *others, last = (run["id"] for run in runs)
    while not all(user.record(run_id)["state"] == "succeeded" for run_id in others):
        both = [user.begin("ps", "--all", "--json") for _ in range(2)]
        for command in both:
            out, err = command.communicate(timeout=100)
            assert command.returncode == 0, err
            assert {row["state"] for row in data_of(out)} <= {"submitted", "running", "succeeded"}
    until(lambda: user.record(last)["state"] == "running")
    both = [user.begin("cancel", last) for _ in range(2)]
    for command in both:
        out, err = command.communicate(timeout=100)
        assert command.returncode == 0, err
        assert out.startswith(f"cancelled   {last}"), out
    assert [user.record(run_id)["state"] for run_id in (*others, last)] == ["succeeded"] * 2 + ["cancelled"]


def test_cancel_of_a_run_that_ends_at_that_moment(user: User) -> None:
    run_id = user.detached("executor=here", "args.seconds=1")
    until(lambda: user.record(run_id)["state"] == "running")
    user("cancel", run_id)  # one way or the other, what is said of it is true
    state = user.record(run_id)["state"]
    assert state in ("succeeded", "cancelled")
    assert user.status(run_id)["state"] == state
