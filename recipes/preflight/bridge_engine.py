"""What can be wrong with a job of the bridge engine, or of a script that runs without a GPU."""

from collections.abc import Iterator

from recipes.experiment.job import Job
from scripts.args.meaning import MEGATRON
from scripts.engines.cpu_runtime import LIMITS
from scripts.processor import gpus_here
from scripts.run.problems import Problem
from scripts.run.registry import check


def bridge_notes(job: Job) -> Iterator[str]:
    """What a user should know although nothing is wrong."""
    if job.script.runtime == "cpu":
        yield f"without a GPU: the job does not show {'; '.join(LIMITS)}"


@check("runtime_unused", applies=lambda job: job.script.runtime != "cuda" and job.engine not in MEGATRON)
def runtime_of_megatron(job: Job) -> Iterator[Problem]:
    """The hf engine computes on a CPU without stand-ins."""
    cause = "it is for jobs of Megatron, and this is none"
    remedy = "Leave it out; args.device says where the hf engine runs." if job.engine == "hf" else "Leave it out."
    yield Problem(key="script.runtime", value=job.script.runtime, cause=cause, remedy=remedy)


@check("gpu_is_here", applies=lambda job: job.script.runtime == "cpu" and job.place.runs_here)
def gpu_unused(job: Job) -> Iterator[Problem]:
    """The stand-ins are for machines without a GPU, and refuse others."""
    if gpus_here() != 0:
        cause = "this machine has a GPU, and the CPU runtime refuses it"
        yield Problem(key="script.runtime", value="cpu", cause=cause, remedy="Use script.runtime=cuda.")
