"""What can be wrong with a job of the bridge engine, or of a script that runs without a GPU."""

from collections.abc import Iterator

from recipes.experiment.job import Job
from recipes.preflight.formats import made_formats
from scripts.args.meaning import MEGATRON
from scripts.engines.cpu_runtime import LIMITS
from scripts.formats import megatron_trouble
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


@check(
    "experts_split_twice",
    applies=lambda job: job.engine == "bridge" and job.script.runtime == "cpu" and job.algorithm == "quantize",
)
def experts_split_twice(job: Job) -> Iterator[Problem]:
    """ModelOpt's quantizers of experts that are modules of their own, as they are without grouped GEMM."""
    tp, ep = (job.get(role) or 1 for role in ("tp", "ep"))
    if tp > 1 and ep > 1 and job.model is not None and job.model.experts:
        cause = f"ModelOpt quantizes experts over tensor or over expert ranks, not over both, and tp is {tp}"
        yield Problem(key=job.key("ep") or "", value=ep, cause=cause, remedy="Use 1, or tp=1.")


@check("unsupported_quant_recipe", engines=("bridge",), applies=lambda job: job.algorithm == "quantize")
def format_in_megatron(job: Job) -> Iterator[Problem]:
    for key, name in made_formats(job):
        if (trouble := megatron_trouble(name)) is not None:
            yield Problem(key=key, value=name, cause=trouble[0], remedy=trouble[1])


@check(
    "vision_needs_gpu",
    can_force=True,
    needs=("model.model_type",),
    applies=lambda job: job.engine == "bridge" and job.script.runtime == "cpu",
)
def vision_without_gpu(job: Job) -> Iterator[Problem]:
    """Megatron-Bridge knows the weights of such models in Transformer Engine's layers alone (qwen3_vl_bridge.py)."""
    assert job.model is not None
    if job.model.vision is not None:
        cause = "it has a vision tower, and Megatron-Bridge builds those of Transformer Engine's layers"
        remedy = "Use a machine that has a GPU, or a language model."
        yield Problem(key=job.key("model") or "", value=job.get("model"), cause=cause, remedy=remedy)


@check("gpu_is_here", applies=lambda job: job.script.runtime == "cpu" and job.place.runs_here)
def gpu_unused(job: Job) -> Iterator[Problem]:
    """The stand-ins are for machines without a GPU, and refuse others."""
    if gpus_here() != 0:
        cause = "this machine has a GPU, and the CPU runtime refuses it"
        yield Problem(key="script.runtime", value="cpu", cause=cause, remedy="Use script.runtime=cuda.")
