"""Mamba-2's scan and its gated norm in plain torch, for hybrid models: mamba-ssm's are written for GPUs.

As much of the package as Megatron-Core's mixer and ModelOpt's search spaces ask for. Names, arguments and results are
mamba-ssm's; the arithmetic is in float32, chunk by chunk, as in "Transformers are SSMs" (Dao and Gu, 2024), section 6.
"""

import types
from typing import Any

import torch
from torch.nn import functional

from scripts.engines.cpu_runtime.packages import made_of


def modules() -> dict[str, types.ModuleType]:
    """The package, by the names that its parts are imported under."""
    scans = (mamba_chunk_scan_combined, mamba_split_conv1d_scan_combined)
    parts = (
        made_of("mamba_ssm"),
        made_of("mamba_ssm.ops"),
        made_of("mamba_ssm.ops.triton"),
        made_of("mamba_ssm.ops.triton.layernorm_gated", RMSNorm=RMSNorm),
        made_of("mamba_ssm.ops.triton.ssd_combined", **{scan.__name__: scan for scan in scans}),
    )
    return {part.__name__: part for part in parts}


class RMSNorm(torch.nn.Module):
    """A norm of each group of the last dimension, of what `z` lets through: x * silu(z), before it or after."""

    def __init__(
        self,
        hidden_size: int,
        eps: float = 1e-5,
        group_size: int | None = None,
        norm_before_gate: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.eps, self.group_size, self.norm_before_gate = eps, group_size or hidden_size, norm_before_gate
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, device=device, dtype=dtype))
        self.register_parameter("bias", None)

    def forward(self, x: torch.Tensor, z: torch.Tensor | None = None) -> torch.Tensor:
        """Of a tensor whose last dimension is the hidden size, or what pruning left of it."""
        wide = x.float()
        if z is not None and not self.norm_before_gate:
            wide = wide * functional.silu(z.float())
        groups = wide.reshape(*wide.shape[:-1], -1, self.group_size)
        wide = functional.rms_norm(groups, (self.group_size,), None, self.eps).flatten(-2) * self.weight.float()
        if z is not None and self.norm_before_gate:
            wide = wide * functional.silu(z.float())
        return wide.to(x.dtype)


def mamba_chunk_scan_combined(
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,  # noqa: N803 - mamba-ssm's name, as those below
    B: torch.Tensor,  # noqa: N803
    C: torch.Tensor,  # noqa: N803
    chunk_size: int,
    D: torch.Tensor | None = None,  # noqa: N803
    z: torch.Tensor | None = None,
    dt_bias: torch.Tensor | None = None,
    initial_states: torch.Tensor | None = None,
    seq_idx: torch.Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    return_final_states: bool = False,
) -> Any:
    """The outputs of x, as x: [batch, tokens, heads, width]; with the states after the last token, if asked for.

    dt: [batch, tokens, heads]; A: [heads]; B and C: [batch, tokens, groups, states]; D: [heads] or [heads, width].
    States: [batch, heads, width, states]. Raises NotImplementedError for packed sequences.
    """
    if seq_idx is not None:
        raise NotImplementedError("packed sequences have no stand-in")
    step = dt.float() if dt_bias is None else dt.float() + dt_bias.float()
    step = (functional.softplus(step) if dt_softplus else step).clamp(*dt_limit)
    heads = x.shape[2] // B.shape[2]
    reads, writes = (one.float().repeat_interleave(heads, dim=2) for one in (C, B))
    given, decay = x.float() * step[..., None], step * A.float()
    state = x.new_zeros(x.shape[0], *x.shape[2:], B.shape[3], dtype=torch.float32)
    state = state if initial_states is None else initial_states.float()
    outputs = []
    for part in zip(*(torch.split(one, chunk_size, dim=1) for one in (given, decay, writes, reads)), strict=True):
        out, state = _chunk(state, *part)
        outputs.append(out)
    y = torch.cat(outputs, dim=1)
    if D is not None:
        y = y + x.float() * (D.float() if D.dim() == 2 else D.float()[:, None])
    if z is not None:
        y = y * functional.silu(z.float())
    return (y.to(x.dtype), state) if return_final_states else y.to(x.dtype)


def _chunk(
    state: torch.Tensor, given: torch.Tensor, decay: torch.Tensor, writes: torch.Tensor, reads: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the tokens of a chunk read of each other and of the state before them; and the state after them."""
    decayed = decay.cumsum(dim=1)  # from the beginning of the chunk: [batch, tokens, heads]
    between = decayed[:, :, None] - decayed[:, None]  # from token s to token t: [batch, t, s, heads]
    later = torch.ones(between.shape[1:3], dtype=torch.bool, device=given.device).triu(1)
    kept = between.masked_fill(later[..., None], -torch.inf).exp()
    shares = torch.einsum("bthn,bshn->btsh", reads, writes) * kept
    out = torch.einsum("btsh,bshp->bthp", shares, given)
    out = out + torch.einsum("bthn,bhpn->bthp", reads * decayed.exp()[..., None], state)
    left = (decayed[:, -1:] - decayed).exp()
    state = state * decayed[:, -1].exp()[..., None, None] + torch.einsum(
        "bshp,bshn->bhpn", given * left[..., None], writes
    )
    return out, state


def mamba_split_conv1d_scan_combined(
    zxbcdt: torch.Tensor,
    conv1d_weight: torch.Tensor,
    conv1d_bias: torch.Tensor | None,
    dt_bias: torch.Tensor,
    A: torch.Tensor,  # noqa: N803
    D: torch.Tensor,  # noqa: N803
    chunk_size: int,
    seq_idx: torch.Tensor | None = None,
    activation: str = "silu",
    headdim: int | None = None,
    ngroups: int = 1,
    norm_before_gate: bool = True,
) -> torch.Tensor:
    """The whole of a layer between its projections, of [batch, tokens, all of z, x, B, C and dt] in that order.

    Raises NotImplementedError for another activation.
    """
    if activation not in ("silu", "swish"):
        raise NotImplementedError(f"activation {activation} has no stand-in")
    heads = A.shape[0]
    width = headdim or D.shape[1]
    inner = heads * width
    z, convolved, dt = torch.split(zxbcdt, [inner, conv1d_weight.shape[0], heads], dim=-1)
    tokens, taps = convolved.shape[1], conv1d_weight.shape[1]
    weight = conv1d_weight[:, None]
    convolved = functional.conv1d(convolved.transpose(1, 2), weight, conv1d_bias, padding=taps - 1, groups=len(weight))[
        ..., :tokens
    ]
    x, written, read = (
        functional.silu(convolved).transpose(1, 2).tensor_split((inner, inner + (len(weight) - inner) // 2), dim=-1)
    )

    def spread(one: torch.Tensor, over: int) -> torch.Tensor:
        return one.reshape(*one.shape[:-1], over, -1)

    y = mamba_chunk_scan_combined(
        spread(x, heads),
        dt,
        A,
        spread(written, ngroups),
        spread(read, ngroups),
        chunk_size,
        D=D,
        z=spread(z, heads),
        dt_bias=dt_bias,
        seq_idx=seq_idx,
        dt_softplus=True,
    )
    return torch.as_tensor(y).flatten(-2)
