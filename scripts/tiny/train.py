"""Train a tiny model from scratch: tokenizer, weights, and how good they are on held-out text."""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from scripts.processor import bf16_products, multiplies_bf16
from scripts.tiny.corpus import corpus_digest, passages

_SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
_PAD, _BOS, _EOS, _UNK = range(4)
_CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@dataclass(frozen=True, kw_only=True)
class TinyModel:
    """Dimensions and training values of one model.

    Every in and out feature of a projection is a multiple of 128, the largest block of any format.
    The number of steps, not of seconds, is fixed: the weights do not depend on the machine's load.
    """

    name: str
    architecture: Literal["qwen3", "llama"]
    vocab_size: int = 1024
    hidden_size: int = 256
    intermediate_size: int = 512
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    context: int = 1024
    steps: int = 300
    warmup_steps: int = 30
    batch: int = 8
    window: int = 128
    learning_rate: float = 5e-3
    weight_decay: float = 0.1
    seed: int = 1
    # One thread: two take 46 s instead of 54 with the cores free, but 220 s with one core busy, where each of
    # thousands of short parallel regions waits for the thread that lost its core.
    threads: int = 1


def train_into(model: TinyModel, folder: Path, advance: Callable[[int, int], None] | None = None) -> None:
    """Write weights (bf16 safetensors), configuration, tokenizer and tiny.json into an existing folder.

    The same values give the same bytes on one machine, whatever the caller's random state, thread count or default
    device; all of them are left as they were.
    """
    import torch

    tokenizer = build_tokenizer(model.vocab_size)
    train_ids = _encode(tokenizer, passages("train"))
    with _isolated(model.seed, model.threads), bf16_products():
        network = _network(model)
        bf16 = multiplies_bf16()
        _fit(network, model, [token for ids in train_ids for token in ids], bf16, advance)
        network.to(torch.bfloat16).eval()
        held_out = passages("eval")
        text_bytes = sum(len(text.encode()) for text in held_out)
        held_out_ids = _encode(tokenizer, held_out)
        score = model_perplexity(network, held_out_ids, text_bytes)
    unigram = unigram_perplexity(train_ids, held_out_ids, model.vocab_size, text_bytes)
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    facts = {
        "model": asdict(model),
        "parameters": sum(weight.numel() for weight in network.parameters()),
        "steps": model.steps,
        "training_precision": "bf16" if bf16 else "fp32",
        "train_tokens": sum(map(len, train_ids)),
        "held_out_tokens": sum(len(ids) - 1 for ids in held_out_ids),
        "held_out_perplexity": round(score.perplexity, 3),
        "held_out_bits_per_byte": round(score.bits_per_byte, 4),
        "unigram_perplexity": round(unigram.perplexity, 3),
        "unigram_bits_per_byte": round(unigram.bits_per_byte, 4),
        "corpus_digest": corpus_digest(),
        "torch_version": torch.__version__,
    }
    (folder / "tiny.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def build_tokenizer(vocab_size: int) -> Any:
    """A byte-level BPE tokenizer learned from the training passages: any text round-trips, nothing is unknown.

    Encoding puts <bos> in front, as in training.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(_SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(passages("train"), trainer)
    bpe.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", _BOS)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=_SPECIAL[_PAD],
        bos_token=_SPECIAL[_BOS],
        eos_token=_SPECIAL[_EOS],
        unk_token=_SPECIAL[_UNK],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = _CHAT_TEMPLATE
    return tokenizer


def _encode(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    return [[*tokenizer(text)["input_ids"], _EOS] for text in texts]


def _network(model: TinyModel) -> Any:
    """A randomly initialised Transformers model in float32."""
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

    known = {"qwen3": (Qwen3Config, Qwen3ForCausalLM), "llama": (LlamaConfig, LlamaForCausalLM)}
    config_class, model_class = known[model.architecture]
    config: Any = config_class(
        vocab_size=model.vocab_size,
        hidden_size=model.hidden_size,
        intermediate_size=model.intermediate_size,
        num_hidden_layers=model.layers,
        num_attention_heads=model.heads,
        num_key_value_heads=model.kv_heads,
        head_dim=model.head_dim,
        max_position_embeddings=model.context,
        tie_word_embeddings=False,
        pad_token_id=_PAD,
        bos_token_id=_BOS,
        eos_token_id=_EOS,
    )
    return model_class(config)


def _fit(
    network: Any, model: TinyModel, tokens: list[int], bf16: bool, advance: Callable[[int, int], None] | None
) -> None:
    """Optimise float32 weights; forward and backward on a bf16 copy where the processor multiplies bf16."""
    import torch
    from torch.nn.functional import cross_entropy

    live = list(network.parameters())
    masters = [weight.detach().clone() for weight in live]
    if bf16:
        network.to(torch.bfloat16)
    optimizers = _optimizers(network, masters, model)
    batches = _batches(tokens, model)
    network.train()
    # At this size plain products beat the fused attention kernel of a CPU by a sixth of the whole step.
    network.set_attn_implementation("eager")
    for step in range(model.steps):
        window = next(batches)
        logits = network(window[:, :-1], use_cache=False).logits
        loss: Any = cross_entropy(logits.float().flatten(0, 1), window[:, 1:].flatten())
        loss.backward()
        for master, weight in zip(masters, live, strict=True):
            master.grad = weight.grad.float()
            weight.grad = None
        torch.nn.utils.clip_grad_norm_(masters, 1.0)
        if step < model.warmup_steps:  # linear warm-up, then linear decay to zero
            share = (step + 1) / model.warmup_steps
        else:
            share = (model.steps - step) / max(1, model.steps - model.warmup_steps)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = model.learning_rate * share
            optimizer.step()
        with torch.no_grad():
            torch._foreach_copy_(live, masters)
        if advance is not None:
            advance(step + 1, model.steps)


def _optimizers(network: Any, masters: list[Any], model: TinyModel) -> list[Any]:
    """Muon for the matrices of the blocks, AdamW for norms, embedding and head.

    In the same minute, AdamW alone ended at a held-out perplexity of 38 where this ended below 30.
    """
    import torch

    inner: list[Any] = []
    outer: list[Any] = []
    for (name, _), master in zip(network.named_parameters(), masters, strict=True):
        (inner if master.ndim == 2 and ".layers." in name else outer).append(master)
    return [
        torch.optim.Muon(
            inner,
            lr=model.learning_rate,
            weight_decay=model.weight_decay,
            adjust_lr_fn="match_rms_adamw",
            # Orthogonalising is a large part of a step here; three rounds instead of five leave time for more steps.
            ns_steps=3,
        ),
        torch.optim.AdamW(outer, lr=model.learning_rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]


def _batches(tokens: list[int], model: TinyModel) -> Iterator[Any]:
    """Batches (batch, window + 1) of int64; each pass over the text cuts it at another offset."""
    import torch

    data = torch.tensor(tokens)
    generator = torch.Generator().manual_seed(model.seed)
    span = torch.arange(model.window + 1)
    waiting = torch.empty(0, dtype=torch.long)
    while True:
        while len(waiting) < model.batch:
            offset = int(torch.randint(model.window, (), generator=generator))
            starts = torch.arange(offset, len(data) - model.window, model.window)
            waiting = torch.cat([waiting, starts[torch.randperm(len(starts), generator=generator)]])
        yield data[waiting[: model.batch, None] + span]
        waiting = waiting[model.batch :]


@contextmanager
def _isolated(seed: int, threads: int) -> Iterator[None]:
    """Seeded random state, a fixed number of threads, the CPU and gradients on; the caller's own come back."""
    import torch

    before = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad(), torch.device("cpu"):
        # The order in which threads add up decides the last bits, so their number is part of the result.
        torch.set_num_threads(threads)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            torch.set_num_threads(before)


@dataclass(frozen=True, kw_only=True)
class Score:
    """Perplexity per token, and bits per byte of text: the second does not depend on the tokenizer."""

    perplexity: float
    bits_per_byte: float


def unigram_perplexity(
    train: Sequence[Sequence[int]], held_out: Sequence[Sequence[int]], vocab_size: int, text_bytes: int
) -> Score:
    """Score of token frequencies counted on `train`, add-one smoothed, on `held_out`.

    Both are token sequences; the first token of each is given, not predicted, as for a model.
    """
    counts = [1] * vocab_size
    for ids in train:
        for token in ids[1:]:
            counts[token] += 1
    log_total = math.log(sum(counts))
    predicted = [token for ids in held_out for token in ids[1:]]
    return _score(sum(log_total - math.log(counts[token]) for token in predicted), len(predicted), text_bytes)


def model_perplexity(model: Any, held_out: Sequence[Sequence[int]], text_bytes: int) -> Score:
    """Score of a causal language model (in evaluation mode) on token sequences, one sequence at a time.

    A sequence longer than the model's context is cut into pieces of that length, each of which
    begins with the last token of the one before; every token but the first is predicted once.
    """
    import torch
    from torch.nn.functional import cross_entropy

    context: int = model.config.max_position_embeddings
    nats, predicted = 0.0, 0
    with torch.no_grad():
        for ids in held_out:
            for start in range(0, len(ids) - 1, context):
                piece = torch.tensor(ids[start : start + context + 1])
                logits = model(piece[None, :-1], use_cache=False).logits[0].float()
                nats += float(cross_entropy(logits, piece[1:], reduction="sum"))
                predicted += len(piece) - 1
    return _score(nats, predicted, text_bytes)


def _score(nats: float, tokens: int, text_bytes: int) -> Score:
    return Score(perplexity=math.exp(nats / tokens), bits_per_byte=nats / math.log(2) / text_bytes)
