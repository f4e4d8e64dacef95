"""One job as a container: its executor, environment and mounts, the requests that make it, what it leaves in logs/.

A job's run directory is mounted under its own path, together with two files that NeMo-Run's command writes: what the
job printed, and its exit status. Both stay in logs/ when the container is gone.
"""

import copy
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from executors.base import AnyJob, JobState, Mount, SchedulerJob, job_variables, threads_beside
from executors.docker.profile import DockerProfile, nemo_run_ulimit, numeric_user
from executors.packaging.code import packager_of
from scripts.run.record import read_json

if TYPE_CHECKING:
    import nemo_run as run

#: In logs/ of the run directory: what the job printed, its exit status, and whether it was to end before its time.
LOG, STATUS, CANCELLED = "launcher.log", "launcher.status", "launcher.cancelled"

#: Tells the job which image it is in, so that it can be recorded: the name as given, and what that was today.
IMAGE_VARIABLE = "MODELOPT_RECIPES_IMAGE"
IMAGE_ID_VARIABLE = "MODELOPT_RECIPES_IMAGE_ID"
#: Of Docker 20.10; newer engines take the same requests.
_API = "1.41"


def container_name(job: AnyJob) -> str:
    """What NeMo-Run calls the container of a run."""
    return f"{job.id}_{job.recipe}".replace("_", "-")


def build_executor(profile: DockerProfile, job: AnyJob | None, run_root: Path) -> "run.DockerExecutor":
    """NeMo-Run's executor for one job; without `job` for an experiment of somebody's own."""
    import nemo_run as run

    user = profile.user or f"{os.getuid()}:{os.getgid()}"
    additional, env, own = {"user": user, **profile.additional}, profile.env, []
    if job and profile.network == "host":
        # The container has a host name of its own, which torchrun looks up, and no network that would know it.
        hosts = {container_name(job)[-32:]: "127.0.0.1", **profile.additional.get("extra_hosts", {})}
        additional["extra_hosts"] = hosts
    if job:
        env, own = job_variables(job, profile, threads_beside(profile.parallel) | env), _own_volumes(job, run_root)
        numbers = numeric_user(user)
        if numbers and numbers[0] != 0:
            # The image need not know this user; then it has no name, and its home is `/`, where it cannot write.
            env = {"HOME": "/tmp", "USER": str(numbers[0]), **env}
    return run.DockerExecutor(
        container_image=profile.image,
        ntasks_per_node=job.processes if job else 1,
        launcher="torchrun" if job and job.ranked else None,
        runtime=profile.runtime,
        num_gpus=profile.gpus,
        shm_size=profile.shm_size,
        ulimits=[nemo_run_ulimit(limit) for limit in profile.ulimits],
        ipc_mode=profile.ipc,
        privileged=profile.privileged,
        network=profile.network,
        additional_kwargs=additional,
        volumes=[*own, *(str(Mount.parse(mount)) for mount in profile.mounts)],
        env_vars=dict(env),
        packager=packager_of(job),
    )


def _own_volumes(job: AnyJob, run_root: Path) -> list[str]:
    """The run's own mounts: its directory to write, its siblings (what it builds on) to read."""
    run_dir, container = job.run_dir, container_name(job)
    volumes = [f"{run_root}:{run_root}:ro"] if run_dir.is_relative_to(run_root) and run_dir != run_root else []
    volumes.append(f"{run_dir}:{run_dir}")
    # Files, because the folder that they lie in belongs to whoever submits, and the job may be another user.
    volumes.append(f"{run_dir}/logs/{LOG}:/nemo_run/log_{container}.out")
    volumes.append(f"{run_dir}/logs/{STATUS}:/nemo_run/status_{container}.out")
    if job.secrets:
        folder = Path(job.secrets).parent  # not the file: a mounted file cannot be removed
        volumes.append(f"{folder}:{folder}")
    return volumes


def image_env(name: str, found: str) -> dict[str, str]:
    return {IMAGE_VARIABLE: name, IMAGE_ID_VARIABLE: found}


def make_folders(profile: DockerProfile, job: AnyJob) -> None:
    """What is mounted, before the engine would make it, as root and with files as folders."""
    logs = job.run_dir / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    (logs / CANCELLED).unlink(missing_ok=True)
    for name in (LOG, STATUS):
        (logs / name).write_bytes(b"")
    if job.secrets:
        Path(job.secrets).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        give(profile, Path(job.secrets).parent)
    give(profile, job.run_dir, *job.run_dir.rglob("*"))


def give(profile: DockerProfile, *paths: Path) -> None:
    """Make paths the user's whom the job runs as, where that is another one; only root can."""
    numbers = numeric_user(profile.user) if profile.user else None
    if numbers and os.getuid() == 0:
        for path in paths:
            os.chown(path, *numbers, follow_symlinks=False)


def exit_status(job: SchedulerJob) -> int | None:
    """The exit status that the job's command left; None before, and for one that was killed with its container."""
    left = read_json(Path(job.run_dir) / "logs" / STATUS, {"exit_code": (int, str)})
    with suppress(ValueError):
        return int(left["exit_code"]) if left else None
    return None


def ended(job: SchedulerJob, code: int | None, out_of_memory: bool) -> JobState | None:
    cancelled = (Path(job.run_dir) / "logs" / CANCELLED).exists()
    if code is None:
        return JobState(state="cancelled", detail="its container was removed") if cancelled else None
    if code == 0:
        return JobState(state="succeeded")
    detail = f"exit status {code}"
    if cancelled:
        return JobState(state="cancelled", detail=detail)
    if out_of_memory:
        return JobState(state="failed", name="out_of_memory", detail=f"{detail}; the kernel killed it for memory")
    if code in (130, 143):
        return JobState(state="cancelled", detail=f"{detail}: SIG{'INT' if code == 130 else 'TERM'}")
    if code == 137:
        return JobState(state="failed", name="killed", detail=f"{detail}: SIGKILL")
    return JobState(state="failed", name="job_failed", detail=detail)


def api_requests(container: Any, request_id: str) -> list[dict[str, Any]]:
    """What making `container` (a nemo_run DockerContainer) asks of the engine, without what is left empty.

    NeMo-Run's code and docker-py's run as they would; only the connection is one that writes down what is sent and
    answers that all went well.
    """
    import docker
    import requests

    sent: list[dict[str, Any]] = []

    class Recorder(requests.adapters.BaseAdapter):
        def send(self, request: Any, *_: Any, **__: Any) -> requests.Response:
            if request.method == "POST":
                path = unquote(request.path_url.removeprefix(f"/v{_API}"))
                body = json.loads(request.body) if request.body else {}
                if not path.endswith("/start"):
                    sent.append({"request": f"POST {path}", "body": _told(body)})
            response = requests.Response()
            response.status_code = 200
            response.request, response.url = request, request.url
            response._content = b'{"Id": "0"}'
            return response

        def close(self) -> None: ...

    client = docker.DockerClient(base_url="unix:///nowhere", version=_API)
    client.api.mount("http+docker://", Recorder())
    container.run(client=client, id=request_id)
    return sent


def as_scheduled(container: Any, job_dir: str) -> Any:
    """A copy of a dry run's container with the mount that NeMo-Run adds while it schedules it."""
    from nemo_run.config import RUNDIR_NAME, RUNDIR_SPECIAL_NAME

    container = copy.deepcopy(container)
    volumes = [
        volume.replace(RUNDIR_SPECIAL_NAME, job_dir, 1) if volume.startswith(RUNDIR_SPECIAL_NAME) else volume
        for volume in container.executor.volumes
    ]
    container.executor.volumes = [*volumes, f"{job_dir}:/{RUNDIR_NAME}"]
    return container


def _told(value: Any) -> Any:
    """Without the nulls, false and empty values that mean the engine's default."""
    if isinstance(value, dict):
        return {key: told for key, item in value.items() if (told := _told(item)) not in (None, False, "", [], {})}
    return value
