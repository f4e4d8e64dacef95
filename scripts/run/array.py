"""Entrypoint of one element of a sweep: many runs travel as one job, and each element picks its own."""

import os

from scripts.run.secrets import VARIABLE as SECRETS


def run_element(*, run_dirs: list[str], jobs: list[str]) -> None:
    """Run the job of this element of a Slurm job array, in its own run directory; `jobs` are Partials as text."""
    from fiddle import build
    from nemo_run.core.serialization.zlib_json import ZlibJSONSerializer

    index = int(os.environ["SLURM_ARRAY_TASK_ID"])
    os.environ["NEMO_RUN_DIR"] = run_dirs[index]
    if SECRETS in os.environ:
        os.environ[SECRETS] += f".{index}"
    build(ZlibJSONSerializer().deserialize(jobs[index]))()
