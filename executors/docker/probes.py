"""What `executors check` tries on a Docker engine; at the end one container, made exactly as a job's would be."""

import json
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import scripts
from executors.base import OWN_CODE, AnyJob, Place, Probe, SchedulerJob, SubmitError, UnreachableError
from executors.docker import check, engine
from executors.docker.container import LOG, container_name, make_folders
from executors.docker.profile import DockerProfile, missing_sources
from scripts import processor

_PACKAGES = ("nemo_run", "fiddle", "omegaconf", "psutil", "modelopt")
_SECONDS = 180.0
_CHECK = "check.py"


class _UntriedError(Exception):
    """Why a container said nothing."""


def probes(place: Place, profile: DockerProfile) -> Iterator[Probe]:
    """The probes of one place; each that fails ends those that need it."""
    try:
        with engine.client_of(profile.host) as client:
            version, where = client.version(), engine.address(profile.host)
            yield Probe("engine", True, f"Docker {version['Version']} at {where}, API {version['ApiVersion']}")
            yield _local(where)
            missing = missing_sources(profile)
            detail = f"not on this machine: {', '.join(missing)}" if missing else f"{len(profile.mounts)} given"
            yield Probe("mounts", not missing, detail, "Make them, or correct mounts.")
            if profile.gpus:
                yield _gpu_support(client.info())
            found, probe = _image(client, profile)
            yield probe
            if found and not missing:
                yield from _container(client, place, profile, found)
    except UnreachableError as error:
        yield Probe.unanswered("engine", error)


def _local(where: str) -> Probe:
    here = tuple(f"{scheme}://{host}" for scheme in ("tcp", "http", "https") for host in ("127.", "localhost"))
    local = where.startswith(("unix:", "npipe:", "fd:", *here))
    detail = where if local else f"{where} is another machine, and run directories are mounted from this one"
    return Probe("local", local, detail, "Use an engine on this machine, or submit on that one.")


def _gpu_support(info: dict[str, Any]) -> Probe:
    """Whether the engine has heard of GPUs; the container itself shows whether it gets them."""
    runtimes, cdi = sorted(info.get("Runtimes", {})), info.get("DiscoveredDevices") or []
    known = "nvidia" in runtimes or any("nvidia" in str(device) for device in cdi)
    remedy = "Install the NVIDIA Container Toolkit, then: nvidia-ctk runtime configure --runtime=docker."
    return Probe("gpu_runtime", known, f"runtimes: {', '.join(runtimes)}", remedy)


def _image(client: Any, profile: DockerProfile) -> tuple[str | None, Probe]:
    """The image's id where the engine has it, and the probe."""
    from docker.errors import APIError

    name = profile.image
    try:
        found = engine.image_id(client, name, "never")
        return found, Probe("image", True, f"{name} is here: {found[:19]}")
    except SubmitError as error:
        if profile.pull == "never":
            return None, Probe("image", False, error.cause, error.remedy)
    try:
        client.images.get_registry_data(name)
    except APIError as error:
        detail = f"{name} is not here, and its registry does not give it: {engine.explain(error)}"
        return None, Probe("image", False, detail, engine.pull_remedy(name))
    detail = f"{name} is not here; the first run pulls it. What is in it was not tried."
    return None, Probe("image", True, f"{detail} To try it: docker pull {name}, then check again.")


def _container(client: Any, place: Place, profile: DockerProfile, image: str) -> Iterator[Probe]:
    root = place.run_root()
    try:
        with _folder(place, profile) as (job, job_dir):
            said = _try(client, place, image, job, job_dir)
            written = job.run_dir / "written"
            wrote = written.exists() and written.read_text(encoding="utf-8") == job.id
    except _UntriedError as error:
        yield Probe("container", False, str(error), engine.hint(str(error)))
        return
    except OSError as error:
        remedy = "Set output_root to a folder that you may write in."
        yield Probe("output_root", False, f"{root}: {error.strerror}", remedy)
        return
    yield Probe("container", True, f"Python {said['python']} as user {said['user']}")
    told = "; ".join(f"{name} ({cause})" for name, cause in said["missing"].items())
    remedy = "Use an image that has them, such as nvcr.io/nvidia/nemo, or mount an environment and set PATH in env."
    yield Probe("packages", not told, f"cannot be imported: {told}" if told else ", ".join(_PACKAGES), remedy)
    if said["unwritable"]:
        remedy = f"Set output_root to a folder that user {said['user']} may write in, or set user"
        detail = f"{root}: the container cannot write there: {said['unwritable']}"
        yield Probe("output_root", False, detail, f"{remedy} (root, with a rootless engine).")
    else:
        remedy = "Run directories are mounted; use an engine that runs on this machine."
        detail = f"{root} is written from inside" if wrote else f"{root}: what the container wrote there is not here"
        yield Probe("output_root", wrote, detail, remedy)
    if profile.gpus:
        wanted = "at least one" if profile.gpus < 0 else str(profile.gpus)
        enough = said["gpus"] is None or said["gpus"] >= max(profile.gpus, 1)
        seen = "some" if said["gpus"] is None else said["gpus"]
        remedy = "Is the driver of the host loaded? Try: nvidia-smi."
        yield Probe("gpus", enough, f"{seen} seen, {wanted} wanted", remedy)


@contextmanager
def _folder(place: Place, profile: DockerProfile) -> Iterator[tuple[AnyJob, Path]]:
    """A run directory for the check, and inside it what NeMo-Run would have made for a job."""
    run_id = f"check_{secrets.token_hex(6)}"
    job = AnyJob(id=run_id, recipe="check", run_dir=Path(place.run_root()) / f".{run_id}")
    job_dir = job.run_dir / "nemo_run"
    try:
        own = job_dir / "code" / Path(OWN_CODE).name / "scripts"
        own.mkdir(parents=True)
        shutil.copyfile(check.__file__, job_dir / _CHECK)
        for module in (scripts, processor):
            shutil.copyfile(str(module.__file__), own / Path(str(module.__file__)).name)
        (job.run_dir / "token").write_text(run_id, encoding="utf-8")
        make_folders(profile, job)
        yield job, job_dir
    finally:
        shutil.rmtree(job.run_dir, ignore_errors=True)


def _try(client: Any, place: Place, image: str, job: AnyJob, job_dir: Path) -> dict[str, Any]:
    """What check.py printed in a container. Raises _UntriedError."""
    from docker.errors import DockerException
    from nemo_run.core.execution.docker import DockerContainer

    executor = place.executor(job)
    executor.container_image = image
    executor.experiment_id = job.id
    executor.volumes.append(f"{job_dir}:/nemo_run")
    command = ["python", f"/nemo_run/{_CHECK}", *_PACKAGES]
    container = DockerContainer(name=container_name(job), command=command, executor=executor, extra_env={})
    try:
        container.run(client=client, id=job.id)
        return _said(place, SchedulerJob.of(job, container.name, str(job_dir)))
    except DockerException as error:
        raise _UntriedError(engine.explain(error)) from error
    finally:
        engine.remove(client, container.name)


def _said(place: Place, job: SchedulerJob) -> dict[str, Any]:
    deadline = time.monotonic() + _SECONDS
    while (state := place.states([job])[job.run_id]) is not None and state.state in ("submitted", "running"):
        if time.monotonic() > deadline:
            raise _UntriedError(f"no answer within {_SECONDS:.0f} s")
        time.sleep(0.2)
    printed = place.log(job, LOG, 0).decode(errors="replace").strip()
    last = (printed.splitlines() or [""])[-1]
    if state is not None and state.state == "succeeded" and last.startswith("{"):
        return dict(json.loads(last))
    raise _UntriedError(" ".join(printed[-500:].split()) or (state.detail if state else "it vanished"))
