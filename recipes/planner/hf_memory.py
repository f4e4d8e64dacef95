"""Peak memory of the hf engine: of a process that loads, scores, calibrates, saves, exports and reopens a model.

Of several the first: the others do no more than load, score and calibrate.

What is alive when is read off scripts/engines/hf/engine.py. On the CPU the prediction is the peak resident size that
the record has as peak_memory.rss_bytes: it counts pages of weight files that are mapped, which the kernel can drop when
memory is short. Layer by layer (args.memory), and of sharded layers (args.fsdp), it does not count those: it is RssAnon
of /proc/PID/status. On a GPU it is what tensors take, peak_memory.cuda_bytes.
"""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from typing import Literal

import yaml

from configs import CONFIGS
from recipes.experiment.job import Job
from recipes.models import ModelFacts
from recipes.models.weights import Matrices
from recipes.planner.disk import WIDTHS, model_matrices, packed_bytes
from scripts.args.auto_quantize import CANDIDATES, AutoQuantizeArgs
from scripts.args.best import BestArgs
from scripts.args.meaning import value_of
from scripts.args.quantize import MeasuredArgs, QuantizeArgs
from scripts.engines.hf.best.decisions import half_of
from scripts.engines.hf.verify import COMPARED as COMPARED_AT_A_TIME
from scripts.engines.hf.weights import AT_A_TIME, memory_of
from scripts.engines.hf.workers import LIBRARIES
from scripts.formats import FORMATS, Format, formats_named, most_bits

Device = Literal["GPU", "host"]
_MIB = 1 << 20
_FLOAT32 = 4

# The engine's own limits.
MAX_TOKENS = 16384  # of a forward pass: scripts/engines/hf/packing.py
LOGITS = 1 << 24  # of each model at a time: scripts/engines/hf/evaluate.py
REFERENCES = 24  # weights that are kept to compare with: scripts/engines/hf/reference.py

# Bytes for each element, counted over the tensors that are alive together.
_CHECKED_LOGIT = 12  # evaluate.check_head: what the model says, and two steps of saying it again
_SCORED_LOGIT = 16  # evaluate._sample_sums: the log-softmax of both models, and one step of each
_BACKWARD_LOGIT = 16  # search._backward: logits, their float32 copy and its log-softmax, and the gradients of both
_DIVERGED_LOGIT = 18  # ModelOpt's KL searcher: the log-softmax of both models, and one's float32 copy and terms
_COMPARED = 20  # sqnr._add_weight: clean, noisy, their difference and its square, beside the weight
_UNPACKED = 28  # verify._check_weights: dequantized, scales, original, difference and squares
_QUANTIZED = 10  # a fake-quantized weight and the float32 work of making it
_PACKED = 28  # weights.packed where glibc keeps nothing (measured)
_EXPORTED = 20  # a layer that ModelOpt's exporter packs, where glibc keeps nothing (measured: 17 to 19)
_SEARCHED = 16  # per output of the widest layer, while AWQ compares: exact and tried, and their float32 difference
_DECOMPOSED = 88  # ModelOpt's svdquant: two matrices that share an input in float32, their singular vectors in float64
_INVERTED = 3  # Hessians: damped, its Cholesky factor, its inverse
# Tensors of a layer that are alive together, of each token.
_STATES = 4  # of the hidden width: residual, normed, quantized, and one on its way
_INNER = 5  # of the widest layer's outputs: gate, up, activation, product, and the quantized product

# Measured on models of 59 to 872 million parameters in all six formats, as resident size at the end of each phase, with
# Python 3.11, torch 2.13 for CPUs, transformers 5.14 and ModelOpt 0.47 on Linux with glibc; for CUDA with Python 3.12.
#: The interpreter with all that a job of the local executor imports, by the build of torch.
_LIBRARIES = {"cpu": 700 * _MIB, "cuda": 1160 * _MIB}  # by machine: 670 to 840, and 1034 to 1290


#: Of those, what is no page of a file (RssAnon), once a model's frame is built.
_ANONYMOUS = 500 * _MIB


SOURCES: Mapping[str, str] = yaml.safe_load((CONFIGS / "memory.yaml").read_text("utf-8"))["hf"]


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


#: Freed memory that glibc keeps for later, as a share of the bytes of tensors (measured): of those whose float32 copies
#: are taken from the heap, and of those with only smaller copies there.
_Retained = tuple[float, float]
_QUANTIZING: _Retained = (0.6, 0.25)
_SEARCHING: _Retained = (2.2, 1.4)  # AWQ tries scales
_COMPARING_OUTPUTS: _Retained = (1.0, 0.25)
_PACKING: _Retained = (0.75, 0.35)  # with the fewest steps
#: Calibrations that change weights.
_CHANGING = ("smoothquant", "awq_lite", "svdquant", "gptq")
#: glibc maps what is larger than this, and gives it back when it is freed: mallopt(3), M_MMAP_THRESHOLD.
_HEAP = 32 * _MIB


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Of one job, in bytes. `host`: the model is in the machine's memory, not on a GPU. `ranks`: how many share it."""

    args: MeasuredArgs
    model: Matrices
    facts: ModelFacts
    host: bool
    ranks: int = 1

    @property
    def weights(self) -> int:
        """All of them, in args.dtype (scripts/engines/hf/load.py)."""
        return self.model.total * self._width

    @property
    def weights_read(self) -> int:
        """Before anything is written: of a table of embeddings that is mapped, a few rows."""
        return self.weights - (0 if self.source else self._unread_table)

    @property
    def weights_left(self) -> int:
        """After the export put packed weights in their place: a file stays mapped as long as any tensor is in it."""
        mapped = self.host and not self.source
        return self.weights if mapped or not self.packed else self.model.others * self._width

    @property
    def source(self) -> int:
        """The checkpoint's own files, which stay mapped while they are converted to another precision."""
        stored = WIDTHS[self.facts.dtype or self.args.dtype]
        return self.model.total * stored if self.host and stored != self._width else 0

    @property
    def experts(self) -> int:
        """Experts that files hold one by one are copied into one tensor, and the files stay mapped (Transformers 5)."""
        counted = self.facts.architecture.parameters
        return counted.of("experts") * self._width if self.host and counted is not None else 0

    @property
    def held(self) -> int:
        """Layer by layer: the weights of one and of what is outside; files that are mapped as they are do not count,
        until calibration changes what is mapped."""
        changed = any(facts.method in _CHANGING for facts in formats_named(self.args.makes()))
        return self.outside + (self.layer if changed or not self._mapped else 0)

    @property
    def outside(self) -> int:
        """Of the layers: embeddings, norms and head, where they are not mapped as they are."""
        return self.model.others * self._width if not self._mapped else 0

    @property
    def layer(self) -> int:
        return self.model.packed // (self.facts.layers or 1) * self._width

    @property
    def share(self) -> int:
        """Of all layers, where they are sharded over the ranks."""
        return self.model.packed * self._width // self.ranks

    @property
    def _mapped(self) -> bool:
        return self.host and WIDTHS[self.facts.dtype or self.args.dtype] == self._width

    @property
    def hessians(self) -> int:
        """Layer by layer GPTQ's: of each of a layer's matrices in float32, and what inverting the largest takes."""
        if not any(facts.method == "gptq" for facts in formats_named(self.args.makes())):
            return 0
        squares = sum(matrix.copies * matrix.inputs**2 for matrix in self.model.packable) // (self.facts.layers or 1)
        return (squares + _INVERTED * max(matrix.inputs**2 for matrix in self.model.packable)) * _FLOAT32

    @property
    def copies(self) -> int:
        """Of a search over formats: a copy that is calibrated, and one of each format that rescales weights."""
        rescaled = sum(facts.method not in (None, "max") for facts in formats_named(self.args.makes()))
        return (1 + rescaled) * sum(matrix.parameters for matrix in self.model.packable) * self._width

    @property
    def packed(self) -> int:
        """What the export puts in the place of weights (scripts/engines/hf/save.py)."""
        if not (self.args.export_dir or value_of(self.args, "compress")):
            return 0
        return sum(matrix.copies * packed_bytes(matrix, self._format) for matrix in self.model.packable)

    @property
    def reference(self) -> int:
        """Float32 copies of the weights of three layers (engines/hf/reference.py); experts in one tensor are not in."""
        layers = self.facts.layers or 1
        single = [matrix for matrix in self.model.packable if not matrix.experts]
        modules = sum(matrix.copies for matrix in single)
        share = min(REFERENCES, modules * min(3, layers) // layers) / max(modules, 1)
        return int(share * sum(matrix.parameters for matrix in single)) * _FLOAT32 if self.host else 0

    @property
    def reopened(self) -> int:
        """The ModelOpt checkpoint, opened again to compare its logits (scripts/engines/hf/verify.py)."""
        kept = self.packed + self.model.others * self._width if value_of(self.args, "compress") else self.weights
        return kept - self._unread_table

    @property
    def hidden_states(self) -> int:
        """Of every sample that is scored, in the machine's memory (scripts/engines/hf/evaluate.py)."""
        each = self.args.calib_seq_length * (self.facts.hidden_size or 0) * self._width
        return self.args.eval_size * each if self.host else 0

    @property
    def sample_logits(self) -> int:
        """How many logits a sample has that is scored; its length is known to be below calib_seq_length only."""
        return self.args.calib_seq_length * (self.facts.vocab_size or 0)

    @property
    def activations(self) -> int:
        """Of one layer, where they are the most: what it passes on, and what its widest part makes or tries of it."""
        states = self._tokens * self._width * _STATES * (self.facts.hidden_size or 0)
        return states + (self._tried if self._searches else self._tokens * self._width * _INNER * self._widest)

    @property
    def gradients(self) -> int:
        """Of one sample, by layers that are computed again: what each is given, and in one the outputs and what each
        format changes of them; of the table of embeddings, which torch fills whole (ModelOpt's algorithms.py)."""
        length, hidden = self.args.calib_seq_length, self.facts.hidden_size or 0
        layers, outputs = self.facts.layers or 1, sum(matrix.outputs * matrix.copies for matrix in self.model.packable)
        formats = len(self.args.makes() or CANDIDATES)
        formats = half_of(formats) if isinstance(self.args, BestArgs) else formats
        kept = layers * hidden + outputs // layers * (2 + formats)
        return (length * kept + (self.facts.vocab_size or 0) * hidden) * self._width

    @property
    def retained_calibrating(self) -> int:
        return self._kept(_SEARCHING if self._searches else _QUANTIZING)

    @property
    def retained(self) -> int:
        """Once calibration is over; after a search also what outputs were compared with."""
        share = self._share(self._tokens * self._widest, _COMPARING_OUTPUTS) if self._searches and self.host else 0.0
        return self.retained_calibrating + int(share * self._tried)

    @property
    def retained_writing(self) -> int:
        """Once the model was saved and exported; weights that were packed before need no more work."""
        return self._kept(_PACKING if value_of(self.args, "compress") else self._format.retained)

    @property
    def _format(self) -> Format:
        """FP8 stands for formats whose layout is not known: none of them keeps more."""
        return most_bits(formats_named(self.args.makes())) or FORMATS["fp8"]

    @property
    def _width(self) -> int:
        return WIDTHS[self.args.dtype]

    @property
    def _widest(self) -> int:
        return max((matrix.outputs for matrix in self.model.packable), default=0)

    @property
    def _tokens(self) -> int:
        """Of one forward pass, at most."""
        length = self.args.calib_seq_length
        return max(length, min(self.args.calib_batch_size * length, MAX_TOKENS))

    @property
    def _unread_table(self) -> int:
        mapped = self.host and self.facts.tied_embeddings is False
        return (self.facts.vocab_size or 0) * (self.facts.hidden_size or 0) * self._width if mapped else 0

    @property
    def _searches(self) -> bool:
        """AWQ is the family of formats whose calibration tries scales; SVDQuant begins with it."""
        return any(word in name.lower() for name in self.args.makes() for word in ("awq", "svdquant"))

    @property
    def _tried(self) -> int:
        return _SEARCHED * self._tokens * self._widest

    def _kept(self, retained: _Retained) -> int:
        shares = ((self._share(one.outputs * one.inputs, retained), one) for one in self.model.packable)
        return int(sum(share * one.parameters for share, one in shares) * self._width) if self.host else 0

    def _share(self, elements: int, retained: _Retained) -> float:
        """What is kept of tensors of so many elements and their float32 copies."""
        heap, partly = retained
        if elements * _FLOAT32 < _HEAP:
            return heap
        return partly if elements * self._width < _HEAP else 0.0


def predict(job: Job) -> Memory | None:
    """The peak of a job of the hf engine; None for another engine, or where too little is known of the model."""
    args, facts = job.resolved, job.model
    if job.engine != "hf" or not isinstance(args, MeasuredArgs):
        return None
    model = model_matrices(job)
    if model is None or facts is None or facts.hidden_size is None or facts.vocab_size is None:
        return None
    # Where `auto` leads: to a GPU where the place is known to have one, or is a cluster and the recipe is for one.
    has_gpu = job.gpu is not None and (job.gpu.certain or job.place.expects_gpus)
    on_gpu = args.device == "cuda" or (args.device == "auto" and has_gpu)
    return predict_for(args, model, facts, "GPU" if on_gpu else "host", torch_for(job), ranks=job.layout.world)


def torch_for(job: Job) -> Literal["cpu", "cuda"]:
    """What the torch of a job is built for: elsewhere, and where that is not said, the one with CUDA's libraries."""
    if job.place.runs_here:
        with suppress(metadata.PackageNotFoundError):
            return "cpu" if metadata.version("torch").endswith("+cpu") else "cuda"
    return "cuda"


def predict_for(
    args: MeasuredArgs,
    model: Matrices,
    facts: ModelFacts,
    device: Device,
    torch: Literal["cpu", "cuda"],
    *,
    ranks: int = 1,
) -> Memory:
    """The peak for a model whose hidden size and vocabulary are known."""
    libraries = _LIBRARIES[torch] if device == "host" else 0
    sizes = Sizes(args=args, model=model, facts=facts, host=device == "host", ranks=ranks)
    phases = _phases(args, sizes, libraries)
    name, parts = max(phases, key=lambda phase: sum(phase[1].values()))
    return Memory(parts={part: size for part, size in parts.items() if size}, peak_phase=name, device=device)


def _phases(args: MeasuredArgs, sizes: Sizes, libraries: int) -> Iterator[tuple[str, dict[str, int]]]:
    """What is alive where memory can peak, by the phase of scripts/engines/hf/engine.py.

    The model that was exported is let go before what was written is verified.
    """
    largest = sizes.model.largest
    if isinstance(args, QuantizeArgs) and args.memory is not None:
        yield from _layer_by_layer(args, sizes, _ANONYMOUS if sizes.host else 0)
        return
    if isinstance(args, QuantizeArgs) and args.fsdp:
        yield from _sharded(args, sizes, _ANONYMOUS if sizes.host else 0)
        return
    if isinstance(args, QuantizeArgs) and args.from_files:
        count = args.processes or 1  # of one where it finds out itself how many there is room for
        others = {"workers": count * LIBRARIES} if count > 1 else {}
        work = {part: count * size for part, size in memory_of(largest).items()}
        yield "quantize", {"libraries": libraries, **others, **work}
        return
    always = {"libraries": libraries, "experts": sizes.experts}
    yield "load", always | {"weights": sizes.weights, "source": sizes.source}
    running = always | {"weights": sizes.weights_read, "hidden states": sizes.hidden_states}
    if args.eval_size:
        yield "score before", running | {"activations": sizes.activations}
        yield "score before", running | {"logits": _CHECKED_LOGIT * sizes.sample_logits}
        yield "score before", running | {"file of hidden states": sizes.hidden_states}  # an earlier run's
        scored = _SCORED_LOGIT * min(LOGITS, sizes.sample_logits)
        yield "score after", running | {"logits": scored, "allocator": sizes.retained}
    quantizing = {"activations": sizes.activations, "work": _QUANTIZED * largest}
    yield "calibrate", running | quantizing | {"allocator": sizes.retained_calibrating}
    scoring = {"gradients": sizes.gradients, "logits": _BACKWARD_LOGIT * sizes.sample_logits}
    scoring |= {"work": _QUANTIZED * largest, "allocator": sizes.retained_calibrating}
    if isinstance(args, AutoQuantizeArgs) and args.method != "kl_div":
        yield "calibrate", running | scoring
    elif isinstance(args, AutoQuantizeArgs):
        yield "calibrate", running | {"logits": _DIVERGED_LOGIT * sizes.sample_logits, "work": _QUANTIZED * largest}
    if isinstance(args, BestArgs):
        yield "search", running | quantizing | {"copies": sizes.copies, "allocator": sizes.retained_calibrating}
        if args.auto_quantize:
            yield "search", running | scoring | {"copies": sizes.copies}
    if args.layer_noise != "none":
        looked = "score after" if args.eval_size else "layer noise"
        yield looked, running | {"work": _COMPARED * largest, "allocator": sizes.retained}
    written = always | {"reference": sizes.reference, "allocator": sizes.retained_writing}
    spent = {"weights": sizes.weights_left, "packed weights": sizes.packed}
    if value_of(args, "compress"):
        yield "compress", written | spent
    if args.export_dir:
        yield "export", written | spent
        yield "verify", written | {"work": _UNPACKED * min(largest, COMPARED_AT_A_TIME) if sizes.host else 0}
    if args.modelopt_save_path:
        yield "verify", written | {"reopened": sizes.reopened}


def _sharded(args: QuantizeArgs, sizes: Sizes, libraries: int) -> Iterator[tuple[str, dict[str, int]]]:
    """The same of scripts/engines/hf/sharded.py: a layer is gathered and copied, on a GPU beside the one before it."""
    shared, largest = {"libraries": libraries, "weights": sizes.outside + sizes.share}, sizes.model.largest
    running = shared | {"layer": sizes.layer * (2 if sizes.host else 3), "hidden states": sizes.hidden_states}
    if args.eval_size:
        yield "score before", running | {"activations": sizes.activations}
        yield "score before", running | {"logits": _CHECKED_LOGIT * sizes.sample_logits}
        yield "score after", running | {"logits": _SCORED_LOGIT * min(LOGITS, sizes.sample_logits)}
    each = _QUANTIZED if args.layer_noise == "none" else _COMPARED
    yield "calibrate", running | {"activations": sizes.activations, "work": each * largest}
    files = {"packed weights": 2 * largest, "work": _PACKED * min(largest, AT_A_TIME)}
    yield "quantize", {"libraries": libraries, **files}


def _layer_by_layer(args: QuantizeArgs, sizes: Sizes, libraries: int) -> Iterator[tuple[str, dict[str, int]]]:
    """The same of scripts/engines/hf/layerwise.py, where glibc gives back what is freed."""
    experts = sizes.experts // (sizes.facts.layers or 1)
    always, largest = {"libraries": libraries, "layer": sizes.held}, sizes.model.largest
    yield "load", always | {"experts": experts, "joined": experts}  # copies of their parts on the way into one tensor
    decomposed = any(FORMATS[name].method == "svdquant" for name in args.makes() if name in FORMATS)
    each = _DECOMPOSED if decomposed else max(_EXPORTED, _COMPARED)
    packed, beside = sizes.packed // (sizes.facts.layers or 1), {"work": each * largest, "hessians": sizes.hessians}
    beside |= {"experts": experts, "activations": sizes.activations, "packed weights": packed}
    yield "calibrate", always | beside
    if args.eval_size:
        yield "score after", always | {"logits": _SCORED_LOGIT * min(LOGITS, sizes.sample_logits)}
    yield "verify", always | {"work": _UNPACKED * min(largest, COMPARED_AT_A_TIME) if sizes.host else 0}
