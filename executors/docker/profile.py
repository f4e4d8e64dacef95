"""The values of a Docker profile, and what can be wrong with them before any engine is asked."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from executors.base import Mount, Parallel, Profile
from executors.constraints import key, wrong
from scripts.engines.script.flags.tables import newest_container
from scripts.run.files import is_there
from scripts.run.problems import Problem

#: NeMo-Run passes these itself; a second one of the same name is a TypeError there.
_TAKEN = frozenset({
    "image", "command", "detach", "remove", "name", "hostname", "network", "working_dir", "labels", "environment"
})  # fmt: skip
#: Keys of `additional` that would undo a key of the profile itself.
_OWN = {
    "user": "user",
    "volumes": "mounts",
    "mounts": "mounts",
    "runtime": "runtime",
    "shm_size": "shm_size",
    "ulimits": "ulimits",
    "ipc_mode": "ipc",
    "privileged": "privileged",
    "network_mode": "network",
    "restart_policy": None,  # refused by the engine for containers that are removed as they end
    "auto_remove": None,
}
_USER = r"[A-Za-z0-9_][A-Za-z0-9_.-]*(:[A-Za-z0-9_][A-Za-z0-9_.-]*)?"


@dataclass(frozen=True, kw_only=True)
class DockerProfile(Profile):
    """Values of a `kind: docker` profile."""

    kind: Literal["docker"] = "docker"
    image: str = key("", first="the container: a name, or an id (sha256:...)")  # required
    pull: Literal["missing", "always", "never"] = "missing"
    gpus: int | None = key(None, least=-1, expected="a number of GPUs is expected, or -1 for all")
    parallel: Parallel = key("auto", least=1)
    user: str | None = key(  # UID:GID; None: whoever submits, so that the files of a run are theirs
        None, pattern=_USER, expected="UID, UID:GID or the name of a user in the image is expected"
    )
    mounts: list[str] = key(list, first="the model store, as jobs are to see it: [/data/models:/models:ro]")
    shm_size: str | None = key(
        "16g", pattern=r"(?i)\d+(\.\d+)?[bkmgt]?", expected="a size is expected, such as 16g or 512m"
    )
    ipc: str | None = None
    network: str = "host"
    privileged: bool = False
    ulimits: list[str] = key(
        list,
        pattern=r"[a-z]+[=:](-1|\d+)(:(-1|\d+))?",
        expected="NAME=SOFT or NAME=SOFT:HARD is expected",
        remedy="For example memlock=-1.",
    )
    runtime: str | None = None
    host: str | None = None  # of the engine; None: DOCKER_HOST, else the system's own
    additional: dict[str, Any] = field(default_factory=dict)  # more of docker-py's containers.run()

    def contradictions(self) -> Iterator[Problem]:
        if not self.image.strip():
            remedy = f"Name one that holds Python, NeMo-Run and ModelOpt, such as {newest_container()}."
            yield wrong("image", None, "no image is given", remedy, name="missing_image")
        if self.nodes is not None and self.nodes > 1:
            remedy = "Use a Slurm or Lepton profile for more."
            yield wrong("nodes", self.nodes, "Docker runs a job on one machine", remedy)
        if self.network in ("bridge", "none", "default", "") or ":" in self.network:
            cause = "NeMo-Run makes a bridge network of this name, and the engine refuses to"
            remedy = "Use host, or a name of your own for a network between containers."
            yield wrong("network", self.network, cause, remedy)
        for text in self.mounts:
            try:
                Mount.parse(text)
            except ValueError as error:
                yield wrong("mounts", text, str(error))
        for name in self.additional:
            if name in _TAKEN:
                yield wrong(f"additional.{name}", None, "NeMo-Run sets it for each job", "Remove it.")
            elif name in _OWN:
                remedy = f"Use executor.{_OWN[name]}." if _OWN[name] else "Remove it."
                yield wrong(f"additional.{name}", None, "it cannot be given here", remedy)
        if not isinstance(self.additional.get("extra_hosts", {}), dict):
            yield wrong("additional.extra_hosts", None, "a mapping of names to addresses is expected")


def missing_sources(profile: DockerProfile) -> list[str]:
    """Folders to mount that are not on this machine."""
    mounts = Mount.parse_all(profile.mounts)
    return [mount.source for mount in mounts if mount.is_path and not is_there(mount.source)]


def nemo_run_ulimit(text: str) -> str:
    """An ulimit as NeMo-Run reads it: colons only, although it documents docker's `name=soft:hard`."""
    return text.replace("=", ":", 1)


def numeric_user(user: str) -> tuple[int, int] | None:
    """The uid and gid (-1: not said) of a user given in numbers; None for a name, which only the image can tell."""
    parts = user.split(":")
    if not all(part.isdigit() for part in parts):
        return (0, 0) if parts[0] == "root" else None
    return int(parts[0]), int(parts[1]) if len(parts) > 1 else -1
