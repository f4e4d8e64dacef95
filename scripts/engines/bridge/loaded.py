"""A Megatron model on the ranks of a job, of a Hugging Face checkpoint or of a Megatron one."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any

from scripts.args.meaning import Role, value_of
from scripts.run.problems import JobError

if TYPE_CHECKING:
    import torch

#: A provider's fields for the sizes of a job.
_SIZES: dict[Role, str] = {
    "tp": "tensor_model_parallel_size",
    "pp": "pipeline_model_parallel_size",
    "ep": "expert_model_parallel_size",
    "etp": "expert_tensor_parallel_size",
    "cp": "context_parallel_size",
    "first_stage": "num_layers_in_first_pipeline_stage",
    "last_stage": "num_layers_in_last_pipeline_stage",
}


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A model, this rank's part of it, and what came with it."""

    bridge: Any  # Megatron-Bridge's AutoBridge
    parts: list[Any]  # as Megatron-Bridge takes it
    model: Any  # the same without wrappers: a GPTModel
    tokenizer: Any
    source: str  # the folder or hub name of its configuration
    dtype: "torch.dtype"

    @property
    def device(self) -> "torch.device":
        """Where this rank computes."""
        return next(self.model.parameters()).device  # type: ignore[no-any-return]

    @property
    def vocabulary(self) -> int:
        """Rows of the embeddings that stand for tokens; Megatron fills up to what its ranks can share."""
        return int(self.bridge.hf_pretrained.config.get_text_config().vocab_size)


def sizes_of(args: Any) -> dict[str, Any]:
    """How the provider of a model splits it over the ranks, and in what precision stages talk."""
    import torch

    sizes = {field: value for role, field in _SIZES.items() if (value := value_of(args, role)) is not None}
    return sizes | {"pipeline_dtype": getattr(torch, value_of(args, "precision", "bfloat16"))}


@contextmanager
def not_known() -> Iterator[None]:
    """Raises JobError `unsupported_model` for an architecture that Megatron-Bridge does not know."""
    try:
        yield
    except ValueError as error:
        if "not yet supported" not in str(error) and "not supported" not in str(error):
            raise
        remedy = "Use engine=hf, which takes any causal language model of transformers."
        raise JobError("unsupported_model", " ".join(str(error).split())[:300], remedy) from error


def load(
    args: Any,
    *,
    source: str | None = None,
    checkpoint: str | None = None,
    quantizers: bool = True,
    single_experts: bool = False,
) -> Loaded:
    """Build the model of `args` on all ranks, and fill it: from its own weights, or from a Megatron checkpoint.

    `source`: where its configuration is, if the arguments name several. `quantizers`: restore what ModelOpt had put in.
    `single_experts`: each a module of its own, also where ModelOpt exports grouped ones.
    Torch's process group begins here. Raises JobError `unsupported_model` as `not_known` does.
    """
    import torch
    from modelopt.torch.utils.plugins.mbridge import (
        load_mbridge_model_from_hf,
        load_modelopt_megatron_checkpoint,
        use_moe_grouped_gemm,
    )

    logging.disable(logging.INFO)  # Megatron's own, which every rank would say
    source = source or str(value_of(args, "model"))
    trusted = bool(value_of(args, "remote_code", False))
    dtype = getattr(torch, value_of(args, "precision", "bfloat16"))
    precision = {"params_dtype": dtype, "bf16": dtype is torch.bfloat16, "fp16": dtype is torch.float16}
    with not_known():
        bridge, _, parts, model, tokenizer = load_mbridge_model_from_hf(
            hf_model_name_or_path=source,
            trust_remote_code=trusted,
            provider_overrides=sizes_of(args) | precision,
            moe_grouped_gemm=use_moe_grouped_gemm(source, trusted, force_sequential=single_experts),
            load_weights=checkpoint is None,
        )
    if checkpoint is not None:
        load_modelopt_megatron_checkpoint(parts, checkpoint, restore_modelopt_state=quantizers)
    model.eval()
    return Loaded(bridge=bridge, parts=parts, model=model, tokenizer=tokenizer, source=source, dtype=dtype)


def is_first_rank() -> bool:
    """Whether this rank speaks for all."""
    return os.environ.get("RANK", "0") == "0"


def say_progress(what: str, done: int, of: int, began: float) -> None:
    """Rank 0 says how far it is, in the form that is read as progress; `began` by the monotonic clock."""
    if is_first_rank():
        print(f"{what}: {done}/{of} [{monotonic() - began:.0f} s]", flush=True)


def continued(loaded: Loaded, prompts: str, tokens: int) -> list[tuple[str, str]]:
    """Each prompt of a list separated by |, with its greedy continuation; every rank has to ask, and gets it."""
    from modelopt.torch.utils.plugins.megatron_generate import megatron_generate

    said = []
    for prompt in filter(None, prompts.split("|")):
        ids = loaded.tokenizer(prompt, return_tensors="pt").input_ids.to(loaded.device)
        found = megatron_generate(loaded.model, ids, osl=tokens, enable_kv_cache=False, disable_tqdm=True)
        said.append((prompt, loaded.tokenizer.decode(found[0].tolist(), skip_special_tokens=True)))
    return said
