"""Whether a place's GPUs can do what a job asks of them: their number, precision, and formats."""

from collections.abc import Iterator

from recipes.experiment.job import Job
from recipes.planner.gpus import Gpu, gpus_per_node
from recipes.planner.workload import kind_of
from recipes.preflight.formats import made_formats, named_format, read_formats
from recipes.preflight.layout import ranked
from scripts.formats import FORMATS, Format
from scripts.processor import gpus_here
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
    """The numbers of GPUs that a machine must have, and who says so."""
    gpus, wanted = gpus_per_node(job.place), {}
    each = ranked(job) or (job.engine == "hf" and job.ranked)
    if each and job.get("device") != "cpu" and not job.get("cpu"):
        wanted["torchrun.nproc_per_node"] = job.processes
    if not job.args.RANKED and (server := job.key("server_gpus")):
        wanted[server] = job.get("server_gpus")
    for key, value in wanted.items():
        if gpus is not None and value > gpus:
            cause = f"each process takes a GPU, and a machine of {job.place.title} has {gpus}"
            remedy = f"Use {key}={gpus} and more machines, or raise executor.gpus."
            yield Problem(key=key, value=value, cause=cause, remedy=remedy)


@check("more_processes_than_gpus", severity="warning", applies=lambda job: job.engine and job.place.runs_here)
def enough_gpus(job: Job) -> Iterator[Problem]:
    """The machine that submits is the one that computes: its devices are here. The hf engine does without any."""
    here = gpus_here()
    if kind_of(job) is not None and (here if job.engine == "hf" else here is not None) and job.processes > (here or 0):
        cause = f"each process takes a GPU, and this machine has {here or 'none'}"
        remedy = "Name an executor that has them."
        yield Problem(key="torchrun.nproc_per_node", value=job.processes, cause=cause, remedy=remedy)


@check("tensor_parallel_across_machines", severity="warning", applies=ranked)
def across(job: Job) -> Iterator[Problem]:
    """Megatron-LM (arXiv:2104.04473, section 5.8): tensor parallelism belongs on NVLink, pipelines between machines."""
    layout, keys = job.asked.layout, job.asked.keys
    if layout.nodes > 1 and layout.tp > layout.processes and layout.divides:
        cause = f"it spans machines of {layout.processes} processes, and every layer waits for the network between them"
        remedy = f"Use {keys['tp']}={layout.processes} and {keys['pp']} for the rest." if "pp" in keys else ""
        yield Problem(key=keys["tp"], value=layout.tp, cause=cause, remedy=remedy)


@check("gpu_without_bf16", needs=("gpu",), applies=lambda job: _precision(job) is not None)
def bf16(job: Job) -> Iterator[Problem]:
    """PyTorch emulates BF16 on older GPUs; Transformer Engine, which Megatron's scripts build on, refuses them."""
    gpu = job.gpu
    assert gpu is not None
    if gpu.sm >= _BF16 or _precision(job) != "bfloat16":
        return
    emulated = job.engine == "hf"
    cause = f"BF16 needs compute capability {_BF16 / 10:.1f}, and {_called(gpu)}"
    yield Problem(
        key=gpu.known_by if gpu.certain else "executor.gpu",
        value=gpu.name if gpu.certain else None,
        cause=cause + (": it is emulated, slowly" if emulated else ""),
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
            since = f"it is computed natively from compute capability {facts.native_sm / 10:.1f} on"
            yield Problem(
                name="format_not_native",
                key=key,
                value=facts.name,
                cause=f"{since}, and {_called(gpu)}: it saves memory there, not time",
                remedy="fp8 is native from 8.9 on.",
                severity="warning",
            )


def _formats(job: Job) -> Iterator[tuple[str, Format]]:
    named = ((key, named_format(name)) for key, name in made_formats(job))
    yield from ((key, facts) for key, facts in named if facts is not None)
    if job.algorithm in _DEPLOYING:
        yield from read_formats(job)


def _fitting(gpu: Gpu) -> str:
    """Formats whose kernels the GPU has."""
    names = [name for name, facts in FORMATS.items() if facts.min_sm <= gpu.sm]
    return f"Use another GPU, or another format: {', '.join(names)}." if names else "Use a newer GPU."
