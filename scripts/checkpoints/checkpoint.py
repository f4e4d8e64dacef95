"""What a path holds, and the tensors in it, by name, type and size."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from scripts.formats import FORMATS

_FLOATING = ("float", "bfloat")
_SCALES = ("scale", "scale_2", "scale_inv")
_CACHE_OFFSETS = ("k_bias", "v_bias")
_MOST_ELEMENTS = 1 << 62


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint or a data set, as its files say it is.

    kind            the artifact's type: checkpoint_hf, checkpoint_modelopt (Hugging Face layout with ModelOpt's
                    state), checkpoint_lora, checkpoint_megatron, checkpoint_torch, binidx or training_jsonl
    layout          how the folder is arranged: huggingface, peft, megatron, nemo, torch, binidx or jsonl
    format          how the tensors are stored: safetensors, torch, torch_dist, torch_dcp or zarr
    parameters      weights as the model has them, packed ones unpacked; None where the files do not tell
    dtypes          elements as stored, by dtype in PyTorch's spelling; of a data set, its tokens
    iteration       the one looked at; None where there is none or it is a `release`
    iterations      all that are there, in order
    quantization    a name of configs/formats.yaml, or the stored word where none fits
    kv_cache        how the key/value cache is quantized
    modelopt_state  whether ModelOpt can restore what it did to the model; knowledge distillation alone does not count
    base_model      of an adapter: the model that it says it was trained on
    training_state  whether optimizer, scheduler or random state is there as well
    bytes, files    of everything under the path
    problems        what is wrong with it, a sentence each
    doubts          what may be, where only who made it can tell
    """

    path: Path
    kind: str
    layout: str
    format: str | None = None
    architecture: str | None = None
    parameters: int | None = None
    dtypes: dict[str, int] = field(default_factory=dict)
    iteration: int | None = None
    iterations: tuple[int, ...] = ()
    quantization: str | None = None
    kv_cache: str | None = None
    modelopt_state: bool = False
    base_model: str | None = None
    training_state: bool = False
    bytes: int = 0
    files: int = 0
    problems: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()


#: How the names of the factors end that are added to a weight.
_FACTORS = tuple(name for facts in FORMATS.values() for name in facts.low_rank)


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor; `dtype` in PyTorch's spelling, such as bfloat16."""

    name: str
    dtype: str
    elements: int
    shape: tuple[int, ...]

    @property
    def of_export(self) -> bool:
        """Whether a quantized export has it beside the weights: x.weight_scale, x.k_scale, a cache's x.k_bias."""
        last = self.name.rpartition(".")[2]
        return last.endswith(_SCALES) or last in _CACHE_OFFSETS

    @property
    def of_quantizer(self) -> bool:
        """Whether it is a buffer of one of ModelOpt's quantizers, such as x.weight_quantizer._amax.

        The factors that SVDQuant keeps beside a weight are part of an export, under such a name all the same.
        """
        inside = "_quantizer." in self.name or "_quantizers." in self.name
        return inside and not self.name.endswith(_FACTORS)


def tensor(name: str, dtype: str, shape: Iterable[object]) -> Tensor:
    """A tensor of this shape. Raises ValueError for a shape that none can have."""
    sides = []
    for side in shape:
        if not isinstance(side, int) or not 0 <= side < _MOST_ELEMENTS:
            raise ValueError(f"{name} has a side that is no length")
        sides.append(side)
    if len(sides) > 64 or (elements := math.prod(sides)) >= _MOST_ELEMENTS:
        raise ValueError(f"{name} is larger than a tensor can be")
    return Tensor(name, dtype, elements, tuple(sides))


def stored(tensors: Iterable[Tensor]) -> dict[str, int]:
    """Elements by dtype as stored, the most frequent first."""
    found: dict[str, int] = {}
    for one in tensors:
        found[one.dtype] = found.get(one.dtype, 0) + one.elements
    return dict(sorted(found.items(), key=lambda pair: (-pair[1], pair[0])))


def parameters(tensors: Iterable[Tensor], *, quantized: bool, by_modelopt: bool) -> int | None:
    """How many weights the model has; None where integers pack them in a way that is not ModelOpt's.

    ModelOpt's exporter and its compressed weights put two 4-bit values into a uint8. Scales, quantizers' buffers and
    integers that are no weights (positions, counters) do not count.
    """
    total = 0
    for one in tensors:
        if one.of_quantizer or "_extra_state" in one.name or (quantized and one.of_export):
            continue
        if one.dtype.startswith(_FLOATING):
            total += one.elements
        elif quantized and len(one.shape) >= 2:
            if not by_modelopt:
                return None
            total += one.elements * (2 if one.dtype == "uint8" else 1)
    return total
