"""The values of a Docker profile, and what can be wrong with them before any engine is asked."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from executors.base import Mount, Profile
from scripts.run.problems import Problem

#: NeMo-Run passes these itself; a second one of the same name is a TypeError there.
_TAKEN = frozenset(
    {"image", "command", "detach", "remove", "name", "hostname", "network", "working_dir", "labels", "environment"}
)
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
_SIZE = re.compile(r"\d+(\.\d+)?[bkmgt]?", re.IGNORECASE)
_ULIMIT = re.compile(r"(?P<name>[a-z]+)[=:](?P<soft>-1|\d+)(?::(?P<hard>-1|\d+))?")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(:[A-Za-z0-9_][A-Za-z0-9_.-]*)?")


@dataclass(frozen=True, kw_only=True)
class DockerProfile(Profile):
    """Values of a `kind: docker` profile."""

    kind: Literal["docker"] = "docker"
    image: str = ""  # a name, or an id (sha256:...); required
    pull: Literal["missing", "always", "never"] = "missing"
    gpus: int | None = None  # -1: all
    user: str | None = None  # UID:GID; None: whoever submits, so that the files of a run are theirs
    mounts: list[str] = field(default_factory=list)  # SOURCE:TARGET[:ro]
    shm_size: str | None = "16g"
    ipc: str | None = None
    network: str = "host"
    privileged: bool = False
    ulimits: list[str] = field(default_factory=list)  # NAME=SOFT[:HARD]
    runtime: str | None = None
    host: str | None = None  # of the engine; None: DOCKER_HOST, else the system's own
    additional: dict[str, Any] = field(default_factory=dict)  # more of docker-py's containers.run()


def nemo_run_ulimit(text: str) -> str:
    """An ulimit as NeMo-Run reads it: colons only, although it documents docker's `name=soft:hard`."""
    return text.replace("=", ":", 1)


def numeric_user(user: str) -> tuple[int, int] | None:
    """The uid and gid (-1: not said) of a user given in numbers; None for a name, which only the image can tell."""
    parts = user.split(":")
    if not all(part.isdigit() for part in parts):
        return (0, 0) if parts[0] == "root" else None
    return int(parts[0]), int(parts[1]) if len(parts) > 1 else -1


def wrong_values(profile: DockerProfile, run_root: Path) -> list[Problem]:
    """Every Problem with a profile's values; reaches nothing."""
    problems = []

    def wrong(key: str, value: Any, cause: str, remedy: str = "", name: str = "wrong_value") -> None:
        problems.append(Problem(name=name, key=f"executor.{key}", value=value, cause=cause, remedy=remedy))

    if not profile.image.strip():
        remedy = "Name one that holds Python, NeMo-Run and ModelOpt, such as nvcr.io/nvidia/nemo:26.06."
        wrong("image", None, "no image is given", remedy, name="missing_image")
    if profile.nodes not in (None, 1):
        remedy = "Use a Slurm or Lepton profile for more."
        wrong("nodes", profile.nodes, "Docker runs a job on one machine", remedy)
    if profile.gpus is not None and profile.gpus < -1:
        wrong("gpus", profile.gpus, "a number of GPUs is expected, or -1 for all")
    if profile.user is not None and not _USER.fullmatch(profile.user):
        wrong("user", profile.user, "UID, UID:GID or the name of a user in the image is expected")
    if profile.shm_size is not None and not _SIZE.fullmatch(profile.shm_size):
        wrong("shm_size", profile.shm_size, "a size is expected, such as 16g or 512m")
    if profile.network in ("bridge", "none", "default", "") or ":" in profile.network:
        cause = "NeMo-Run makes a bridge network of this name, and the engine refuses to"
        wrong("network", profile.network, cause, "Use host, or a name of your own for a network between containers.")
    for text in profile.mounts:
        try:
            Mount.parse(text)
        except ValueError as error:
            wrong("mounts", text, str(error))
    for text in profile.ulimits:
        if not _ULIMIT.fullmatch(text):
            wrong("ulimits", text, "NAME=SOFT or NAME=SOFT:HARD is expected", "For example memlock=-1.")
    for key in profile.additional:
        if key in _TAKEN:
            wrong(f"additional.{key}", None, "NeMo-Run sets it for each job", "Remove it.")
        elif key in _OWN:
            own = _OWN[key]
            remedy = f"Use executor.{own}." if own else "Remove it."
            wrong(f"additional.{key}", None, "it cannot be given here", remedy)
    if not isinstance(profile.additional.get("extra_hosts", {}), dict):
        wrong("additional.extra_hosts", None, "a mapping of names to addresses is expected")
    if ":" in str(run_root):
        wrong("output_root", str(run_root), "a path with a `:` in it cannot be mounted", "Choose another output_root.")
    return problems
