"""How a job becomes a container: the NeMo-Run executor, with its environment and mounts."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from executors.base import CODE, OWN_CODE, SECRETS_VARIABLE, AnyJob, Mount
from executors.docker.profile import DockerProfile, nemo_run_ulimit, numeric_user
from executors.docker.state import LOG, STATUS

if TYPE_CHECKING:
    import nemo_run as run

#: Tells the job which image it is in, so that it can be recorded: the name as given, and what that was today.
IMAGE_VARIABLE = "MODELOPT_RECIPES_IMAGE"
IMAGE_ID_VARIABLE = "MODELOPT_RECIPES_IMAGE_ID"


def container_name(launch: AnyJob) -> str:
    """What NeMo-Run calls the container of a run."""
    return f"{launch.id}_{launch.recipe}".replace("_", "-")


def build_executor(
    profile: DockerProfile,
    *,
    env: Mapping[str, str],
    volumes: Sequence[str],
    hostname: str | None = None,
    **values: Any,
) -> "run.DockerExecutor":
    import nemo_run as run

    additional = {"user": profile.user or f"{os.getuid()}:{os.getgid()}", **profile.additional}
    if hostname and profile.network == "host":
        # The container has a host name of its own, which torchrun looks up, and no network that would know it.
        additional["extra_hosts"] = {hostname: "127.0.0.1", **profile.additional.get("extra_hosts", {})}
    processes = values.pop("processes", 1)
    return run.DockerExecutor(
        container_image=profile.image,
        ntasks_per_node=processes,
        runtime=profile.runtime,
        num_gpus=profile.gpus,
        shm_size=profile.shm_size,
        ulimits=[nemo_run_ulimit(limit) for limit in profile.ulimits],
        ipc_mode=profile.ipc,
        privileged=profile.privileged,
        network=profile.network,
        additional_kwargs=additional,
        volumes=[*volumes, *(str(Mount.parse(mount)) for mount in profile.mounts)],
        env_vars=dict(env),
        **({"packager": run.Packager()} | values),
    )


def job_env(profile: DockerProfile, launch: AnyJob) -> dict[str, str]:
    env = dict(profile.env)
    env["PYTHONPATH"] = ":".join(filter(None, [OWN_CODE, CODE, env.get("PYTHONPATH")]))
    env |= {"PYTHONSAFEPATH": "1", "NEMO_RUN_DIR": str(launch.run_dir)}
    if launch.secrets:
        env[SECRETS_VARIABLE] = launch.secrets
    numbers = numeric_user(profile.user or f"{os.getuid()}:{os.getgid()}")
    if numbers and numbers[0] != 0:
        # The image need not know this user; then it has no name, and its home is `/`, where it cannot write.
        env = {"HOME": "/tmp", "USER": str(numbers[0]), **env}
    return env


def own_volumes(launch: AnyJob, run_root: Path) -> list[str]:
    """The run's own mounts: its directory to write, its siblings (what it builds on) to read."""
    run_dir, container = launch.run_dir, container_name(launch)
    volumes = [f"{run_root}:{run_root}:ro"] if run_dir.is_relative_to(run_root) and run_dir != run_root else []
    volumes.append(f"{run_dir}:{run_dir}")
    # Files, because the folder that they lie in belongs to whoever submits, and the job may be another user.
    volumes.append(f"{run_dir}/logs/{LOG}:/nemo_run/log_{container}.out")
    volumes.append(f"{run_dir}/logs/{STATUS}:/nemo_run/status_{container}.out")
    if launch.secrets:
        folder = Path(launch.secrets).parent  # not the file: a mounted file cannot be removed
        volumes.append(f"{folder}:{folder}")
    return volumes


def image_env(name: str, found: str) -> dict[str, str]:
    return {IMAGE_VARIABLE: name, IMAGE_ID_VARIABLE: found}
