"""Every kind of place through the command line, as a user has it: Slurm on its login node, in containers and over
SSH, Docker, Lepton.

Stand-ins: Pyxis (tests/testbed/minipyxis.c) and Lepton's service (tests/testbed/lepton.py). Real are Slurm,
OpenSSH, the Docker engine, NeMo-Run, and every job.
"""

import hashlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Done
from tests.testbed.docker import Engine
from tests.testbed.lepton import LeptonWorkspace
from tests.testbed.places import (
    Desk,
    Watch,
    desk,
    docker_profile,
    ended,
    files_with,
    lepton_profile,
    lepton_run_dir,
    read,
    remote_profile,
    report,
    slurm_env,
    slurm_profile,
)
from tests.testbed.slurm import Cluster, Login, login_node, slurm_cluster
from tests.testbed.waiting import until
from tests.testbed.warm import Warm

pytestmark = pytest.mark.integration

FINAL = ("succeeded", "failed", "cancelled")
#: Nodes and processes on each of them, as far as the kind has them.
SHAPES = {"slurm": (2, 2), "pyxis": (2, 2), "remote": (1, 1), "docker": (1, 2), "lepton": (2, 2)}
REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A cluster that refuses accounts it does not know, as most do."""
    with slurm_cluster() as started:
        with started.without("slurmctld"), (started.folder / "etc" / "slurm.conf").open("a") as settings:
            settings.write("AccountingStorageEnforce=associations\n")
        started.wait_for("sinfo", "-h", "-t", "idle", "-o", "%D", until=lambda text: text.strip() == "2")
        yield started


@pytest.fixture(scope="module")
def login(cluster: Cluster) -> Iterator[Login]:
    with login_node(cluster) as started:
        yield started


@dataclass(frozen=True, kw_only=True)
class Site:
    """All places at once, and the desk from which they are used."""

    desk: Desk
    cluster: Cluster
    login: Login
    engine: Engine
    workspace: LeptonWorkspace
    remote: Path  # the job_dir on the cluster of whoever comes over SSH

    def elsewhere(self) -> Desk:
        """The same desk on a machine that has no Slurm configuration."""
        return self.desk.without("SLURM_CONF")

    def run_dir(self, kind: str, run_id: str) -> Path:
        """Where a run records itself, from outside."""
        if kind == "lepton":
            return lepton_run_dir(self.workspace, run_id)
        return (self.remote / "runs" if kind == "remote" else self.desk.home / "runs") / run_id

    def in_queue(self, run_id: str, fields: str = "%T") -> str:
        """What squeue says about a run."""
        job = self.desk.handle(run_id)["scheduler"]["id"]
        return self.cluster.run("squeue", "-h", "-t", "all", "-j", job, "-o", fields).strip()

    def containers(self) -> str:
        """Everything that the engine tells about its containers."""
        with self.engine.client() as client:
            return json.dumps([container.attrs for container in client.containers.list(all=True, ignore_removed=True)])


@pytest.fixture
def site(cluster: Cluster, login: Login, engine: Engine, warm: Warm, tmp_path: Path) -> Iterator[Site]:
    profiles = {
        "slurm": slurm_profile(),
        "held": slurm_profile(additional={"hold": ""}),
        "pyxis": slurm_profile(image="nvcr.io/nvidia/nemo:25.09"),
        "remote": remote_profile(login, tmp_path / "remote"),
        "docker": docker_profile(engine),
        "lepton": lepton_profile(),
    }
    values = {"HF_TOKEN": f"hf-{secrets.token_hex(8)}", "site-key": f"site-{secrets.token_hex(8)}"}
    with LeptonWorkspace(tmp_path / "lepton", secrets=values) as workspace:
        env = {**slurm_env(cluster), **login.env, **workspace.environment}
        with desk(tmp_path / "desk", profiles, env, warm) as own:
            yield Site(
                desk=own,
                cluster=cluster,
                login=login,
                engine=engine,
                workspace=workspace,
                remote=tmp_path / "remote",
            )


@pytest.mark.parametrize("kind", SHAPES)
def test_a_run_is_told_to_a_tracker_wherever_it_runs(site: Site, kind: str) -> None:
    own = site.elsewhere() if kind == "remote" else site.desk
    done = own.nemo("run", "probe", f"executor={kind}", "track=[tensorboard]", "--json")
    assert done.code == 0, done
    said, run_id = done.json["tracked"]["tensorboard"], done.json["id"]
    assert (said["state"], said["id"]) == ("kept", Path(said["folder"]).parents[1].name), done
    assert list((site.run_dir(kind, run_id) / "tracking" / "tensorboard").glob("events.out.tfevents.*"))
    assert f"tensorboard  tensorboard --logdir {said['folder']}" in own.nemo("status", run_id).out
    again = own.nemo("track", run_id, "--to", "tensorboard", "--json")
    if kind in ("remote", "lepton"):
        assert (again.code, [one["name"] for one in again.answer["problems"]]) == (2, ["run_dir_elsewhere"]), again
    else:
        assert (again.code, again.json["tracked"]["tensorboard"]["state"]) == (0, "kept"), again


@pytest.mark.parametrize("kind", SHAPES)
def test_attached_to_success_and_to_failure(site: Site, kind: str) -> None:
    """Exit status, JSON, log, `status` and `ps` from other processes; and the secrets, which stay nowhere."""
    nodes, processes = SHAPES[kind]
    marker, word = f"marker-{secrets.token_hex(8)}", f"word-{secrets.token_hex(8)}"
    own = (site.elsewhere() if kind == "remote" else site.desk).with_env(HF_TOKEN=marker, SITE_KEY=marker)
    run = ["run", "probe", f"executor={kind}", "--json"]
    shape = [f"torchrun.nnodes={nodes}", f"torchrun.nproc_per_node={processes}"]
    others = [site.containers] if kind == "docker" else []
    with Watch(marker, word, others=others) as watch:
        begun = own.begin_cold(*run, *shape, f"args.message={word}")
        bad = own.nemo(*run, "args.exit_code=3", "args.fail_attempts=1")
        good = ended(begun)
    assert watch.seen >= {word}, "the watch saw command lines"
    assert marker not in watch.seen

    assert (good.code, bad.code) == (0, 1), f"{good}\n{bad}"
    _is_complete(good.json, kind, "succeeded")
    (output,) = good.json["outputs"]
    assert (output["type"], output["files"]) == ("probe_report", 1)
    assert output["path"] == f"{good.json['run_dir']}/report"
    ranks = report(site.run_dir(kind, good.json["id"]))
    world = nodes * processes
    assert [(rank["rank"], rank["world"]) for rank in ranks] == [(n, world) for n in range(world)]
    assert {rank["sum_of_ranks"] for rank in ranks} == {world * (world - 1) // 2 if world > 1 else None}
    assert all({"HF_TOKEN", "SITE_KEY"} <= set(rank["variables"]) for rank in ranks)
    assert all(rank["code"].endswith("/code/.recipes/scripts") for rank in ranks), "what was packed ran"
    if kind in ("slurm", "pyxis"):
        assert sorted(rank["environment"]["SLURM_NODEID"] for rank in ranks) == ["0", "0", "1", "1"]
        assert {rank["environment"]["SLURM_JOB_ID"] for rank in ranks} == {good.json["job"]["SLURM_JOB_ID"]}

    _is_complete(bad.json, kind, "failed")
    assert bad.json["error"]["name"] == "told_to_fail"
    assert "rank 0 was told to fail with 3" in bad.err

    ids = [good.json["id"], bad.json["id"]]
    status, listed, log = own.together(["status", ids[0], "--json"], ["ps", "--all", "--json"], ["logs", ids[0]])
    assert _without(status.json, "where", "note") == _without(good.json, "report")
    assert {row["id"]: (row["state"], row["where"]) for row in listed.json} == {
        ids[0]: ("succeeded", kind),
        ids[1]: ("failed", kind),
    }
    assert f"rank 0 of {world}" in log.out
    assert word in log.out

    if kind in ("remote", "docker"):
        again = own.nemo("resume", ids[1])
        assert again.code == 0, again
        assert f"detached   {ids[1]}" in again.out
        # Over SSH what the first attempt left cannot be moved aside from here: the second has a directory of its own.
        second = site.run_dir(kind, f"{ids[1]}-r2" if kind == "remote" else ids[1])
        until(lambda: (read(second) or {}).get("state") in FINAL)
        row = _listed(own, ids[1])[ids[1]]
        assert (row["state"], row["error"]) == ("succeeded", None), row
        assert [attempt["error"]["name"] for attempt in row["attempts"]] == ["told_to_fail"]
        assert row["submitted_at"] == bad.json["submitted_at"]

    places = [site.desk.folder, site.cluster.folder, site.login.home, site.engine.folder, site.workspace.folder]
    places += [site.remote] if site.remote.exists() else []
    assert files_with(marker, *places) == []
    assert files_with(word, *places), "the search looked where things are"
    assert marker not in json.dumps(site.workspace.requests)
    if kind == "lepton":
        (sent, _) = [request["body"] for request in site.workspace.requests if request["kind"] == "create"]
        references = {env["name"]: env["value_from"] for env in sent["spec"]["envs"] if env.get("value_from")}
        assert references == {
            "HF_TOKEN": {"secret_name_ref": "HF_TOKEN"},
            "SITE_KEY": {"secret_name_ref": "site-key"},
        }
        for value in site.workspace.secrets.values():
            assert files_with(value, *places) == []


def _is_complete(record: dict[str, Any], kind: str, state: str) -> None:
    """What a record says when all is over, wherever the job ran."""
    assert record["state"] == state
    assert (record["executor"]["name"], record["executor"]["secrets"]) == (kind, ["HF_TOKEN", "SITE_KEY"])
    assert record["submitted_at"] <= record["started_at"] <= record["finished_at"]
    assert record["process"]["host"]
    code = record["code"]
    assert (code["packager"], code["commit"], code["changed"], code["untracked"]) == ("none", None, [], [])
    assert code["digest"] == code["own_digest"]
    assert record["versions"]["nemo-run"]
    job = record["job"]
    if kind in ("slurm", "pyxis", "remote"):
        assert record["scheduler"].startswith("COMPLETED" if state == "succeeded" else "FAILED exit code 3:0")
        assert job["SLURM_JOB_ID"].isdigit()
        assert job["SLURM_JOB_ACCOUNT"] == "acct"
        assert job["SLURM_JOB_PARTITION"] == "batch"
        assert job["SLURM_JOB_NODELIST"] in ("n1", "n2", "n[1-2]")
    elif kind == "docker":
        assert job["MODELOPT_RECIPES_IMAGE"] == "hostroot"
        assert job["MODELOPT_RECIPES_IMAGE_ID"].startswith("sha256:")
    else:
        assert record["scheduler"].startswith("Completed" if state == "succeeded" else "Failed")
        assert job["LEPTON_JOB_NAME"] == record["id"].replace("_", "-")


def _without(values: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in keys}


def _listed(own: Desk, *run_ids: str) -> dict[str, Any]:
    """`ps --all`, by id, once the runs named have ended; a scheduler may be slower than its job's own record."""

    def rows() -> dict[str, Any] | None:
        done = own.nemo("ps", "--all", "--json")
        assert done.code == 0, done
        found = {row["id"]: row for row in done.json}
        return found if all(found[run_id]["state"] in FINAL for run_id in run_ids) else None

    found: dict[str, Any] = until(rows)
    return found


def test_stages_on_slurm_wait_at_slurm(site: Site) -> None:
    """Handed over before the first may begin; from then on nothing of ours waits, and Slurm does all of it."""
    first = site.desk.detached("executor=held")
    second = site.desk.detached("executor=slurm", "args.exit_code=5", "--after", first)
    third = site.desk.detached("executor=slurm", "--after", second)
    assert site.in_queue(first, "%T %r") == "PENDING JobHeldUser"
    assert [site.in_queue(run_id, "%T %r") for run_id in (second, third)] == ["PENDING Dependency"] * 2
    assert _processes_of(site.desk) == []
    assert [site.desk.handle(run_id)["supervisor"] for run_id in (first, second, third)] == [None] * 3

    site.cluster.run("scontrol", "release", site.desk.handle(first)["scheduler"]["id"])
    until(lambda: site.in_queue(third) == "CANCELLED")
    rows = _listed(site.desk, first, second, third)
    assert [rows[run_id]["state"] for run_id in (first, second, third)] == ["succeeded", "failed", "cancelled"]
    assert rows[second]["started_at"] > rows[first]["finished_at"]
    assert rows[third]["error"]["name"] == "dependency_failed"
    assert "started_at" not in rows[third]
    assert rows[third]["after"] == [second]


def _processes_of(own: Desk) -> list[str]:
    """Command lines of processes that belong to a desk: its home stands in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if str(own.home).encode() in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return found


STAGES = """
import sys
from recipes import Stage, probe, submit_all

def stage(name, after=(), **args):
    recipe = probe()
    for key, value in args.items():
        setattr(recipe.args, key, value)
    return Stage(name=name, partial=recipe, after=after)

if __name__ == "__main__":
    stages = [stage("first", seconds=2.0), stage("second", ["first"], exit_code=5), stage("third", ["second"])]
    for run in submit_all(stages, sys.argv[1], detach=True):
        print(run.id, run.state)
"""


@pytest.mark.parametrize("kind", ["docker", "lepton"])
def test_stages_elsewhere_wait_with_a_supervisor(site: Site, kind: str) -> None:
    (site.desk.work / "mine.py").write_text(STAGES)
    done = subprocess.run(
        [sys.executable, "mine.py", kind],
        cwd=site.desk.work,
        env=dict(site.desk.env),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    first, second, third = [line.split()[0] for line in done.stdout.splitlines()]
    assert {line.split()[1] for line in done.stdout.splitlines()} <= {"submitted", "running"}, "it returned at once"
    until(lambda: (site.desk.record(third) or {}).get("state") in FINAL)
    rows = _listed(site.desk, first, second, third)
    assert [rows[run_id]["state"] for run_id in (first, second, third)] == ["succeeded", "failed", "cancelled"]
    assert rows[second]["started_at"] > rows[first]["finished_at"]
    assert rows[second]["error"]["name"] == "told_to_fail"
    assert (rows[third]["error"]["name"], second in rows[third]["error"]["message"]) == ("dependency_failed", True)
    assert "started_at" not in rows[third]
    until(lambda: not _processes_of(site.desk))


def test_stages_in_different_places(site: Site) -> None:
    here = site.desk.detached("executor=local", "args.seconds=1")
    there = site.desk.detached("executor=slurm", "--after", here)
    back = site.desk.detached("executor=local", "args.exit_code=4", "--after", there)
    never = site.desk.detached("executor=slurm", "--after", back)
    until(lambda: (site.desk.record(never) or {}).get("state") in FINAL)
    rows = _listed(site.desk, here, there, back, never)
    states = [rows[run_id]["state"] for run_id in (here, there, back, never)]
    assert states == ["succeeded", "succeeded", "failed", "cancelled"]
    assert rows[here]["finished_at"] < rows[there]["started_at"]
    assert rows[there]["finished_at"] < rows[back]["started_at"]
    assert rows[never]["error"]["name"] == "dependency_failed"
    assert site.desk.handle(never)["scheduler"] is None, "it never reached Slurm"
    until(lambda: not _processes_of(site.desk))


def test_ctrl_c_and_cancel(site: Site) -> None:
    """Ctrl-C leaves what a scheduler looks after, and ends what nobody else would; `cancel` ends the rest."""
    kinds = ("slurm", "lepton", "docker")
    begun = {kind: site.desk.begin("run", "probe", f"executor={kind}", "args.seconds=600") for kind in kinds}
    waiting = site.desk.detached("executor=held")

    def running() -> dict[str, str] | None:
        ids = {
            read(path.parent)["executor"]["name"]: path.parent.name for path in site.desk.home.glob("runs/*/run.json")
        }
        states = [(read(site.run_dir(kind, ids[kind])) or {}).get("state") if kind in ids else None for kind in kinds]
        return ids if states == ["running"] * len(kinds) else None

    ids = until(running)
    for process in begun.values():
        os.killpg(process.pid, signal.SIGINT)  # a terminal tells the whole group
    done = {kind: ended(process) for kind, process in begun.items()}
    assert {kind: result.code for kind, result in done.items()} == dict.fromkeys(kinds, 130), done
    for kind in ("slurm", "lepton"):
        assert f"{ids[kind]} goes on" in done[kind].err
        assert f"nemo experiment logs -f {ids[kind]}" in done[kind].err
        assert f"nemo experiment cancel {ids[kind]}" in done[kind].err
    assert all("Traceback" not in result.err + result.out for result in done.values()), done
    assert site.desk.record(ids["docker"])["state"] == "cancelled"
    assert ids["docker"] not in site.containers()
    assert site.in_queue(ids["slurm"]) == "RUNNING"
    assert {row["id"]: row["state"] for row in site.desk.nemo("ps", "--json").json} == {
        ids["slurm"]: "running",
        ids["lepton"]: "running",
        waiting: "submitted",
    }

    gone = site.desk.nemo("cancel", ids["slurm"], ids["lepton"], waiting, "--json")
    assert gone.code == 0, gone
    assert {row["id"]: row["state"] for row in gone.json} == dict.fromkeys(
        (ids["slurm"], ids["lepton"], waiting), "cancelled"
    )
    assert {row["error"]["name"] for row in gone.json} == {"cancelled"}
    assert {site.in_queue(run_id) for run_id in (ids["slurm"], waiting)} == {"CANCELLED"}
    assert read(site.run_dir("lepton", ids["lepton"]))["state"] == "cancelled", "the job itself recorded it"
    assert _processes_of(site.desk) == []


def test_sweeps_are_one_job_of_slurm(site: Site) -> None:
    here = site.desk.begin(
        *("run", "probe", "executor=slurm", "--json"),
        *("--sweep", "args.exit_code=0,5", "--sweep", "args.message=one,two"),
    )
    there = site.elsewhere().begin("run", "probe", "executor=remote", "--sweep", "args.message=one,two", "--json")
    mixed, good = ended(here), ended(there)
    assert (mixed.code, good.code) == (1, 0), f"{mixed}\n{good}"
    for done, count in ((mixed, 4), (good, 2)):
        runs = done.json["runs"]
        ids = [site.desk.handle(run["id"])["scheduler"]["id"] for run in runs]
        array = ids[0].partition("_")[0]
        assert ids == [f"{array}_{n}" for n in range(count)]
        assert [run["job"]["SLURM_ARRAY_JOB_ID"] for run in runs] == [array] * count
        names = site.cluster.run("sacct", "-XnP", "-j", array, "-o", "JobName").split()
        assert len(names) == count and len(set(names)) == 1
    seen = {tuple(run["values"]["args"][key] for key in ("exit_code", "message")): run for run in mixed.json["runs"]}
    assert {key: run["state"] for key, run in seen.items()} == {
        (0, "one"): "succeeded",
        (0, "two"): "succeeded",
        (5, "one"): "failed",
        (5, "two"): "failed",
    }
    assert seen[5, "one"]["error"]["name"] == "told_to_fail"
    assert [report(Path(run["run_dir"]))[0]["message"] for run in good.json["runs"]] == ["one", "two"]


def test_over_ssh_the_node_runs_the_packed_code(site: Site) -> None:
    own = site.elsewhere()
    folders = {name: own.work / name for name in ("git", "pattern")}
    for folder in folders.values():
        (folder / "scripts").mkdir(parents=True)
        (folder / "scripts" / "__init__.py").write_text("raise RuntimeError('not ours')\n")
        (folder / "kept.py").write_text("before = 1\n")
        (folder / "tool.sh").write_text("#!/bin/sh\n")
        (folder / "tool.sh").chmod(0o755)
    _repository(folders["git"])
    (folders["git"] / "kept.py").write_text("after = 2\n")
    (folders["git"] / "new.py").write_text("")
    (folders["git"] / ".env").write_text("HF_TOKEN=x\n")
    run = ["run", "probe", "executor=remote", "--json"]
    begun = [
        own.begin(*run, cwd=folders["git"]),
        own.begin(*run, "executor.packager=pattern", 'executor.include=["*.py"]', cwd=folders["pattern"]),
    ]
    git, pattern = [ended(process) for process in begun]
    assert (git.code, pattern.code) == (0, 0), f"{git}\n{pattern}"
    for done in (git, pattern):
        _ran_what_was_packed(site, done)
    code = git.json["code"]
    assert (code["packager"], code["changed"], code["root"]) == ("git", ["kept.py"], str(folders["git"]))
    assert code["commit"] == git.json["git"]["commit"] == _git(folders["git"], "rev-parse", "HEAD")
    assert set(code["untracked"]) == {".env", "new.py"}
    unpacked = _unpacked(site, git)
    assert (unpacked / "kept.py").read_text() == "after = 2\n"
    assert os.access(unpacked / "tool.sh", os.X_OK)
    assert not (unpacked / "new.py").exists() and not (unpacked / ".env").exists()
    assert pattern.json["code"]["packager"] == "pattern"
    assert sorted(path.name for path in _unpacked(site, pattern).iterdir()) == [".recipes", "kept.py"]


def test_an_installed_copy_without_a_repository(site: Site, tmp_path: Path) -> None:
    source, installed = tmp_path / "source", tmp_path / "installed"
    source.mkdir()
    for name in ("recipes", "executors", "scripts", "configs"):
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--no-compile", "--target", installed, source], check=True, timeout=240)
    shutil.rmtree(source)
    own = site.elsewhere().with_env(PYTHONPATH=str(installed))
    done = ended(own.begin_cold("run", "probe", "executor=remote", "--json"))
    assert done.code == 0, done
    assert (done.json["code"]["packager"], done.json["git"]) == ("none", None)
    _ran_what_was_packed(site, done)
    unpacked = _unpacked(site, done) / ".recipes"
    files = {name: (installed / name).read_bytes() for name in _names(unpacked)}
    assert files == {name: (unpacked / name).read_bytes() for name in files}
    assert len(files) > 50 and "configs/quantize/fp8.yaml" in files


def _unpacked(site: Site, done: Done) -> Path:
    return Path(site.desk.handle(done.json["id"])["scheduler"]["folder"]) / "code"


def _ran_what_was_packed(site: Site, done: Done) -> None:
    """The modules came from the unpacked folder, and that is the code of the record, byte for byte."""
    unpacked = _unpacked(site, done)
    (rank,) = report(site.run_dir("remote", done.json["id"]))
    assert rank["code"] == f"{unpacked}/.recipes/scripts"
    assert done.json["code"]["digest"] == _digest(unpacked)
    assert done.json["code"]["files"] == len(_names(unpacked))


def _names(folder: Path) -> list[str]:
    """Files below `folder`, but for those that Python made by importing them."""
    files = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return sorted(str(path.relative_to(folder)) for path in files)


def _digest(folder: Path) -> str:
    """As run.json has it: over names, kinds and contents."""
    total = hashlib.sha256()
    for name in _names(folder):
        file = folder / name
        kind = "executable" if os.access(file, os.X_OK) and file.stat().st_mode & 0o100 else "file"
        total.update(f"{name}\0{kind}\0{hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return f"sha256:{total.hexdigest()}"


def _repository(folder: Path) -> None:
    _git(folder, "init", "-q")
    _git(folder, "add", ".")
    _git(folder, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "first")


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", folder, *words], capture_output=True, text=True, check=True, timeout=30)
    return done.stdout.strip()


@pytest.mark.usefixtures("unmeasured")
def test_another_attempt_a_real_job_and_a_rehearsal(site: Site) -> None:
    from scripts.tiny.model import default_cache_root, ensure_tiny_model

    ensure_tiny_model("tiny:qwen3", default_cache_root())
    own = site.desk.with_env(XDG_CACHE_HOME=str(default_cache_root().parents[1]))
    retried = own.begin(
        *("run", "probe", "executor=slurm", "executor.retries=1", "--json"),
        *("args.exit_code=3", "args.fail_attempts=1"),
    )
    tiny = own.begin("run", "quantize_tiny", "executor=slurm", "--json")
    again, real = ended(retried), ended(tiny)
    assert again.code == 0, again
    assert [attempt["error"]["name"] for attempt in again.json["attempts"]] == ["told_to_fail"]
    assert again.json["job"]["SLURM_RESTART_COUNT"] == "1"
    assert real.code == 0, real
    assert {output["type"] for output in real.json["outputs"]} >= {"checkpoint_hf", "checkpoint_modelopt"}
    assert all(Path(output["path"]).exists() for output in real.json["outputs"])
    assert real.json["report"]
    before = sorted(own.home.rglob("*"))
    words = ["quantize_fp8", "executor=slurm", "executor.nodes=2", "--dryrun", "--json"]
    dry = own.nemo("run", *words, "--force", "not_enough_disk")  # which it may be on this machine
    assert dry.code == 0, dry
    assert "#SBATCH --nodes=2" in dry.json["submits"]
    assert "#SBATCH --account=acct" in dry.json["submits"]
    assert dry.json["shape"]["nodes"] == 2
    assert sorted(own.home.rglob("*")) == before, "a dry run writes nothing"


def test_executors_check(site: Site) -> None:
    good = ["slurm", "pyxis", "docker", "lepton"]
    bad = {
        ("slurm", "account=nobody"): ("allocation", "account"),
        ("pyxis", "image=/no/such/image.sqsh"): ("image", "/no/such/image.sqsh"),
        ("docker", "image=no-such-image:1"): ("image", "no-such-image:1"),
        ("remote", "user=nobody"): ("connection", "Permission denied"),
    }
    check = ["executors", "check"]
    before = [container["Id"] for container in json.loads(site.containers())]
    begun = [site.desk.begin(*check, name) for name in good] + [site.elsewhere().begin(*check, "remote")]
    for name, done in zip([*good, "remote"], map(ended, begun), strict=True):
        assert done.code == 0, done
        assert "FAIL" not in done.out and ", 0 failed" in done.out, name
    failing = [site.desk.begin(*check, *words, "--json") for words in bad]
    failing.append(site.desk.with_env(LEPTON_WORKSPACE_TOKEN="wrong-token").begin(*check, "lepton", "--json"))
    expected = [*bad.values(), ("service", "lepton_unauthorized")]
    for (name, words), done in zip(expected, map(ended, failing), strict=True):
        assert done.code == 1, done
        failed = [probe for probe in done.json["probes"] if not probe["passed"]]
        assert [probe["name"] for probe in failed] == [name], done
        assert words in failed[0]["detail"]
        assert failed[0]["remedy"]
    assert not list(site.desk.home.glob("runs/*")), "a check leaves nothing"
    assert [container["Id"] for container in json.loads(site.containers())] == before


@pytest.mark.timeout(600)
def test_a_pipeline_on_a_cluster_goes_on_where_its_next_attempt_is(site: Site, fake_model: Any) -> None:
    """Over SSH each attempt has a run directory of its own: what comes after it takes what lies there."""
    model, there = fake_model(), site.remote.parent / "there"
    copy = "import pathlib, shutil, sys; assert pathlib.Path(sys.argv[3]).exists(), 'not yet'; "
    copy += "shutil.copytree(*sys.argv[1:3])"
    command = [sys.executable, "-c", copy, "{checkpoint}", "{output_hf}", str(there)]
    first = {"recipe": "program", "args": {"command": command, "checkpoint": str(model)}}
    file = site.desk.home.parent / "mine.yaml"
    file.write_text(json.dumps({"stages": {"one": first, "two": {"recipe": "program", "args": {"command": command}}}}))
    begun = site.elsewhere().nemo("run", str(file), "executor=remote", "--detach", "--json")
    assert begun.code == 0, begun
    pipeline = begun.json["pipeline"]

    def states() -> dict[str, str] | None:
        rows = site.elsewhere().nemo("status", pipeline, "--json").json["runs"]
        found = {row["id"].rpartition("_")[0].rpartition("-")[2]: row["state"] for row in rows}
        return found if set(found.values()) <= set(FINAL) else None

    assert until(states) == {"one": "failed", "two": "cancelled"}
    there.touch()
    again = site.elsewhere().nemo("resume", pipeline)
    assert again.code == 0, again
    assert until(states) == {"one": "succeeded", "two": "succeeded"}
    rows = {row["id"]: row for row in site.elsewhere().nemo("status", pipeline, "--json").json["runs"]}
    one, two = (next(row for name, row in rows.items() if f"-{stage}_" in name) for stage in ("one", "two"))
    assert one["outputs"][0]["path"].startswith(f"{site.remote}/runs/{one['id']}-r2/")
    assert two["inputs"][0]["name"] == one["outputs"][0]["path"]
    assert two["outputs"][0]["digest"] == one["outputs"][0]["digest"]
