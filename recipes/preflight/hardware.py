"""Whether a place's GPUs can do what a job asks of them: their number, their precision, the formats they compute in."""

from collections.abc import Iterator
from typing import Any

from recipes.experiment.job import Job
from recipes.planner.gpus import Gpu, gpus_per_node
from recipes.preflight.formats import made_format, named_format, read_formats
from recipes.preflight.layout import asked, ranked
from scripts.formats import FORMATS, Format
from scripts.run.problems import Problem, Severity
from scripts.run.registry import check

#: The least compute capability with BF16 tensor cores, which Transformer Engine takes for granted.
_BF16 = 80
#: Algorithms that run a checkpoint on a server's kernels; the others compute in 16 bits and round.
_DEPLOYING = ("serve", "evaluate", "generate")


def _severity(gpu: Gpu) -> Severity:
    """A GPU that is only what the recipe is made for is nobody's fault."""
    return "error" if gpu.certain else "warning"


def _called(gpu: Gpu) -> str:
    return f"{gpu.name} has {gpu.sm / 10:.1f} ({gpu.known_by})"


@check("more_processes_than_gpus", can_force=True)
def processes(job: Job) -> Iterator[Problem]:
    gpus = gpus_per_node(job.place)
    for key, value in _wanted(job):
        if gpus is not None and value > gpus:
            cause = f"each process takes a GPU, and a machine of {job.place.title} has {gpus}"
            remedy = f"Use {key}={gpus} and more machines, or raise executor.gpus."
            yield Problem(key=key, value=value, cause=cause, remedy=remedy)


def _wanted(job: Job) -> Iterator[tuple[str, int]]:
    """The numbers of GPUs that a machine must have, and who says so."""
    if ranked(job) and job.get("device") != "cpu" and not job.get("cpu"):
        yield "torchrun.nproc_per_node", job.processes
    if not job.args.RANKED and (key := job.key("server_gpus")):
        yield key, job.get("server_gpus")


@check("tensor_parallel_across_machines", severity="warning", applies=ranked)
def across(job: Job) -> Iterator[Problem]:
    """Megatron-LM (arXiv:2104.04473, section 5.8): tensor parallelism belongs on NVLink, pipelines between machines."""
    want, processes = asked(job), job.torchrun.nproc_per_node
    if job.nodes > 1 and want.layout.tp > processes and want.layout.divides:
        cause = f"it spans machines of {processes} processes, and every layer waits for the network between them"
        remedy = f"Use {want.keys['tp']}={processes} and {want.keys['pp']} for the rest." if "pp" in want.keys else ""
        yield Problem(
            key=want.keys["tp"],
            value=want.layout.tp,
            cause=cause,
            remedy=remedy,
        )


@check("gpu_without_bf16", needs=("gpu",), applies=lambda job: _precision(job) is not None)
def bf16(job: Job) -> Iterator[Problem]:
    """PyTorch emulates BF16 on older GPUs; Transformer Engine, which Megatron's scripts build on, refuses them."""
    gpu = job.gpu
    assert gpu is not None
    if gpu.sm >= _BF16 or _precision(job) != "bfloat16":
        return
    emulated = job.engine == "hf"
    cause = f"BF16 needs compute capability {_BF16 / 10:.1f}, and {_called(gpu)}" + (
        ": it is emulated, slowly" if emulated else ""
    )
    key, value = _gpu_key(gpu)
    yield Problem(
        key=key,
        value=value,
        cause=cause,
        remedy="Use an Ampere GPU or a newer one." if not emulated else "Use args.dtype=float16, or a newer GPU.",
        severity="warning" if emulated else _severity(gpu),
        can_force=not emulated,
    )


def _precision(job: Job) -> str | None:
    """What a Megatron or Transformers model is computed in; None for a tool that decides by itself."""
    if job.engine == "hf":
        return str(job.get("precision")) if job.get("device") != "cpu" else None
    ranked_in_16_bits = job.engine is not None and job.args.RANKED and job.get("bf16", True)
    return str(job.get("precision", "bfloat16")) if ranked_in_16_bits else None


def _gpu_key(gpu: Gpu) -> tuple[str, Any]:
    return (gpu.known_by, gpu.name) if gpu.certain else ("executor.gpu", None)


@check("format_needs_newer_gpu", "format_not_native", needs=("gpu",), applies=lambda job: any(_formats(job)))
def kernels(job: Job) -> Iterator[Problem]:
    """Calibration rounds in 16 bits and runs anywhere; kernels that compute in the format do not."""
    gpu = job.gpu
    assert gpu is not None
    for key, facts in _formats(job):
        if gpu.sm < facts.min_sm:
            deploys = job.algorithm in _DEPLOYING
            then = "" if deploys else ": it is calibrated by rounding, and what comes of it cannot be served there"
            yield Problem(
                key=key,
                value=facts.name,
                cause=f"its kernels need compute capability {facts.min_sm / 10:.1f}, and {_called(gpu)}{then}",
                remedy=_fitting(gpu),
                severity=_severity(gpu) if deploys else "warning",
                can_force=deploys,
            )
        elif gpu.sm < facts.native_sm:
            cause = (
                f"it is computed natively from compute capability {facts.native_sm / 10:.1f} on, and {_called(gpu)}: "
                "it saves memory there, not time"
            )
            yield Problem(
                name="format_not_native",
                key=key,
                value=facts.name,
                cause=cause,
                remedy="fp8 is native from 8.9 on.",
                severity="warning",
            )


def _formats(job: Job) -> Iterator[tuple[str, Format]]:
    if made := made_format(job):
        key, name = made
        facts = named_format(name)
        if facts is not None:
            yield key, facts
    if job.algorithm in _DEPLOYING:
        yield from read_formats(job)


def _fitting(gpu: Gpu) -> str:
    """Formats whose kernels the GPU has."""
    names = [name for name, facts in FORMATS.items() if facts.min_sm <= gpu.sm]
    return f"Use another GPU, or another format: {', '.join(names)}." if names else "Use a newer GPU."
