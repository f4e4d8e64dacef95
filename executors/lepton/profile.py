"""Values of a `kind: lepton` profile, and what can be wrong with them before anything is asked of the service."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Literal

from executors.base import Profile
from scripts.run.problems import Problem, nearest

_REQUIRED = ("image", "node_group", "resource_shape", "nemo_run_dir")
_MOUNT_KEYS = {
    "path": "the folder on the storage",
    "mount_path": "where the job sees it",
    "from": "which storage, as the workspace names it, such as node-nfs:NAME",
}
_OPTIONAL_MOUNT_KEYS = ("mount_options",)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
#: Set for every job; a profile's value would be lost or break the job.
_OURS = ("NEMO_RUN_DIR", "PYTHONSAFEPATH", "MODELOPT_RECIPES_SECRETS", "MODELOPT_RECIPES_PRINT_RECORD")
PRIORITIES = tuple(f"{level}-{n}000" for n, level in enumerate(["low"] * 3 + ["mid"] * 3 + ["high"] * 3, start=1))


@dataclass(frozen=True, kw_only=True)
class LeptonProfile(Profile):
    """A DGX Cloud Lepton workspace's node group. The workspace and its token are the SDK's own login, never here."""

    kind: Literal["lepton"] = "lepton"
    image: str = ""
    node_group: str = ""
    resource_shape: str = ""  # what one node is, as the workspace names it
    nemo_run_dir: str = ""  # as the job sees it, on a mount; run directories are made in its runs/
    mounts: list[dict[str, Any]] = field(default_factory=list)
    gpus: int = 0  # of one node; the resource shape has them
    shared_memory_size: int = 65536  # MiB
    image_pull_secrets: list[str] = field(default_factory=list)
    node_reservation: str = ""
    queue_priority: str | None = None
    can_be_preempted: bool = False
    can_preempt: bool = False
    secret_names: dict[str, str] = field(default_factory=dict)  # variable: the Lepton secret's name, where it differs
    pre_launch: list[str] = field(default_factory=list)  # shell lines, run on every node before the job


def secret_references(profile: LeptonProfile) -> dict[str, str]:
    """Variable names and the Lepton secrets that fill them."""
    return {name: profile.secret_names.get(name, name) for name in profile.secrets}


def profile_problems(profile: LeptonProfile) -> list[Problem]:
    """Missing and contradictory values. Reaches nothing."""
    return [*_missing(profile), *_mounts(profile), *_folders(profile), *_numbers(profile), *_variables(profile)]


def _problem(key: str, value: Any, cause: str, remedy: str, name: str = "wrong_value") -> Problem:
    return Problem(name=name, key=f"executor.{key}", value=value, cause=cause, remedy=remedy)


def _missing(profile: LeptonProfile) -> Iterator[Problem]:
    for key in _REQUIRED:
        if not getattr(profile, key):
            remedy = f"Set {key} in the profile, or executor.{key}=... on the command line."
            yield _problem(key, None, "is needed to run on Lepton", remedy, "missing_value")


def _mounts(profile: LeptonProfile) -> Iterator[Problem]:
    if not profile.mounts:
        remedy = "Mount the storage that nemo_run_dir is on: path, mount_path and from."
        yield _problem("mounts", None, "no storage is mounted", remedy, "missing_value")
    for number, mount in enumerate(profile.mounts):
        key = f"mounts[{number}]"
        for part in _MOUNT_KEYS:
            if not isinstance(mount.get(part), str) or not mount[part]:
                remedy = f"Give {part}: {_MOUNT_KEYS[part]}."
                yield _problem(f"{key}.{part}", mount.get(part), "is needed", remedy, "missing_value")
        for part in mount.keys() - {*_MOUNT_KEYS, *_OPTIONAL_MOUNT_KEYS}:
            remedy = nearest(part, (*_MOUNT_KEYS, *_OPTIONAL_MOUNT_KEYS))
            yield _problem(f"{key}.{part}", mount[part], "a mount has no such key", remedy, "unknown_key")
        where = mount.get("mount_path")
        if isinstance(where, str) and where and not _is_absolute(where):
            yield _problem(
                f"{key}.mount_path", where, "is not an absolute path", "Write it from the root, such as /mnt."
            )
        if isinstance(where, str) and _is_below(where, "/nemo_run"):
            remedy = "Mount it elsewhere: every node unpacks the job's code to /nemo_run."
            yield _problem(f"{key}.mount_path", where, "would hide the job's code", remedy)


def _folders(profile: LeptonProfile) -> Iterator[Problem]:
    places = [mount["mount_path"] for mount in profile.mounts if isinstance(mount.get("mount_path"), str)]
    for key in ("nemo_run_dir", "output_root"):
        folder = getattr(profile, key)
        if not folder:
            continue
        if not _is_absolute(folder):
            yield _problem(key, folder, "is not an absolute path", "Write it from the root, below a mount_path.")
        elif places and not any(_is_below(folder, place) for place in places):
            remedy = f"Choose a folder below {' or '.join(places)}; elsewhere it would vanish with the job."
            yield _problem(key, folder, "is on none of the mounts", remedy)


def _numbers(profile: LeptonProfile) -> Iterator[Problem]:
    lowest = {"nodes": 1, "gpus": 0, "shared_memory_size": 0}
    for key, least in lowest.items():
        value = getattr(profile, key)
        if value is not None and value < least:
            yield _problem(key, value, "is too small", f"Use {least} or more.")
    if profile.queue_priority is not None and profile.queue_priority not in PRIORITIES:
        remedy = nearest(profile.queue_priority, PRIORITIES)
        yield _problem("queue_priority", profile.queue_priority, "is not a priority of Lepton", remedy)


def _variables(profile: LeptonProfile) -> Iterator[Problem]:
    for key, names in (("env", profile.env), ("secrets", profile.secrets)):
        for name in names:
            if not _VARIABLE.fullmatch(name):
                remedy = "Use letters, digits and _, not beginning with a digit."
                yield _problem(key, name, "is not the name of an environment variable", remedy)
            elif name.startswith("LEPTON_") or name in _OURS:
                whose = "Lepton" if name.startswith("LEPTON_") else "every job"
                yield _problem(key, name, f"is set by {whose} itself", "Leave it out.")
    for name, value in profile.env.items():
        if "\0" in value:
            yield _problem(f"env.{name}", None, "contains a NUL byte", "No environment variable can.")
        if name in profile.secrets:
            remedy = "Keep it in secrets, so that its value stays out of files."
            yield _problem("env", name, "is in env and in secrets", remedy, "contradiction")
    for name in profile.secret_names:
        if name not in profile.secrets:
            remedy = f"Add {name} to secrets, or remove it here."
            yield _problem("secret_names", name, "names a variable that secrets does not list", remedy, "contradiction")


def _is_absolute(path: str) -> bool:
    return PurePosixPath(path).is_absolute() and ".." not in PurePosixPath(path).parts


def _is_below(path: str, folder: str) -> bool:
    return PurePosixPath(path).is_relative_to(folder)
