"""`executors check` for Docker: the engine, the image, and one container made exactly as a job's would be."""

import json
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from executors.base import AnyJob, Mount, Place, Probe, SchedulerJob, SubmitError, UnreachableError
from executors.docker.container import LOG, container_name, make_folders
from executors.docker.engine import address, engine, explain, hint, image_id, remove
from executors.docker.profile import DockerProfile

_PACKAGES = ("nemo_run", "fiddle", "omegaconf", "psutil", "modelopt")
_SECONDS = 180.0
_CHECK = "check.py"


@dataclass(frozen=True, kw_only=True)
class _Outcome:
    """What the container said: its words, or why there are none."""

    said: dict[str, Any] | None
    wrote: bool = False
    failure: str = ""


@dataclass(frozen=True, kw_only=True)
class _Trial:
    """The check's container, as a place knows a job."""

    id: str
    run_dir: Path
    recipe: str = "check"
    nodes: int = 1
    processes: int = 1
    ranked: bool = False
    array: int = 0
    waits_for: tuple[str, ...] = ()
    secrets: str | None = None
    archive: Path | None = None
    force_squash: bool = False


class Probes:
    """The probes of one place; each that fails ends those that need it."""

    def __init__(self, place: Place, profile: DockerProfile) -> None:
        self._place = place
        self._profile = profile

    def run(self) -> Iterator[Probe]:
        try:
            with engine(self._profile.host) as client:
                version = client.version()
                where = address(self._profile.host)
                yield Probe(
                    name="engine",
                    passed=True,
                    detail=f"Docker {version['Version']} at {where}, API {version['ApiVersion']}",
                )
                yield from self._with_engine(client, where)
        except UnreachableError as error:
            yield Probe(name="engine", passed=False, detail=error.cause, remedy=error.remedy)

    def _with_engine(self, client: Any, where: str) -> Iterator[Probe]:
        yield _local(where)
        missing = [
            mount.source
            for mount in map(Mount.parse, self._profile.mounts)
            if mount.is_path and not Path(mount.source).exists()
        ]
        detail = f"not on this machine: {', '.join(missing)}" if missing else f"{len(self._profile.mounts)} given"
        yield Probe(name="mounts", passed=not missing, detail=detail, remedy="Make them, or correct mounts.")
        if self._profile.gpus:
            yield _gpu_support(client.info())
        found, probe = self._image(client)
        yield probe
        if found and not missing:
            yield from self._container(client, found)

    def _image(self, client: Any) -> tuple[str | None, Probe]:
        from docker.errors import APIError

        name = self._profile.image
        try:
            found = image_id(client, name, "never")
            return found, Probe(name="image", passed=True, detail=f"{name} is here: {found[:19]}")
        except SubmitError as error:
            if self._profile.pull == "never":
                return None, Probe(name="image", passed=False, detail=error.cause, remedy=error.remedy)
        try:
            client.images.get_registry_data(name)
        except APIError as error:
            remedy = f"Try: docker pull {name}.  Does the registry need docker login?"
            detail = f"{name} is not here, and its registry does not give it: {explain(error)}"
            return None, Probe(name="image", passed=False, detail=detail, remedy=remedy)
        detail = f"{name} is not here; the first run pulls it. What is in it was not tried."
        detail += f" To try it: docker pull {name}, then check again."
        return None, Probe(name="image", passed=True, detail=detail)

    def _container(self, client: Any, image: str) -> Iterator[Probe]:
        try:
            with self._folder() as (launch, job_dir):
                outcome = self._try(client, image, launch, job_dir)
        except OSError as error:
            remedy = "Set output_root to a folder that you may write in."
            detail = f"{self._place.run_root()}: {error.strerror}"
            yield Probe(name="output_root", passed=False, detail=detail, remedy=remedy)
            return
        said = outcome.said
        if said is None:
            yield Probe(name="container", passed=False, detail=outcome.failure, remedy=hint(outcome.failure))
            return
        detail = f"Python {said['python']} as user {said['user']}"
        yield Probe(name="container", passed=True, detail=detail)
        missing = said["missing"]
        told = "; ".join(f"{name} ({cause})" for name, cause in missing.items())
        remedy = "Use an image that has them, such as nvcr.io/nvidia/nemo, or mount an environment and set PATH in env."
        detail = f"cannot be imported: {told}" if missing else ", ".join(_PACKAGES)
        yield Probe(name="packages", passed=not missing, detail=detail, remedy=remedy)
        yield self._output_root(outcome)
        if self._profile.gpus:
            wanted = "at least one" if self._profile.gpus < 0 else str(self._profile.gpus)
            enough = said["gpus"] >= max(self._profile.gpus, 1)
            remedy = "Is the driver of the host loaded? Try: nvidia-smi."
            yield Probe(name="gpus", passed=enough, detail=f"{said['gpus']} seen, {wanted} wanted", remedy=remedy)

    def _output_root(self, outcome: _Outcome) -> Probe:
        assert outcome.said is not None
        root = self._place.run_root()
        if outcome.said["unwritable"]:
            detail = f"{root}: the container cannot write there: {outcome.said['unwritable']}"
            remedy = f"Set output_root to a folder that user {outcome.said['user']} may write in, or set user"
            remedy += " (root, with a rootless engine)."
            return Probe(name="output_root", passed=False, detail=detail, remedy=remedy)
        if not outcome.wrote:
            detail = f"{root}: what the container wrote there is not here"
            remedy = "Run directories are mounted; use an engine that runs on this machine."
            return Probe(name="output_root", passed=False, detail=detail, remedy=remedy)
        return Probe(name="output_root", passed=True, detail=f"{root} is written from inside")

    @contextmanager
    def _folder(self) -> Iterator[tuple[AnyJob, Path]]:
        """A run directory for the check, and inside it what NeMo-Run would have made for a job."""
        run_id = f"check_{secrets.token_hex(6)}"
        run_dir = Path(self._place.run_root()) / f".{run_id}"
        launch = _Trial(id=run_id, run_dir=run_dir)
        job_dir = run_dir / "nemo_run"
        try:
            (job_dir / "code").mkdir(parents=True)
            shutil.copyfile(Path(__file__).with_name("check.py"), job_dir / _CHECK)
            (run_dir / "token").write_text(run_id, encoding="utf-8")
            make_folders(self._profile, launch)
            yield launch, job_dir
        finally:
            shutil.rmtree(run_dir, ignore_errors=True)

    def _try(self, client: Any, image: str, launch: AnyJob, job_dir: Path) -> _Outcome:
        from docker.errors import DockerException
        from nemo_run.core.execution.docker import DockerContainer

        executor = self._place.executor(launch)
        executor.container_image = image
        executor.experiment_id = launch.id
        executor.volumes.append(f"{job_dir}:/nemo_run")
        container = DockerContainer(
            name=container_name(launch),
            command=["python", f"/nemo_run/{_CHECK}", *_PACKAGES],
            executor=executor,
            extra_env={},
        )
        job = SchedulerJob(run_id=launch.id, id=container.name, run_dir=str(launch.run_dir), folder=str(job_dir))
        try:
            container.run(client=client, id=launch.id)
            return self._outcome(job, launch)
        except DockerException as error:
            return _Outcome(said=None, failure=explain(error))
        finally:
            remove(client, container.name)

    def _outcome(self, job: SchedulerJob, launch: AnyJob) -> _Outcome:
        deadline = time.monotonic() + _SECONDS
        while (state := self._place.states([job])[job.run_id]) is not None and state.state in ("submitted", "running"):
            if time.monotonic() > deadline:
                return _Outcome(said=None, failure=f"no answer within {_SECONDS:.0f} s")
            time.sleep(0.2)
        printed = self._place.log(job, LOG, 0).decode(errors="replace").strip()
        last = printed.splitlines()[-1:] or [""]
        if state is not None and state.state == "succeeded" and last[0].startswith("{"):
            written = launch.run_dir / "written"
            wrote = written.exists() and written.read_text(encoding="utf-8") == launch.id
            return _Outcome(said=json.loads(last[0]), wrote=wrote)
        return _Outcome(
            said=None, failure=" ".join(printed[-500:].split()) or (state.detail if state else "it vanished")
        )


def _local(where: str) -> Probe:
    local = where.startswith(("unix:", "npipe:", "fd:")) or any(
        where.startswith(f"{scheme}://{host}") for scheme in ("tcp", "http", "https") for host in ("127.", "localhost")
    )
    detail = where if local else f"{where} is another machine, and run directories are mounted from this one"
    remedy = "Use an engine on this machine, or submit on that one."
    return Probe(name="local", passed=local, detail=detail, remedy=remedy)


def _gpu_support(info: dict[str, Any]) -> Probe:
    """Whether the engine has heard of GPUs; the container itself shows whether it gets them."""
    runtimes, cdi = sorted(info.get("Runtimes", {})), info.get("DiscoveredDevices") or []
    known = "nvidia" in runtimes or any("nvidia" in str(device) for device in cdi)
    remedy = "Install the NVIDIA Container Toolkit, then: nvidia-ctk runtime configure --runtime=docker."
    return Probe(name="gpu_runtime", passed=known, detail=f"runtimes: {', '.join(runtimes)}", remedy=remedy)
