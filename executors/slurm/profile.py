"""The values of a Slurm profile, and what can be wrong with them before any cluster is asked."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from executors.base import CODE, SECRETS_VARIABLE, Profile
from scripts.run.problems import Problem

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
#: NeMo-Run writes paths unquoted into shell lines.
_PATH = re.compile(r"[A-Za-z0-9._/~+@%:,-]*")
_TIME = re.compile(r"\d+(:\d+){0,2}|\d+-\d+(:\d+){0,2}|INFINITE|UNLIMITED")
_FLAG = re.compile(r"[a-z][a-z0-9-]*")
#: Flags that NeMo-Run or this project sets for each job, and keys of the profile for those that have one.
_TAKEN = frozenset(
    {
        "array",
        "chdir",
        "dependency",
        "error",
        "help",
        "input",
        "job-name",
        "kill-on-invalid-dep",
        "no-requeue",
        "ntasks",
        "ntasks-per-node",
        "open-mode",
        "output",
        "parsable",
        "quiet",
        "requeue",
        "test-only",
        "verbose",
        "version",
        "wait",
        "wrap",
    }
)
_KEYS = {
    "gpus-per-node": "gpus",
    "cpus-per-task": "cpus_per_task",
    "account": "account",
    "partition": "partition",
    "qos": "qos",
    "time": "time",
    "nodes": "nodes",
    "mem": "mem",
    "exclusive": "exclusive",
    "constraint": "constraint",
    "reservation": "reservation",
    "nodelist": "nodelist",
    "exclude": "exclude",
    "gres": "gres",
    "comment": "comment",
}
_OWN_VARIABLES = ("NEMO_RUN_DIR", "PYTHONSAFEPATH", SECRETS_VARIABLE)
_RUN_FOLDER = CODE.removesuffix("/code")


@dataclass(frozen=True, kw_only=True)
class SlurmProfile(Profile):
    """Values of a `kind: slurm` profile."""

    kind: Literal["slurm"] = "slurm"
    host: str | None = None  # None: this machine is the login node
    user: str | None = None
    port: int | None = None
    identity: str | None = None
    job_dir: str | None = None  # on the cluster's shared storage
    account: str | None = None
    partition: str | None = None
    qos: str | None = None
    time: str | None = None
    gpus: int | None = None  # on each node
    cpus_per_task: int | None = None
    mem: str | None = None
    exclusive: bool = False
    constraint: str | None = None
    reservation: str | None = None
    nodelist: str | None = None
    exclude: str | None = None
    gres: str | None = None
    comment: str | None = None
    additional: dict[str, str] = field(default_factory=dict)  # any other flag of sbatch; "" is one without a value
    dependency_type: Literal["afterok", "afterany", "afternotok", "after"] = "afterok"
    requeue: bool = True
    retries: int = 0
    image: str | None = None  # None: no container
    mounts: list[str] = field(default_factory=list)
    workdir: str | None = None
    squash_dir: str | None = None
    setup: list[str] = field(default_factory=list)
    srun_args: list[str] = field(default_factory=list)


def root_folder(profile: SlurmProfile) -> str:
    """The folder on the cluster that holds all of ours."""
    if profile.job_dir is not None:
        return profile.job_dir if profile.host else str(Path(profile.job_dir).expanduser())
    from nemo_run.config import get_nemorun_home

    return str(get_nemorun_home())


def sbatch_values(profile: SlurmProfile) -> dict[str, str | int | bool]:
    """sbatch's flags (in snake case, as NeMo-Run has them) with the profile's values, but for the job's shape."""
    values: dict[str, str | int | bool | None] = {
        "account": profile.account,
        "partition": profile.partition,
        "qos": profile.qos,
        "time": profile.time,
        "gpus_per_node": profile.gpus,
        "cpus_per_task": profile.cpus_per_task,
        "mem": profile.mem,
        "exclusive": profile.exclusive or None,
        "constraint": profile.constraint,
        "reservation": profile.reservation,
        "nodelist": profile.nodelist,
        "exclude": profile.exclude,
        "gres": profile.gres,
        "comment": profile.comment,
        **{key.replace("-", "_"): value or True for key, value in profile.additional.items()},
    }
    return {key: value for key, value in values.items() if value is not None}


def wrong_values(profile: SlurmProfile) -> list[Problem]:
    """Every Problem with a profile's values; reaches nothing."""
    found = [*_of_connection(profile), *_of_shape(profile), *_of_flags(profile), *_of_container(profile)]
    found += _of_environment(profile)
    return [
        Problem(name=name, key=f"executor.{key}", value=value, cause=cause, remedy=remedy)
        for name, key, value, cause, remedy in found
    ]


_Found = Iterator[tuple[str, str, Any, str, str]]
_WRONG = "wrong_value"


def _of_connection(profile: SlurmProfile) -> _Found:
    if profile.host is None:
        for key in ("user", "port", "identity"):
            if getattr(profile, key) is not None:
                cause = "it is for a login node elsewhere, and no host is given"
                yield _WRONG, key, getattr(profile, key), cause, "Set executor.host, or remove it."
    elif profile.job_dir is None:
        remedy = "Name a folder on the cluster's shared storage, such as /shared/me/nemo."
        yield "missing_value", "job_dir", None, "it is needed with a host", remedy
    for key in ("host", "user"):
        value = getattr(profile, key)
        if value is not None and not re.fullmatch(r"[A-Za-z0-9_.][A-Za-z0-9_.:%@\\-]*", value):
            yield _WRONG, key, value, f"this is no {key} name", ""
    for key in ("job_dir", "output_root"):
        value = getattr(profile, key)
        if value is None:
            continue
        if not value.startswith("/") and not (key == "job_dir" and profile.host is None and value.startswith("~")):
            yield _WRONG, key, value, "an absolute path is expected", ""
        elif not _PATH.fullmatch(value):
            remedy = "Letters, digits and . _ / ~ + @ % : , - arrive as they are."
            yield _WRONG, key, value, "NeMo-Run's commands break on one of its characters", remedy
        if ":" in value and profile.image is not None:
            yield _WRONG, key, value, "a path with a `:` in it cannot be mounted", "Choose another folder."
    if profile.image is None and profile.job_dir is not None and _RUN_FOLDER in profile.job_dir:
        cause = f"outside containers NeMo-Run puts another folder for every {_RUN_FOLDER}"
        yield _WRONG, "job_dir", profile.job_dir, cause, "Choose a folder of another name."


def _of_shape(profile: SlurmProfile) -> _Found:
    for key, least in (("nodes", 1), ("gpus", 0), ("cpus_per_task", 1), ("retries", 0), ("port", 1)):
        value = getattr(profile, key)
        if value is not None and value < least:
            yield _WRONG, key, value, f"a number from {least} on is expected", ""
    if profile.time is not None and not _TIME.fullmatch(profile.time):
        yield _WRONG, "time", profile.time, "minutes, H:M:S, D-H or D-H:M:S is expected", "For example 4:00:00."
    if profile.retries and not profile.requeue:
        cause = "another attempt is a requeue, and requeue is false"
        yield _WRONG, "retries", profile.retries, cause, "Set executor.requeue=true or executor.retries=0."


def _of_flags(profile: SlurmProfile) -> _Found:
    for key in profile.additional:
        if key.replace("_", "-") in _KEYS:
            remedy = f"Use executor.{_KEYS[key.replace('_', '-')]}."
            yield _WRONG, f"additional.{key}", None, "the profile has a key for it", remedy
        elif key.replace("_", "-") in _TAKEN:
            yield _WRONG, f"additional.{key}", None, "it is set for each job", "Remove it."
        elif not _FLAG.fullmatch(key.replace("_", "-")):
            yield _WRONG, f"additional.{key}", None, "a long flag of sbatch without its dashes is expected", ""
    for key, value in sbatch_values(profile).items():
        shown = key if key in _KEYS.values() else "gpus" if key == "gpus_per_node" else f"additional.{key}"
        if not isinstance(value, str):
            continue
        if re.search(r"[\n\r\0]", value):
            yield _WRONG, shown, value, "a flag of sbatch is one line", ""
        elif _RUN_FOLDER in value and profile.image is None:
            cause = f"outside containers NeMo-Run puts another folder for every {_RUN_FOLDER}"
            yield _WRONG, shown, value, cause, "Write it another way."
    for value in profile.srun_args:
        if not value.startswith("-"):
            cause = "flags of srun are expected, each with its value after `=`"
            yield _WRONG, "srun_args", value, cause, "For example --mpi=pmix."


def _of_container(profile: SlurmProfile) -> _Found:
    for key in ("mounts", "squash_dir"):
        if getattr(profile, key) and profile.image is None:
            yield _WRONG, key, getattr(profile, key), "there is no container without an image", "Set executor.image."
    for text in profile.mounts:
        parts = text.split(":")
        if len(parts) not in (2, 3) or not all(part.startswith("/") for part in parts[:2]) or "," in text:
            yield _WRONG, "mounts", text, "/SOURCE:/TARGET or /SOURCE:/TARGET:ro is expected, without commas", ""
    for key in ("workdir", "squash_dir"):
        value = getattr(profile, key)
        if value is not None and not value.startswith("/"):
            yield _WRONG, key, value, "an absolute path is expected", ""
    if profile.image is not None and (not profile.image.strip() or re.search(r"\s", profile.image)):
        remedy = "Write null for a job without a container."
        yield _WRONG, "image", profile.image, "this is no image", remedy


def _of_environment(profile: SlurmProfile) -> _Found:
    for name, value in profile.env.items():
        if not _VARIABLE.fullmatch(name):
            yield _WRONG, f"env.{name}", None, "this is no name of a variable", "Letters, digits and _ are."
        elif name in _OWN_VARIABLES:
            yield _WRONG, f"env.{name}", None, "it is set for each job", "Remove it."
        elif "\0" in value:
            yield _WRONG, f"env.{name}", None, "a variable cannot hold a NUL character", ""
    for name in profile.secrets:
        if not _VARIABLE.fullmatch(name):  # it might be the secret itself, so it is not shown
            remedy = "Write secrets: [HF_TOKEN], and set HF_TOKEN where you submit."
            yield _WRONG, "secrets", None, "names of variables are expected", remedy
