"""A LoRA adapter (arXiv:2106.09685) that Megatron-Bridge trained, merged into the model that it was trained on."""

from dataclasses import fields
from pathlib import Path
from typing import Any

from scripts.args.convert import MergeLoraArgs
from scripts.checkpoints.megatron import concrete_iteration
from scripts.engines.bridge.loaded import Loaded, load
from scripts.engines.bridge.worker import Work
from scripts.run.problems import JobError


def merge(work: Work) -> None:
    """The sum of both, as a Megatron checkpoint. Raises JobError `missing_input` for a base that nobody names."""
    from megatron.bridge.training.utils.checkpoint_utils import read_run_config

    args: MergeLoraArgs = work.args
    adapter = concrete_iteration(Path(str(args.lora_checkpoint)))
    trained = read_run_config(str(adapter / "run_config.yaml"))
    base = args.pretrained or (trained.get("checkpoint") or {}).get("pretrained_checkpoint")
    if base is None:
        cause = f"{adapter / 'run_config.yaml'} does not say which checkpoint the adapter was trained on."
        raise JobError("missing_input", cause, "Set args.pretrained to it.")
    loaded = load(args, checkpoint=str(base), quantizers=False)
    _put_beside(loaded, adapter, trained.get("peft") or {})
    _merge(loaded.model)
    loaded.bridge.save_megatron_model(loaded.parts, args.output, hf_tokenizer_path=loaded.source)


def _put_beside(loaded: Loaded, adapter: Path, trained: dict[str, Any]) -> None:
    """The adapter's layers, as large as it was trained, with its weights."""
    from megatron.bridge.peft.lora import LoRA
    from megatron.bridge.training.checkpointing import (
        _generate_model_state_dict,
        apply_peft_adapter_filter_to_state_dict,
    )
    from megatron.core import dist_checkpointing

    kind = str(trained.get("_target_", "LoRA")).rpartition(".")[2]
    if kind != "LoRA":
        cause = f"{adapter} was trained with {kind}, and the bridge engine merges LoRA."
        raise JobError("unsupported_model", cause, "Use engine=script.")
    known = {one.name for one in fields(LoRA) if one.init}
    peft = LoRA(**{name: value for name, value in trained.items() if name in known})
    peft(loaded.parts, training=False)
    wanted = apply_peft_adapter_filter_to_state_dict(_generate_model_state_dict(loaded.parts, {}), peft)
    found = dist_checkpointing.load(wanted, str(adapter))
    for part, state in zip(loaded.parts, [one for name, one in found.items() if name.startswith("model")], strict=True):
        part.load_state_dict(state, strict=False)  # the base is there


def _merge(module: Any) -> None:
    """Each adapted layer becomes the layer that it stands around, with both weights in one."""
    from megatron.bridge.peft.lora_layers import LoRALinear

    for name, child in list(module.named_children()):
        if isinstance(child, LoRALinear):
            child.to_wrap.weight.data.copy_(child.weight)
            setattr(module, name, child.to_wrap)
        else:
            _merge(child)
