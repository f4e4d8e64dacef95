"""The lines of ours in NeMo-Run's sbatch script, and values that survive the way into it.

NeMo-Run writes `env_vars` unquoted and in upper case, and outside containers it puts the job's
folder for every `/nemo_run` in the script, whoever wrote it. So variables are exported here.
"""

import posixpath
import re
import shlex
from collections.abc import Iterator

from executors.base import CODE, OWN_CODE, SECRETS_VARIABLE, AnyJob, is_below
from executors.slurm.profile import SlurmProfile

#: NeMo-Run's name for the job's folder.
RUN_FOLDER = "/nemo_run"
#: Where the ranks of a job meet: jobs that share a node have different ids, whatever else they share.
RENDEZVOUS_PORT = "$((20000 + SLURM_JOB_ID % 10000))"


def quote(value: str) -> str:
    """`value` as one word of the script, in which NeMo-Run finds nothing to replace."""
    if "\r" in value:  # sbatch takes a script with CR LF for a DOS file
        escaped = value.replace("\\", "\\\\").replace("'", "\\'").replace("\r", "\\r")
        return "$'" + escaped.replace(RUN_FOLDER, "\\x2fnemo_run") + "'"
    return shlex.quote(value).replace(RUN_FOLDER, "/nemo''_run")


def setup_lines(profile: SlurmProfile, launch: AnyJob | None) -> str:
    """What the script does before srun: environment, then the user's own lines, then what the job relies on."""
    lines = ["unset PYTHONPATH"]  # the submitter's own; the job's code comes with it
    if launch is not None and launch.ranked:
        lines.append("head_node_ip=${head_node_ip%% *}  # a node may have several addresses")
    if not profile.requeue:  # on its command line NeMo-Run always asks sbatch for --requeue
        lines.append('scontrol update JobId="$SLURM_JOB_ID" Requeue=0')
    if profile.image:
        folders = [quote(folder) for folder in (_mounted(launch) if launch else [])]
        lines += [f"mkdir -p -- {' '.join(folders)}"] if folders else []
    lines += [f"export {name}={quote(value)}" for name, value in profile.env.items()]
    lines += _literal(profile)
    lines += _import_image(profile, launch)
    path = f"{OWN_CODE}:{CODE}" if launch else CODE
    lines += [f"export PYTHONPATH={path}${{PYTHONPATH:+:$PYTHONPATH}}"]
    if launch:
        lines += ["export PYTHONSAFEPATH=1", f"export NEMO_RUN_DIR={quote(str(launch.run_dir))}"]
        lines += [f"export {SECRETS_VARIABLE}={quote(launch.secrets)}"] if launch.secrets else []
    return "\n".join(lines)


def container_env(profile: SlurmProfile, launch: AnyJob | None) -> list[str]:
    """Variables that hold although the image sets them too."""
    own = ["PYTHONSAFEPATH", "NEMO_RUN_DIR"] if launch else []
    own += [SECRETS_VARIABLE] if launch and launch.secrets else []
    return sorted({*profile.env, *own, "PYTHONPATH"})


def container_mounts(profile: SlurmProfile, launch: AnyJob | None) -> list[str]:
    """The profile's mounts, other runs' directories, and the folders that the job writes to, under the same paths.

    Pyxis and enroot mount them in this order, and what comes later lies above. So a profile that mounts a folder of
    the run root keeps it as it says, and the job's own directory can be written whatever lies below it.
    """
    if launch is None:
        return list(profile.mounts)
    others = [] if launch.array else other_runs(profile, str(launch.run_dir.parent))
    return [*others, *profile.mounts, *(f"{folder}:{folder}" for folder in _mounted(launch))]


def other_runs(profile: SlurmProfile, run_root: str) -> list[str]:
    """The mount of the run root, for jobs that build on what others left; none where the profile's own has it."""
    brought = ([*mount.split(":"), ""][:2] for mount in profile.mounts)
    if any(source == target and is_below(run_root, target) for source, target in brought):
        return []
    return [f"{run_root}:{run_root}:ro"]


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


def _mounted(launch: AnyJob) -> list[str]:
    # Of an array it is the run root, in which each element makes a run directory of its own.
    return [str(launch.run_dir), *([posixpath.dirname(launch.secrets)] if launch.secrets else [])]


def _literal(profile: SlurmProfile) -> Iterator[str]:
    text = "\n".join(profile.setup)
    if text:
        yield f"eval {quote(text)}" if profile.image is None and RUN_FOLDER in text else text


def _import_image(profile: SlurmProfile, launch: AnyJob | None) -> list[str]:
    """Import the image where its file is missing; jobs that start together import it once."""
    path = squash_path(profile)
    if path is None or profile.image is None:
        return []
    file, source = quote(path), quote(f"docker://{pyxis_name(profile.image)}")
    part, by = f'{file}."$SLURM_JOB_ID".part', f"{file}.by"
    run_id = launch.id if launch else ""
    wanted = f"[ ! -s {file} ]"
    if (
        launch is not None and launch.force_squash
    ):  # once for the run: not again by its other elements, or when requeued
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
