"""Quantizers of the key/value cache in Megatron-Core's own attention: ModelOpt has them for Transformer Engine's."""

from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.transformer.dot_product_attention import DotProductAttention
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint
from modelopt.torch.quantization.nn import QuantModule, QuantModuleRegistry, TensorQuantizer
from modelopt.torch.utils.distributed import ParallelState


class QuantDotProductAttention(QuantModule):  # type: ignore[misc]  # of a package without types
    """Queries, keys and values go through a quantizer each; names are those of ModelOpt's class."""

    def _setup(self) -> None:
        for name in ("q_bmm_quantizer", "k_bmm_quantizer", "v_bmm_quantizer"):
            setattr(self, name, TensorQuantizer())
        self.parallel_state = ParallelState(
            parallel_state.get_data_parallel_group(with_context_parallel=True),
            parallel_state.get_tensor_model_parallel_group(),
        )

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Of tensors [tokens, batch, heads, width], after rotation."""
        quantized = (self.q_bmm_quantizer(query), self.k_bmm_quantizer(key), self.v_bmm_quantizer(value))
        return super().forward(*quantized, *args, **kwargs)

    def modelopt_post_restore(self, name: str = "") -> None:
        """ModelOpt puts `device` and `dtype` there before it restores."""
        self.to(device=self.device, dtype=self.dtype)

    def sharded_state_dict(self, prefix: str = "", sharded_offsets: Any = (), metadata: Any = None) -> Any:
        """One number for each quantizer, the same on every rank."""
        return make_sharded_tensors_for_checkpoint(
            self.state_dict(prefix="", keep_vars=True), prefix, {}, sharded_offsets
        )


def register() -> None:
    """From now on ModelOpt converts such attention, too."""
    QuantModuleRegistry.register({DotProductAttention: "megatron_DotProductAttention"})(QuantDotProductAttention)
