"""Values of a `kind: lepton` profile, and what can be wrong with them before anything is asked of the service."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Literal

from executors.base import Profile, is_below
from executors.constraints import key, wrong
from scripts.run.problems import Problem, nearest

_MOUNT_KEYS = {
    "path": "the folder on the storage",
    "mount_path": "where the job sees it",
    "from": "which storage, as the workspace names it, such as node-nfs:NAME",
}
PRIORITIES = tuple(f"{level}-{n}000" for n, level in enumerate(["low"] * 3 + ["mid"] * 3 + ["high"] * 3, start=1))


@dataclass(frozen=True, kw_only=True)
class LeptonProfile(Profile):
    """A DGX Cloud Lepton workspace's node group. The workspace and its token are the SDK's own login, never here."""

    kind: Literal["lepton"] = "lepton"
    image: str = key("", needed=True, first="a container that the workspace can pull")
    node_group: str = key("", needed=True, first="as the workspace names it")
    resource_shape: str = key("", needed=True, first="what one node is, as the workspace names it: gpu.8xh100-80gb")
    nemo_run_dir: str = key(
        "", needed=True, first="the run root, as the job sees it, on a mount; run directories are made in its runs/"
    )
    mounts: list[dict[str, Any]] = key(
        list,
        needed=True,
        remedy="Mount the storage that nemo_run_dir is on: path, mount_path and from.",
        first="the storage of runs and models: path, mount_path and from",
    )
    gpus: int = key(0, least=0)  # of one node; the resource shape has them
    shared_memory_size: int = key(65536, least=0)  # MiB
    image_pull_secrets: list[str] = field(default_factory=list)
    node_reservation: str = ""
    queue_priority: str | None = key(None, choices=PRIORITIES)
    can_be_preempted: bool = False
    can_preempt: bool = False
    secret_names: dict[str, str] = field(default_factory=dict)  # variable: the Lepton secret's name, where it differs
    pre_launch: list[str] = field(default_factory=list)  # shell lines, run on every node before the job

    def contradictions(self) -> Iterator[Problem]:
        yield from _mounts(self)
        yield from _folders(self)
        for kind, names in (("env", self.env), ("secrets", self.secrets)):
            for name in names:
                if name.startswith("LEPTON_"):
                    yield wrong(f"{kind}.{name}", None, "it is set by Lepton itself", "Leave it out.")
        for name in self.secret_names.keys() - set(self.secrets):
            remedy = f"Add {name} to secrets, or remove it here."
            yield wrong("secret_names", name, "names a variable that secrets does not list", remedy, "contradiction")


def secret_references(profile: LeptonProfile) -> dict[str, str]:
    """Variable names and the Lepton secrets that fill them."""
    return {name: profile.secret_names.get(name, name) for name in profile.secrets}


def _mounts(profile: LeptonProfile) -> Iterator[Problem]:
    for number, mount in enumerate(profile.mounts):
        where = f"mounts[{number}]"
        for part in _MOUNT_KEYS:
            if not isinstance(mount.get(part), str) or not mount[part]:
                remedy = f"Give {part}: {_MOUNT_KEYS[part]}."
                yield wrong(f"{where}.{part}", mount.get(part), "is needed", remedy, "missing_value")
        known = {*_MOUNT_KEYS, "mount_options"}
        for part in mount.keys() - known:
            yield wrong(f"{where}.{part}", mount[part], "a mount has no such key", nearest(part, known), "unknown_key")
        target = mount.get("mount_path")
        if isinstance(target, str) and target and not _is_absolute(target):
            remedy = "Write it from the root, such as /mnt."
            yield wrong(f"{where}.mount_path", target, "is not an absolute path", remedy)
        if isinstance(target, str) and is_below(target, "/nemo_run"):
            remedy = "Mount it elsewhere: every node unpacks the job's code to /nemo_run."
            yield wrong(f"{where}.mount_path", target, "would hide the job's code", remedy)


def _folders(profile: LeptonProfile) -> Iterator[Problem]:
    places = [mount["mount_path"] for mount in profile.mounts if isinstance(mount.get("mount_path"), str)]
    for name in ("nemo_run_dir", "output_root"):
        folder = getattr(profile, name)
        if not folder or (name == "output_root" and profile.output_store):
            continue
        if not _is_absolute(folder):
            yield wrong(name, folder, "is not an absolute path", "Write it from the root, below a mount_path.")
        elif places and not any(is_below(folder, place) for place in places):
            remedy = f"Choose a folder below {' or '.join(places)}; elsewhere it would vanish with the job."
            yield wrong(name, folder, "is on none of the mounts", remedy)


def _is_absolute(path: str) -> bool:
    return PurePosixPath(path).is_absolute() and ".." not in PurePosixPath(path).parts
