"""Prune a Megatron model by the importance of its parts (Minitron, arXiv:2407.14679), with ModelOpt's search.

Candidates of a search are scored by the loss on text that importance was not estimated on, or by MMLU.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from math import exp
from pathlib import Path
from typing import Any

from scripts.args.prune import MMLU_SHARE, PruneArgs
from scripts.args.quantize import QuantizeArgs
from scripts.checkpoints.published import save_model
from scripts.engines.bridge.evidence import passes
from scripts.engines.bridge.loaded import Loaded, is_first_rank, load
from scripts.engines.bridge.worker import Work
from scripts.engines.hf.samples import Tokens, choose_samples

_SCORED = 16  # samples of text that are kept aside
#: Megatron-Core's sizes as Hugging Face configurations call them; what a configuration has not is left out.
_CALLED: dict[str, tuple[str, ...]] = {
    "hidden_size": ("hidden_size",),
    "ffn_hidden_size": ("intermediate_size",),
    "num_attention_heads": ("num_attention_heads",),
    "kv_channels": ("head_dim",),
    "num_query_groups": ("num_key_value_heads",),
    "num_layers": ("num_hidden_layers",),
    "moe_ffn_hidden_size": ("moe_intermediate_size",),
    "moe_shared_expert_intermediate_size": ("moe_shared_expert_intermediate_size",),
    "mamba_num_heads": ("mamba_num_heads",),
    "mamba_head_dim": ("mamba_head_dim",),
    "num_moe_experts": ("num_experts", "n_routed_experts", "num_local_experts"),
}


def prune(work: Work) -> None:
    """To a fixed architecture, or to the best one within a number of parameters; report/pruning.json says which."""
    import modelopt.torch.opt as mto
    import modelopt.torch.prune as mtp

    args: PruneArgs = work.args
    loaded = load(args, single_experts=True)  # of grouped ones ModelOpt prunes none
    text = QuantizeArgs(
        hf_model_id=args.hf_model_name_or_path,
        calib_dataset=args.calib_dataset_name,
        calib_size=args.calib_num_samples,
        calib_seq_length=args.seq_length,
        eval_size=_SCORED,
    )
    samples = choose_samples(text, loaded.tokenizer, loaded.vocabulary)
    before = _figures(loaded, samples.held_out)
    told: dict[str, Any] = {
        "forward_loop": lambda _: passes(loaded, samples.calibration, "estimate importance"),
        "checkpoint": args.prune_intermediate_ckpt,
    }
    if args.prune_export_config is None:
        told |= {
            "score_func": _scorer(args, loaded, samples.held_out),
            "max_width_pruning": args.max_width_pruning,
            "max_depth_pruning": args.max_depth_pruning,
            "hparams_to_skip": args.hparams_to_skip or [],
            "top_k": args.top_k,
        }
        if args.prune_target_memory_mb is not None:
            told |= {"seq_length": args.seq_length, "batch_size": args.inference_batch_size or 1}
    _, scores = mtp.prune(  # in place
        loaded.model,
        mode=[("mcore_minitron", _space(args, loaded))],
        constraints=_constraints(args),
        dummy_input=None,
        config=told,
    )
    if mto.ModeloptStateManager.has_state_for_mode_type("prune", model=loaded.model):
        mto.ModeloptStateManager.remove_state(loaded.model)  # every layer has the same shape: nothing to restore
    after = _figures(loaded, samples.held_out)
    if args.output_megatron_path:
        source = args.hf_model_name_or_path
        loaded.bridge.save_megatron_model(loaded.parts, args.output_megatron_path, hf_tokenizer_path=source)
    if args.output_hf_path:
        _write_hugging_face(loaded, Path(args.output_hf_path), scores, args.trust_remote_code)
    if is_first_rank():
        _report(work, before, after, {name: getattr(loaded.model.config, name, None) for name in _CALLED})


def _figures(loaded: Loaded, samples: Sequence[Tokens]) -> dict[str, Any]:
    from modelopt.torch.nas.plugins.megatron_model_stats import mcore_param_count_live

    return {"parameters": int(mcore_param_count_live(loaded.model)), "loss": _loss(loaded, loaded.model, samples)}


def _loss(loaded: Loaded, model: Any, samples: Sequence[Tokens]) -> float:
    """Mean loss of the next token, in nats; the same on every rank."""
    import torch
    from modelopt.torch.utils.plugins import megatron_prefill

    total, tokens = 0.0, 0
    for sample in samples:
        ids = torch.tensor([sample], device=loaded.device)
        logits = megatron_prefill(model, ids)[0, :-1, : loaded.vocabulary].float()
        total += float(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum"))
        tokens += len(sample) - 1
    return total / max(tokens, 1)


def _scorer(args: PruneArgs, loaded: Loaded, samples: Sequence[Tokens]) -> Callable[[Any], float]:
    if args.prune_score_func in (None, "loss"):
        return lambda model: -_loss(loaded, model, samples)
    from modelopt.torch.utils.plugins.megatron_mmlu import megatron_mmlu

    asked = MMLU_SHARE.fullmatch(str(args.prune_score_func))
    assert asked is not None  # preflight refuses any other
    share = int(asked[1]) / 100
    return lambda model: float(megatron_mmlu(model, loaded.tokenizer, fraction=share))


def _space(args: PruneArgs, loaded: Loaded) -> Any:
    """Of which numbers widths and depths are multiples: as NVIDIA's script has it."""
    from modelopt.torch.prune.plugins.mcore_minitron import get_mcore_minitron_config

    if args.prune_export_config is not None:
        hidden = inner = 64
    else:
        experts = bool(loaded.model.config.num_moe_experts)
        hidden = args.ss_channel_divisor or 256
        inner = args.ss_channel_divisor or (256 if experts else 512)
    return get_mcore_minitron_config(
        hidden_size_divisor=hidden,
        ffn_hidden_size_divisor=inner,
        mamba_head_dim_divisor=8,
        num_moe_experts_divisor=8,
        num_layers_divisor=1 if args.prune_export_config is not None else 2,
    )


def _constraints(args: PruneArgs) -> dict[str, Any]:
    if args.prune_export_config is not None:
        return {"export_config": args.prune_export_config}
    asked = {
        "params": args.prune_target_params,
        "active_params": args.prune_target_active_params,
        "memory_mb": args.prune_target_memory_mb,
    }
    return {name: value for name, value in asked.items() if value is not None}


def _write_hugging_face(loaded: Loaded, folder: Path, scores: Any, trusted: bool) -> None:
    """Megatron-Bridge writes the names that a checkpoint has: one of the pruned sizes is made first, then filled."""
    import torch
    from megatron.bridge import AutoBridge
    from transformers import AutoModelForCausalLM

    if is_first_rank():
        loaded.bridge.hf_pretrained.save_artifacts(folder)
        config = _pruned_config(loaded, scores)
        made = AutoModelForCausalLM.from_config(config, trust_remote_code=trusted, dtype=loaded.dtype)
        save_model(made, folder)
    torch.distributed.barrier()
    AutoBridge.from_hf_pretrained(str(folder), trust_remote_code=trusted).save_hf_weights(loaded.parts, str(folder))


def _pruned_config(loaded: Loaded, scores: Any) -> Any:
    config, sizes = deepcopy(loaded.bridge.hf_pretrained.config), loaded.model.config
    for name, called in _CALLED.items():
        value = getattr(sizes, name, None)
        for one in called:
            if value is not None and hasattr(config, one):
                setattr(config, one, value)
    if getattr(config, "layer_types", None) and scores["sorted_layers"]:
        kept = set(scores["sorted_layers"][: sizes.num_layers])  # counted from 1
        config.layer_types = [kind for at, kind in enumerate(config.layer_types, start=1) if at in kept]
    return config


def _report(work: Work, before: dict[str, Any], after: dict[str, Any], sizes: dict[str, Any]) -> None:
    figures = {
        "parameters_before": before["parameters"],
        "parameters_after": after["parameters"],
        "perplexity_before": exp(before["loss"]),
        "perplexity_after": exp(after["loss"]),
    }
    work.leave("pruning.json", evaluation=figures, sizes=sizes, not_shown=list(work.not_shown))
    for name, value in figures.items():
        print(f"{name.replace('_', ' ')}: {value:,}" if isinstance(value, int) else f"{name}: {value:.4g}", flush=True)
