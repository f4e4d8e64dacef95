"""torch.cuda and NCCL, as code written for a GPU uses them, on a CPU."""

import contextlib
import functools
import os
import types
from collections import defaultdict
from collections.abc import Callable
from typing import Any

#: What a machine without a GPU says of its one device, where code asks. Compute capability 8.0 has no FP8 kernels.
_CAPABILITY = (8, 0)
_MEMORY_BYTES = 1 << 34
_DEVICES = 8
_done = False


def installed() -> bool:
    """Whether this process has the stand-ins."""
    return _done


def install() -> None:
    """Replace them, once."""
    global _done
    if _done:
        return
    _done = True
    import torch._dynamo.trace_rules

    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")  # asked for by Megatron with tensor parallelism
    torch._dynamo.trace_rules.get_torch_obj_rule_map()  # by identity: before anything in torch.cuda is another object
    compiled: Any = _not_compiled
    torch.compile = compiled
    _replace_cuda()
    _replace_devices()
    _replace_collectives()


class _Nothing:
    """A stream, an event or a context of CUDA: every method does nothing."""

    cuda_stream = 0

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __enter__(self) -> "_Nothing":
        return self

    def __exit__(self, *_: object) -> None: ...

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith("__"):
            raise AttributeError(name)
        return _nothing

    def elapsed_time(self, _: Any) -> float:
        return 0.0

    def record_event(self, event: Any = None) -> Any:
        """Of a stream: what is waited for later."""
        return event or _Nothing()

    def query(self) -> bool:
        return True


def _nothing(*_: Any, **__: Any) -> None:
    """In the place of a function whose effect is on a GPU."""


def _not_compiled(model: Any = None, **_: Any) -> Any:
    """torch.compile, as a function or a decorator: it takes longer than all that a small model computes."""
    return (lambda function: function) if model is None else model


def _always(value: Any) -> Callable[..., Any]:
    return lambda *_, **__: value


def _replace_cuda() -> None:
    import torch

    cuda: Any = torch.cuda
    cpu = torch.device("cpu")
    for name in ("set_device", "synchronize", "empty_cache", "manual_seed", "manual_seed_all", "set_stream", "init"):
        setattr(cuda, name, _nothing)
    for name in ("_lazy_init", "ipc_collect", "reset_peak_memory_stats", "reset_max_memory_allocated"):
        setattr(cuda, name, _nothing)
    for name in ("memory_allocated", "max_memory_allocated", "memory_reserved", "max_memory_reserved"):
        setattr(cuda, name, _always(0))
    for name in ("Stream", "Event", "device", "stream", "ExternalStream", "device_of"):
        setattr(cuda, name, _Nothing)
    properties = {"major": _CAPABILITY[0], "minor": _CAPABILITY[1], "name": "cpu", "total_memory": _MEMORY_BYTES}
    answers = {
        "current_device": cpu,
        "device_count": _DEVICES,
        "get_device_capability": _CAPABILITY,
        "get_device_name": "cpu",
        "get_device_properties": types.SimpleNamespace(**properties, multi_processor_count=1),
        "mem_get_info": (_MEMORY_BYTES, _MEMORY_BYTES),
        "current_stream": _Nothing(),
        "default_stream": _Nothing(),
        "cudart": _Nothing(),
    }
    for name, answer in answers.items():
        setattr(cuda, name, _always(answer))
    cuda.memory_stats = lambda *_, **__: defaultdict(int)
    cuda.get_rng_state = lambda *_, **__: torch.get_rng_state()
    cuda.set_rng_state = lambda state, *_, **__: torch.set_rng_state(state)
    cuda.random.get_rng_state, cuda.random.set_rng_state = cuda.get_rng_state, cuda.set_rng_state
    cuda.default_generators = (torch.default_generator,) * _DEVICES
    cuda.initial_seed = torch.initial_seed
    cuda.nvtx.range_push = cuda.nvtx.range_pop = _nothing
    cuda.nvtx.range = lambda *_, **__: contextlib.nullcontext()
    for name in ("Float", "Half", "BFloat16", "Long", "Int", "Double", "Byte"):
        setattr(cuda, f"{name}Tensor", getattr(torch, f"{name}Tensor"))


def _is_cuda(device: Any) -> bool:
    import torch

    if isinstance(device, torch.device):
        return device.type == "cuda"
    return isinstance(device, str) and device.split(":")[0] == "cuda"


def _replace_devices() -> None:
    """Every argument that names the device "cuda", by name, as a torch.device or as a number, means the CPU."""
    import torch
    from torch.overrides import TorchFunctionMode

    cpu = torch.device("cpu")

    class OnCpu(TorchFunctionMode):
        def __torch_function__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = dict(kwargs or {})
            if "device" in kwargs and (_is_cuda(kwargs["device"]) or isinstance(kwargs["device"], int)):
                kwargs["device"] = cpu
            if func is not torch.device and any(_is_cuda(arg) for arg in args):
                args = tuple(cpu if _is_cuda(arg) else arg for arg in args)
            return func(*args, **kwargs)

    tensor: Any = torch.Tensor
    module: Any = torch.nn.Module
    type_of = tensor.type

    def typed(self: Any, *args: Any, **kwargs: Any) -> Any:
        """Optimizers choose by names of CUDA's types; the mode above may come here a second time."""
        found = type_of(self, *args, **kwargs)
        named = isinstance(found, str) and "cuda" not in found
        return found.replace("torch.", "torch.cuda.", 1) if named else found

    tensor.cuda = module.cuda = lambda self, *_, **__: self
    tensor.type = typed
    mode: Any = OnCpu()
    mode.__enter__()  # until the process ends


def _replace_collectives() -> None:
    """gloo for NCCL; it knows no average, and takes no numbers where NCCL does."""
    import torch.distributed as dist
    from torch.distributed import distributed_c10d as c10d

    def put(name: str, function: Callable[..., Any]) -> None:
        for place in (dist, c10d):
            setattr(place, name, function)

    for name in ("init_process_group", "new_group", "new_subgroups_by_enumeration", "new_subgroups"):
        put(name, _over_gloo(getattr(c10d, name)))
    barrier, gather = c10d.barrier, c10d.all_gather_into_tensor
    put("barrier", lambda group=None, async_op=False, device_ids=None: barrier(group=group, async_op=async_op))

    def gathered(output: Any, given: Any, *args: Any, **kwargs: Any) -> Any:
        return gather(output, given.reshape(1) if given.dim() == 0 else given, *args, **kwargs)

    put("all_gather_into_tensor", gathered)
    exchange = c10d.all_to_all_single

    def exchanged(output: Any, given: Any, *splits: Any, **options: Any) -> Any:
        """Megatron-Core makes numpy arrays of the splits, and lists of those, where they are on a GPU."""
        counts = [_as_list(one) for one in splits[:2]]
        for name in ("output_split_sizes", "input_split_sizes"):
            if name in options:
                options[name] = _as_list(options[name])
        return exchange(output, given, *counts, *splits[2:], **options)

    put("all_to_all_single", exchanged)
    for name in ("all_reduce", "reduce_scatter_tensor"):
        put(name, _with_average(getattr(c10d, name)))


def _as_list(counts: Any) -> Any:
    return counts if counts is None else [int(count) for count in counts]


def _over_gloo(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if isinstance(kwargs.get("backend"), str):
            kwargs["backend"] = "gloo"
        kwargs.pop("pg_options", None)
        kwargs.pop("device_id", None)
        return function(*("gloo" if isinstance(arg, str) and "nccl" in arg else arg for arg in args), **kwargs)

    return wrapped


def _with_average(function: Callable[..., Any]) -> Callable[..., Any]:
    import torch.distributed as dist

    average = dist.ReduceOp.AVG

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        at = next((at for at, arg in enumerate(args) if isinstance(arg, type(average)) and arg == average), None)
        if at is None and kwargs.get("op") != average:
            return function(*args, **kwargs)
        if at is None:
            kwargs["op"] = dist.ReduceOp.SUM
        else:
            args = (*args[:at], dist.ReduceOp.SUM, *args[at + 1 :])
        waits = not kwargs.pop("async_op", False)
        group = kwargs.get("group") or (args[2] if len(args) > 2 else None)
        function(*args, **kwargs)
        result: Any = args[0] if args else kwargs.get("tensor", kwargs.get("output"))
        result.div_(dist.get_world_size(group))
        return None if waits else _Nothing()

    return wrapped
