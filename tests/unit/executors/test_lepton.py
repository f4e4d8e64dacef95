"""Lepton profiles, names, scripts and states, without any network."""

import base64
import io
import json
import re
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from executors.kinds import executor_of
from executors.lepton.job import (
    PACKAGE_LIMIT,
    job_name,
    job_specification,
    launch_script,
    pack,
    readable,
    stock_rendezvous,
    too_large,
)
from executors.lepton.place import LeptonPlace, LeptonProfile, _last_record, _state
from executors.lepton.profile import PRIORITIES
from executors.packaging.code import package
from scripts.run.problems import ProblemsError
from tests.jobs import PlainJob

MOUNT = {"path": "/project", "mount_path": "/mnt/shared", "from": "node-nfs:storage"}
LAUNCH = PlainJob(id="quantize_fp8_1795214403955-ad07", recipe="quantize_fp8", run_dir=Path("/mnt/shared/nemo/runs/x"))


def profile(**values: Any) -> LeptonProfile:
    given: dict[str, Any] = {"image": "image:1", "node_group": "group", "resource_shape": "gpu.8xh100-80gb"}
    return LeptonProfile(**{**given, "nemo_run_dir": "/mnt/shared/nemo", "mounts": [MOUNT], **values})


def keys(**values: Any) -> list[str]:
    return [problem.key.removeprefix("executor.") for problem in LeptonPlace(profile(**values)).problems()]


def test_a_complete_profile_has_no_problem() -> None:
    assert LeptonPlace(profile()).problems() == []


@pytest.mark.parametrize("key", ["image", "node_group", "resource_shape", "nemo_run_dir"])
def test_what_is_needed_is_asked_for(key: str) -> None:
    (problem,) = LeptonPlace(profile(**{key: ""})).problems()
    assert (problem.name, problem.key) == ("missing_value", f"executor.{key}")
    assert f"executor.{key}=" in problem.remedy


@pytest.mark.parametrize("part", ["path", "mount_path", "from"])
def test_every_part_of_a_mount_is_checked(part: str) -> None:
    mount = {key: value for key, value in MOUNT.items() if key != part}
    assert f"mounts[1].{part}" in keys(mounts=[MOUNT, mount])
    assert f"mounts[1].{part}" in keys(mounts=[MOUNT, {**MOUNT, part: 3}])


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"mounts": []}, "mounts"),
        ({"mounts": [{**MOUNT, "form": "x"}]}, "mounts[0].form"),
        ({"mounts": [MOUNT, {**MOUNT, "mount_path": "mnt"}]}, "mounts[1].mount_path"),
        ({"mounts": [MOUNT, {**MOUNT, "mount_path": "/nemo_run"}]}, "mounts[1].mount_path"),
        ({"nemo_run_dir": "relative"}, "nemo_run_dir"),
        ({"nemo_run_dir": "/mnt/shared/../../etc"}, "nemo_run_dir"),
        ({"nemo_run_dir": "/mnt/shared-other/nemo"}, "nemo_run_dir"),
        ({"output_root": "/local"}, "output_root"),
        ({"nodes": 0}, "nodes"),
        ({"gpus": -1}, "gpus"),
        ({"queue_priority": "high"}, "queue_priority"),
        ({"env": {"A-B": "1"}}, "env.A-B"),
        ({"env": {"NEMO_RUN_DIR": "/x"}}, "env.NEMO_RUN_DIR"),
        ({"env": {"LEPTON_JOB_NAME": "x"}}, "env.LEPTON_JOB_NAME"),
        ({"env": {"A": "a\0b"}}, "env.A"),
        ({"env": {"HF_TOKEN": "x"}, "secrets": ["HF_TOKEN"]}, "env.HF_TOKEN"),
        ({"secrets": ["A=B"]}, "secrets"),
        ({"secret_names": {"HF_TOKEN": "hf"}}, "secret_names"),
    ],
)
def test_a_wrong_value_is_named(values: dict[str, Any], key: str) -> None:
    assert keys(**values) == [key]


def test_priorities_are_those_of_the_sdk() -> None:
    from leptonai.cli.util import _validate_queue_priority

    assert [_validate_queue_priority(None, None, str(number)) for number in range(1, 10)] == list(PRIORITIES)


@pytest.mark.parametrize(
    ("run_id", "name"),
    [
        ("quantize_fp8_1795214403955-ad07", "quantize-fp8-1795214403955-ad07"),
        ("quantize_fp8_blockwise_1795214403955-ad07", "quantize-fp8-blo-1795214403955-ad07"),
        ("Quantize_X_1795214403955-AD07", "quantize-x-1795214403955-ad07"),
        ("7_1795214403955-ad07", "r-7-1795214403955-ad07"),
    ],
)
def test_job_names(run_id: str, name: str) -> None:
    assert job_name(run_id) == name
    assert len(name) <= 35


def test_job_names_keep_what_is_unique() -> None:
    for start in ("r_1795214403955-ad0", f"{'r' * 40}_1795214403955-ad0", f"r_{'b' * 60}"):
        names = {job_name(f"{start}{end}") for end in "12"}
        assert len(names) == 2
        assert all(re.fullmatch(r"[a-z][a-z0-9-]{0,33}[a-z0-9]", name) for name in names)


def test_plain_commands_are_quoted_and_torchruns_variables_are_not() -> None:
    plain = launch_script(profile(), LAUNCH, {}, ["python", "-c", "a b;c", "$HOME"])
    assert plain.endswith("exec python -c 'a b;c' '$HOME'\n")
    how = PlainJob(id="r", recipe="r", run_dir=Path("/x"), nodes=2, ranked=True)
    assert launch_script(profile(), how, {}, ["torchrun", "--node-rank", "$NODE_RANK"]).endswith(
        "exec torchrun --node-rank $NODE_RANK\n"
    )


def test_nothing_in_the_command_is_replaced_by_kubernetes(tmp_path: Path) -> None:
    package = pack(tmp_path, "exit 0\n")
    spec = job_specification(profile(pre_launch=["echo $$ $(HOME)"]), LAUNCH, {}, package, "ng")
    command = spec.spec.container.command
    assert not [word for word in command if "$$" in word or "$(" in word]


def test_scripts_are_bash(tmp_path: Path) -> None:
    how = PlainJob(id="r", recipe="r", run_dir=Path("/x"), nodes=2)
    script = launch_script(profile(pre_launch=["echo hello"]), how, {"A": "$(B) 'c'"}, ["true"])
    start = job_specification(profile(), LAUNCH, {}, b"", "ng").spec.container.command[2]
    for text in (script, start, stock_rendezvous()):
        done = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True, timeout=20)
        assert (done.returncode, done.stderr) == (0, "")
    assert "export A='$(B) '\"'\"'c'\"'\"''" in script


@pytest.mark.parametrize(("index", "runs"), [("0", True), ("1", False)])
def test_without_torchrun_only_the_first_node_runs(tmp_path: Path, index: str, runs: bool) -> None:
    how = PlainJob(id="r", recipe="r", run_dir=Path("/x"), nodes=2)
    script = launch_script(profile(), how, {}, ["echo", "ran"]).replace("/nemo_run/code", str(tmp_path))
    env = {"PATH": "/usr/bin:/bin", "LEPTON_JOB_TOTAL_WORKERS": "2", "LEPTON_JOB_WORKER_INDEX": index}
    env |= {"MASTER_ADDR": "given"}
    done = subprocess.run(["bash", "-c", script], env=env, capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stdout) == (0, "ran\n" if runs else "")


def test_the_stock_rendezvous_answers_one_wget_and_no_other(tmp_path: Path) -> None:
    other = tmp_path / "bin" / "wget"
    other.parent.mkdir()
    other.write_text('#!/bin/sh\necho "real wget $*"\n')
    other.chmod(0o755)
    script = f"""{stock_rendezvous()}
wget https://example.org/data
wget -O init.sh https://raw.example.org/scripts/main/lepton_env_to_pytorch.sh
chmod +x init.sh
source init.sh
echo $MASTER_ADDR $MASTER_PORT $NNODES $NODE_RANK $WORLD_SIZE
wget -O x.sh https://example.org/lepton_env_to_pytorch.sh
"""
    env = {"PATH": f"{other.parent}:/usr/bin:/bin", "LEPTON_JOB_TOTAL_WORKERS": "1", "LEPTON_JOB_WORKER_INDEX": "0"}
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=20)
    assert done.stdout.splitlines() == [
        "real wget https://example.org/data",
        "127.0.0.1 29400 1 0 1",
        "real wget -O x.sh https://example.org/lepton_env_to_pytorch.sh",
    ]


def test_equal_files_make_equal_packages(tmp_path: Path) -> None:
    packages = []
    for name in ("one", "two"):
        code = tmp_path / name / "code"
        code.mkdir(parents=True)
        for file in ("b", "a") if name == "one" else ("a", "b"):
            (code / file).write_text(file)
        configs = tmp_path / name / "configs"
        configs.mkdir()
        (configs / "x_executor.yaml").write_text(name)
        packages.append(pack(tmp_path / name, "script"))
    assert packages[0] == packages[1]
    with tarfile.open(fileobj=io.BytesIO(packages[0])) as tar:
        assert tar.getnames() == ["launch.sh", "code", "code/a", "code/b", "configs"]


def test_a_package_too_large_is_refused(tmp_path: Path) -> None:
    import os

    (tmp_path / "code").mkdir()
    data = tmp_path / "code" / "data"
    data.write_bytes(os.urandom(PACKAGE_LIMIT * 3 // 4 - 20_000))
    assert too_large(pack(tmp_path, "")) is None
    data.write_bytes(os.urandom(PACKAGE_LIMIT * 3 // 4))
    error = too_large(pack(tmp_path, ""))
    assert error is not None and error.name == "package_too_large"
    assert "packager: pattern" in error.remedy


def test_our_own_code_leaves_a_third_to_the_user(tmp_path: Path) -> None:
    code = package(tmp_path, tmp_path / "code.tgz", packager="none", include=[])
    assert code.archive
    with tarfile.open(code.archive) as tar:
        tar.extractall(tmp_path / "code", filter="data")
    assert len(base64.b64encode(pack(tmp_path, ""))) < PACKAGE_LIMIT * 2 // 3


def test_the_specification_carries_the_profile(tmp_path: Path) -> None:
    given = profile(
        mounts=[{**MOUNT, "mount_options": {"read_only": True}}],
        image_pull_secrets=["registry"],
        node_reservation="res-1",
        can_be_preempted=True,
        shared_memory_size=1024,
        secrets=["HF_TOKEN", "WANDB_API_KEY"],
        secret_names={"WANDB_API_KEY": "wandb"},
    )
    package = b"x" * 200_000
    job = job_specification(given, LAUNCH, {"A": "1"}, package, "ng-7")
    value = readable(job)
    assert value["metadata"] == {"id": "quantize-fp8-1795214403955-ad07"}
    spec = value["spec"]
    assert spec["affinity"] == {"allowed_dedicated_node_groups": ["ng-7"]}
    assert spec["mounts"] == [{**MOUNT, "mount_options": {"read_only": True}}]
    assert spec["image_pull_secrets"] == ["registry"]
    assert spec["reservation_config"] == {"reservation_id": "res-1"}
    assert spec["queue_config"] == {"priority_class": "mid-4000", "can_be_preempted": True}
    assert spec["shared_memory_size"] == 1024
    assert "intra_job_communication" not in spec
    assert (spec["max_failure_retry"], spec["max_job_failure_retry"]) == (0, 0)
    assert spec["envs"] == [
        {"name": "A", "value": "1"},
        {"name": "HF_TOKEN", "value_from": {"secret_name_ref": "HF_TOKEN"}},
        {"name": "WANDB_API_KEY", "value_from": {"secret_name_ref": "wandb"}},
    ]
    shown = spec["container"]["command"][4:]
    sent = job.spec.container.command[4:]
    assert len(shown) == len(sent) == 3
    assert base64.b64decode("".join(sent)) == package
    assert all(piece.startswith("<") and "sha256" in piece for piece in shown)


def test_the_executor_is_stock_and_sized_by_the_launch() -> None:
    import nemo_run as run

    place = LeptonPlace(profile(env={"A": "1", "PYTHONPATH": "/mine"}, secrets=["HF_TOKEN"], gpus=8))
    how = PlainJob(id="r_1", recipe="r", run_dir=Path("/mnt/shared/nemo/runs/r_1"), nodes=2, processes=4, ranked=True)
    executor = place.executor(how)
    assert type(executor) is run.LeptonExecutor
    assert (executor.nnodes(), executor.nproc_per_node()) == (2, 4)
    assert executor.env_vars == {
        "A": "1",
        "PYTHONPATH": "/nemo_run/code/.recipes:/nemo_run/code:/mine",
        "PYTHONSAFEPATH": "1",
        "NEMO_RUN_DIR": str(how.run_dir),
        "MODELOPT_RECIPES_PRINT_RECORD": "1",
    }
    assert executor.secret_vars == {"HF_TOKEN": "HF_TOKEN"}
    assert place.run_root() == "/mnt/shared/nemo/runs"
    assert LeptonPlace(profile(output_root="/mnt/shared/out")).run_root() == "/mnt/shared/out"


def test_the_factory_gives_a_stock_executor_or_every_problem() -> None:
    import nemo_run as run

    executor = executor_of(profile(gpus=8, pre_launch=["echo mine"]), nodes=3)
    assert type(executor) is run.LeptonExecutor
    assert (executor.nnodes(), executor.nproc_per_node()) == (3, 8)
    assert executor.pre_launch_commands[1:] == ["echo mine"]
    with pytest.raises(ProblemsError) as error:
        executor_of("lepton")
    assert len(error.value.problems) == 5


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ({"state": "Queueing"}, "submitted"),
        ({"state": "Starting"}, "submitted"),
        ({"state": "Awaiting"}, "submitted"),
        ({"state": "PendingRetry"}, "submitted"),
        ({"state": "Running", "ready": 1, "active": 2}, "running"),
        ({"state": "SomethingNew"}, "running"),
        ({"state": "Completed"}, "succeeded"),
        ({"state": "Failed", "failed": 1}, "failed"),
        ({"state": "Stopping"}, "cancelled"),
        ({"state": "Stopped"}, "cancelled"),
        ({"state": "Deleting"}, "cancelled"),
        ({"state": "Archived", "succeeded": 2}, "succeeded"),
        ({"state": "Archived", "succeeded": 1, "failed": 1}, "failed"),
        ({"state": "Archived"}, None),
    ],
)
def test_states(status: dict[str, Any], expected: str | None) -> None:
    from leptonai.api.v1.types.job import LeptonJobStatus

    state = _state(LeptonJobStatus(**status))
    assert (state and state.state) == expected
    assert state is None or (state.name == "job_failed") == (expected == "failed")


def test_the_last_whole_record_of_the_run_is_taken() -> None:
    good = {"schema": 1, "id": "r_1", "state": "succeeded", "submitted_at": "2026-11-26T09:27:38.571Z"}
    lines = [json.dumps(one) for one in (good | {"state": "failed"}, good, good | {"id": "r_2"}, {"id": "r_1"})]
    log = "".join(f"run.json: {line}\n" for line in [*lines, '{"id'])
    assert _last_record(log.encode(), "r_1") == good
    assert _last_record(b"no run.json: here\n", "r_1") is None


def test_importing_the_module_imports_no_sdk() -> None:
    code = (
        "import sys, executors.lepton.place; print([m for m in ('nemo_run', 'leptonai', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"
