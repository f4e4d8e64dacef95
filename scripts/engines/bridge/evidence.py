"""Perplexity, KL divergence and agreement of a quantized Megatron model with what it was, as the hf engine has them.

The unquantized model's last hidden states are kept (on the last stage of the pipeline), from which its logits are
computed again beside the quantized model's. Every rank takes part in every pass.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING, Any

from scripts.engines.bridge.loaded import Loaded, say_progress
from scripts.engines.hf.evaluate import LOGITS, Scores, divergences, scores_of
from scripts.engines.hf.samples import Tokens

if TYPE_CHECKING:
    import torch


def passes(loaded: Loaded, samples: Sequence[Tokens], what: str) -> None:
    """One forward pass a sample; rank 0 says about every second how far it is."""
    import torch
    from modelopt.torch.utils.plugins import megatron_prefill

    began = said = monotonic()
    for done, sample in enumerate(samples, start=1):
        megatron_prefill(loaded.model, torch.tensor([sample], device=loaded.device), skip_return_logits=True)
        now = monotonic()
        if now - said > 1 or done == len(samples):
            said = now
            say_progress(what, done, len(samples), began)


@dataclass(kw_only=True)
class Evidence:
    """What is kept of the unquantized model; `hidden` holds one tensor a sample, [tokens, 1, hidden size]."""

    loaded: Loaded
    samples: list[Tokens]
    hidden: "list[torch.Tensor]" = field(default_factory=list)

    def remember(self) -> None:
        """Before quantization."""
        with _states(self.loaded.model) as seen:
            passes(self.loaded, self.samples, "score before")
        self.hidden = [one.cpu() for one in seen]

    def score(self) -> Scores:
        """After it, on the same samples; the output head must be what it was."""
        import torch
        from megatron.core.inference.communication_utils import broadcast_from_last_pipeline_stage

        with _states(self.loaded.model) as seen:
            passes(self.loaded, self.samples, "score after")
        sums = None
        if self.hidden:
            each = zip(self.samples, self.hidden, seen, strict=True)
            sums = torch.stack([self._sums(sample, before, after) for sample, before, after in each])
            sums = sums.to(self.loaded.device)
        return scores_of(broadcast_from_last_pipeline_stage([len(self.samples), 5], torch.float64, sums))

    def _sums(self, sample: Tokens, before: "torch.Tensor", after: "torch.Tensor") -> "torch.Tensor":
        import torch

        rows = max(1, LOGITS // self.loaded.vocabulary)
        targets = torch.tensor(sample[1:], device=after.device)
        sums = torch.zeros(5, dtype=torch.float64)
        for start in range(0, len(targets), rows):
            stop = min(start + rows, len(targets))
            old, new = (self._logprobs(part[start:stop].to(after.device)) for part in (before, after))
            sums += divergences(old, new, targets[start:stop, None])
        return sums

    def _logprobs(self, hidden: "torch.Tensor") -> "torch.Tensor":
        """[tokens, vocabulary] in float32, on each of the ranks that share the head."""
        import torch

        model = self.loaded.model
        weight = model.shared_embedding_or_output_weight() if model.share_embeddings_and_output_weights else None
        with torch.no_grad():
            logits = model.output_layer(hidden, weight=weight, runtime_gather_output=True)[0]
        table: torch.Tensor = logits[:, 0, : self.loaded.vocabulary].float().log_softmax(-1)
        return table


@contextmanager
def _states(model: Any) -> "Iterator[list[torch.Tensor]]":
    """What goes into the output head in each pass; nothing on the other stages of a pipeline."""
    seen: list[torch.Tensor] = []
    head = getattr(model, "output_layer", None)
    hook = head.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach().clone())) if head else None
    try:
        yield seen
    finally:
        if hook is not None:
            hook.remove()
