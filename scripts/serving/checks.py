"""What can be known before a server is started, which takes minutes."""

import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.args.serve import ServeArgs
from scripts.checkpoints import look
from scripts.checkpoints.huggingface import exported_algorithm
from scripts.formats import FORMATS
from scripts.run.files import is_folder
from scripts.run.problems import JobError, Problem
from scripts.run.provenance import compute_capabilities
from scripts.run.registry import check
from scripts.serving.servers import HOST, SERVERS, able, find_program


@dataclass(frozen=True, kw_only=True)
class Served:
    """A checkpoint as a server will get it."""

    model: str  # an absolute path or a hub name
    algorithm: str | None  # `quant_algo` of an export
    quantization: str | None  # the format, as Checkpoint says it
    method: str | None  # what the server is told of it
    doubts: tuple[str, ...] = ()  # Checkpoint's


@check("out_of_range", args=ServeArgs, where="both")
def prompts(job: Any) -> Iterator[Problem]:
    """There is something to ask."""
    if not prompts_of(job.resolved):
        yield Problem(key="args.prompts", value=job.resolved.prompts, cause="at least one prompt is needed")


@check("server_not_installed", args=ServeArgs, where="both")
def server(job: Any) -> Iterator[Problem]:
    """The machine that is to run it has the server."""
    try:
        if job.in_this_python:
            find_program(SERVERS[job.resolved.server], job.script.path)
    except JobError as error:
        key = "script.path" if job.script.path else "executor"
        yield Problem(key=key, value=job.script.path, cause=error.cause.rstrip("."), remedy=error.remedy)


def prompts_of(args: ServeArgs) -> list[str]:
    """The prompts that are not empty."""
    return [prompt for prompt in args.prompts.split("|") if prompt]


def check_checkpoint(args: ServeArgs, model: str) -> Served:
    """What the server will get. A hub name is taken as it is: the server fetches it.

    Raises JobError `unservable_checkpoint`, and those of look for what is not there or is damaged.
    """
    folder, server = Path(model), SERVERS[args.server]
    if not is_folder(folder):
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
    found, doubts = checkpoint.quantization, checkpoint.doubts
    return Served(model=model, algorithm=algorithm, quantization=found, method=method, doubts=doubts)


def check_gpus(args: ServeArgs, served: Served) -> None:
    """Raises JobError `format_needs_newer_gpu` and `too_few_gpus`, where the driver can be asked."""
    capabilities = compute_capabilities()
    if not capabilities:
        return
    if len(capabilities) < args.tensor_parallel_size:
        cause = f"args.tensor_parallel_size={args.tensor_parallel_size}, and this machine has {len(capabilities)} GPUs."
        raise JobError("too_few_gpus", cause, "Lower it, or ask for more GPUs.")
    facts = FORMATS.get(served.quantization or "")
    if facts is not None and min(capabilities) < facts.min_sm:
        cause = f"{facts.name} needs compute capability {facts.min_sm}, and this GPU has {min(capabilities)}."
        raise JobError("format_needs_newer_gpu", cause, "Use Ada, Hopper or Blackwell, or another format.")


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
