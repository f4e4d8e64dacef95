"""Perplexity, KL divergence and top-1 agreement of a quantized model with the model it was.

SmoothQuant and AWQ rewrite the weights, so the unquantized model is asked first: its `last_states` (tokens x hidden
size, exact, a hundredth of the logits) are kept, from which `score` computes its logits again, a few tokens at a time.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scripts.engines.hf import packing
from scripts.engines.hf.group import Group
from scripts.engines.hf.nvfp4 import cpu_kernels
from scripts.engines.hf.packing import Tokens
from scripts.run.problems import JobError

if TYPE_CHECKING:
    import torch

#: Logits computed at a time: 64 MB in float32, for each of the two models.
LOGITS = 1 << 24


#: Drawings of the bootstrap, the share of them that an interval holds, and the fewest samples that say anything.
_DRAWN, _CONFIDENCE, _LEAST_SAMPLES = 2000, 0.95, 8


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Over `tokens` predicted tokens. The divergence is KL(base || quantized) in nats per token.

    `intervals` hold 95% of what other samples of the same text would have given (paired bootstrap over the samples):
    [low, high] of perplexity_increase (a share), kl_divergence and top1_agreement; None of fewer than 8 samples.
    """

    tokens: int
    perplexity_base: float
    perplexity_quantized: float
    kl_divergence: float
    top1_agreement: float
    intervals: dict[str, list[float]] | None = None


@dataclass(frozen=True, kw_only=True)
class Base:
    """What is kept of the unquantized model. `hidden` holds [tokens, hidden size] per sample, in host memory; None for
    those of other ranks.
    """

    samples: "list[list[int]]"
    hidden: "list[torch.Tensor | None]"
    weight: "torch.Tensor"
    bias: "torch.Tensor | None"
    probe: "torch.Tensor"


def _batches(
    model: Any, samples: Sequence[Tokens], batch_size: int, max_tokens: int, ranks: Group, *, again: bool
) -> "Iterator[tuple[list[int], torch.Tensor]]":
    """Samples, by their numbers, of each pass of this rank, and the last hidden states [their tokens, hidden size].

    `again`: also of those that it makes for the others.
    """
    import torch

    backbone = model.base_model
    device = model.get_input_embeddings().weight.device
    lengths = [len(sample) for sample in samples]
    mixed = len(set(lengths)) > 1 and packing.can_pack(model, backbone, samples, device)
    groups = packing.plan(lengths, batch_size=batch_size, max_tokens=max_tokens, mixed=mixed)
    every = ranks.same(groups)
    mine, others = ranks.share(every), ranks.again(every)
    for number, group in enumerate([*mine, *others]):
        with torch.no_grad():
            states = packing.run(model, backbone, [samples[index] for index in group], device)[0]
        if again or number < len(mine):
            yield group, states.reshape(-1, states.shape[-1]).to(model.get_output_embeddings().weight.dtype)


def _after_head(model: Any, logits: "torch.Tensor") -> "torch.Tensor":
    """What the model does to logits after the head, in float32: Cohere's and Granite's scale, Gemma's cap."""
    import torch

    config = model.config.get_text_config()
    logits = logits.float() * (getattr(config, "logit_scale", None) or 1.0)
    logits = logits / (getattr(config, "logits_scaling", None) or 1.0)
    cap = getattr(config, "final_logit_softcapping", None)
    return torch.tanh(logits / cap) * cap if cap else logits


def _probe(weight: "torch.Tensor") -> "torch.Tensor":
    return weight.detach()[:: max(1, len(weight) // 16)].clone()


def last_states(
    model: Any,
    samples: Sequence[Tokens],
    *,
    batch_size: int,
    max_tokens: int,
    advance: Callable[[int], None],
    ranks: Group = Group(),
) -> "list[torch.Tensor | None]":
    """Run the unquantized model over the held-out samples: [tokens, hidden size] of each, in host memory.

    `advance` gets the number of samples of each pass. Raises JobError('evaluation_unsupported') for a model whose
    logits are not its head's.
    """
    import torch

    kept: dict[int, torch.Tensor] = {}
    for group, states in _batches(model, samples, batch_size, max_tokens, ranks, again=True):  # `check_head` needs one
        parts = torch.split(states.cpu(), [len(samples[index]) for index in group])
        kept.update({index: part.clone() for index, part in zip(group, parts, strict=True)})
        advance(len(group))
    hidden = [kept.get(index) for index in range(len(samples))]
    check_head(model, remember(model, samples, hidden))
    return hidden


def remember(
    model: Any, samples: Sequence[Tokens], hidden: "Sequence[torch.Tensor | None]", *, head_changes: bool = False
) -> Base:
    """Keep what `score` needs besides the `last_states` of the samples; call it before quantizing.

    `head_changes`: the format also quantizes the output head, so keep a copy of its weight.
    """
    head = model.get_output_embeddings()
    weight = head.weight.detach()
    return Base(
        samples=[list(sample) for sample in samples],
        hidden=[*hidden],
        weight=weight.clone() if head_changes else weight,
        bias=getattr(head, "bias", None),
        probe=_probe(weight),
    )


def check_head(model: Any, base: Base) -> None:
    """Raise JobError('evaluation_unsupported') where the model says other logits than its head of the last states."""
    import torch

    held = [(sample, hidden) for sample, hidden in zip(base.samples, base.hidden, strict=True) if hidden is not None]
    if not held:
        return
    shortest, hidden = min(held, key=lambda one: len(one[0]))
    rows = torch.tensor([shortest], device=base.weight.device)
    with torch.no_grad():
        expected = model(input_ids=rows, use_cache=False).logits[0].float()
    found = _after_head(model, _base_logits(base, hidden))
    error = float((found - expected).norm() / expected.norm().clamp(min=1e-12))
    if not error <= 16 * torch.finfo(hidden.dtype).eps:
        cause = f"The logits of {type(model).__name__} are not its head's product (off by {error:.1%})."
        remedy = "Set args.eval_size=0, which leaves the scores out and nothing else; evaluate scores what was written."
        raise JobError("evaluation_unsupported", cause, remedy)


def _base_logits(base: Base, hidden: "torch.Tensor") -> "torch.Tensor":
    import torch

    return torch.nn.functional.linear(hidden.to(base.weight.device), base.weight, base.bias)


def score(model: Any, base: Base, *, batch_size: int, max_tokens: int, advance: Callable[[int], None]) -> Scores:
    """Compare the quantized model with what `remember` kept, on the same samples; raises what `compared` does."""
    return scores_of(compared(model, base, batch_size=batch_size, max_tokens=max_tokens, advance=advance))


def compared(
    model: Any,
    base: Base,
    *,
    batch_size: int,
    max_tokens: int,
    advance: Callable[[int], None],
    ranks: Group = Group(),
) -> "torch.Tensor":
    """`divergences` of each sample, [samples, 5], whichever rank has it: as one process alone computes them.

    Logits and their softmax are float32, sums float64. Raises JobError('head_changed') when the head's weight is no
    longer what it was and `remember` was not told to copy it.
    """
    import torch

    head = model.get_output_embeddings()
    if base.weight.data_ptr() == head.weight.data_ptr() and not torch.equal(_probe(head.weight), base.probe):
        raise JobError("head_changed", "The format rewrote the output head.", "Set args.eval_size=0.")
    batches = _batches(model, base.samples, batch_size, max_tokens, ranks, again=False)
    sums = summed(model, base, batches, advance)
    return torch.stack(ranks.gathered(sums)).sum(0)  # of each row, all but one are zeros


def summed(
    model: Any, base: Base, batches: "Iterable[tuple[list[int], torch.Tensor]]", advance: Callable[[int], None]
) -> "torch.Tensor":
    """The same of last states that are known: sample indices, and [tokens of all of them, hidden size]."""
    import torch

    head = model.get_output_embeddings()
    sums = torch.zeros(len(base.samples), 5, dtype=torch.float64)
    with torch.no_grad(), cpu_kernels():
        for group, states in batches:
            parts = torch.split(states, [len(base.samples[index]) for index in group])
            for index, hidden in zip(group, parts, strict=True):
                sums[index] = _sample_sums(model, head, base, index, hidden)
            advance(len(group))
    return sums


def _sample_sums(model: Any, head: Any, base: Base, index: int, hidden: "torch.Tensor") -> "torch.Tensor":
    """[tokens, base loss, loss, KL, agreements] of one sample; the last token predicts nothing and is left out."""
    import torch

    device, known = hidden.device, base.hidden[index]
    assert known is not None
    targets = torch.tensor(base.samples[index][1:], device=device)
    rows = max(1, LOGITS // base.weight.shape[0])
    sums = torch.zeros(5, dtype=torch.float64)
    for start in range(0, len(targets), rows):
        stop = min(start + rows, len(targets))
        wanted = targets[start:stop, None]
        before = _after_head(model, _base_logits(base, known[start:stop])).log_softmax(-1)
        after = _after_head(model, head(hidden[start:stop])).log_softmax(-1)
        sums += divergences(before, after, wanted)
    return sums


def scores_of(sums: "torch.Tensor") -> Scores:
    """What `divergences` come to; `sums` are those of each sample, [samples, 5]."""
    tokens, base_loss, loss, kl, agreed = sums.sum(0).tolist()
    return Scores(
        tokens=int(tokens),
        perplexity_base=math.exp(min(base_loss / tokens, 700.0)),
        perplexity_quantized=math.exp(min(loss / tokens, 700.0)),
        kl_divergence=kl / tokens,
        top1_agreement=agreed / tokens,
        intervals=_intervals(sums),
    )


def _intervals(sums: "torch.Tensor") -> dict[str, list[float]] | None:
    """Samples are drawn with their losses before and after: what makes a text hard makes it hard for both."""
    import torch

    if len(sums) < _LEAST_SAMPLES or not torch.isfinite(sums).all():
        return None
    table, chance = sums.cpu(), torch.Generator().manual_seed(0)
    drawn = [table[torch.randint(len(table), (len(table),), generator=chance)].sum(0) for _ in range(_DRAWN)]
    tokens, base_loss, loss, kl, agreed = torch.stack(drawn).T
    increase = ((loss - base_loss) / tokens).clamp(max=700.0).exp() - 1
    found = {"perplexity_increase": increase, "kl_divergence": kl / tokens, "top1_agreement": agreed / tokens}
    ends = torch.tensor([(1 - _CONFIDENCE) / 2, (1 + _CONFIDENCE) / 2], dtype=sums.dtype)
    return {name: values.quantile(ends).tolist() for name, values in found.items()}


def divergences(before: "torch.Tensor", after: "torch.Tensor", targets: "torch.Tensor") -> "torch.Tensor":
    """[tokens, loss before, loss after, KL, agreements], sums over the rows of two tables of log-probabilities.

    `targets` [tokens, 1] are the tokens that came. Both tables, float32, are spent.
    """
    import torch

    agreed = (before.argmax(-1) == after.argmax(-1)).sum()
    losses = [-table.gather(1, targets).double().sum() for table in (before, after)]
    divergence = after.neg_().add_(before).mul_(before.exp_()).sum(-1).double().sum()
    return torch.stack([torch.tensor(len(targets)), *losses, divergence, agreed]).cpu()
