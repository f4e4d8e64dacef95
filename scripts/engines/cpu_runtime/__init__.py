"""Megatron-Core, Megatron-Bridge and ModelOpt's Megatron plugins on a machine without a GPU.

    from scripts.engines import cpu_runtime
    cpu_runtime.start()                                     # before anything imports megatron
    python scripts/engines/cpu_runtime/__main__.py SCRIPT   # somebody's script, as it is

For rehearsals and tests: what a job does is done, by the libraries' own code, in one thread's time. `start` replaces,
for the process that asks for it and for nobody else:

- torch.cuda's functions by ones that do nothing, and the device "cuda" by the CPU (devices.py);
- NCCL by gloo, with the averages and shapes that gloo has not (devices.py);
- Transformer Engine and nvidia-resiliency-ext, which need CUDA to be built, by empty modules while Megatron-Bridge is
  imported; layers are Megatron-Core's local ones, without fused kernels (libraries.py), or, where a job works on
  Transformer Engine's own, those in plain torch (te_layers.py);
- mamba-ssm, while what asks for it is imported, by its scan and its norm in plain torch (mamba_layers.py);
- ModelOpt's NVFP4 kernel by the hf engine's, which rounds as ModelOpt packs (libraries.py).

It refuses a machine with a GPU and releases that it was not tried with. LIMITS is what it cannot show.
"""

from importlib import metadata

from scripts.engines.cpu_runtime import devices, libraries
from scripts.run.problems import JobError
from scripts.run.record import Record

#: What the stand-ins were written for: the beginning of each version.
RELEASES = {"megatron-bridge": "0.6.", "megatron-core": "0.19.", "nvidia-modelopt": "0.47."}
#: What a job that ran here has not shown.
LIMITS = (
    "layers and numerics of Transformer Engine and mamba-ssm: plain torch stood in",
    "NCCL: ranks talked through gloo",
    "grouped GEMM and fused kernels: experts were computed one after the other",
    "memory and speed of a GPU",
)


def start(*, te_layers: bool = False) -> None:
    """Make this process one in which Megatron runs without a GPU; again is no harm.

    `te_layers`: with Transformer Engine's layers in plain torch (te_layers.py), not Megatron-Core's local ones.
    Raises JobError `gpu_is_here` where there is a GPU, `bridge_not_installed` and `release_unknown` for packages.
    """
    refuse()
    devices.install()
    libraries.install(te_layers=te_layers)


def refuse() -> None:
    """Raise JobError for what `start` would refuse."""
    import torch

    if torch.version.cuda is not None and torch.cuda.is_available() and not devices.installed():
        raise JobError("gpu_is_here", "This machine has a GPU.", "Leave script.runtime out: the job can use it.")
    for package, begins in RELEASES.items():
        try:
            version = metadata.version(package)
        except metadata.PackageNotFoundError:
            remedy = "Run `make bridge`, with Python 3.12."
            raise JobError("bridge_not_installed", f"{package} is not installed.", remedy) from None
        if not version.startswith(begins):
            cause = f"{package} {version}: the CPU runtime was written for {begins}x."
            raise JobError("release_unknown", cause, "Install what `make bridge` installs, or use a GPU.")


def tell(record: Record) -> None:
    """Put into the record, and say, what a job that ran here has not shown."""
    record.update(not_shown=list(LIMITS))
    record.line("this machine has no GPU, and did not show:")
    for one in LIMITS:
        record.line(f"- {one}")
