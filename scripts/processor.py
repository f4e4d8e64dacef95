"""What this machine computes with: its GPUs, what its processor multiplies fast, and what to do if not bfloat16."""

import ctypes
import hashlib
import math
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

#: So few rows, one token as a rule, torch multiplies without widening the matrix first, which takes longer.
_FEW_ROWS = 4
_ROWS = 1024
_MMAP_THRESHOLD, _KEPT = -3, 1 << 20
_GROUPS, _MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
_DEVICES = Path("/dev")  # NVIDIA's driver has nvidia0, nvidia1 ... there; under Windows dxg is all of them


def gpus_here() -> int | None:
    """The NVIDIA GPUs of this machine, without asking the driver; None: some, and their number is not known."""
    if (_DEVICES / "dxg").exists():
        return None
    return sum(entry.name.removeprefix("nvidia").isdigit() for entry in _DEVICES.glob("nvidia*"))


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def free_memory() -> int:
    """Bytes that this process may still take: of the machine, and of each control group that it is in (v2 alone)."""
    import psutil

    room = int(psutil.virtual_memory().available)
    with suppress(OSError):
        lines = _MEMBERSHIP.read_text(encoding="utf-8").splitlines()
        places = [_GROUPS / line.removeprefix("0::/") for line in lines if line.startswith("0::/")]
        groups = (group for place in places for group in (place, *place.parents) if group.is_relative_to(_GROUPS))
        room = int(min([room, *map(_left, groups)]))
    return max(room, 0)


def _left(group: Path) -> float:
    """Bytes of a control group's memory; pages of files count as free, as the kernel drops them."""
    try:
        most, taken, stat = (
            (group / name).read_text(encoding="ascii") for name in ("memory.max", "memory.current", "memory.stat")
        )
        files = dict(line.split() for line in stat.splitlines())
        return int(most) - int(taken) + int(files["active_file"]) + int(files["inactive_file"])
    except (OSError, ValueError, KeyError):  # the root has none, and `max` is no limit
        return math.inf


def multiplies_bf16() -> bool:
    """Whether the processor has instructions for products of bfloat16 (AVX512-BF16, AMX)."""
    import torch

    return torch.cpu._is_avx512_bf16_supported()


def computes_on(device: Any) -> str:
    """A device of torch, as far as the last bits of a product depend on it; of a CPU also the number of threads."""
    import torch

    if device.type == "cuda":
        facts = torch.cuda.get_device_properties(device)
        return f"{facts.name}, {facts.major}.{facts.minor}, {facts.multi_processor_count} multiprocessors"
    told = ""
    with suppress(OSError):
        first = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").partition("\n\n")[0]
        told = "".join(re.findall(r"^(?:model name|flags|Features)\s*:.*$", first, re.MULTILINE))
    known = hashlib.sha256(told.encode()).hexdigest()[:16]
    return f"{device.type}, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads, {known}"


def bf16_is_slow() -> bool:
    """Whether a model in bfloat16 would run on a CPU here, and the processor has no instructions for it."""
    import torch

    return not torch.cuda.is_available() and not _has_fast_kernels()


def _has_fast_kernels() -> bool:
    """Whether torch's library multiplies bfloat16 here: with AVX512 at least, fast enough without AVX512-BF16 too."""
    import torch

    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def give_memory_back() -> None:
    """From here on glibc gives the memory of a large tensor back when it is freed, where it kept up to 32 MiB of each.

    What it keeps grows with every layer of a model, as small blocks that stay lie between. Other libraries of C have
    no such word. Source: mallopt(3), M_MMAP_THRESHOLD.
    """
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, _KEPT)


@contextmanager
def bf16_products() -> Iterator[None]:
    """Products of bfloat16 tensors on the CPU go through float32 where the processor has no instructions for them.

    The result is the same but for the order in which a sum is added up: with instructions of its own, too, bfloat16 is
    accumulated in float32 and rounded once. Without them, torch takes loops that are 50 times slower than float32
    (measured on an AVX2 processor, 512 x 256 by 256 x 512: 107 ms for 2.4). CUDA tensors are left alone. For whole
    sequences: each call of torch costs a little more, which is what counts where tokens come one by one.
    """
    if _has_fast_kernels():
        yield
        return
    with _through_float32():
        yield


def _through_float32() -> Any:
    """The mode that looks at each call of torch while it is on."""
    import torch
    from torch.nn import functional
    from torch.overrides import TorchFunctionMode

    tensor = torch.Tensor
    products = {
        *(functional.linear, functional.scaled_dot_product_attention, functional.conv1d, torch.conv1d),
        *(torch.matmul, torch.mm, torch.bmm, torch.mv, torch.addmm, torch.baddbmm, torch.einsum),
        *(tensor.matmul, tensor.__matmul__, tensor.mm, tensor.bmm, tensor.mv, tensor.addmm, tensor.baddbmm),
    }

    def widened(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.float() if value.dtype is torch.bfloat16 else value
        return [widened(item) for item in value] if isinstance(value, list | tuple) else value

    def by_rows(rows: Any, weight: Any, bias: Any = None) -> Any:
        """A linear layer in float32 of some rows at a time, so that a batch of activations has no copy of its size."""
        flat, weight, bias = rows.reshape(-1, rows.shape[-1]), widened(weight), widened(bias)
        result = rows.new_empty(len(flat), len(weight))
        for at in range(0, len(flat), _ROWS):
            result[at : at + _ROWS] = functional.linear(flat[at : at + _ROWS].float(), weight, bias)
        return result.reshape(*rows.shape[:-1], len(weight))

    class ThroughFloat32(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            if func not in products or "out" in kwargs:
                return func(*args, **kwargs)
            of = next((value for value in args if isinstance(value, torch.Tensor)), None)
            if of is None or of.dtype is not torch.bfloat16 or of.device.type != "cpu":
                return func(*args, **kwargs)
            if func is functional.linear:
                if of.numel() < _FEW_ROWS * of.shape[-1]:
                    return func(*args, **kwargs)
                if not torch.is_grad_enabled():
                    return by_rows(*args, **kwargs)
            result = func(*widened(args), **{name: widened(value) for name, value in kwargs.items()})
            return result.to(torch.bfloat16)

    return ThroughFloat32()
