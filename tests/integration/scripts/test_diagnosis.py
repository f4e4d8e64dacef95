"""Runs that fail for real: what is diagnosed stands in run.json, in `status`, and where the run was followed.

Real: torchrun and its ranks, gloo, Slurm, dockerd, and what PyTorch, Transformers and the hub's client say. The script
is a stand-in (tests/testbed/standin.py) that a variable tells how to go wrong; enroot is one too.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from scripts.run.diagnosis import diagnose, diagnose_unbegun
from tests.conftest import Done
from tests.testbed.docker import IMAGE, Engine, host_mounts
from tests.testbed.places import JOB_PATH, docker_profile, slurm_profile
from tests.testbed.scripted import Ran, User
from tests.testbed.slurm import ENROOT, Cluster, executable, slurm_cluster
from tests.testbed.waiting import until

pytestmark = pytest.mark.integration

QUANTIZE = "Megatron-Bridge/examples/quantization/quantize.py"
FAILED = {"name": "script_failed", "message": "it ended with status 1", "remedy": ""}
FINAL = ("succeeded", "failed", "cancelled")
#: Rank 1 runs out of memory while it calibrates; rank 0 waits for it, and loses the connection.
OUT_OF_MEMORY = """
import os, torch
from torch import distributed
def calibrate():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 1 has 79.11 GiB in all")
distributed.init_process_group("gloo")
if os.environ["RANK"] == "1":
    calibrate()
distributed.barrier()
"""


@pytest.fixture
def words(user: User, checkpoints: Mapping[str, Path]) -> list[str]:
    """A quantization on two ranks, whose script does first what the variable TROUBLE says."""
    checkout = user.checkout(QUANTIZE, "v0.6.0")
    script = checkout / QUANTIZE.partition("/")[2]
    source = script.read_text(encoding="utf-8")
    assert source.count("\nplay(") == 1
    script.write_text(source.replace("\nplay(", "\nexec(os.environ.get('TROUBLE', ''))\nplay("), encoding="utf-8")
    model, output = checkpoints["checkpoint_hf"], user.folder / "out"
    own = [f"script.path={checkout}", f"args.hf_model_id={model}", f"args.megatron_save_path={output}"]
    return [*own, "args.ep=1", "torchrun.nproc_per_node=2"]


def line_of(ran: Ran) -> str:
    """The line of a log that a diagnosis points at."""
    found = ran.record["diagnosis"]
    lines = (ran.dir / "logs" / found["file"]).read_text(encoding="utf-8").splitlines()
    return str(lines[found["line"] - 1])


def test_out_of_memory_on_one_rank(user: User, words: list[str]) -> None:
    env = {**os.environ, **user.variables(), "TROUBLE": OUT_OF_MEMORY}
    done = Done(*user.warm.run(["experiment", "run", "quantize_fp8", *words], env, user.folder))
    assert done.code == 1, done
    (folder,) = user.home.glob("runs/*")
    ran = Ran(dir=folder)
    found = ran.record["diagnosis"]
    assert (found["name"], found["file"]) == ("gpu_out_of_memory_calibration", "rank1.log"), ran.log(0)
    assert "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 GiB" in found["evidence"]
    assert found["evidence"] in line_of(ran)
    alone = diagnose(folder / "logs" / "absent", since=0, error=FAILED, printed={"rank0.log": ran.log(0).encode()})
    assert alone is not None and alone.name == "rank_lost", "which is all that rank 0 could tell"
    status = user.nemo("status", folder.name)
    for said in (status.out, done.err):
        assert f"diagnosis    gpu_out_of_memory_calibration: {found['remedy']}" in said
        assert f"evidence     rank1.log:{found['line']}: {found['evidence']}" in said
    assert user.nemo("status", folder.name, "--json").json["diagnosis"] == found


def test_a_run_that_succeeds_has_no_diagnosis_and_its_logs_show_none(user: User, words: list[str]) -> None:
    healthy = "import os, warnings\nwarnings.warn('trust_remote_code=True is set')\n"
    healthy += "from torch import distributed\ndistributed.init_process_group('gloo')\ndistributed.barrier()\n"
    for ran in (user.run("quantize_fp8", *words, TROUBLE=healthy), user.run("probe")):
        assert ran.record["state"] == "succeeded", ran.record["error"]
        assert "diagnosis" not in ran.record
        assert diagnose(ran.dir / "logs", since=0, error=FAILED) is None


#: What libraries say, each tried in the same process: name -> source.
SAID = {
    "wrong_checkpoint": "torch.nn.Linear(2, 3).load_state_dict({'weight': torch.zeros(4, 2), 'bias': torch.zeros(3)})",
    "no_gpu": "torch.zeros(1, device='cuda')",
    "host_out_of_memory": "torch.zeros(1 << 50)",
    "missing_name": "modelopt.torch.quantization.NO_SUCH_CFG",
    "hub_unreachable": "transformers.AutoConfig.from_pretrained('no-such-owner/no-such-model')",
    "path_not_on_node": "transformers.AutoConfig.from_pretrained('/models/not/here')",
    "chat_template_missing": "tokenizer().apply_chat_template([{'role': 'user', 'content': 'x'}])",
    "port_in_use": "[distributed.TCPStore('127.0.0.1', taken, 1, True) for taken in [listening()]]",
    "rank_lost": "distributed.TCPStore('127.0.0.1', free(), 2, True, timeout=timedelta(seconds=1))",
    "remote_code_not_trusted": "transformers.AutoConfig.from_pretrained(custom(), trust_remote_code=False)",
}
_TRY = """
import json, os, pathlib, socket, sys, tempfile, traceback
from datetime import timedelta
import torch, transformers, modelopt.torch.quantization
from torch import distributed
kept = []
def listening():
    kept.append(socket.create_server(("127.0.0.1", 0)))
    return kept[-1].getsockname()[1]
def free():
    with socket.create_server(("127.0.0.1", 0)) as one:
        return one.getsockname()[1]
def tokenizer():
    from tokenizers import Tokenizer, models
    return transformers.PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
def custom():
    folder = pathlib.Path(tempfile.mkdtemp(dir=sys.argv[1]))
    (folder / "config.json").write_text('{"model_type": "new", "auto_map": {"AutoConfig": "x.C"}}')
    return str(folder)
for name, source in json.loads(sys.argv[2]).items():
    with open(f"{sys.argv[1]}/{name}.log", "w") as log:
        try:
            exec(source)
        except BaseException:
            traceback.print_exc(file=log)
"""


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tried")
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf"), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-c", _TRY, str(folder), json.dumps(SAID)]
    subprocess.run(words, env=env, stdin=subprocess.DEVNULL, check=True, timeout=300)
    return folder


@pytest.mark.parametrize("name", SAID)
def test_what_libraries_really_say(tried: Path, tmp_path: Path, name: str) -> None:
    text = (tried / f"{name}.log").read_text(encoding="utf-8")
    (tmp_path / "rank0.log").write_text(text, encoding="utf-8")
    found = diagnose(tmp_path, since=0, error=FAILED)
    assert found is not None and found.name == name, text


def test_what_a_docker_engine_really_says_of_a_bad_mount(engine: Engine, tmp_path: Path) -> None:
    with engine.client() as client:
        from docker.errors import APIError
        from docker.types import Mount

        with pytest.raises(APIError) as refused:
            client.containers.run(IMAGE, ["true"], mounts=[Mount("/data", "/does/not/exist", type="bind")])
    found = diagnose(tmp_path, since=0, error=FAILED, printed={"launcher.log": str(refused.value).encode()})
    assert found is not None and found.name == "bad_mount", refused.value


def test_a_container_that_docker_refuses_to_start(user: User, engine: Engine) -> None:
    """It fails while it is submitted. Started over, logs of the attempt before are not taken for its own."""
    file = user.folder / "file"
    file.touch()
    mounts = [*host_mounts(), f"{file}:/var"]  # a folder in the image
    user.profiles["docker"] = docker_profile(engine, secrets=[], mounts=mounts)
    ran = user.run("probe", "executor=docker")
    assert (ran.record["state"], ran.error["name"]) == ("failed", "docker_refused"), ran.record
    found = ran.record["diagnosis"]
    assert (found["name"], found["file"]) == ("bad_mount", None)
    assert 'error mounting "' in found["evidence"]
    assert ran.done is not None and (ran.done.code, ran.done.json["diagnosis"]) == (1, found)
    assert f"diagnosis    bad_mount: {found['remedy']}" in user.nemo("status", ran.dir.name).out

    (ran.dir / "logs").mkdir(exist_ok=True)
    (ran.dir / "logs" / "rank0.log").write_text("CUDA out of memory\n", encoding="utf-8")
    assert user.nemo("resume", ran.dir.name).code == 0
    record = until(lambda: (record := ran.record)["state"] in FINAL and "diagnosis" in record and record)
    assert len(record["attempts"]) == 1
    assert record["diagnosis"]["name"] == "bad_mount"
    assert diagnose_unbegun({**ran.error, "name": "mount_missing"}) is None, "which says it all"


# --- on Slurm ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A cluster with a partition whose jobs give way to another's."""
    with slurm_cluster() as started:
        with started.without("slurmctld"), (started.folder / "etc" / "slurm.conf").open("a") as settings:
            settings.write("PreemptType=preempt/partition_prio\nPreemptMode=CANCEL\n")
            settings.write("PartitionName=low Nodes=n1 PriorityTier=1 MaxTime=INFINITE State=UP\n")
            settings.write("PartitionName=high Nodes=n1 PriorityTier=10 MaxTime=INFINITE State=UP\n")
        started.wait_for("sinfo", "-h", "-t", "idle", "-o", "%D", until=lambda text: "2" in text.split())
        yield started


@pytest.fixture
def near(user: User, cluster: Cluster) -> User:
    user.env = {"SLURM_CONF": cluster.env["SLURM_CONF"]}
    return user


def begin(user: User, name: str, **values: Any) -> Ran:
    """Hand over a job that stays."""
    user.profiles[name] = slurm_profile(secrets=[], requeue=False, **values)
    words = ["run", "probe", f"executor={name}", "args.seconds=600", *user.profile_words, "--detach", "--json"]
    done = user.nemo(*words)
    assert done.code == 0, done
    return Ran(dir=user.home / "runs" / done.json["id"])


def shown(user: User, ran: Ran) -> dict[str, Any]:
    """How it ended, as `status` says and records."""
    until(lambda: user.nemo("status", ran.dir.name, "--json").json["state"] in FINAL)
    record: dict[str, Any] = ran.record
    assert record["state"] == "failed"
    found: dict[str, Any] = record["diagnosis"]
    assert f"diagnosis    {found['name']}: {found['remedy']}" in user.nemo("status", ran.dir.name).out
    return found


def test_jobs_that_slurm_ends(near: User, cluster: Cluster) -> None:
    """One that hits its time limit (a minute is Slurm's least), one that gives way, one whose node goes down."""
    late = begin(near, "late", time="1", nodelist="n2")
    yields = begin(near, "yields", partition="low", nodelist="n1")
    until(lambda: all("phase" in ran.record for ran in (late, yields)))
    cluster.run("sbatch", "--partition=high", "--exclusive", "--account=acct", "--wrap=true", "--output=/dev/null")
    found = shown(near, yields)
    assert found["name"] == "preempted"
    assert "PREEMPT" in found["evidence"]
    down = begin(near, "down", nodelist="n1")
    until(lambda: "phase" in down.record)
    cluster.run("scontrol", "update", "NodeName=n1", "State=DOWN", "Reason=test")
    try:
        assert shown(near, down)["name"] == "node_failure"
    finally:
        cluster.run("scontrol", "update", "NodeName=n1", "State=RESUME", check=False)  # it may have come back itself

    found = shown(near, late)
    assert found["name"] == "walltime"
    assert "DUE TO TIME LIMIT" in found["evidence"] and found["file"]


def test_an_image_that_is_not_there(near: User) -> None:
    """The job ends before anything of ours has begun; only its launcher's log tells."""
    tools = near.folder / "tools"
    tools.mkdir()
    executable(tools / "enroot", ENROOT)
    env = {"PATH": f"{tools}:{JOB_PATH}", "OMP_NUM_THREADS": "1"}
    near.profiles["image"] = slurm_profile(
        secrets=[], image="nvcr.io/absent/nemo:1", squash_dir=f"{near.folder}/squash", env=env
    )
    ran = near.run("probe", "executor=image")
    assert ran.done is not None and ran.done.code == 1
    found = ran.done.json["diagnosis"]
    assert found["name"] == "image_not_found"
    assert found["evidence"] == "[ERROR] URL returned error code: 404 Not Found"
    assert (found["file"], found["line"]) == ("launcher.log", None)
