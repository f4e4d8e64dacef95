"""The weights of a model as a quantization format sees them: matrices that it packs, and all that it leaves alone.

Read from the headers of a folder, without loading anything; an architecture tells the same.
"""

import functools
import re
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from recipes.models import hub
from recipes.models.architecture import ModelFacts, Weight
from scripts.checkpoints.huggingface import is_model, look_model
from scripts.checkpoints.safetensors import read_header
from scripts.run.files import expanded, is_folder
from scripts.run.problems import JobError
from scripts.tiny.model import TINY_MODELS, cache_path, default_cache_root, is_cached

#: What ModelOpt leaves alone by name in every format. Source: modelopt_recipes' unit default_disabled_quantizers.
#: The last line: tables, which have no quantizers, and vectors that only look like matrices.
_LEFT_ALONE = re.compile(
    r"lm_head|output_layer|proj_out\.|^output\.|^mtp\.|router|\bblock_sparse_moe\.gate\b|\bmlp\.gate\.|shared_expert_gate\."
    r"|conv1d|linear_attn\.in_proj_(?:a|b|ba)\b|visual|vision_tower|vision_model|embed_vision|multi_modal_projector"
    r"|embed|\bwte\b|\bwpe\b"
)
_PLAIN = frozenset({"BF16", "F16", "F32", "F64"})
_TOKENIZER_FILES = ("tokenizer*", "*.jinja", "vocab.json", "merges.txt", "special_tokens_map.json", "*.model")
#: Bytes of tokenizer files for each token of the vocabulary, where they are not here: Qwen3's have 75, Llama 3's 71.
_BYTES_PER_TOKEN = 70


def linear_shapes(folder: Path) -> dict[str, tuple[int, int]]:
    """Weight matrices that formats pack, by tensor name as (out, in), from the safetensors headers."""
    entries = (one for file in sorted(folder.glob("*.safetensors")) for one in (_header(file) or {}).items())
    shapes = {name.removesuffix(".weight"): entry["shape"] for name, entry in entries if name.endswith(".weight")}
    return {
        name: (shape[0], shape[1])
        for name, shape in shapes.items()
        if len(shape) == 2 and not _LEFT_ALONE.search(f"{name}.weight")
    }


@dataclass(frozen=True, kw_only=True)
class Matrices:
    """A model's weights. `others` are parameters in embeddings, output layer, norms, biases, routers and encoders."""

    packable: tuple[Weight, ...]
    others: int
    tensors: int  # of the whole checkpoint; estimated where only the architecture is known
    tokenizer: int  # bytes of its files; estimated likewise

    @property
    def packed(self) -> int:
        """Parameters in `packable`."""
        return sum(matrix.parameters for matrix in self.packable)

    @property
    def total(self) -> int:
        return self.packed + self.others

    @property
    def modules(self) -> int:
        """How many linear layers `packable` is."""
        return sum(matrix.copies for matrix in self.packable)

    @property
    def largest(self) -> int:
        """Parameters of the largest single linear layer."""
        return max((matrix.outputs * matrix.inputs for matrix in self.packable), default=0)


def matrices_of(name: str, facts: ModelFacts | None) -> Matrices | None:
    """Of a folder or cached model, exactly, from the headers of its safetensors; else from `facts`.

    None where neither tells: an unknown architecture, or a checkpoint that is quantized already.
    """
    folder = folder_of(name)
    found = None if folder is None else _of_folder(folder)
    if found is not None:
        return found
    return None if facts is None or facts.quantized is not None else of_facts(facts)


def folder_of(name: str) -> Path | None:
    """Where the files of a model lie, if they are on this machine."""
    if name in TINY_MODELS:
        root = default_cache_root()
        return cache_path(name, root) if is_cached(name, root) else None
    try:
        folder = expanded(name)
        return folder if is_folder(folder) else hub.cached_model(name)
    except (OSError, ValueError):  # unreadable, no path at all
        return None


@functools.cache
def of_facts(facts: ModelFacts) -> Matrices | None:
    """The matrices of an architecture, as Transformers has them; None where a fact that they need is not known."""
    counted = facts.architecture.parameters
    if counted is None:
        return None
    rows = [(row, layers) for row, layers in facts.architecture.rows() if row.packed]
    packable = tuple(replace(row, copies=row.copies * layers) for row, layers in rows)
    return Matrices(
        packable=packable,
        others=counted.total - sum(matrix.parameters for matrix in packable),
        tensors=sum(matrix.copies for matrix in packable) + 3 + (facts.layers or 0) * (facts.block_norms or 0),
        tokenizer=(facts.vocab_size or 0) * _BYTES_PER_TOKEN,
    )


def _of_folder(folder: Path) -> Matrices | None:
    packable, others, tensors = [], 0, 0
    try:
        for file in sorted(folder.glob("*.safetensors")):
            for name, entry in read_header(file).items():
                shape, tensors = tuple(map(int, entry["shape"])), tensors + 1
                if entry["dtype"] not in _PLAIN:
                    return None
                matrix = tensor_matrix(name, shape)
                packable += [matrix] if matrix else []
                others += 0 if matrix else prod(shape)
    except (JobError, OSError, LookupError, TypeError, ValueError):
        return None  # damaged: that is another check's to say
    if not tensors:
        return None
    return Matrices(packable=tuple(packable), others=others, tensors=tensors, tokenizer=_tokenizer(folder))


def tensor_matrix(name: str, shape: tuple[int, ...]) -> Weight | None:
    """The linear layers in a tensor: one, or as many as there are experts in it."""
    if _LEFT_ALONE.search(name):
        return None
    if len(shape) == 2 and name.endswith(".weight"):
        return Weight(outputs=shape[0], inputs=shape[1], packed=True)
    if len(shape) == 3 and "experts" in name:
        return Weight(outputs=shape[1], inputs=shape[2], copies=shape[0], experts=shape[0], packed=True)
    return None


def _tokenizer(folder: Path) -> int:
    files = {file for pattern in _TOKENIZER_FILES for file in folder.glob(pattern)}
    return sum(file.stat().st_size for file in files if file.is_file())


def exact_total(folder: Path) -> int | None:
    """The weights in a folder's safetensors, by their headers; None where they are not whole or packed unreadably.

    A tied output layer that was saved all the same is counted, and so are the buffers that are saved with weights.
    """
    try:
        return look_model(folder).parameters if is_model(folder) else None
    except (JobError, OSError):
        return None


def _header(file: Path) -> dict[str, Any] | None:
    """What a safetensors file says of its tensors; None if it is damaged or cut short."""
    try:
        return read_header(file)
    except JobError:
        return None
