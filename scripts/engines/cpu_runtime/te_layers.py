"""Transformer Engine's layers in plain torch, for what is done to layers themselves: ModelOpt prunes those alone.

As much of the package as Megatron-Core's specification of a dense GPT asks for: no FP8, fused kernel or grouped GEMM.
Names, arguments and attributes are Transformer Engine's.
"""

import contextlib
import types
from typing import Any

import torch
from torch.nn import functional
from torch.utils import checkpoint as recompute

from scripts.engines.cpu_runtime.packages import made_of

#: What Megatron-Core takes for a release that has all that these layers have, and none of the newer kernels.
_RELEASE = "1.12.0"


def modules() -> dict[str, types.ModuleType]:
    """The package, by the names that its parts are imported under."""
    layers = (Linear, LayerNormLinear, LayerNorm, RMSNorm, GroupedLinear, DotProductAttention, TransformerLayer)
    found: dict[str, dict[str, Any]] = {
        "common.recipe": {"Recipe": Recipe, "DelayedScaling": DelayedScaling, "Format": Format},
        "pytorch.fp8": {
            "FP8GlobalStateManager": FP8GlobalStateManager,
            "fp8_autocast": _unchanged,
            "fp8_model_init": _unchanged,
        },
        "pytorch.distributed": {
            "checkpoint": checkpoint,
            "activation_recompute_forward": _unchanged,
            "is_fp8_activation_recompute_enabled": _never,
            "in_fp8_activation_recompute_phase": _never,
            "CudaRNGStatesTracker": CudaRNGStatesTracker,
        },
        "pytorch.cpp_extensions": {"cast_to_fp8": None},
        "pytorch.float8_tensor": {"Float8Tensor": Float8Tensor},
        "pytorch": {layer.__name__: layer for layer in layers} | {"TransformerEngineBaseModule": Layer},
        "common": {},
    }
    package = made_of("transformer_engine", __version__=_RELEASE)
    made = {package.__name__: package}
    for name, content in sorted(found.items()):  # a package before its parts
        module = made_of(f"transformer_engine.{name}", **content)
        made[module.__name__] = module
        parent, _, last = module.__name__.rpartition(".")
        setattr(made[parent], last, module)
    ops = types.SimpleNamespace(Sequential=torch.nn.Sequential, Linear=torch.nn.Linear)
    vars(made["transformer_engine.pytorch"])["ops"] = ops
    return made


def _unchanged(*_: Any, **__: Any) -> Any:
    return contextlib.nullcontext()


def _never(*_: Any, **__: Any) -> bool:
    return False


class Recipe: ...


class DelayedScaling(Recipe):
    def __init__(self, *_: Any, **__: Any) -> None: ...


class Format:
    E4M3, E5M2, HYBRID = "e4m3", "e5m2", "hybrid"


class FP8GlobalStateManager:
    """FP8 is never on."""

    is_fp8_enabled = is_fp8_calibration = staticmethod(_never)
    reset = get_fp8_recipe = staticmethod(lambda: None)


class CudaRNGStatesTracker: ...


class Float8Tensor: ...


def checkpoint(function: Any, *args: Any, **_: Any) -> Any:
    """Compute again in the backward pass instead of keeping activations."""
    return recompute.checkpoint(function, *args, use_reentrant=True)


class Layer(torch.nn.Module):
    """What all of them have."""

    def set_tensor_parallel_group(self, group: Any) -> None:
        self.tp_group = group

    def get_extra_state(self) -> None:
        """FP8 scales would be here."""

    def set_extra_state(self, state: Any) -> None: ...


def _empty(*shape: int, dtype: Any) -> torch.nn.Parameter:
    weight = torch.empty(*shape, dtype=dtype or torch.get_default_dtype())
    return torch.nn.Parameter(torch.nn.init.normal_(weight, std=0.02))


def _norm_weight(size: int, zero_centered: bool, sequence_parallel: bool, dtype: Any) -> torch.nn.Parameter:
    begin = torch.zeros if zero_centered else torch.ones
    weight: Any = torch.nn.Parameter(begin(size, dtype=dtype or torch.get_default_dtype()))
    weight.sequence_parallel = sequence_parallel  # Megatron sums its gradient over the ranks
    return weight  # type: ignore[no-any-return]


def _normed(
    given: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, eps: float, rms: bool
) -> torch.Tensor:
    shape, wide = (weight.shape[0],), given.float()
    if rms:
        return functional.rms_norm(wide, shape, weight.float(), eps).to(given.dtype)
    shift = None if bias is None else bias.float()
    return functional.layer_norm(wide, shape, weight.float(), shift, eps).to(given.dtype)


class RMSNorm(Layer):
    rms = True

    def __init__(
        self,
        normalized_shape: Any = None,
        eps: float = 1e-5,
        sequence_parallel: bool = False,
        params_dtype: Any = None,
        zero_centered_gamma: bool = False,
        hidden_size: int | None = None,
        dtype: Any = None,
        **_: Any,
    ) -> None:
        super().__init__()
        size: Any = hidden_size if normalized_shape is None else normalized_shape
        size = size[0] if isinstance(size, (tuple, list)) else size
        self.hidden_size, self.eps, self.zero_centered_gamma = size, eps, zero_centered_gamma
        self.normalized_shape = (size,)
        told = (sequence_parallel, params_dtype or dtype)
        self.weight = _norm_weight(size, zero_centered_gamma, *told)
        self.bias = None if self.rms else _norm_weight(size, True, *told)

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        weight = self.weight + 1 if self.zero_centered_gamma else self.weight
        return _normed(given, weight, self.bias, self.eps, self.rms)


class LayerNorm(RMSNorm):
    rms = False


class Linear(Layer):
    """Split over the ranks of a group by columns or rows, as `parallel_mode` says."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        sequence_parallel: bool = False,
        tp_group: Any = None,
        tp_size: int = 1,
        bias: bool = True,
        return_bias: bool = False,
        params_dtype: Any = None,
        parallel_mode: str | None = None,
        **_: Any,
    ) -> None:
        super().__init__()
        self.tp_group, self.tp_size, self.parallel_mode = tp_group, tp_size, parallel_mode
        self.sequence_parallel = sequence_parallel and tp_size > 1
        self.return_bias, self.use_bias = return_bias, bias
        self.out_features = out_features // tp_size if parallel_mode == "column" else out_features
        self.in_features = in_features // tp_size if parallel_mode == "row" else in_features
        weight: Any = _empty(self.out_features, self.in_features, dtype=params_dtype)
        if parallel_mode is not None:
            weight.tensor_model_parallel = True
            weight.partition_dim = 0 if parallel_mode == "column" else 1
            weight.partition_stride = 1
        self.weight = weight
        zeros = torch.zeros(self.out_features, dtype=weight.dtype)
        self.bias = torch.nn.Parameter(zeros) if bias else None

    def forward(self, given: torch.Tensor, **_: Any) -> Any:
        from megatron.core.tensor_parallel import mappings

        if self.tp_size > 1 and self.parallel_mode == "column":
            spread = mappings.copy_to_tensor_model_parallel_region
            given = (mappings.gather_from_sequence_parallel_region if self.sequence_parallel else spread)(given)
        out = functional.linear(given, self.weight)
        if self.tp_size > 1 and self.parallel_mode == "row":
            summed = mappings.reduce_from_tensor_model_parallel_region
            out = (mappings.reduce_scatter_to_sequence_parallel_region if self.sequence_parallel else summed)(out)
        if self.return_bias:
            return out, self.bias
        return out if self.bias is None else out + self.bias


class LayerNormLinear(Linear):
    """A norm, and the layer that reads it."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        eps: float = 1e-5,
        normalization: str = "LayerNorm",
        return_layernorm_output: bool = False,
        zero_centered_gamma: bool = False,
        params_dtype: Any = None,
        **told: Any,
    ) -> None:
        super().__init__(in_features, out_features, params_dtype=params_dtype, **told)
        self.eps, self.normalization, self.zero_centered_gamma = eps, normalization, zero_centered_gamma
        self.return_layernorm_output = return_layernorm_output
        rms = normalization == "RMSNorm"
        self.layer_norm_weight = _norm_weight(in_features, zero_centered_gamma, self.sequence_parallel, params_dtype)
        self.layer_norm_bias = None if rms else _norm_weight(in_features, True, self.sequence_parallel, params_dtype)

    def forward(self, given: torch.Tensor, **_: Any) -> Any:
        weight = self.layer_norm_weight + 1 if self.zero_centered_gamma else self.layer_norm_weight
        normed = _normed(given, weight, self.layer_norm_bias, self.eps, self.normalization == "RMSNorm")
        out = super().forward(normed)
        return (out, normed) if self.return_layernorm_output else out


class GroupedLinear(Layer):
    def __init__(self, *_: Any, **__: Any) -> None:
        raise NotImplementedError("grouped GEMM has no stand-in: experts are computed one after the other")


class TransformerLayer(Layer): ...


class DotProductAttention(Layer):
    """On queries, keys and values of [tokens, batch, heads, width]; the result is [tokens, batch, heads x width]."""

    def __init__(
        self,
        num_attention_heads: int,
        kv_channels: Any,
        num_gqa_groups: int | None = None,
        attention_dropout: float = 0.0,
        attn_mask_type: str = "causal",
        tp_size: int = 1,
        softmax_scale: float | None = None,
        **_: Any,
    ) -> None:
        super().__init__()
        self.num_attention_heads, self.num_gqa_groups = num_attention_heads, num_gqa_groups
        self.attn_mask_type = attn_mask_type
        self.softmax_scale, self.attention_dropout, self.tp_size = softmax_scale, attention_dropout, tp_size
        self.hidden_size_per_attention_head_k = kv_channels

    def set_context_parallel_group(self, *_: Any, **__: Any) -> None: ...

    def forward(
        self, query: Any, key: Any, value: Any, attention_mask: Any = None, attn_mask_type: Any = None, **_: Any
    ) -> torch.Tensor:
        kind = attn_mask_type or self.attn_mask_type
        tokens, batch, _heads, _width = query.shape
        query, key, value = (one.permute(1, 2, 0, 3) for one in (query, key, value))
        shared = query.shape[1] // key.shape[1]
        if shared > 1:
            key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
        out = functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=~attention_mask if kind == "arbitrary" and attention_mask is not None else None,
            is_causal="causal" in kind and query.shape[2] > 1,
            scale=self.softmax_scale,
            dropout_p=self.attention_dropout if self.training else 0.0,
        )
        return out.permute(2, 0, 1, 3).reshape(tokens, batch, -1)
