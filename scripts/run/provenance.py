"""What a run was made of and ran on: package versions, the state of the code, the GPUs, the memory it took."""

import os
import resource
import subprocess
import sys
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

#: What Slurm, Lepton and our Docker jobs tell a job about itself. Names and numbers only, no secrets.
_OF_A_JOB = (
    *("SLURM_JOB_ID", "SLURM_JOB_ACCOUNT", "SLURM_JOB_PARTITION", "SLURM_JOB_NODELIST", "SLURM_ARRAY_JOB_ID"),
    *("SLURM_ARRAY_TASK_ID", "SLURM_RESTART_COUNT", "LEPTON_JOB_NAME"),
    *("MODELOPT_RECIPES_IMAGE", "MODELOPT_RECIPES_IMAGE_ID"),
)
_PACKAGES = (
    *("modelopt-recipes", "nemo-run", "fiddle", "torch", "nvidia-modelopt", "transformers", "datasets"),
    *("megatron-core", "megatron-bridge", "transformer-engine", "nvidia-resiliency-ext"),
)


def job_facts() -> dict[str, str]:
    """What the scheduler or engine calls this job, and where it put it, by the variables that say so."""
    return {name: os.environ[name] for name in _OF_A_JOB if name in os.environ}


def peak_memory() -> dict[str, int]:
    """Peak resident bytes of this process or of the largest one that it ran, and of CUDA where torch has used it."""
    peak = {"rss_bytes": max(_own_peak(), _ru_maxrss(resource.RUSAGE_CHILDREN))}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        peak["cuda_bytes"] = int(torch.cuda.max_memory_allocated())
    return peak


def _own_peak() -> int:
    """Of this process alone. On Linux ru_maxrss begins with the peak of whoever started it: a notebook, another job."""
    with suppress(OSError, ValueError):
        fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text("utf-8").splitlines())
        if "VmHWM" in fields:
            return int(fields["VmHWM"].split()[0]) * 1024
    return _ru_maxrss(resource.RUSAGE_SELF)


def _ru_maxrss(who: int) -> int:
    return resource.getrusage(who).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages a run depends on, without importing them."""
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for name in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def packages() -> list[str]:
    """Every installed package with its version: any may be what another computes with, where it finds it."""
    return sorted({f"{one.name}=={one.version}" for one in metadata.distributions()})


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit, branch and uncommitted files of the repository around `folder`; None outside one."""

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=10, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.rstrip("\n")

    status = git("status", "--porcelain=v1", "-z")
    if status is None:
        return None
    changed = [entry for entry in status.split("\0") if entry]
    return {
        "commit": git("rev-parse", "--verify", "HEAD"),
        "branch": git("branch", "--show-current"),
        "changed": changed,
    }


def compute_capabilities() -> list[int]:
    """The compute capability of each GPU, such as 89 or 100, as the driver's own tool says; empty where it cannot."""
    words = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
        return [round(float(line) * 10) for line in done.stdout.split()]
    except (OSError, subprocess.SubprocessError, ValueError):
        return []
