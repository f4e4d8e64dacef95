"""The weights of a model as a quantization format sees them: matrices that it packs, and all that it leaves alone."""

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from recipes.models import ModelFacts, hub
from recipes.planner.parameters import count
from scripts.checkpoints.safetensors import read_header
from scripts.run.problems import JobError
from scripts.tiny.model import TINY_MODELS, cache_path, default_cache_root, is_cached

#: What ModelOpt leaves alone by name in every format. Source: modelopt_recipes' unit default_disabled_quantizers.
#: The last line: tables, which have no quantizers, and vectors that only look like matrices.
_LEFT_ALONE = re.compile(
    r"lm_head|output_layer|proj_out\.|^output\.|^mtp\.|router|\bblock_sparse_moe\.gate\b|\bmlp\.gate\.|shared_expert_gate\."
    r"|conv1d|linear_attn\.in_proj_[ab]\b|visual|vision_tower|vision_model|embed_vision|multi_modal_projector"
    r"|embed|\bwte\b|\bwpe\b"
)
_PLAIN = frozenset({"BF16", "F16", "F32", "F64"})
_TOKENIZER_FILES = ("tokenizer*", "*.jinja", "vocab.json", "merges.txt", "special_tokens_map.json", "*.model")
#: Bytes of tokenizer files for each token of the vocabulary, where they are not here: Qwen3's have 75, Llama 3's 71.
_BYTES_PER_TOKEN = 70


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """`copies` weights of one shape, as torch.nn.Linear has them."""

    outputs: int
    inputs: int
    copies: int = 1

    @property
    def parameters(self) -> int:
        return self.outputs * self.inputs * self.copies


@dataclass(frozen=True, kw_only=True)
class Matrices:
    """A model's weights. `others` are parameters in embeddings, output layer, norms, biases, routers and encoders."""

    packable: tuple[Matrix, ...]
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
        folder = Path(name).expanduser()
        return folder if folder.is_dir() else hub.cached_model(name)
    except (OSError, RuntimeError, ValueError):  # unreadable, the home of nobody, no path at all
        return None


@functools.cache
def of_facts(facts: ModelFacts) -> Matrices | None:
    """The matrices of an architecture, as Transformers has them; None where a fact that they need is not known."""
    counted = count(facts)
    if counted is None or facts.blocks is None:
        return None
    packable = tuple(matrix for block in facts.blocks for part in block for matrix in _PARTS[part](facts))
    packed = sum(matrix.parameters for matrix in packable)
    modules = sum(matrix.copies for matrix in packable)
    layers = len(facts.blocks)
    return Matrices(
        packable=packable,
        others=counted.total - packed,
        tensors=modules + 3 + layers * (facts.block_norms or 0),
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
                others += 0 if matrix else functools.reduce(int.__mul__, shape, 1)
    except (JobError, OSError, LookupError, TypeError, ValueError):
        return None  # damaged: that is another check's to say
    if not tensors:
        return None
    return Matrices(packable=tuple(packable), others=others, tensors=tensors, tokenizer=_tokenizer(folder))


def tensor_matrix(name: str, shape: tuple[int, ...]) -> Matrix | None:
    """The linear layers in a tensor: one, or as many as there are experts in it."""
    if _LEFT_ALONE.search(name):
        return None
    if len(shape) == 2 and name.endswith(".weight"):
        return Matrix(outputs=shape[0], inputs=shape[1])
    if len(shape) == 3 and "experts" in name:
        return Matrix(outputs=shape[1], inputs=shape[2], copies=shape[0])
    return None


def _tokenizer(folder: Path) -> int:
    files = {file for pattern in _TOKENIZER_FILES for file in folder.glob(pattern)}
    return sum(file.stat().st_size for file in files if file.is_file())


def _attention(facts: ModelFacts) -> Iterator[Matrix]:
    hidden, heads = facts.hidden_size or 0, facts.heads or 0
    if facts.latent is not None:
        yield from _latent_attention(facts, hidden, heads)
        return
    queries, keys = heads * (facts.head_dim or 0), (facts.query_groups or 0) * (facts.head_dim or 0)
    yield Matrix(outputs=queries, inputs=hidden)
    yield Matrix(outputs=keys, inputs=hidden, copies=2)
    yield Matrix(outputs=hidden, inputs=queries)


def _latent_attention(facts: ModelFacts, hidden: int, heads: int) -> Iterator[Matrix]:
    """Projections down to a latent and up again. Source: Transformers' DeepseekV3Attention."""
    latent = facts.latent
    assert latent is not None
    queries = heads * (latent.qk_nope_head_dim + latent.qk_rope_head_dim)
    if latent.q_lora_rank is None:
        yield Matrix(outputs=queries, inputs=hidden)
    else:
        yield Matrix(outputs=latent.q_lora_rank, inputs=hidden)
        yield Matrix(outputs=queries, inputs=latent.q_lora_rank)
    yield Matrix(outputs=latent.kv_lora_rank + latent.qk_rope_head_dim, inputs=hidden)
    yield Matrix(outputs=heads * (latent.qk_nope_head_dim + latent.v_head_dim), inputs=latent.kv_lora_rank)
    yield Matrix(outputs=hidden, inputs=heads * latent.v_head_dim)


def _mlp(facts: ModelFacts) -> Iterator[Matrix]:
    yield from _gated(facts, facts.hidden_size or 0, facts.ffn_hidden_size or 0, 1)


def _experts(facts: ModelFacts) -> Iterator[Matrix]:
    hidden = facts.hidden_size or 0
    latent = facts.expert_latent_size or 0
    if latent:
        yield Matrix(outputs=latent, inputs=hidden)
        yield Matrix(outputs=hidden, inputs=latent)
    yield from _gated(facts, latent or hidden, facts.expert_ffn_size or 0, facts.experts or 0)
    if facts.shared_expert_ffn_size:
        yield from _gated(facts, hidden, facts.shared_expert_ffn_size, 1)


def _gated(facts: ModelFacts, hidden: int, width: int, copies: int) -> Iterator[Matrix]:
    yield Matrix(outputs=width, inputs=hidden, copies=copies * (2 if facts.gated_mlp else 1))
    yield Matrix(outputs=hidden, inputs=width, copies=copies)


def _mamba(facts: ModelFacts) -> Iterator[Matrix]:
    """The projections in and out of a Mamba-2 mixer. Source: Transformers' NemotronHMamba2Mixer."""
    hidden, heads = facts.hidden_size or 0, facts.mamba_heads or 0
    inner = heads * (facts.mamba_head_dim or 0)
    state = 2 * (facts.mamba_groups or 0) * (facts.mamba_state or 0)
    yield Matrix(outputs=2 * inner + state + heads, inputs=hidden)
    yield Matrix(outputs=hidden, inputs=inner)


_PARTS = {"attention": _attention, "mlp": _mlp, "experts": _experts, "mamba": _mamba}
