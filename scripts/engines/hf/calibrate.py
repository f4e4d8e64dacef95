"""The forward passes of calibration: as few as possible, and none that the scales could tell from one at a time."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, Literal

from scripts.engines.choice import refuse_ranks
from scripts.engines.hf import experts, packing
from scripts.engines.hf.group import Group
from scripts.engines.hf.packing import Forward, Tokens, replaced
from scripts.run.problems import JobError

if TYPE_CHECKING:
    import torch
    from torch import nn

#: How samples may share a forward pass without changing what an algorithm computes.
#: mixed: it takes maxima over tokens. equal: it averages over the tokens of a pass, then over passes.
#: single: it depends on the order or number of passes, or is unknown.
Sharing = Literal["mixed", "equal", "single"]
#: The same of each time that an algorithm goes through the samples, as ModelOpt 0.47 does it. GPTQ, which goes layer by
#: layer itself, has a layer take the same inputs twice.
PASSES: Mapping[str, tuple[Sharing, ...]] = {
    "max": ("mixed",),
    "smoothquant": ("mixed",),
    "awq_lite": ("single", "equal"),
    "awq_clip": ("single",),
    "mse": ("single",),
    "local_hessian": ("single", "single"),
    "svdquant": ("single", "single", "single"),
    "gptq+layerwise": ("single",),
}


def sharing_of(algorithm: str | None) -> Sharing:
    """In its last pass; what is not known goes one by one."""
    return PASSES.get(algorithm or "", ("single",))[-1]


def groups_of(sharing: Sharing, lengths: Sequence[int], *, batch_size: int, max_tokens: int) -> list[list[int]]:
    """Indices of the samples of each pass."""
    if sharing == "single":
        return [[index] for index in range(len(lengths))]
    return packing.plan(lengths, batch_size=batch_size, max_tokens=max_tokens, mixed=sharing == "mixed")


def refuse_split(algorithm: str | None, sharing: Sharing | None = None) -> None:
    """Raise JobError `world_size_not_one` on one of several ranks where scales are no maxima over what each finds."""
    usual = sharing_of(algorithm)
    if algorithm is not None and (sharing or usual) != "mixed":
        what = "of an affine key/value cache" if usual == "mixed" else f"by {algorithm}"
        refuse_ranks(f"calibration {what}, which takes no maxima over samples,")


def calibration_loop(
    samples: Sequence[Tokens],
    *,
    batch_size: int,
    max_tokens: int,
    advance: Callable[[int], None],
    algorithm: str | None = "max",
    ranks: Group = Group(),
    every_expert: bool = False,
    unreached: dict[str, list[int]] | None = None,
) -> "Callable[[nn.Module], None]":
    """The `forward_loop` for mtq.quantize over tokenized, truncated samples.

    A forward pass has at most `batch_size` samples and `max_tokens` tokens; on CUDA both are halved when memory runs
    out. `advance` gets the number of samples of each finished pass; AWQ goes through the samples twice. `algorithm` is
    the method of the ModelOpt configuration; it decides how samples may share a pass. Scales equal those of one
    unpadded sample at a time up to rounding, because no padding token exists. Of several ranks each runs a share of the
    passes, which are the same for any number of ranks, and all get the maxima over every one: to the last bit.
    `every_expert`: see experts.py; `unreached` gets the numbers of those that no token was sent to, by layer.
    """

    def loop(model: "nn.Module") -> None:
        import torch

        device = _device(model)
        forward = forward_without_head(model)
        # Some models' forward overrides the argument with the configuration.
        configs = [model.config] if getattr(getattr(model, "config", None), "use_cache", None) is not None else []
        with torch.no_grad(), replaced(configs, "use_cache", False), weights_paused(model):
            sharing = _sharing(model, algorithm)
            refuse_split(algorithm, sharing)
            lengths = [len(sample) for sample in samples]
            if sharing == "mixed" and len(set(lengths)) > 1:
                watching = [quantizer for _, quantizer in _quantizers(model) if quantizer._if_calib]
                with replaced(watching, "_if_calib", False):
                    sharing = "mixed" if packing.can_pack(model, forward, samples, device) else "equal"
            groups = groups_of(sharing, lengths, batch_size=batch_size, max_tokens=max_tokens)
            with experts.watched(model, every=every_expert) as reached:
                every = ranks.same(groups)
                _run_groups(model, forward, samples, [*ranks.share(every), *ranks.again(every)], advance, ranks)
            _take_maxima(model, ranks)
            seen = ranks.gathered({name: one.tolist() for name, one in reached.items()})
            if unreached is not None:
                anywhere = {name: map(any, zip(*(one[name] for one in seen), strict=True)) for name in reached}
                for name, each in anywhere.items():
                    unreached[name] = [number for number, one in enumerate(each) if not one]

    return loop


def _device(model: "nn.Module") -> "torch.device":
    embedding = getattr(model, "get_input_embeddings", lambda: None)()
    return next((embedding or model).parameters()).device


def forward_without_head(model: "nn.Module") -> Forward:
    """The model's backbone when the head has nothing to calibrate, else the model itself.

    The head's product with the vocabulary is a fifth of the work of a small model.
    """
    prefix = getattr(model, "base_model_prefix", "")
    backbone: Forward | None = getattr(model, prefix, None) if prefix else None
    hooked = model._forward_hooks or model._forward_pre_hooks or hasattr(model, "_hf_hook") or "forward" in vars(model)
    if backbone is None or hooked:
        return model
    in_head = any(one.is_enabled and not name.startswith(f"{prefix}.") for name, one in _quantizers(model))
    return model if in_head else backbone


def _quantizers(model: "nn.Module") -> Iterator[tuple[str, Any]]:
    from modelopt.torch.quantization.nn import TensorQuantizer

    return ((name, module) for name, module in model.named_modules() if isinstance(module, TensorQuantizer))


def _sharing(model: "nn.Module", algorithm: str | None) -> Sharing:
    # A static bias (the affine cache formats) is a running mean over passes, subtracted while it runs.
    if any(q.is_enabled and q.bias_calibrator is not None for _, q in _quantizers(model)):
        return "single"
    # AWQ-lite's first round averages activations in their own precision: any other grouping of the tokens rounds
    # differently, and a near tie between two exponents then falls the other way. Its costly second round is float32.
    if any(type(helper).cache_mode for helper in _awq_helpers(model)):
        return "single"
    return sharing_of(algorithm)


def _run_groups(
    model: "nn.Module",
    forward: Forward,
    samples: Sequence[Tokens],
    groups: Sequence[list[int]],
    advance: Callable[[int], None],
    ranks: Group,
) -> None:
    import torch

    device = _device(model)
    pending = [*groups[::-1]]
    largest = max(map(len, groups), default=1)
    while pending:
        group = pending.pop()
        if len(group) > largest:
            pending += [group[largest:], group[:largest]]
            continue
        try:
            with counted_as(model, len(group)):
                packing.run(model, forward, [samples[index] for index in group], device)
        except torch.cuda.OutOfMemoryError as error:
            if len(group) == 1 or ranks.in_step:
                what = "A single sample of" if len(group) == 1 else f"A pass of {len(group)} samples, the longest with"
                cause = f"{what} {len(samples[group[0]])} tokens does not fit into the GPU's memory."
                fewer = "Lower args.calib_seq_length" if len(group) == 1 else "Lower args.calib_batch_size"
                raise JobError("out_of_memory", cause, f"{fewer} or take a larger GPU.") from error
            # Maxima do not mind the layers that already saw the group; AWQ's means count those layers twice.
            largest = len(group) // 2
            pending.append(group)
            torch.cuda.empty_cache()
        else:
            advance(len(group))


def _take_maxima(model: "nn.Module", ranks: Group) -> None:
    """Give each quantizer the largest of what all ranks saw, and so to those that no sample of this rank has reached.

    ModelOpt takes the same maxima afterwards, of quantizers that have one, and waits forever for a rank without.
    """
    import torch

    place = _device(model)
    collecting = {name: one._calibrator for name, one in _quantizers(model) if one.is_enabled and one._if_calib}
    seen = {name: amax for name, one in collecting.items() if (amax := getattr(one, "_calib_amax", None)) is not None}
    for theirs in ranks.gathered({name: amax.cpu() for name, amax in seen.items()}) if ranks.world > 1 else ():
        for name, amax in theirs.items():
            known, other = collecting[name]._calib_amax, amax.to(place)
            collecting[name]._calib_amax = other if known is None else torch.maximum(known, other.to(known.device))


def weights_paused(model: "nn.Module") -> AbstractContextManager[None]:
    """Do not take the maximum of every weight again in every pass.

    ModelOpt's max calibration has read each weight once before the first pass. Quantizers that hold no statistics yet
    (AWQ) and those that are quantizing already are left alone.
    """
    paused = []
    for name, quantizer in _quantizers(model):
        of_weight = any(part.endswith(("weight_quantizer", "weight_quantizers")) for part in name.split("."))
        collects = quantizer.is_enabled and quantizer._if_calib and not quantizer._if_quant
        if of_weight and collects and getattr(quantizer._calibrator, "_calib_amax", None) is not None:
            paused.append(quantizer)
    return replaced(paused, "_if_calib", False)


def _awq_helpers(model: "nn.Module") -> list[Any]:
    return [module.awq_lite for module in model.modules() if hasattr(module, "awq_lite")]


@contextmanager
def counted_as(model: "nn.Module", passes: int) -> Iterator[None]:
    """Let AWQ-lite's search count one pass over `passes` samples of equal length as that many passes.

    It sums a mean per pass: the sums are divided before and multiplied after, so the new mean enters `passes` times.
    """
    losses = [loss for helper in _awq_helpers(model) for loss in helper.loss.values()] if passes > 1 else []
    for loss in losses:
        loss.div_(passes)
    try:
        yield
    finally:
        for loss in losses:
            loss.mul_(passes)
