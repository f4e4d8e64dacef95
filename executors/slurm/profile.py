"""The values of a Slurm profile, and what can be wrong with them before any cluster is asked."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from executors.base import CODE, Profile, nemorun_home
from executors.constraints import key, wrong
from scripts.run.files import expanded
from scripts.run.problems import Problem

#: NeMo-Run writes paths unquoted into shell lines.
_PATH = re.compile(r"[A-Za-z0-9._/~+@%:,-]*")
_TIME = r"\d+(:\d+){0,2}|\d+-\d+(:\d+){0,2}|INFINITE|UNLIMITED"
_FLAG = re.compile(r"[a-z][a-z0-9-]*")
#: A host's or a user's name that no command takes for an option.
_NAME = r"[A-Za-z0-9_.][A-Za-z0-9_.:%@\\-]*"
#: Flags that NeMo-Run or this project sets for each job.
_TAKEN = frozenset({
    "array", "chdir", "dependency", "error", "help", "input", "job-name", "kill-on-invalid-dep", "no-requeue", "ntasks",
    "ntasks-per-node", "open-mode", "output", "parsable", "quiet", "requeue", "test-only", "verbose", "version", "wait",
    "wrap",
})  # fmt: skip
#: As sbatch reads it; NeMo-Run passes it on.
_MEMORY = re.compile(r"\d+[KMGT]?B?", re.IGNORECASE)
#: MB of memory below which a number without a unit was meant in GB.
_LEAST_MEM = 2048
#: Keys of a profile that are flags of sbatch; `gpus` is --gpus-per-node, the others are called as the flag is.
_FLAGS = (
    "account", "partition", "qos", "time", "gpus", "cpus_per_task", "mem", "exclusive", "constraint", "reservation",
    "nodelist", "exclude", "gres", "comment",
)  # fmt: skip
_RUN_FOLDER = CODE.removesuffix("/code")


@dataclass(frozen=True, kw_only=True)
class SlurmProfile(Profile):
    """Values of a `kind: slurm` profile."""

    kind: Literal["slurm"] = "slurm"
    host: str | None = key(None, pattern=_NAME, expected="this is no host name")  # None: this machine is the login node
    user: str | None = key(None, pattern=_NAME, expected="this is no user name")
    port: int | None = key(None, least=1)
    identity: str | None = None
    job_dir: str | None = key(None, first="the run root, on storage that every node shares: /lustre/me/modelopt")
    account: str | None = key(None, first="whose hours it takes, where the cluster asks")
    partition: str | None = key(None, first="its queue with GPUs, where that is not the default")
    qos: str | None = None
    time: str | None = key(
        None, pattern=_TIME, expected="minutes, H:M:S, D-H or D-H:M:S is expected", remedy="For example 4:00:00."
    )
    gpus: int | None = key(None, least=0)  # on each node
    cpus_per_task: int | None = key(None, least=1)
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
    retries: int = key(0, least=0)
    image: str | None = key(  # None: no container
        None,
        pattern=r"\S+",
        expected="this is no image",
        remedy="Write null for a job without a container.",
        first="the container, or a .sqsh file on the cluster",
    )
    mounts: list[str] = key(
        list,
        pattern=r"/[^:,]*:/[^:,]*(:[^:,]*)?",
        expected="/SOURCE:/TARGET or /SOURCE:/TARGET:ro is expected, without commas",
        first="the model store, as jobs are to see it: [/lustre/models:/models:ro]",
    )
    workdir: str | None = key(None, pattern="/.*", expected="an absolute path is expected")
    squash_dir: str | None = key(None, pattern="/.*", expected="an absolute path is expected")
    setup: list[str] = field(default_factory=list)
    srun_args: list[str] = key(
        list,
        pattern="(?s)-.*",
        expected="flags of srun are expected, each with its value after `=`",
        remedy="For example --mpi=pmix.",
    )

    def contradictions(self) -> Iterator[Problem]:
        yield from _of_connection(self)
        if self.retries and not self.requeue:
            cause = "another attempt is a requeue, and requeue is false"
            yield wrong("retries", self.retries, cause, "Set executor.requeue=true or executor.retries=0.")
        yield from _of_flags(self)
        for name in ("mounts", "squash_dir"):
            if getattr(self, name) and self.image is None:
                yield wrong(name, getattr(self, name), "there is no container without an image", "Set executor.image.")


def root_folder(profile: SlurmProfile) -> str:
    """The folder on the cluster that holds all of ours."""
    if profile.job_dir is not None:
        return profile.job_dir if profile.host else str(expanded(profile.job_dir))
    return nemorun_home()


def sbatch_values(profile: SlurmProfile) -> dict[str, str | int | bool]:
    """sbatch's flags (in snake case, as NeMo-Run has them) with the profile's values, but for the job's shape."""
    values: dict[str, Any] = {_flag_of(name): getattr(profile, name) for name in _FLAGS}
    values |= {name.replace("-", "_"): value or True for name, value in profile.additional.items()}
    return {name: value for name, value in values.items() if value is not None and value is not False}


def _flag_of(name: str) -> str:
    return "gpus_per_node" if name == "gpus" else name


def _of_connection(profile: SlurmProfile) -> Iterator[Problem]:
    if profile.host is None:
        for name in ("user", "port", "identity"):
            if getattr(profile, name) is not None:
                cause = "it is for a login node elsewhere, and no host is given"
                yield wrong(name, getattr(profile, name), cause, "Set executor.host, or remove it.")
    elif profile.job_dir is None:
        remedy = "Name a folder on the cluster's shared storage, such as /shared/me/nemo."
        yield wrong("job_dir", None, "it is needed with a host", remedy, "missing_value")
    for name in ("job_dir", "output_root"):
        value = getattr(profile, name)
        if value is None or (name == "output_root" and profile.output_store):
            continue
        if not value.startswith("/") and not (name == "job_dir" and profile.host is None and value.startswith("~")):
            yield wrong(name, value, "an absolute path is expected")
        elif not _PATH.fullmatch(value):
            remedy = "Letters, digits and . _ / ~ + @ % : , - arrive as they are."
            yield wrong(name, value, "NeMo-Run's commands break on one of its characters", remedy)
        if ":" in value and profile.image is not None:
            yield wrong(name, value, "a path with a `:` in it cannot be mounted", "Choose another folder.")
    if profile.job_dir is not None and (cause := _replaced(profile, profile.job_dir)):
        yield wrong("job_dir", profile.job_dir, cause, "Choose a folder of another name.")


def _replaced(profile: SlurmProfile, text: str) -> str:
    if profile.image is not None or _RUN_FOLDER not in text:
        return ""
    return f"outside containers NeMo-Run puts another folder for every {_RUN_FOLDER}"


def _of_flags(profile: SlurmProfile) -> Iterator[Problem]:
    if profile.mem is not None and not _MEMORY.fullmatch(profile.mem):
        yield wrong(
            "mem", profile.mem, "it is no amount of memory", "Write a number of MB, or one with K, M, G or T: 64G."
        )
    if profile.mem is not None and profile.mem.isdigit() and 0 < int(profile.mem) < _LEAST_MEM:
        cause = f"sbatch counts in MB: {profile.mem} MB is less than any job here needs"
        yield replace(wrong("mem", profile.mem, cause, f"Did you mean {profile.mem}G?"), severity="warning")
    own = {_flag_of(name).replace("_", "-"): name for name in [*_FLAGS, "nodes"]}
    for name in profile.additional:
        flag = name.replace("_", "-")
        if flag in own:
            yield wrong(f"additional.{name}", None, "the profile has a key for it", f"Use executor.{own[flag]}.")
        elif flag in _TAKEN:
            yield wrong(f"additional.{name}", None, "it is set for each job", "Remove it.")
        elif not _FLAG.fullmatch(flag):
            yield wrong(f"additional.{name}", None, "a long flag of sbatch without its dashes is expected")
    for name, value in sbatch_values(profile).items():
        shown = own.get(name.replace("_", "-"), f"additional.{name}")
        if isinstance(value, str) and re.search(r"[\n\r\0]", value):
            yield wrong(shown, value, "a flag of sbatch is one line")
        elif isinstance(value, str) and (cause := _replaced(profile, value)):
            yield wrong(shown, value, cause, "Write it another way.")
