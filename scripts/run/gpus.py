"""The GPUs that a job sees, by what the driver's own tool says; no torch, no CUDA context."""

import subprocess


def compute_capabilities() -> list[int]:
    """The compute capability of each GPU, such as 89 or 100; empty where there is none or nobody can tell."""
    words = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
        return [round(float(line) * 10) for line in done.stdout.split()]
    except (OSError, subprocess.SubprocessError, ValueError):
        return []
