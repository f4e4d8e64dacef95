"""Docker profiles and what becomes of them, without an engine."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from executors.base import Mount, SchedulerJob
from executors.docker.container import CANCELLED, STATUS, api_requests, as_scheduled, container_name, ended, exit_status
from executors.docker.place import DockerPlace
from executors.docker.probes import _CHECK, _folder
from executors.docker.profile import DockerProfile, nemo_run_ulimit, numeric_user
from executors.kinds import executor_of, place_of
from executors.profiles.load import load_profile
from scripts.processor import gpus_here
from tests.jobs import PlainJob

LAUNCH = PlainJob(id="quantize_fp8_1795214403955-ad07", recipe="quantize_fp8", run_dir=Path("/runs/quantize_fp8_1-a"))


def a_place(**values: Any) -> DockerPlace:
    return DockerPlace(DockerProfile(**{"image": "sha256:1", "output_root": "/runs"} | values))


def request_of(place: DockerPlace, launch: PlainJob = LAUNCH) -> dict[str, Any]:
    """The body of the request that makes the container."""
    from nemo_run.core.execution.docker import DockerContainer

    executor = place.executor(launch)
    executor.experiment_id = launch.id
    container = DockerContainer(name=container_name(launch), command=["python"], executor=executor, extra_env={})
    requests = api_requests(as_scheduled(container, "/home/job"), "id")
    assert [request["request"].partition("?")[0] for request in requests] == ["POST /containers/create"]
    body = requests[0]["body"]
    assert isinstance(body, dict)
    return body


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"image": " "}, "image"),
        ({"nodes": 2}, "nodes"),
        ({"gpus": -2}, "gpus"),
        ({"user": "1000:"}, "user"),
        ({"shm_size": "a lot"}, "shm_size"),
        ({"network": "bridge"}, "network"),
        ({"network": "container:x"}, "network"),
        ({"mounts": ["/data"]}, "mounts"),
        ({"mounts": ["data/x:/data"]}, "mounts"),
        ({"mounts": ["/data:data"]}, "mounts"),
        ({"mounts": ["/data:/data:rx"]}, "mounts"),
        ({"ulimits": ["memlock"]}, "ulimits"),
        ({"additional": {"labels": {}}}, "additional.labels"),
        ({"additional": {"volumes": []}}, "additional.volumes"),
        ({"additional": {"extra_hosts": ["a:1.2.3.4"]}}, "additional.extra_hosts"),
        ({"output_root": "/a:b"}, "output_root"),
    ],
)
def test_a_wrong_value_is_one_problem_with_its_key(values: dict[str, Any], key: str) -> None:
    (problem,) = a_place(**values).problems()
    assert problem.key == f"executor.{key}"
    assert problem.cause


def test_every_wrong_value_is_told_at_once() -> None:
    assert len(a_place(image="", gpus=-5, mounts=["x", "/y"], ulimits=["z"]).problems()) == 5


def test_the_shipped_profile_is_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    profile, problems = load_profile("docker", {}, cwd=tmp_path)
    assert not problems
    assert isinstance(profile, DockerProfile)
    assert not place_of(profile).problems()


def test_mounts_are_read_as_docker_reads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert str(Mount.parse("/a b:/c:ro")) == "/a b:/c:ro"
    assert str(Mount.parse("~/models:/m")) == "/home/me/models:/m:rw"
    assert not Mount.parse("cache:/c").is_path


def test_ulimits_and_users() -> None:
    assert nemo_run_ulimit("nofile=1024:2048") == "nofile:1024:2048"
    assert [numeric_user(user) for user in ("7", "7:8", "root", "me", "me:8")] == [(7, -1), (7, 8), (0, 0), None, None]


def test_gpus_are_asked_for_as_nvidias_runtime_expects() -> None:
    (request,) = request_of(a_place(gpus=-1))["HostConfig"]["DeviceRequests"]
    assert (request["Count"], request["Capabilities"]) == (-1, [["compute", "utility"]])
    assert request_of(a_place(gpus=2, runtime="nvidia"))["HostConfig"]["Runtime"] == "nvidia"
    chosen = {"device_requests": [{"device_ids": ["0", "2"], "capabilities": [["gpu"]]}]}
    (request,) = request_of(a_place(gpus=-1, additional=chosen))["HostConfig"]["DeviceRequests"]
    assert request["DeviceIDs"] == ["0", "2"]
    assert "DeviceRequests" not in request_of(a_place(gpus=0))["HostConfig"]


def test_the_request_holds_what_the_profile_says() -> None:
    place = a_place(
        user="12:34",
        shm_size="2g",
        ipc="host",
        privileged=True,
        ulimits=["memlock=-1", "nofile=1:2"],
        mounts=["/data:/data:ro"],
        additional={"mem_limit": "1g", "extra_hosts": {"db": "10.0.0.1"}},
        env={"PYTHONPATH": "/mine", "GREETING": 'say "$HOME"'},
    )
    body = request_of(place)
    host = body["HostConfig"]
    assert (body["User"], body["Image"], body["WorkingDir"]) == ("12:34", "sha256:1", "/nemo_run/code")
    assert (host["ShmSize"], host["IpcMode"], host["Privileged"], host["Memory"]) == (2 << 30, "host", True, 1 << 30)
    limits = [{"Name": "memlock", "Soft": -1, "Hard": -1}, {"Name": "nofile", "Soft": 1, "Hard": 2}]
    assert host["Ulimits"] == limits
    assert host["NetworkMode"] == "host"
    assert sorted(host["ExtraHosts"]) == ["-1795214403955-ad07-quantize-fp8:127.0.0.1", "db:10.0.0.1"]
    run_dir, name = str(LAUNCH.run_dir), "quantize-fp8-1795214403955-ad07-quantize-fp8"
    assert host["Binds"] == [
        "/runs:/runs:ro",
        f"{run_dir}:{run_dir}",
        f"{run_dir}/logs/launcher.log:/nemo_run/log_{name}.out",
        f"{run_dir}/logs/launcher.status:/nemo_run/status_{name}.out",
        "/data:/data:ro",
        "/home/job:/nemo_run",
    ]
    env = dict(item.split("=", 1) for item in body["Env"])
    assert env == {
        "PYTHONPATH": "/nemo_run/code/.recipes:/nemo_run/code:/mine",
        "GREETING": 'say "$HOME"',
        "PYTHONSAFEPATH": "1",
        "NEMO_RUN_DIR": run_dir,
        "HOME": "/tmp",
        "USER": "12",
    }


def test_a_network_of_ones_own_is_made_and_knows_its_containers() -> None:
    executor = a_place(network="mine").executor(LAUNCH)
    assert executor.network == "mine"
    assert "extra_hosts" not in executor.additional_kwargs


def test_who_submits_owns_the_files() -> None:
    assert a_place().executor(LAUNCH).additional_kwargs["user"] == f"{os.getuid()}:{os.getgid()}"
    assert executor_of("docker", image="x", gpus=1).additional_kwargs["user"] == f"{os.getuid()}:{os.getgid()}"


def test_secrets_are_named_in_one_folder_of_their_own() -> None:
    place = a_place(secrets=["HF_TOKEN"])
    path = place.secrets_path(LAUNCH.id)
    assert path
    executor = place.executor(PlainJob(**{**vars(LAUNCH), "secrets": path}))
    assert executor.env_vars["MODELOPT_RECIPES_SECRETS"] == path
    assert f"{Path(path).parent}:{Path(path).parent}" in executor.volumes
    assert LAUNCH.id in Path(path).parent.name
    assert a_place().secrets_path(LAUNCH.id) is None


def test_torchrun_gets_its_shape() -> None:
    import nemo_run as run

    launch = PlainJob(**{**vars(LAUNCH), "processes": 4, "ranked": True})
    executor = a_place().executor(launch)
    assert type(executor) is run.DockerExecutor  # NeMo-Run looks executors up by their exact class
    assert (executor.nnodes(), executor.nproc_per_node()) == (1, 4)
    assert type(executor.get_launcher()).__name__ == "Torchrun"


@pytest.mark.parametrize(
    ("code", "cancelled", "out_of_memory", "state", "name"),
    [
        (0, False, False, "succeeded", ""),
        (0, True, False, "succeeded", ""),  # it was faster
        (7, False, False, "failed", "job_failed"),
        (7, True, False, "cancelled", ""),
        (137, False, True, "failed", "out_of_memory"),
        (1, False, True, "failed", "out_of_memory"),  # a child of it was killed
        (137, False, False, "failed", "killed"),
        (143, False, False, "cancelled", ""),
        (None, True, False, "cancelled", ""),
        (None, False, False, None, None),
    ],
)
def test_how_a_job_ended(
    tmp_path: Path, code: int | None, cancelled: bool, out_of_memory: bool, state: str | None, name: str | None
) -> None:
    (tmp_path / "logs").mkdir()
    job = SchedulerJob(run_id="r", id="c", run_dir=str(tmp_path), folder="")
    if cancelled:
        (tmp_path / "logs" / CANCELLED).touch()
    found = ended(job, code, out_of_memory)
    assert (found and found.state, found and found.name) == (state, name)


@pytest.mark.parametrize(("text", "code"), [('{"id": "x", "exit_code": "7"}\n', 7), ("", None), ("{", None)])
def test_an_exit_status_is_read_once_it_is_whole(tmp_path: Path, text: str, code: int | None) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / STATUS).write_text(text)
    assert exit_status(SchedulerJob(run_id="r", id="c", run_dir=str(tmp_path), folder="")) == code


def test_text_needs_no_engine(tmp_path: Path) -> None:
    import runpy

    import nemo_run as run

    place = a_place(image="some/image:1", host=f"unix://{tmp_path}/none.sock", output_root=str(tmp_path / "runs"))
    launch = PlainJob(id="probe_1-a", recipe="probe", run_dir=Path(f"{tmp_path}/runs/probe_1-a"))
    experiment = run.Experiment("probe", id=launch.id, base_dir=str(tmp_path), clean_mode=True)
    with experiment:
        experiment.add(run.Partial(runpy.run_path, path_name="x"), executor=place.executor(launch), name="probe")
        experiment.dryrun(log=False)
        shown = json.loads(place.text(experiment, launch))
    assert shown["image"] == {"name": "some/image:1", "id": None, "pull": "missing"}
    (request,) = shown["requests"]
    assert request["request"] == "POST /containers/create?name=probe-1-a-probe"
    assert request["body"]["Cmd"][2].startswith(
        "python -m nemo_run.core.runners.fdl_runner -n probe /nemo_run/configs/"
    )
    assert not (tmp_path / "runs").exists()


def test_what_a_container_is_asked_needs_nothing_that_its_image_may_lack(tmp_path: Path) -> None:
    """It counts GPUs as a job does, with what lies beside it."""
    place = a_place(output_root=str(tmp_path))
    with _folder(place, place.profile) as (job, folder):
        env = {"PYTHONPATH": str(folder / "code" / ".recipes"), "NEMO_RUN_DIR": str(job.run_dir)}
        words = [sys.executable, "-S", "-P", str(folder / _CHECK), "json", "not_there"]
        done = subprocess.run(words, env=env, cwd=tmp_path, capture_output=True, text=True, check=True)
        said = json.loads(done.stdout)
    assert said["gpus"] == gpus_here()
    assert (list(said["missing"]), said["unwritable"]) == (["not_there"], "")
    assert not list(tmp_path.iterdir())
