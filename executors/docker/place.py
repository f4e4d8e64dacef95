"""A Docker engine on this machine: NeMo-Run's DockerExecutor, and the engine's own word on how a job stands."""

import json
import os
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from executors.base import (
    AnyJob,
    Capabilities,
    JobState,
    Mount,
    Place,
    Probe,
    SchedulerJob,
    State,
    SubmitError,
    UnreachableError,
    nemorun_home,
    read_from,
)
from executors.constraints import wrong
from executors.docker import engine
from executors.docker.container import (
    CANCELLED,
    LOG,
    STATUS,
    api_requests,
    as_scheduled,
    build_executor,
    container_name,
    ended,
    exit_status,
    give,
    image_env,
    make_folders,
)
from executors.docker.probes import probes
from executors.docker.profile import DockerProfile, missing_sources
from scripts.run.files import is_there
from scripts.run.problems import Problem

if TYPE_CHECKING:
    import nemo_run as run

_GRACE_SECONDS = 40.0  # torchrun gives its ranks 30
#: One submission at a time in this process: NeMo-Run looks for the engine in the environment.
_ENVIRONMENT = threading.Lock()


class DockerPlace(Place):
    """A Docker engine as a place to run."""

    capabilities = Capabilities(containers=True, reads_run_dir=True)
    job_ids = r"\w[\w.-]*"
    image = Place.from_profile("image")
    gpus = Place.from_profile("gpus")
    parallel = Place.from_profile("parallel")

    def __init__(self, profile: DockerProfile) -> None:
        self.profile: DockerProfile = profile

    @property
    def scheduler(self) -> tuple[Any, ...]:
        return (self.profile.kind, self.profile.host)

    def mounts(self, run_dir: str | Path) -> tuple[Mount, ...]:
        return (*Mount.parse_all(self.profile.mounts), Mount.same(Path(run_dir).parent, "ro"), Mount.same(run_dir))

    def missing_sources(self) -> list[str]:
        """Of an engine on this machine: the usual one, or one whose socket is here."""
        host = self.profile.host
        here = engine.address(host).startswith("unix:") if host is None else is_there(host.removeprefix("unix://"))
        return missing_sources(self.profile) if here else []

    def breaks_on(self, home: str) -> str:
        return super().breaks_on(home) + (":" if ":" in home else "")

    def problems(self) -> list[Problem]:
        found, root = super().problems(), self.run_root()
        if ":" in root:
            found.append(wrong("output_root", root, "a path with a `:` in it cannot be mounted", "Choose another one."))
        return found

    def secrets_path(self, run_id: str) -> str | None:
        """In a folder of its own: the job is given that folder, and no other job's."""
        return f"{nemorun_home()}/secrets/{run_id}/env" if self.profile.secrets else None

    def executor(self, job: AnyJob | None) -> "run.DockerExecutor":
        return build_executor(self.profile, job, Path(self.run_root()))

    def text(self, experiment: Any, job: AnyJob) -> str:
        """The requests of a dry run. The image's id is null where no engine can be asked, or it must be pulled."""
        from nemo_run.config import get_nemorun_home

        request = experiment.jobs[0]._dryrun_info.request
        title, name = job.id.rpartition("_")[0], self.profile.image
        folder = f"{get_nemorun_home()}/experiments/{title}/{job.id}/{job.recipe}"
        container, found = as_scheduled(request.containers[0], folder), None
        with suppress(UnreachableError, SubmitError), engine.client_of(self.profile.host) as client:
            found = engine.image_id(client, name, "never")
        container.executor.container_image = found or name
        container.extra_env = {**container.extra_env, **image_env(name, found or "")}
        shown = {
            "engine": engine.address(self.profile.host),
            "image": {"name": name, "id": found, "pull": self.profile.pull},
            "requests": api_requests(container, f"{job.recipe}-UNIQUE"),
        }
        return json.dumps(shown, indent=2, ensure_ascii=False)

    def stage(self, files: Mapping[str, bytes]) -> None:
        super().stage(files)
        for path in map(Path, files):
            give(self.profile, path.parent, path)

    def expected(self, experiment: Any, job: AnyJob) -> SchedulerJob:
        return SchedulerJob.of(job, container_name(job), experiment.jobs[0].executor.job_dir)

    def submit(self, experiment: Any, job: AnyJob) -> SchedulerJob:
        """Start the container. All that can be known to fail is tried before anything is made."""
        executor, container = experiment.jobs[0].executor, container_name(job)
        missing = ", ".join(missing_sources(self.profile))
        remedy = "Make it first, or correct executor.mounts; Docker would make an empty folder that belongs to root."
        if missing:
            raise SubmitError("mount_missing", f"not on this machine: {missing}.", remedy)
        with _as_submit_error(), engine.client_of(self.profile.host) as client:
            if client.containers.list(all=True, filters={"name": f"^/{container}$"}):
                remedy = "Every run has a name of its own; submit again."
                raise SubmitError("name_taken", f"the engine has a container {container} already.", remedy)
            executor.container_image = engine.image_id(client, self.profile.image, self.profile.pull)
        executor.env_vars |= image_env(self.profile.image, executor.container_image)
        make_folders(self.profile, job)
        try:
            with _as_submit_error(), _engine_of_nemo_run(self.profile.host):
                experiment.run()
            # NeMo-Run kills its containers when the Python object that started them goes; ours end by themselves.
            experiment._runner._scheduler("docker_persistent")._scheduled_reqs.clear()
        except BaseException as error:
            undone = self._undo(job, Path(executor.experiment_dir))
            if isinstance(error, SubmitError) and not undone:
                cause = f"{error.cause} Its container {container} may have been made."
                raise SubmitError(error.name, cause, f"Once the engine answers: docker rm -f {container}") from error
            raise
        return self.expected(experiment, job)

    def states(self, jobs: Sequence[SchedulerJob]) -> dict[str, JobState | None]:
        """From the exit status that a job left, else from the engine; the engine is asked once for all of them."""
        codes = {job.run_id: exit_status(job) for job in jobs}
        states = {job.run_id: ended(job, codes[job.run_id], False) for job in jobs}
        unsure = [job for job in jobs if codes[job.run_id] != 0]  # a failure may have been for want of memory
        if not unsure:
            return states
        try:
            with engine.client_of(self.profile.host) as client:
                containers = engine.seen(client)
                for job in unsure:
                    states[job.run_id] = self._ask(client, job, containers.get(job.id, {}).get("State"))
        except UnreachableError:
            if any(codes[job.run_id] is None for job in unsure):
                raise
        return states

    def _ask(self, client: Any, job: SchedulerJob, seen_as: str | None) -> JobState | None:
        code = exit_status(job)
        if code is None and seen_as in ("created", "running", "paused", "restarting"):
            state: State = "submitted" if seen_as == "created" else "running"
            return JobState(state=state, detail="" if seen_as == "running" else f"the container is {seen_as}")
        died_with, out_of_memory = engine.exit_of(client, job.id)
        return ended(job, died_with if code is None else code, out_of_memory)

    def log(self, job: SchedulerJob, name: str, offset: int) -> bytes:
        logs = Path(job.run_dir) / "logs"
        return read_from(logs / name if os.path.lexists(logs / name) else logs / LOG, offset)

    def cancel(self, job: SchedulerJob) -> None:
        """Let the job record that it was cancelled, then remove its container; returns when both are done."""
        if exit_status(job) is not None:
            return
        with engine.client_of(self.profile.host) as client:
            if job.id not in engine.seen(client):
                return
            with suppress(OSError):  # only a better word for how it ended
                (Path(job.run_dir) / "logs" / CANCELLED).touch()
            engine.terminate(client, job.id, _GRACE_SECONDS)

    def probes(self) -> Iterator[Probe]:
        return probes(self, self.profile)

    def _undo(self, job: AnyJob, experiment_dir: Path) -> bool:
        """Remove what a failed submission made; False where the engine could not be asked for its container."""
        shutil.rmtree(experiment_dir, ignore_errors=True)
        for name in (LOG, STATUS):
            (job.run_dir / "logs" / name).unlink(missing_ok=True)
        try:
            with engine.client_of(self.profile.host) as client:
                for made in client.containers.list(all=True, filters={"label": f"{engine.LABEL}={job.id}"}):
                    engine.remove(client, made.id)
        except UnreachableError:
            return False
        return True


@contextmanager
def _as_submit_error() -> Iterator[None]:
    import docker
    import requests

    try:
        yield
    except UnreachableError as error:
        raise SubmitError(error.name, error.cause, error.remedy) from error
    except docker.errors.APIError as error:
        words = engine.explain(error)
        raise SubmitError("docker_refused", f"the Docker engine refused: {words}.", engine.hint(words)) from error
    except (docker.errors.DockerException, requests.exceptions.RequestException) as error:
        cause = f"the Docker engine did not answer: {engine.reason(error)}."
        raise SubmitError("docker_unreachable", cause, "Is it running? Try: docker info.") from error
    except OSError as error:
        raise SubmitError("launch_failed", f"{type(error).__name__}: {error}.") from error


@contextmanager
def _engine_of_nemo_run(host: str | None) -> Iterator[None]:
    """NeMo-Run knows one way to be told of an engine: DOCKER_HOST, when its client is made."""
    with _ENVIRONMENT:
        before = os.environ.get("DOCKER_HOST")
        try:
            if host:
                os.environ["DOCKER_HOST"] = host
            yield
        finally:
            if before is not None:
                os.environ["DOCKER_HOST"] = before
            elif host:
                del os.environ["DOCKER_HOST"]
