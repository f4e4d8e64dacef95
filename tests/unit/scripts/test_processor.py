"""Products of bfloat16 on a processor without instructions for it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from scripts import processor  # noqa: E402

Product = Callable[[Any, Any], Any]


@pytest.mark.parametrize(
    "product",
    [
        torch.nn.functional.linear,
        lambda x, w: x @ w.T,
        lambda x, w: torch.addmm(torch.zeros(x.shape[0], w.shape[0], dtype=x.dtype), x, w.T),
        lambda x, w: torch.einsum("ij,kj->ik", x, w),
        lambda x, w: torch.nn.functional.scaled_dot_product_attention(x[None], w[None], w[None])[0],
    ],
    ids=["linear", "matmul", "addmm", "einsum", "attention"],
)
@pytest.mark.parametrize("rows", [1, 16])
def test_a_product_is_the_one_of_float32_rounded_once(product: Product, rows: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, 64, generator=generator).bfloat16()
    w = torch.randn(32, 64, generator=generator).bfloat16()
    with processor._through_float32():
        found = product(x, w)
    assert found.dtype is torch.bfloat16
    exact = product(x.double(), w.double())
    assert torch.allclose(found.double(), exact, rtol=2**-7, atol=2**-7)


def test_a_long_batch_is_computed_in_pieces() -> None:
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(*shape, generator=generator).bfloat16() for shape in ((3, 700, 64), (32, 64)))
    bias = torch.randn(32, generator=generator).bfloat16()
    with torch.no_grad(), processor._through_float32():
        found = torch.nn.functional.linear(x, w, bias)
    assert (found.shape, found.dtype) == ((3, 700, 32), torch.bfloat16)
    exact = torch.nn.functional.linear(x.double(), w.double(), bias.double())
    assert torch.allclose(found.double(), exact, rtol=2**-7, atol=2**-7)


def test_gradients_and_other_types_are_as_ever() -> None:
    x = torch.randn(16, 64, requires_grad=True)
    with processor._through_float32():
        half = x.bfloat16()
        (half @ torch.ones(64, 8, dtype=torch.bfloat16)).sum().backward()
        assert torch.mm(torch.ones(2, 2), torch.ones(2, 2)).dtype is torch.float32
        out = torch.empty(16, 16, dtype=torch.bfloat16)
        torch.mm(half.detach(), half.detach().T, out=out)
    assert x.grad is not None
    assert torch.equal(x.grad, torch.full((16, 64), 8.0))


@pytest.mark.parametrize("fast", [True, False])
def test_only_where_the_processor_needs_it(fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    used = []
    real = processor._through_float32
    monkeypatch.setattr(processor, "_through_float32", lambda: used.append(True) or real())
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: fast, raising=False)
    with processor.bf16_products():
        pass
    assert used == ([] if fast else [True])


def test_memory_is_what_the_narrowest_control_group_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mib = 1 << 20
    for place, most, taken, files in (("job", 900, 300, 200), ("job/step", None, 0, 0), ("", 0, 0, 0)):
        (tmp_path / place).mkdir(exist_ok=True)
        if place:  # the root has no such files
            (tmp_path / place / "memory.max").write_text(f"{most * mib}\n" if most else "max\n")
            (tmp_path / place / "memory.current").write_text(f"{taken * mib}\n")
            (tmp_path / place / "memory.stat").write_text(f"active_file {files * mib}\ninactive_file {50 * mib}\n")
    (tmp_path / "membership").write_text("0::/job/step\n")
    monkeypatch.setattr(processor, "_GROUPS", tmp_path)
    monkeypatch.setattr(processor, "_MEMBERSHIP", tmp_path / "none")
    assert processor.free_memory() > 900 * mib
    monkeypatch.setattr(processor, "_MEMBERSHIP", tmp_path / "membership")
    assert processor.free_memory() == (900 - 300 + 200 + 50) * mib
