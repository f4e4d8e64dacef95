"""One Lepton job as data: its name, the package it carries, the script that starts it, the specification."""

import base64
import gzip
import hashlib
import io
import re
import shlex
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from executors.base import AnyJob, SubmitError
from executors.lepton.profile import LeptonProfile, secret_references

if TYPE_CHECKING:
    from leptonai.api.v1.types.job import LeptonJob

#: The package travels in the job's own command, and the job object has to fit the service's store, which
#: for Kubernetes is 1.5 MiB. This is counted in base64, the form in which it travels.
PACKAGE_LIMIT = 1_000_000
#: Linux takes at most 128 KiB in one argument.
_CHUNK = 96 * 1024
#: Finished jobs keep their pods, and so their logs, for a week. The SDK's own default is ten minutes.
_KEEP_SECONDS = 7 * 24 * 3600
_NAME_LIMIT = 35
_TIME = 946684800  # the year 2000: tar warns about files from 1970
_FOLDER = "/nemo_run"

# Kubernetes replaces `$(NAME)` and `$$` in commands; neither may occur here. The rest of the start
# is a file inside the package, where nothing is replaced.
_UNPACK = """\
set -eu -o pipefail
if ! mkdir -p /nemo_run || ! [ -w /nemo_run ]; then
  echo "failed: image_read_only: /nemo_run cannot be written. Use an image whose root the job's user can write." >&2
  exit 1
fi
printf %s "$@" | base64 -d | tar -xzf - -C /nemo_run --no-same-owner
exec /bin/bash /nemo_run/launch.sh
"""

# What torchrun needs to know, from the variables that Lepton sets in every worker. The name of worker 0 is
# one of two, depending on the search domains of the cluster's DNS; it resolves only once its pod is there.
_RENDEZVOUS = """\
export NNODES="${LEPTON_JOB_TOTAL_WORKERS:-1}" NODE_RANK="${LEPTON_JOB_WORKER_INDEX:-0}"
export MASTER_PORT="${MASTER_PORT:-29400}"
if [ "$NNODES" = 1 ]; then
  export MASTER_ADDR="${MASTER_ADDR:-127.0.0.1}"
elif [ -z "${MASTER_ADDR:-}" ]; then
  worker0="${LEPTON_JOB_SERVICE_PREFIX:-$LEPTON_JOB_NAME}-0.${LEPTON_SUBDOMAIN:-$LEPTON_JOB_NAME-job-svc}"
  export MASTER_ADDR="$worker0"
  for attempt in {1..300}; do
    for name in "$worker0" "$worker0.ws-${LEPTON_WORKSPACE_ID:-}.svc.cluster.local"; do
      if ! command -v getent >/dev/null || getent hosts "$name" >/dev/null; then
        export MASTER_ADDR="$name"
        break 2
      fi
    done
    sleep 1
  done
fi
"""


def job_name(run_id: str) -> str:
    """A run's Lepton job id: lower case, letters, digits and `-`, at most 35 characters with the unique end kept."""
    name = re.sub(r"[^a-z0-9]+", "-", run_id.lower()).strip("-")
    if not name[:1].isalpha():  # the names of Kubernetes services begin with a letter
        name = f"r-{name}"
    if len(name) <= _NAME_LIMIT:
        return name
    tail = re.sub(r"[^a-z0-9]+", "-", run_id.lower().rpartition("_")[2]).strip("-")
    if len(tail) > _NAME_LIMIT // 2 + 4:
        tail = hashlib.sha256(run_id.encode()).hexdigest()[:12]
    return f"{name[: _NAME_LIMIT - len(tail) - 1].rstrip('-')}-{tail}"


def stock_rendezvous() -> str:
    """A line for NeMo-Run's own launch script that keeps it from downloading what it runs.

    That script fetches a shell file with wget and sources it, after the pre-launch commands. A shell
    function answers that one call with the same variables, and removes itself; any other goes to wget.
    """
    variables = f"{_RENDEZVOUS}export WORLD_SIZE=$NNODES\nunset -f wget\n"
    case = '[ "${1:-}" = -O ] && [ "${3##*/}" = lepton_env_to_pytorch.sh ]'
    return f'wget() {{ if {case}; then printf %s {shlex.quote(variables)} > "$2"; else command wget "$@"; fi; }}'


def launch_script(profile: LeptonProfile, job: AnyJob, env: Mapping[str, str], command: Sequence[str]) -> str:
    """launch.sh: run on every node, from the unpacked package."""
    lines = ["#!/bin/bash"]
    for name, value in env.items():
        if "$" in value:  # Kubernetes replaces `$(NAME)` and `$$` in the values of variables as well
            lines.append(f"export {name}={shlex.quote(value)}")
    lines.append(_RENDEZVOUS)
    if not job.ranked and job.nodes > 1:
        lines.append('if [ "$NODE_RANK" != 0 ]; then exit 0; fi  # one process, on the first node')
    if profile.pre_launch:
        lines += ["set -e", """trap 'echo "failed: pre_launch: $BASH_COMMAND" >&2' ERR""", *profile.pre_launch]
        lines += ["trap - ERR", "set +e"]
    lines.append(f"cd {_FOLDER}/code || exit 1")
    # NeMo-Run quotes torchrun's arguments itself, but for the variables that this shell replaces.
    words = " ".join(command) if job.ranked else shlex.join(command)
    lines.append(f"exec {words}")  # so that the signal of a stop reaches the job
    return "\n".join(lines) + "\n"


def pack(folder: Path, script: str) -> bytes:
    """launch.sh, and code/ and configs/ of what NeMo-Run made for the job, as .tar.gz; equal content, equal bytes."""
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0) as packed, tarfile.open(fileobj=packed, mode="w") as tar:
        member = tarfile.TarInfo("launch.sh")
        member.size, member.mode = len(script.encode()), 0o755
        tar.addfile(_plain(member), io.BytesIO(script.encode()))
        for name in ("code", "configs"):
            (folder / name).mkdir(exist_ok=True)  # the job starts in code/, packaged or not
            tar.add(folder / name, name, filter=_needed)
    return buffer.getvalue()


def too_large(package: bytes) -> SubmitError | None:
    """Why no job can carry this package."""
    size = len(base64.b64encode(package))
    if size <= PACKAGE_LIMIT:
        return None
    cause = f"The packaged code has {size:,} bytes in base64; a Lepton job carries at most {PACKAGE_LIMIT:,}."
    remedy = "Use packager: pattern with the files that the job needs, or packager: none with the code in the image."
    return SubmitError("package_too_large", cause, remedy)


def job_specification(
    profile: LeptonProfile, job: AnyJob, env: Mapping[str, str], package: bytes, node_group_id: str
) -> "LeptonJob":
    """The job, as the SDK's own types."""
    from leptonai.api.v1.types.affinity import LeptonResourceAffinity
    from leptonai.api.v1.types.common import Metadata
    from leptonai.api.v1.types.deployment import EnvValue, EnvVar, LeptonContainer, Mount, QueueConfig
    from leptonai.api.v1.types.job import LeptonJob, LeptonJobUserSpec, ReservationConfig

    envs = [EnvVar(name=name, value=value) for name, value in env.items()]
    for name, secret in secret_references(profile).items():
        envs.append(EnvVar(name=name, value_from=EnvValue(secret_name_ref=secret)))
    queue = None
    if profile.queue_priority or profile.can_preempt or profile.can_be_preempted:
        queue = QueueConfig(
            priority_class=profile.queue_priority or "mid-4000",
            can_preempt=profile.can_preempt or None,
            can_be_preempted=profile.can_be_preempted or None,
        )
    reservation = ReservationConfig(reservation_id=profile.node_reservation) if profile.node_reservation else None
    spec = LeptonJobUserSpec(
        resource_shape=profile.resource_shape,
        affinity=LeptonResourceAffinity(allowed_dedicated_node_groups=[node_group_id]),
        container=LeptonContainer(image=profile.image, command=_command(package)),
        shared_memory_size=profile.shared_memory_size,
        completions=job.nodes,
        parallelism=job.nodes,
        max_failure_retry=0,  # a second attempt would find the run directory of the first
        max_job_failure_retry=0,
        envs=envs,
        mounts=[Mount(**mount) for mount in profile.mounts],
        image_pull_secrets=profile.image_pull_secrets,
        ttl_seconds_after_finished=_KEEP_SECONDS,
        intra_job_communication=job.nodes > 1 or None,
        queue_config=queue,
        reservation_config=reservation,
    )
    return LeptonJob(metadata=Metadata(id=job_name(job.id)), spec=spec)


def readable(job: "LeptonJob") -> dict[str, Any]:
    """What the API call carries, with the package's pieces shown by size and digest."""
    value: dict[str, Any] = job.model_dump(mode="json", exclude_none=True, by_alias=True)
    command = value["spec"]["container"]["command"]
    start = len(_command(b""))
    for number, piece in enumerate(command[start:], start=start):
        command[number] = f"<{len(piece)} bytes, sha256 {hashlib.sha256(piece.encode()).hexdigest()}>"
    return value


def _command(package: bytes) -> list[str]:
    text = base64.b64encode(package).decode()
    pieces = [text[at : at + _CHUNK] for at in range(0, len(text), _CHUNK)]
    return ["/bin/bash", "-c", _UNPACK, "launch", *pieces]


def _needed(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """A member, unless it is NeMo-Run's description of the executor: of no use there, and its form varies."""
    if member.name.startswith("configs/") and member.name.endswith("_executor.yaml"):
        return None
    return _plain(member)


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """A member without what differs between two packings of the same files."""
    member.mtime, member.uid, member.gid, member.uname, member.gname = _TIME, 0, 0, "", ""
    return member
