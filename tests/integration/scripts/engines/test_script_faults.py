"""Scripts that fail, hang, flood or lie: the record tells the truth, nothing is published, nothing runs on.

Real: torchrun, Slurm, signals, and the files that a script leaves; the scripts are stand-ins
(tests/testbed/standin.py), told by a variable how to misbehave.
"""

import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from recipes.catalogue import RECIPES
from scripts.engines.script.flags.tables import releases_of
from scripts.run.record import Record
from tests.testbed.places import slurm_profile
from tests.testbed.scripted import (
    Ran,
    User,
    carry_out,
    fill,
    on_one_process,
    processes_with,
)
from tests.testbed.slurm import Cluster
from tests.testbed.standin import write_standin
from tests.testbed.waiting import until

pytestmark = pytest.mark.integration

QUANTIZE = "Megatron-Bridge/examples/quantization/quantize.py"
MEGABYTE = 1 << 20


@pytest.fixture
def words(user: User, checkpoints: Mapping[str, Path]) -> list[str]:
    """A quantization on two ranks whose output lies beside the run."""
    checkout = user.checkout(QUANTIZE, "v0.6.0")
    model, output = checkpoints["checkpoint_hf"], user.folder / "out"
    own = [f"script.path={checkout}", f"args.hf_model_id={model}", f"args.megatron_save_path={output}"]
    return [*own, "args.ep=1", "torchrun.nproc_per_node=2"]


def failed(ran: Ran, name: str) -> str:
    """The message of a failure that is recorded, told, and left nothing."""
    record = ran.record
    assert (record["state"], record["error"]["name"]) == ("failed", name), record["error"]
    if ran.done is not None:
        assert ran.done.code == 1
        assert ran.done.json["error"]["name"] == name
    assert record.get("outputs", []) == []
    assert record["finished_at"] and record["error"]["remedy"]
    return str(record["error"]["message"])


def nothing_published(user: User) -> None:
    assert not (user.folder / "out").exists()


def nothing_runs(folder: Path) -> None:
    until(lambda: not processes_with(str(folder)))


# --- on several ranks ----------------------------------------------------------------------------------------------


def test_one_rank_of_four_dies(user: User, words: list[str]) -> None:
    ran = user.run("quantize_fp8", *words, "torchrun.nproc_per_node=4", STANDIN="die:1")
    message = failed(ran, "script_failed")
    assert "quantize.py ended with status 1: RuntimeError: rank 1 was told to die" in message
    assert len(ran.received()) == 4, "all of them had begun"
    assert "RuntimeError: rank 1 was told to die" in ran.log(1)
    nothing_published(user)
    nothing_runs(user.folder)


def test_one_rank_is_killed(user: User, words: list[str]) -> None:
    ran = user.run("quantize_fp8", *words, STANDIN="kill:1")
    assert "killed by signal 9" in failed(ran, "script_killed")
    assert "memory" in ran.error["remedy"]
    nothing_published(user)


def test_a_script_that_hangs(user: User, words: list[str]) -> None:
    began = time.monotonic()
    ran = user.run("quantize_fp8", *words, "script.silence_minutes=0.03", STANDIN="hang")
    assert "printed nothing for 0.03 minutes" in failed(ran, "script_hangs")
    assert time.monotonic() - began < 60
    nothing_published(user)
    nothing_runs(user.folder)


def test_it_is_cancelled_with_all_that_it_started(user: User, words: list[str]) -> None:
    done = user.nemo("run", "quantize_fp8", *words, "--detach", "--json", STANDIN="stay")
    assert done.code == 0, done
    ran = Ran(dir=user.home / "runs" / done.json["id"])
    until(lambda: len(processes_with(f"{ran.dir}/received")) == 2)
    scripts = [rank["pid"] for rank in ran.received()]
    assert all(psutil.pid_exists(pid) for pid in scripts)
    gone = user.nemo("cancel", done.json["id"])
    assert gone.code == 0, gone
    until(lambda: ran.record["state"] == "cancelled")
    assert ran.error["name"] == "cancelled"
    nothing_runs(ran.dir / "received")
    assert not any(map(psutil.pid_exists, scripts))
    nothing_published(user)


def test_a_rank_that_is_killed_takes_its_script_along(user: User, words: list[str]) -> None:
    """SIGKILL, as by the kernel's memory killer: no handler runs, and the GPU must not stay taken."""
    done = user.nemo("run", "quantize_fp8", *words, "--detach", "--json", STANDIN="hang")
    assert done.code == 0, done
    ran = Ran(dir=user.home / "runs" / done.json["id"])
    until(lambda: len(ran.received()) == 2 and "staying" in ran.log(0) and "staying" in ran.log(1))
    scripts = [psutil.Process(rank["pid"]) for rank in ran.received()]
    os.kill(scripts[1].ppid(), signal.SIGKILL)
    until(lambda: not scripts[1].is_running() or scripts[1].status() == psutil.STATUS_ZOMBIE)
    until(lambda: not scripts[0].is_running())
    until(lambda: ran.record["state"] == "failed")
    assert ran.error["name"] == "job_died", "torchrun stopped the others, which is no cancellation"
    assert ran.record.get("outputs", []) == []
    nothing_published(user)
    nothing_runs(user.folder)


def test_a_flood_of_output(user: User, words: list[str]) -> None:
    ran = user.run("quantize_fp8", *words, STANDIN="flood:0", STANDIN_MEGABYTES="200")
    record = ran.record
    assert record["state"] == "succeeded", record["error"]
    logs = sum(file.stat().st_size for file in (ran.dir / "logs").iterdir())
    assert 64 * MEGABYTE < logs < 100 * MEGABYTE
    every = sum(file.stat().st_size for file in user.home.rglob("*") if file.is_file())
    assert every < 5 * logs, "torchrun and NeMo-Run keep copies of what was passed on, not of what was printed"
    assert "[output beyond 64 MB: its end is in rank0.tail.log]" in ran.log()
    assert "the end of the flood" in (ran.dir / "logs" / "rank0.tail.log").read_text(encoding="utf-8")
    quiet = user.run("quantize_fp8", *words, f"args.megatron_save_path={user.folder}/other")
    grown = record["peak_memory"]["rss_bytes"] - quiet.record["peak_memory"]["rss_bytes"]
    assert grown < 16 * MEGABYTE, "NeMo-Run's launcher takes what it takes; a flood adds nothing to it"


# --- of the outputs ------------------------------------------------------------------------------------------------


def job(recipe: str, folder: Path, checkpoints: Mapping[str, Path]) -> Any:
    partial = RECIPES[recipe].build()
    fill(partial.args, checkpoints)
    on_one_process(partial)
    partial.engine = "script"
    (script, *_) = partial.args.__fn_or_cls__.SCRIPTS
    partial.script.path = str(folder / "checkout")
    write_standin(folder / "checkout", script, releases_of(script)[-1])
    return partial


@pytest.mark.parametrize("recipe", ["quantize_fp8", "export", "prune", "distill_tiny", "qat_tiny", "hf_to_megatron"])
@pytest.mark.parametrize(
    ("what", "name"), [("empty", "output_missing"), ("half", "output_incomplete"), ("late", "script_failed")]
)
def test_an_output_that_is_not_whole(
    recipe: str, what: str, name: str, tmp_path: Path, checkpoints: Mapping[str, Path]
) -> None:
    ran = carry_out(job(recipe, tmp_path, checkpoints), tmp_path / "run", STANDIN=what)
    message = failed(ran, name)
    if name != "script_failed":
        assert message.startswith("args."), "it says which"
    published = [file for file in ran.dir.rglob("*") if file.suffix in (".distcp", ".safetensors")]
    in_place = recipe in ("distill_tiny", "qat_tiny")
    assert all(".partial-" in str(file) or in_place for file in published)


@pytest.mark.parametrize("recipe", ["quantize_fp8", "hf_to_megatron", "distill_tiny"])
def test_an_output_of_another_kind(recipe: str, tmp_path: Path, checkpoints: Mapping[str, Path]) -> None:
    ran = carry_out(job(recipe, tmp_path, checkpoints), tmp_path / "run", STANDIN="other")
    name = ran.error["name"]
    failed(ran, name)
    assert name == ("output_incomplete" if recipe == "distill_tiny" else "output_of_another_kind")
    assert "checkpoint_hf" in ran.error["message"] or recipe == "distill_tiny"


def test_what_an_ended_attempt_left_is_swept_away(tmp_path: Path, checkpoints: Mapping[str, Path]) -> None:
    partial = job("quantize_fp8", tmp_path, checkpoints)
    partial.args.megatron_save_path = str(tmp_path / "out")
    ran = carry_out(partial, tmp_path / "run", STANDIN="late")
    (left,) = tmp_path.glob(".out.partial-*")
    assert any(left.iterdir())
    Record.reopen(ran.dir)
    again = carry_out(partial, ran.dir)
    assert again.record["state"] == "succeeded", again.error
    assert (tmp_path / "out").is_dir() and not left.exists()
    assert [list(rank["found"].values()) for rank in again.received()] == [[[]]], "it began with nothing"


# --- on Slurm ------------------------------------------------------------------------------------------------------


@pytest.fixture
def near(user: User, cluster: Cluster) -> User:
    user.env = {"SLURM_CONF": cluster.env["SLURM_CONF"]}
    return user


def test_a_rank_of_another_node_dies(near: User, words: list[str]) -> None:
    profile = slurm_profile(secrets=[])
    near.profiles["slurm"] = profile | {"env": profile["env"] | {"STANDIN": "die:3"}}
    ran = near.run("quantize_fp8", *words, "executor=slurm", "torchrun.nnodes=2", "script.release=0.6")
    assert "RuntimeError: rank 3 was told to die" in failed(ran, "script_failed")
    assert "rank3" in ran.error["message"]
    assert ran.record["scheduler"].startswith("FAILED")
    nothing_published(near)
    nothing_runs(near.folder)


def test_a_job_that_is_cancelled_on_slurm(near: User, words: list[str]) -> None:
    profile = slurm_profile(secrets=[])
    near.profiles["slurm"] = profile | {"env": profile["env"] | {"STANDIN": "stay"}}
    slurm = ["executor=slurm", "torchrun.nnodes=2", "script.release=0.6", *near.profile_words]
    done = near.nemo("run", "quantize_fp8", *words, *slurm, "--detach", "--json")
    assert done.code == 0, done
    ran = Ran(dir=near.home / "runs" / done.json["id"])
    until(lambda: len(processes_with(f"{ran.dir}/received")) == 4)
    gone = near.nemo("cancel", done.json["id"])
    assert gone.code == 0, gone
    until(lambda: near.nemo("status", done.json["id"], "--json").json["state"] == "cancelled")
    nothing_runs(near.folder)
    nothing_published(near)
