"""What NeMo-Run's sbatch script is made of: its executor, the lines of ours, values that survive the way into it.

NeMo-Run writes `env_vars` unquoted and in upper case, and outside containers it puts the job's
folder for every `/nemo_run` in the script, whoever wrote it. So variables are exported here.
"""

import dataclasses
import getpass
import posixpath
import re
import shlex
from typing import TYPE_CHECKING
from zlib import crc32

from executors.base import CODE, OWN_CODE, AnyJob, Mount, is_below, own_variables
from executors.packaging.code import packager_of
from executors.slurm.profile import SlurmProfile, sbatch_values
from scripts.run.files import expanded

if TYPE_CHECKING:
    import nemo_run as run

#: NeMo-Run's name for the job's folder.
RUN_FOLDER = "/nemo_run"
#: Where the ranks of a job meet: jobs that share a node have different ids, whatever else they share. NeMo-Run writes
#: it into the script as it is: an expression that each job evaluates.
_RENDEZVOUS_PORT = "$((20000 + SLURM_JOB_ID % 10000))"


def quote(value: str) -> str:
    """`value` as one word of the script, in which NeMo-Run finds nothing to replace."""
    if "\r" in value:  # sbatch takes a script with CR LF for a DOS file
        escaped = value.replace("\\", "\\\\").replace("'", "\\'").replace("\r", "\\r")
        return "$'" + escaped.replace(RUN_FOLDER, "\\x2fnemo_run") + "'"
    return shlex.quote(value).replace(RUN_FOLDER, "/nemo''_run")


def build_executor(profile: SlurmProfile, job: AnyJob | None) -> "run.SlurmExecutor":
    import nemo_run as run

    fields = {item.name for item in dataclasses.fields(run.SlurmExecutor)}
    # sbatch reads a backslash in its #SBATCH lines as an escape, even inside the quotes that NeMo-Run adds.
    values = {k: v.replace("\\", "\\\\") if isinstance(v, str) else v for k, v in sbatch_values(profile).items()}
    others = {key: value for key, value in values.items() if key not in fields}
    nodes = job.nodes if job else profile.nodes or 1
    srun_args = list(profile.srun_args)
    if job is not None:
        if job.waits_for:
            others["dependency"] = f"{profile.dependency_type}:{':'.join(job.waits_for)}"
            others["kill_on_invalid_dep"] = "yes"
        if not job.ranked and nodes > 1:
            srun_args += ["--nodes=1", "--ntasks=1"]
    if profile.workdir:
        srun_args += ["env", f"--chdir={profile.workdir}"]  # the last thing before the job's command
    ranked = job if job is not None and job.ranked else None
    image = container_image(profile)
    return run.SlurmExecutor(
        **{"account": None, "time": None, **{key: value for key, value in values.items() if key in fields}},
        nodes=nodes,
        ntasks_per_node=ranked.processes if ranked else 1,
        launcher=run.Torchrun(rdzv_port=_RENDEZVOUS_PORT, rdzv_id=crc32(ranked.id.encode())) if ranked else None,
        job_name_prefix=f"{job.id}." if job else None,
        array=f"0-{job.array - 1}" if job and job.array else None,
        retries=profile.retries,
        dependency_type=profile.dependency_type,
        # NeMo-Run means to quote srun's words, and does not.
        container_image=None if image is None else quote(image),
        container_mounts=[quote(mount) for mount in container_mounts(profile, job)],
        container_env=container_env(profile, job) if profile.image else None,
        setup_lines=setup_lines(profile, job),
        srun_args=[quote(word) for word in srun_args],
        additional_parameters=others or None,
        packager=packager_of(job),
        tunnel=_tunnel(profile),
        poll_estimated_start_time=False,  # a thread that prints to the terminal
    )


def _tunnel(profile: SlurmProfile) -> "run.SSHTunnel | run.LocalTunnel":
    import nemo_run as run

    experiments = posixpath.join(profile.job_dir, "experiments") if profile.job_dir else ""
    if profile.host is None:
        return run.LocalTunnel(job_dir=str(expanded(experiments)) if experiments else "")
    return run.SSHTunnel(
        host=profile.host,
        user=profile.user or getpass.getuser(),
        port=profile.port,
        identity=str(expanded(profile.identity)) if profile.identity else None,
        job_dir=experiments,
    )


def setup_lines(profile: SlurmProfile, job: AnyJob | None) -> str:
    """What the script does before srun: environment, then the user's own lines, then what the job relies on."""
    lines = ["unset PYTHONPATH"]  # the submitter's own; the job's code comes with it
    if job is not None and job.ranked:
        lines.append("head_node_ip=${head_node_ip%% *}  # a node may have several addresses")
    if not profile.requeue:  # on its command line NeMo-Run always asks sbatch for --requeue
        lines.append('scontrol update JobId="$SLURM_JOB_ID" Requeue=0')
    if profile.image and job:
        lines.append(f"mkdir -p -- {' '.join(map(quote, _mounted(job)))}")
    lines += [f"export {name}={quote(value)}" for name, value in profile.env.items()]
    if own := "\n".join(profile.setup):
        lines.append(f"eval {quote(own)}" if profile.image is None and RUN_FOLDER in own else own)
    lines += _import_image(profile, job)
    path = f"{OWN_CODE}:{CODE}" if job else CODE
    lines += [f"export PYTHONPATH={path}${{PYTHONPATH:+:$PYTHONPATH}}"]
    if job:
        lines += [f"export {name}={quote(value)}" for name, value in own_variables(job, profile).items()]
    return "\n".join(lines)


def container_env(profile: SlurmProfile, job: AnyJob | None) -> list[str]:
    """Variables that hold although the image sets them too."""
    return sorted({*profile.env, *(own_variables(job, profile) if job else ()), "PYTHONPATH"})


def container_mounts(profile: SlurmProfile, job: AnyJob | None) -> list[str]:
    """The profile's mounts, other runs' directories, and the folders that the job writes to, under the same paths.

    Pyxis and enroot mount them in this order, and what comes later lies above. So a profile that mounts a folder of
    the run root keeps it as it says, and the job's own directory can be written whatever lies below it.
    """
    if job is None:
        return list(profile.mounts)
    others = [] if job.array else other_runs(profile, str(job.run_dir.parent))
    return [*others, *profile.mounts, *(f"{folder}:{folder}" for folder in _mounted(job))]


def other_runs(profile: SlurmProfile, run_root: str) -> list[str]:
    """The mount of the run root, for jobs that build on what others left; none where the profile's own has it."""
    mounts = Mount.parse_all(profile.mounts)
    own = any(mount.source == mount.target and is_below(run_root, mount.target) for mount in mounts)
    return [] if own else [f"{run_root}:{run_root}:ro"]


def container_image(profile: SlurmProfile) -> str | None:
    """What srun is told: a squash file where there is one, else the image's name as Pyxis spells it."""
    if profile.image is None or _is_file(profile.image):
        return profile.image
    return squash_path(profile) or pyxis_name(profile.image)


def squash_path(profile: SlurmProfile) -> str | None:
    """The file that the image is imported to once; None when the profile does not ask for one."""
    if profile.image is None or profile.squash_dir is None or _is_file(profile.image):
        return None
    name = re.sub(r"[^A-Za-z0-9._-]", "+", pyxis_name(profile.image))
    return posixpath.join(profile.squash_dir, f"{name}.sqsh")


def pyxis_name(image: str) -> str:
    """`nvcr.io/nvidia/nemo:25.09` as Pyxis and enroot spell it: `nvcr.io#nvidia/nemo:25.09`."""
    name = image.removeprefix("docker://")
    registry, slash, rest = name.partition("/")
    if slash and "#" not in name and ("." in registry or ":" in registry or registry == "localhost"):
        return f"{registry}#{rest}"
    return name


def _is_file(image: str) -> bool:
    return image.startswith(("/", "./")) or image.endswith(".sqsh")


def _mounted(job: AnyJob) -> list[str]:
    # Of an array it is the run root, in which each element makes a run directory of its own.
    return [str(job.run_dir), *([posixpath.dirname(job.secrets)] if job.secrets else [])]


def _import_image(profile: SlurmProfile, job: AnyJob | None) -> list[str]:
    """Import the image where its file is missing; jobs that start together import it once."""
    path = squash_path(profile)
    if path is None or profile.image is None:
        return []
    file, source = quote(path), quote(f"docker://{pyxis_name(profile.image)}")
    part, by = f'{file}."$SLURM_JOB_ID".part', f"{file}.by"
    run_id = job.id if job else ""
    wanted = f"[ ! -s {file} ]"
    if job is not None and job.force_squash:  # once for the run: not again by its other elements, or when requeued
        wanted += f' || [ "$(cat {by} 2>/dev/null)" != {run_id} ]'
    return [
        f"mkdir -p -- {quote(posixpath.dirname(path))}",
        "(",
        "    flock 9 || exit 1",
        f"    if {wanted}; then",
        f"        rm -f -- {part}",
        f"        enroot import --output {part} {source} && mv -f -- {part} {file} || exit 1",
        f"        echo {run_id} > {by}",
        "    fi",
        f') 9> {file}.lock || {{ echo "image import failed: "{source} >&2; exit 1; }}',
    ]
