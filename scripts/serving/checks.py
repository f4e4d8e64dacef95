"""What can be known before a server is started, which takes minutes."""

import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from scripts.args.serve import ServeArgs
from scripts.checkpoints import look
from scripts.checkpoints.huggingface import exported_algorithm
from scripts.formats import FORMATS
from scripts.run.problems import JobError, Problem
from scripts.run.provenance import compute_capabilities
from scripts.serving.servers import HOST, SERVERS, able


@dataclass(frozen=True, kw_only=True)
class Served:
    """A checkpoint as a server will get it."""

    model: str  # an absolute path or a hub name
    algorithm: str | None  # `quant_algo` of an export
    quantization: str | None  # the format, as Checkpoint says it
    method: str | None  # what the server is told of it


def serve_problems(args: ServeArgs) -> Iterator[Problem]:
    """Every Problem of the values by themselves."""
    if not args.checkpoint:
        yield Problem(name="missing_input", key="args.checkpoint", value=None, cause="it is not set: what to serve")
    if not prompts_of(args):
        yield Problem(
            name="out_of_range", key="args.prompts", value=args.prompts, cause="at least one prompt is needed"
        )
    for name in ("tensor_parallel_size", "max_tokens"):
        if getattr(args, name) < 1:
            yield Problem(
                name="out_of_range", key=f"args.{name}", value=getattr(args, name), cause="at least 1 is needed"
            )
    if args.port is not None and not 0 < args.port < 1 << 16:
        yield Problem(name="out_of_range", key="args.port", value=args.port, cause="ports are 1 to 65535")


def prompts_of(args: ServeArgs) -> list[str]:
    """The prompts that are not empty."""
    return [prompt for prompt in args.prompts.split("|") if prompt]


def check_checkpoint(args: ServeArgs, model: str) -> Served:
    """What the server will get. A hub name is taken as it is: the server fetches it.

    Raises JobError `unservable_checkpoint`, and those of look for what is not there or is damaged.
    """
    folder, server = Path(model), SERVERS[args.server]
    if not folder.is_dir():
        if folder.is_absolute() or model.startswith((".", "~")) or model.count("/") != 1:
            look(folder)  # says what is wrong
        method = None if args.quantization in ("auto", "none") else args.quantization
        return Served(model=model, algorithm=None, quantization=None, method=method)
    checkpoint = look(folder)
    if checkpoint.kind != "checkpoint_hf":
        cause = f"{folder} is a {checkpoint.kind}; servers load Hugging Face checkpoints."
        raise JobError("unservable_checkpoint", cause, "Export or convert it first, or merge it into its base.")
    if checkpoint.problems:
        raise JobError("unservable_checkpoint", f"{folder}: {' '.join(checkpoint.problems)}", "Export it again.")
    algorithm = exported_algorithm(folder)
    if algorithm is not None and algorithm not in server.formats:
        others = [SERVERS[name].title for name in SERVERS if name in able(algorithm)]
        remedy = f"{' and '.join(others)} can." if others else "No server that is known here can: use another format."
        raise JobError("unservable_checkpoint", f"{server.title} cannot load {algorithm} of ModelOpt.", remedy)
    told = server.formats[algorithm] if algorithm else None
    method = {"auto": told, "none": None}.get(args.quantization, args.quantization)
    return Served(model=model, algorithm=algorithm, quantization=checkpoint.quantization, method=method)


def check_gpus(args: ServeArgs, served: Served) -> None:
    """Raises JobError `gpu_too_old` and `too_few_gpus`, where the driver can be asked."""
    capabilities = compute_capabilities()
    if not capabilities:
        return
    if len(capabilities) < args.tensor_parallel_size:
        cause = f"args.tensor_parallel_size={args.tensor_parallel_size}, and this machine has {len(capabilities)} GPUs."
        raise JobError("too_few_gpus", cause, "Lower it, or ask for more GPUs.")
    facts = FORMATS.get(served.quantization or "")
    if facts is not None and min(capabilities) < facts.min_sm:
        cause = f"{facts.name} needs compute capability {facts.min_sm}, and this GPU has {min(capabilities)}."
        raise JobError("gpu_too_old", cause, "Use Ada, Hopper or Blackwell, or another format.")


def choose_port(port: int | None) -> int:
    """`port`, or a free one. Raises JobError `port_in_use`."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a connection that has just ended is no server
        try:
            probe.bind((HOST, port or 0))
        except OSError as error:
            cause = f"args.port={port}: {error.strerror or error}."
            raise JobError("port_in_use", cause, "Stop who listens there, or leave args.port out.") from error
        return int(probe.getsockname()[1])
