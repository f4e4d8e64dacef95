"""What `executors check` tries on a Slurm cluster, one thing after another."""

from collections.abc import Iterator

from executors.base import Probe, UnreachableError
from executors.shell import Shell
from executors.slurm.profile import SlurmProfile, sbatch_values
from executors.slurm.script import container_image, quote, squash_path

_LOW_BYTES = 1 << 30
#: The nearest folder above that is there, since ours is made by the first job.
_FOLDER = """
path="$1"
while [ ! -d "$path" ]; do path=$(dirname -- "$path"); done
[ -w "$path" ] && [ -x "$path" ] || { echo "$path is not writable" >&2; exit 1; }
df -kP -- "$path" | awk 'END { print $4 }'
"""
_PYTHON = "python -c 'import nemo_run, sys; print(sys.executable, nemo_run.__version__)'"


def probes(profile: SlurmProfile, shell: Shell, root: str, run_root: str) -> Iterator[Probe]:
    """Try what a job would need; stop early when the cluster cannot be reached at all."""
    try:
        if profile.host is not None:
            shell.run(["true"])
            yield Probe("connection", True, f"ssh {shell.where} answers without a prompt")
        tools = ["sbatch", "srun", "squeue", "scancel", "scontrol", *(["rsync"] if profile.host else [])]
        missing = [tool for tool in tools if shell.sh('command -v "$1"', tool).code]
        detail = f"not on PATH on {shell.where}: {', '.join(missing)}" if missing else ", ".join(tools)
        remedy = "Is this the cluster's login node? Set executor.host, or load its module in the login shell's profile."
        yield Probe("commands", not missing, detail, remedy)
        if {"sbatch", "squeue"} & set(missing):
            return
        controller = shell.run(["scontrol", "ping"])
        said = controller.text or controller.last_words
        yield Probe("controller", controller.code == 0, said, "Ask the cluster's operators.")
        accounting = shell.run(["sacct", "--allocations", "--noheader", "--starttime=now", "--format=JobID"])
        detail = "sacct answers" if accounting.code == 0 else accounting.last_words
        remedy = "Without it the state of a job is forgotten minutes after its end; ask the cluster's operators."
        yield Probe("accounting", accounting.code == 0, detail, remedy)
        if controller.code == 0:  # without it, sbatch would try for a minute
            yield _flags(profile, shell)
        for name, folder in {"job_dir": root, "run_dirs": run_root, "squash_dir": profile.squash_dir}.items():
            if folder is not None:
                yield _folder(shell, name, folder)
        yield from _container(profile, shell) if profile.image else [_python(profile, shell)]
    except UnreachableError as error:
        yield Probe.unanswered("connection", error)


def _flags(profile: SlurmProfile, shell: Shell) -> Probe:
    """Have Slurm itself judge the values, for a job of the profile's shape that is not submitted."""
    flags = [f"--nodes={profile.nodes or 1}", "--ntasks-per-node=1"]
    for key, value in sbatch_values(profile).items():
        flags.append(f"--{key.replace('_', '-')}" + ("" if value is True else f"={value}"))
    answer = shell.run(["sbatch", "--test-only", *flags], stdin=b"#!/bin/sh\ntrue\n")
    words = answer.last_words.removeprefix("sbatch: ")
    remedy = "Correct the profile: account, partition, qos, time, gpus and mem are what clusters refuse most."
    return Probe("allocation", answer.code == 0, words, remedy)


def _folder(shell: Shell, name: str, folder: str) -> Probe:
    answer = shell.sh(_FOLDER, folder)
    if answer.code or not answer.text.isdigit():
        return Probe(name, False, f"{folder}: {answer.last_words}", f"Name a folder that is yours: executor.{name}.")
    free = int(answer.text) * 1024
    detail = f"{folder}: writable, {free / 1e9:.1f} GB free"
    return Probe(name, free >= _LOW_BYTES, detail, "Free space or choose another folder.")


def _container(profile: SlurmProfile, shell: Shell) -> Iterator[Probe]:
    answer = shell.sh("srun --help 2>&1 | grep -c -e --container-image")
    detail = f"srun {'does not know' if answer.code else 'knows'} --container-image"
    remedy = (
        "The cluster needs NVIDIA's Pyxis; without it set executor.image=null and prepare Python in executor.setup."
    )
    yield Probe("containers", not answer.code, detail, remedy)
    path = squash_path(profile)
    if path is not None:
        there = shell.run(["test", "-s", path]).code == 0
        enroot = shell.sh("command -v enroot").code == 0
        detail = f"{path} is there" if there else f"{path} is imported by the first job"
        remedy = "enroot is not on the login node; make sure that the compute nodes have it, or import the image there."
        yield Probe("image", there or enroot, detail, remedy)
    elif (image := container_image(profile) or "").startswith("/"):
        there = shell.run(["test", "-r", image]).code == 0
        yield Probe("image", there, f"{image} is {'there' if there else 'not there'}", "Name a file that exists.")


def _python(profile: SlurmProfile, shell: Shell) -> Probe:
    lines = [f"export {name}={quote(value)}" for name, value in profile.env.items()]
    script = "\n".join([*lines, *profile.setup, _PYTHON])
    answer = shell.run(["bash", "-c", script], timeout=120)
    lines = answer.text.splitlines()
    detail = f"{lines[-1]} (NeMo-Run) on the login node" if answer.code == 0 and lines else answer.last_words[-300:]
    remedy = "Make `python` one with nemo-run and modelopt: executor.setup=['source /path/to/venv/bin/activate']."
    return Probe("python", answer.code == 0, detail, remedy)
