"""Mamba-2's scan in chunks against the recurrence that it stands for, token by token."""

from typing import Any

import pytest

pytestmark = pytest.mark.integration


def told(tokens: int) -> dict[str, Any]:
    """Four heads of two groups."""
    import torch

    draw = torch.Generator().manual_seed(tokens)

    def random(*shape: int) -> Any:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    return {
        **{"x": random(2, tokens, 4, 8), "dt": random(2, tokens, 4), "A": -random(4).exp()},
        **{"B": random(2, tokens, 2, 5), "C": random(2, tokens, 2, 5), "D": random(4), "z": random(2, tokens, 4, 8)},
        **{"dt_bias": random(4), "dt_softplus": True, "initial_states": random(2, 4, 8, 5)},
    }


def one_by_one(x: Any, dt: Any, A: Any, B: Any, C: Any, D: Any, z: Any, dt_bias: Any, state: Any) -> Any:  # noqa: N803
    """h = exp(dt A) h + dt B x; y = C h + D x, let through by silu(z)."""
    import torch
    from torch.nn import functional

    step, outputs = functional.softplus(dt + dt_bias), []
    for at in range(x.shape[1]):
        writes, reads = (one[:, at].repeat_interleave(2, dim=1) for one in (B, C))
        added = step[:, at, :, None, None] * x[:, at, :, :, None] * writes[:, :, None]
        state = state * (step[:, at] * A).exp()[:, :, None, None] + added
        out = (state * reads[:, :, None]).sum(-1) + D[:, None] * x[:, at]
        outputs.append(out * functional.silu(z[:, at]))
    return torch.stack(outputs, dim=1), state


@pytest.mark.parametrize(("tokens", "chunk"), [(1, 4), (8, 4), (11, 4), (11, 64)])
def test_chunks_are_the_recurrence(tokens: int, chunk: int) -> None:
    from scripts.engines.cpu_runtime.mamba_layers import mamba_chunk_scan_combined

    values = told(tokens)
    found, state = mamba_chunk_scan_combined(chunk_size=chunk, return_final_states=True, **values)
    named = {name: values[name] for name in ("x", "dt", "A", "B", "C", "D", "z", "dt_bias")}
    expected, last = one_by_one(**named, state=values["initial_states"])
    assert found.dtype == values["x"].dtype
    assert found.float().allclose(expected.float(), rtol=1e-4, atol=1e-4)
    assert state.allclose(last.float(), rtol=1e-4, atol=1e-4)


def test_it_can_be_trained_through() -> None:
    """Also where a chunk's decay is beyond what an exponential holds."""
    from scripts.engines.cpu_runtime.mamba_layers import mamba_chunk_scan_combined

    values = told(9)
    values["A"] = values["A"] * 200
    values["x"].requires_grad_()
    values["dt"].requires_grad_()
    mamba_chunk_scan_combined(chunk_size=8, **values).sum().backward()
    assert values["x"].grad.isfinite().all() and values["dt"].grad.isfinite().all()


def test_packed_sequences_are_refused() -> None:
    import torch

    from scripts.engines.cpu_runtime.mamba_layers import mamba_chunk_scan_combined

    with pytest.raises(NotImplementedError, match="packed"):
        mamba_chunk_scan_combined(chunk_size=4, seq_idx=torch.zeros(2, 3), **told(3))


@pytest.mark.parametrize("before", [True, False])
def test_a_gated_norm_is_of_each_group(before: bool) -> None:
    import torch
    from torch.nn import functional

    from scripts.engines.cpu_runtime.mamba_layers import RMSNorm

    x, z = torch.randn(3, 12), torch.randn(3, 12)
    norm = RMSNorm(12, eps=1e-6, group_size=4, norm_before_gate=before)
    torch.nn.init.normal_(norm.weight)
    gate = functional.silu(z)
    given = x if before else x * gate
    groups = given.view(3, 3, 4)
    normed = (groups / (groups.square().mean(-1, keepdim=True) + 1e-6).sqrt()).view(3, 12) * norm.weight
    assert norm(x, z).allclose(normed * gate if before else normed, atol=1e-5)
