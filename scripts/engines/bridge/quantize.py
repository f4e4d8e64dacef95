"""Quantize a model of Megatron-Bridge, with the evidence that it still works."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from time import monotonic
from typing import Any

from scripts.args.meaning import Role, field_of, value_of
from scripts.args.quantize import QuantizeArgs, QuantizeModelOptArgs
from scripts.engines.bridge.evidence import Evidence, passes
from scripts.engines.bridge.loaded import Loaded, continued, is_first_rank, load
from scripts.engines.bridge.worker import Work
from scripts.engines.hf import quantizers, report
from scripts.engines.hf.samples import choose_samples
from scripts.formats import megatron_trouble
from scripts.processor import bf16_products
from scripts.run.problems import JobError

_NEW_TOKENS = 32


def quantize(work: Work, new_tokens: int = _NEW_TOKENS) -> None:
    """From a Hugging Face checkpoint to a Megatron one with ModelOpt's state; figures go into the report.

    Raises JobError `unsupported_quant_recipe`.
    """
    args: QuantizeArgs = work.args
    if (trouble := megatron_trouble(args.export_quant_cfg)) is not None:
        raise JobError("unsupported_quant_recipe", f"{args.export_quant_cfg}: {trouble[0]}.", trouble[1])
    config = quantizers.build_config(args)
    loaded = load(args)
    samples = choose_samples(args, loaded.tokenizer, loaded.vocabulary)
    before = continued(loaded, args.prompts, new_tokens)
    evidence = Evidence(loaded=loaded, samples=samples.held_out) if samples.held_out else None
    with bf16_products():
        if evidence:
            evidence.remember()
        began = monotonic()
        with _every_expert(loaded, args.force_all_expert_routing):
            quantizers.quantize(loaded.model, config, lambda _: passes(loaded, samples.calibration, "calibrate"))
        seconds = round(monotonic() - began, 3)
        scores = evidence.score() if evidence and not _head_is_quantized(loaded.model) else None
    after = continued(loaded, args.prompts, new_tokens)
    if args.compress:
        quantizers.compress(loaded.model)
    if args.megatron_save_path:
        loaded.bridge.save_megatron_model(loaded.parts, args.megatron_save_path, hf_tokenizer_path=loaded.source)
    counted = _quantizers(loaded)
    if not is_first_rank():
        return
    results = {
        "schema": report.SCHEMA,
        "model": work.called,
        "format": report.format_name(args),
        "calibration": report.calibration_figures(samples, seconds),
        "evaluation": report.evaluation_figures(scores, samples),
        "layers": [],
        "generations": [
            {"prompt": prompt, "before": old, "after": new}
            for (prompt, old), (_, new) in zip(before, after, strict=True)
        ],
        "quantizers": counted,
        "size": {"base_bytes": None, "export_bytes": None},
        "verified": [],
        "warnings": report.warnings(args, samples),
        "not_shown": list(work.not_shown),
    }
    report.write_report(work.report, results)
    print(report.as_text(results), flush=True)


def quantize_modelopt(work: Work) -> None:
    """The same, asked for in the words of Model-Optimizer's own script."""
    args: QuantizeModelOptArgs = work.args
    shared: tuple[Role, ...] = (
        *("model", "remote_code", "kv_format", "weight_only", "compress", "samples", "batch", "sequence", "data"),
        *("tp", "pp", "ep"),
    )
    values = {name: value_of(args, role) for role in shared if (name := field_of(QuantizeArgs(), role)) is not None}
    asked = QuantizeArgs(
        **values,
        export_quant_cfg=args.recipe or args.quant_cfg or "fp8",
        megatron_save_path=args.export_megatron_path,
        prompts="" if args.skip_generate else args.prompts,
    )
    quantize(replace(work, args=asked), args.osl)


def _head_is_quantized(model: Any) -> bool:
    """Then the unquantized model's logits cannot be computed again from its hidden states."""
    quantizer = getattr(getattr(model, "output_layer", None), "weight_quantizer", None)
    return quantizer is not None and bool(quantizer.is_enabled)


def _quantizers(loaded: Loaded) -> dict[str, Any]:
    """Those of all ranks, which each have their stage of the model and their experts; every rank has to ask."""
    import torch
    from megatron.core import parallel_state

    stage, share = parallel_state.get_pipeline_model_parallel_rank(), parallel_state.get_expert_model_parallel_rank()
    mine = {(stage, share if ".experts." in name else 0, name): kind for name, kind in quantizers.placed(loaded.model)}
    every: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(every, mine)
    return quantizers.summary({at: kind for one in every for at, kind in one.items()}.values())


@contextmanager
def _every_expert(loaded: Loaded, wanted: bool) -> Iterator[None]:
    """Send every token through every expert, so that each is calibrated."""
    from megatron.core.transformer.moe.router import TopKRouter

    routers = [one for one in loaded.model.modules() if isinstance(one, TopKRouter)] if wanted else []
    usual = [one.topk for one in routers]
    try:
        for one in routers:
            one.topk = one.num_experts
        yield
    finally:
        for one, topk in zip(routers, usual, strict=True):
            one.topk = topk
