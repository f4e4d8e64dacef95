"""Several samples in one forward pass without a padding token.

Samples of one length go side by side as [batch, length]. Samples of different lengths go one after another into a
single row, with positions that start again at each sample; attention is then computed per sample.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

Tokens = Sequence[int]
Forward = Callable[..., Any]
ATTENTION = "attention_per_sample"
#: A forward pass holds this many tokens at most: activations of a wide layer stay below a few GB.
MAX_TOKENS = 16384


def plan(lengths: Sequence[int], *, batch_size: int, max_tokens: int, mixed: bool) -> list[list[int]]:
    """Groups of sample indices for one forward pass each, longest samples first.

    A group has at most `batch_size` samples and `max_tokens` tokens (but at least one sample), and one length only
    unless `mixed`.
    """
    groups: list[list[int]] = []
    tokens = 0
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[index]
        group = groups[-1] if groups else []
        fits = group and len(group) < batch_size and tokens + length <= max_tokens
        if fits and (mixed or lengths[group[0]] == length):
            group.append(index)
            tokens += length
        else:
            groups.append([index])
            tokens = length
    return groups


@contextmanager
def replaced(owners: Sequence[Any], name: str, value: Any) -> Iterator[None]:
    """Give an attribute of each owner another value while the block runs."""
    before = [getattr(owner, name) for owner in owners]
    for owner in owners:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for owner, old in zip(owners, before, strict=True):
            setattr(owner, name, old)


def _configs(model: Any) -> list[Any]:
    configs = [getattr(module, "config", None) for module in model.modules()]
    return list({id(each): each for each in configs if hasattr(each, "_attn_implementation_internal")}.values())


def window(model: Any) -> int | None:
    """The shortest attention window of the model in tokens; None when every token sees all earlier ones."""
    keys = ("sliding_window", "attention_chunk_size")
    sizes = [getattr(config, key, None) for config in _configs(model) for key in keys]
    return min((size for size in sizes if isinstance(size, int) and size > 0), default=None)


@contextmanager
def attention_per_sample(model: Any) -> Iterator[Callable[[Sequence[int]], None]]:
    """Make attention look at one sample of a packed row at a time; yields the setter of the row's sample lengths.

    Exact and without a mask, where a block-diagonal mask would cost time and memory with the square of the row.
    """
    import torch
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    lengths: list[int] = []

    def attend(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **options: Any) -> Any:
        parts = zip(query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2), strict=True)
        return torch.cat([sdpa_attention_forward(module, *part, None, **options)[0] for part in parts], 1), None

    def set_lengths(values: Sequence[int]) -> None:
        lengths[:] = values

    ALL_ATTENTION_FUNCTIONS[ATTENTION] = attend
    try:
        with replaced(_configs(model), "_attn_implementation_internal", ATTENTION):
            yield set_lengths
    finally:
        del ALL_ATTENTION_FUNCTIONS[ATTENTION]


def run(model: Any, forward: Forward, samples: Sequence[Tokens], device: "torch.device") -> Any:
    """One forward pass over `samples`, without padding and without a key/value cache.

    Samples of one length: as a batch. Of different lengths: as one packed row, which only a model that passed
    `can_pack` may be given.
    """
    import torch

    lengths = [len(sample) for sample in samples]
    if len(set(lengths)) == 1:
        return forward(input_ids=torch.tensor(samples, device=device), use_cache=False)
    row = torch.tensor([[token for sample in samples for token in sample]], device=device)
    positions = torch.cat([torch.arange(length, device=device) for length in lengths])[None]
    with attention_per_sample(model) as set_lengths:
        set_lengths(lengths)
        return forward(input_ids=row, position_ids=positions, use_cache=False)


def can_pack(model: Any, backbone: Any, samples: Sequence[Tokens], device: "torch.device") -> bool:
    """Whether packed rows give this model's own hidden states; decided by computing two short samples both ways.

    `backbone` is the part of `model` without the head. Models with other than plain causal attention (windows shorter
    than the samples, recurrent layers) and models that do not use Transformers' attention functions answer no.
    """
    import torch

    implementations = {config._attn_implementation_internal for config in _configs(model)}
    shortest = sorted((sample for sample in samples if len(sample) > 1), key=len)
    size = window(model)
    if implementations != {"sdpa"} or len(shortest) < 2:
        return False
    if size is not None and max(map(len, samples)) > size:
        return False
    first, second = shortest[0][:64], shortest[-1][:48]
    if len(first) == len(second):
        second = second[:-1]
    with torch.no_grad():
        packed = run(model, backbone, [first, second], device)[0]
        apart = torch.cat([run(model, backbone, [sample], device)[0] for sample in (first, second)], 1)
    if packed.shape != apart.shape:
        return False
    # The rounding of other matrix shapes, carried through the layers; a sample that sees another is far beyond it.
    tolerance = max(8 * torch.finfo(apart.dtype).eps, 1e-4)
    error = (packed.float() - apart.float()).norm() / apart.float().norm()
    return bool(error <= tolerance)
