"""What the ranks of a job do, as far as memory and time are concerned."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from recipes.experiment.job import Job
from recipes.models import ModelFacts, facts_of
from scripts.args.meaning import Role, Work, field_of

#: Tokens of an image with its question: a megapixel in patches of 28 x 28, as Qwen's vision models cut it.
_IMAGE_TOKENS = 2048
#: What a configuration of Megatron-Bridge leaves out is as its Llama recipes have it.
_BRIDGE: Mapping[Role, int] = {"sequence": 8192, "global_batch": 512}


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What one rank does. A number that does not matter to its kind has no meaning."""

    kind: Work
    model: ModelFacts
    teacher: ModelFacts | None = None
    tokens: int  # of a sample, at most
    batch: int = 1  # samples that go through a rank at once
    samples: int = 0  # all of them, over all iterations
    global_batch: int = 1  # training: samples of an iteration, over all ranks
    new_tokens: int = 0  # generation: of each continuation
    questions: int = 0  # scoring: of MMLU, asked of all candidates together
    stages: tuple[int | None, int | None] = (None, None)  # layers of the first and the last stage, where given
    sequence_parallel: bool = False  # where there is tensor parallelism
    recompute: int = 0  # training: layers of a chunk that is computed again; 0: nothing is
    distributed_optimizer: bool = True
    fake_quantized: bool = False  # quantizers copy every input and weight of a linear layer
    searched: bool = False  # calibration tries several scales for each layer
    rounds: int = 1  # calibration: how often the samples go through, for several formats
    scored: int = 0  # samples that layers are scored on, each with so many passes, and so many more for each layer
    passes_scored: int = 0
    passes_of_layer: int = 0
    minutes: float = 0.0  # of a search over formats, at most
    every_expert: bool = False  # each token visits all of them

    @property
    def is_possible(self) -> bool:
        """Whether its numbers can be numbers of things."""
        return min(self.batch, self.global_batch) > 0 and min(self.tokens, self.samples, self.new_tokens) >= 0


def workload_of(job: Job) -> Workload | None:
    """The work of a job; None where it has none for a GPU of ours, nothing is known of its model, or sizes are none."""
    kind = kind_of(job)
    model = None if kind is None else facts_in(job, "model")
    if kind is None or model is None:
        return None
    said = {
        "model": model,
        "stages": (job.get("first_stage"), job.get("last_stage")),
        "sequence_parallel": job.get("sequence_parallel", False),
        **_OF_KIND[kind](job, model),
        **job.resolved.work(),
    }
    work = Workload(kind=kind, **said)
    return work if work.is_possible and job.layout.is_possible else None


def kind_of(job: Job) -> Work | None:
    """What its ranks do on GPUs; None where that is nothing, or cannot be told."""
    kind: Work | None = job.resolved.WORK
    by_one = job.addressed is not None and job.addressed.script in job.resolved.ONE_PROCESS  # in the machine's memory
    without = job.script.runtime == "cpu" or job.get("device") == "cpu" or job.get("cpu") is True
    return None if by_one or without else kind


def facts_in(job: Job, role: Role) -> ModelFacts | None:
    """Of the model that an argument names, or the script itself."""
    value = job.resolved.MODELS.get(role) or job.get(role)
    known = job.models.get(field_of(job.resolved, role) or "")
    return known or (facts_of(value) if isinstance(value, str) else None)


def _forward(job: Job, model: ModelFacts) -> dict[str, Any]:
    """Samples that go through the model. Releases whose script has no such flags take shorter ones, one at a time."""
    tokens = job.get("calib_sequence", job.get("sequence", 0))
    return {
        "tokens": _IMAGE_TOKENS if job.resolved.IMAGES else tokens,
        "batch": job.get("batch", 1),
        "samples": job.get("samples", 0),
    }


def _calibration(job: Job, model: ModelFacts) -> dict[str, Any]:
    """Also of the hf engine."""
    return {
        **_forward(job, model),
        "fake_quantized": True,
        "searched": "awq" in job.get("format_recipe", job.get("format", "")).lower(),
        "every_expert": job.get("every_expert", False),
    }


def _training(job: Job, model: ModelFacts) -> dict[str, Any]:
    """A teacher of which only the checkpoint is named counts as large as the student, which it mostly is not."""
    missing = {"sequence": model.context or 0} if job.get("config") is None else _BRIDGE
    batch = job.get("global_batch", missing.get("global_batch", 1))
    taught = model if job.get("teacher_checkpoint") is not None else None
    flag = job.resolved.SPREADS_OPTIMIZER
    words = dict(pairwise([part for word in job.extra_args for part in word.split("=", 1)]))

    def said(role: Role, name: str) -> Any:
        """In an argument, or as Megatron-LM's own flag."""
        return job.get(role, words.get(f"--recompute-{name}"))

    return {
        "teacher": facts_in(job, "teacher") or taught,
        "tokens": job.get("sequence", missing["sequence"]),
        "batch": job.get("micro_batch", 1),
        "samples": job.get("train_samples") or job.get("iterations", 0) * batch,
        "global_batch": batch,
        "recompute": int(said("recompute_layers", "num-layers") or 1)
        if said("recompute", "granularity") == "full"
        else 0,
        "distributed_optimizer": flag in job.extra_args if flag else job.get("distributed_optimizer", True),
    }


def _generation(job: Job, model: ModelFacts) -> dict[str, Any]:
    """Prompts count in characters: a token has at least one."""
    prompts = job.get("prompts", "").split("|")
    return {
        "tokens": max(map(len, prompts)) + (_IMAGE_TOKENS if job.resolved.IMAGES else 0),
        "samples": len(prompts),
        "new_tokens": job.get("new_tokens", 0),
        "fake_quantized": True,
    }


_OF_KIND: Mapping[Work, Callable[[Job, ModelFacts], dict[str, Any]]] = {
    "calibration": _calibration,
    "scoring": _forward,
    "training": _training,
    "generation": _generation,
    "transfer": lambda *_: {"tokens": 0},
}
