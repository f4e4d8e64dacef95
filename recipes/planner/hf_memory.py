"""Peak memory of the hf engine: one process that loads, scores, calibrates, saves, exports and reopens a model.

What is alive when is read off scripts/engines/hf/engine.py. On the CPU the prediction is the peak resident size that
the record has as peak_memory.rss_bytes: it counts pages of weight files that are mapped, which the kernel can drop when
memory is short. On a GPU it is what tensors take, peak_memory.cuda_bytes.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from recipes.experiment.job import Job
from recipes.models import ModelFacts
from recipes.planner.disk import model_matrices
from recipes.planner.hf_sizes import Sizes
from recipes.planner.matrices import Matrices
from scripts.args.quantize import QuantizeArgs

Device = Literal["GPU", "host"]

SOURCES: Mapping[str, str] = MappingProxyType(
    {
        "libraries": "interpreter, torch, transformers, modelopt and matplotlib: measured",
        "weights": "every parameter in args.dtype; on the CPU the mapped safetensors (scripts/engines/hf/load.py)",
        "source": "the checkpoint's own files, mapped while they are converted to args.dtype (engines/hf/load.py)",
        "experts": "copies in one tensor of experts that files hold one by one (transformers' loading)",
        "hidden states": "the last ones of the samples that are scored (scripts/engines/hf/evaluate.py)",
        "activations": "one layer's tensors for the tokens of a forward pass (scripts/engines/hf/calibrate.py)",
        "logits": "in float32, of the model before and after, with their softmax (scripts/engines/hf/evaluate.py)",
        "work": "float32 copies of the largest weight while it is quantized, compared or unpacked (engines/hf/sqnr.py)",
        "packed weights": "what the export puts in the place of weights (configs/formats.yaml)",
        "reference": "float32 copies of a few layers' weights, to verify the export (scripts/engines/hf/reference.py)",
        "reopened": "the ModelOpt checkpoint, opened again to compare its logits (scripts/engines/hf/verify.py)",
        "allocator": "freed memory that glibc keeps: measured",
    }
)


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Peak memory in bytes, by what is alive in the phase of the peak."""

    parts: Mapping[str, int]
    peak_phase: str
    device: Device

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    @property
    def sources(self) -> Mapping[str, str]:
        """What each part is, and where it is read off."""
        return {part: SOURCES[part] for part in self.parts}


def predict(job: Job) -> Memory | None:
    """The peak of a job of the hf engine; None for another engine, or where too little is known of the model."""
    args, facts = job.resolved, job.model
    if job.engine != "hf" or not isinstance(args, QuantizeArgs):
        return None
    model = model_matrices(job)
    if model is None or facts is None or facts.hidden_size is None or facts.vocab_size is None:
        return None
    return predict_for(args, model, facts, _device(job, args))


def predict_for(args: QuantizeArgs, model: Matrices, facts: ModelFacts, device: Device) -> Memory:
    """The peak for a model whose hidden size and vocabulary are known."""
    phases = _phases(args, Sizes(args=args, model=model, facts=facts, host=device == "host"))
    name, parts = max(phases, key=lambda phase: sum(phase[1].values()))
    return Memory(parts={part: size for part, size in parts.items() if size}, peak_phase=name, device=device)


def _device(job: Job, args: QuantizeArgs) -> Device:
    """Where `auto` leads: to a GPU where the place is known to have one, or is a cluster and the recipe is for one."""
    has_gpu = job.gpu is not None and (job.gpu.certain or job.place.expects_gpus)
    return "GPU" if args.device == "cuda" or (args.device == "auto" and has_gpu) else "host"


def _phases(args: QuantizeArgs, sizes: Sizes) -> Iterator[tuple[str, dict[str, int]]]:
    """What is alive where memory can peak, by the phase of scripts/engines/hf/engine.py.

    The model that was exported stays in memory while what was written is verified.
    """
    always = {"libraries": sizes.libraries, "experts": sizes.experts}
    yield "load", always | {"weights": sizes.weights, "source": sizes.source}
    running = always | {"weights": sizes.weights_read, "hidden states": sizes.hidden_states}
    if args.eval_size:
        yield "score before", running | {"activations": sizes.activations}
        yield "score before", running | {"logits": sizes.checked_logits}
        yield "score after", running | {"logits": sizes.scored_logits, "allocator": sizes.retained}
    quantizing = {"activations": sizes.activations, "work": sizes.quantizing}
    yield "calibrate", running | quantizing | {"allocator": sizes.retained_calibrating}
    yield "layer noise", running | {"work": sizes.comparing, "allocator": sizes.retained}
    spent = always | {"weights": sizes.weights_left, "packed weights": sizes.packed, "reference": sizes.reference}
    if args.export_dir:
        yield "verify", spent | {"work": sizes.unpacking, "allocator": sizes.retained_writing}
    if args.modelopt_save_path:
        yield "verify", spent | {"reopened": sizes.reopened, "allocator": sizes.retained_writing}
