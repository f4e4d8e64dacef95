"""The sizes of what the hf engine holds in memory, each with the code that makes it."""

from dataclasses import dataclass

from recipes.models import ModelFacts
from recipes.planner.disk import WIDTHS, packed_bytes
from recipes.planner.matrices import Matrices
from recipes.planner.parameters import count
from scripts.args.quantize import QuantizeArgs
from scripts.formats import FORMATS, Format

_MIB = 1 << 20
_FLOAT32 = 4

# The engine's own limits.
MAX_TOKENS = 16384  # of a forward pass: scripts/engines/hf/engine.py
LOGITS = 1 << 24  # of each model at a time: scripts/engines/hf/evaluate.py
REFERENCES = 24  # weights that are kept to compare with: scripts/engines/hf/reference.py

# Bytes for each element, counted over the tensors that are alive together.
_CHECKED_LOGIT = 12  # evaluate._check_head: what the model says, and two steps of saying it again
_SCORED_LOGIT = 16  # evaluate._sample_sums: the log-softmax of both models, and one step of each
_COMPARED = 20  # sqnr._add_weight: clean, noisy, their difference and its square, beside the weight
_UNPACKED = 28  # verify._check_weights: dequantized, scales, original, difference and squares
_QUANTIZED = 10  # a fake-quantized weight and the float32 work of making it
_SEARCHED = 16  # per output of the widest layer, while AWQ compares: exact and tried, and their float32 difference
# Tensors of a layer that are alive together, of each token.
_STATES = 4  # of the hidden width: residual, normed, quantized, and one on its way
_INNER = 5  # of the widest layer's outputs: gate, up, activation, product, and the quantized product

# Measured on models of 59 to 872 million parameters in all six formats, as resident size at the end of each phase, with
# Python 3.11, torch 2.13 for CPUs, transformers 5.14 and ModelOpt 0.47 on Linux with glibc.
_LIBRARIES = 670 * _MIB  # the interpreter with all that a job of the local executor imports


@dataclass(frozen=True, kw_only=True)
class _Retained:
    """Freed memory that glibc keeps for later, as a share of the bytes of tensors (measured).

    `heap`: of tensors whose float32 copies are taken from the heap; `partly`: of those with only smaller copies there.
    """

    heap: float
    partly: float


_QUANTIZING = _Retained(heap=0.6, partly=0.25)
_SEARCHING = _Retained(heap=2.2, partly=1.4)  # AWQ tries scales
_COMPARING_OUTPUTS = _Retained(heap=1.0, partly=0.25)
_PACKING = _Retained(heap=0.75, partly=0.35)  # with the fewest steps
#: glibc maps what is larger than this, and gives it back when it is freed: mallopt(3), M_MMAP_THRESHOLD.
_HEAP = 32 * _MIB


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Of one job, in bytes. `host`: the model is in the machine's memory, not on a GPU."""

    args: QuantizeArgs
    model: Matrices
    facts: ModelFacts
    host: bool

    @property
    def libraries(self) -> int:
        return _LIBRARIES if self.host else 0

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
        counted = count(self.facts)
        return counted.experts * self._width if self.host and counted is not None else 0

    @property
    def packed(self) -> int:
        """What the export puts in the place of weights (scripts/engines/hf/save.py)."""
        if not (self.args.export_dir or self.args.compress):
            return 0
        return sum(matrix.copies * packed_bytes(matrix, self._format) for matrix in self.model.packable)

    @property
    def reference(self) -> int:
        """Float32 copies of the weights of three layers (engines/hf/reference.py); experts in one tensor are not in."""
        layers = self.facts.layers or 1
        single = [matrix for matrix in self.model.packable if not self.facts.experts or matrix.copies < 3]
        modules = sum(matrix.copies for matrix in single)
        share = min(REFERENCES, modules * min(3, layers) // layers) / max(modules, 1)
        return int(share * sum(matrix.parameters for matrix in single)) * _FLOAT32 if self.host else 0

    @property
    def reopened(self) -> int:
        """The ModelOpt checkpoint, opened again to compare its logits (scripts/engines/hf/verify.py)."""
        kept = self.packed + self.model.others * self._width if self.args.compress else self.weights
        return kept - self._unread_table

    @property
    def hidden_states(self) -> int:
        """Of every sample that is scored, in the machine's memory (scripts/engines/hf/evaluate.py)."""
        if not self.host:
            return 0
        return self.args.eval_size * self.args.calib_seq_length * self._hidden * self._width

    @property
    def checked_logits(self) -> int:
        """Of the shortest sample that is scored, whose length is known to be below calib_seq_length only."""
        return _CHECKED_LOGIT * self.args.calib_seq_length * self._vocabulary

    @property
    def scored_logits(self) -> int:
        return _SCORED_LOGIT * min(LOGITS, self.args.calib_seq_length * self._vocabulary)

    @property
    def activations(self) -> int:
        """Of one layer, where they are the most: what it passes on, and what its widest part makes or tries of it."""
        states = self._tokens * self._width * _STATES * self._hidden
        return states + (self._tried if self._searches else self._tokens * self._width * _INNER * self._widest)

    @property
    def quantizing(self) -> int:
        return _QUANTIZED * self.model.largest

    @property
    def comparing(self) -> int:
        return _COMPARED * self.model.largest

    @property
    def unpacking(self) -> int:
        return _UNPACKED * self.model.largest if self.host else 0

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
        heap, partly = self._format.retained
        return self._kept(_PACKING if self.args.compress else _Retained(heap=heap, partly=partly))

    @property
    def _format(self) -> Format:
        """FP8 stands for formats whose layout is not known: none of them keeps more."""
        return FORMATS.get(self.args.export_quant_cfg, FORMATS["fp8"])

    @property
    def _width(self) -> int:
        return WIDTHS[self.args.dtype]

    @property
    def _hidden(self) -> int:
        return self.facts.hidden_size or 0

    @property
    def _vocabulary(self) -> int:
        return self.facts.vocab_size or 0

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
        return self._vocabulary * self._hidden * self._width if mapped else 0

    @property
    def _searches(self) -> bool:
        """AWQ is the family of formats whose calibration tries scales."""
        return "awq" in self.args.export_quant_cfg.lower()

    @property
    def _tried(self) -> int:
        return _SEARCHED * self._tokens * self._widest

    def _kept(self, retained: _Retained) -> int:
        if not self.host:
            return 0
        kept = sum(
            self._share(matrix.outputs * matrix.inputs, retained) * matrix.parameters for matrix in self.model.packable
        )
        return int(kept * self._width)

    def _share(self, elements: int, retained: _Retained) -> float:
        """What is kept of tensors of so many elements and their float32 copies."""
        if elements * _FLOAT32 < _HEAP:
            return retained.heap
        return retained.partly if elements * self._width < _HEAP else 0.0
