"""What `probe` does: the cheapest job that goes all the way, to try an executor with.

Every rank says where it runs; with several ranks they add their numbers up, which fails where
they cannot reach each other.
"""

import json
import os
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from scripts.args.probe import ProbeArgs
from scripts.run.files import staged, write_json
from scripts.run.problems import JobError
from scripts.run.record import Record

_WAIT_SECONDS = 60.0
_PLACES = ("SLURM_JOB_ID", "SLURM_NODEID", "SLURM_ARRAY_TASK_ID", "LEPTON_JOB_NAME", "CUDA_VISIBLE_DEVICES")


def report(args: ProbeArgs, extra_args: Sequence[str], record: Record) -> None:
    """What one rank does: say where it runs; fail where `args` say so. Raises JobError."""
    if extra_args:
        raise JobError("extra_args_unused", f"extra_args={extra_args}, and nothing takes them.", "Remove them.")
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    record.line(f"rank {rank} of {world} on {socket.gethostname()}: {args.message}")
    with record.phase("stay"):
        began = time.monotonic()
        while (left := args.seconds - (time.monotonic() - began)) > 0:
            record.progress(round(args.seconds - left), round(args.seconds), "s")
            time.sleep(min(left, 0.5))
    attempt = len(record.values.get("attempts", [])) + 1
    if args.exit_code and rank == args.fail_rank and (not args.fail_attempts or attempt <= args.fail_attempts):
        cause = f"rank {rank} was told to fail with {args.exit_code} (attempt {attempt})."
        raise JobError("told_to_fail", cause, "Use args.exit_code=0.", exit_code=args.exit_code)
    total = _sum_of_ranks(rank, world) if world > 1 and args.communicate else None
    found = {
        "rank": rank,
        "world": world,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "python": sys.executable,
        "cwd": str(Path.cwd()),
        "code": str(Path(__file__).parent),
        "environment": {name: os.environ[name] for name in _PLACES if name in os.environ},
        "variables": sorted(os.environ),  # names only
        "message": args.message,
        "sum_of_ranks": total,
    }
    ranks = record.dir / "ranks"
    ranks.mkdir(exist_ok=True)
    write_json(ranks / f"{rank}.json", found)
    if rank == 0:
        _publish(record, ranks, world)


def _sum_of_ranks(rank: int, world: int) -> int:
    """What the ranks add up to over the network. Raises JobError `ranks_disagree`."""
    import torch
    from torch import distributed

    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if torch.cuda.is_available() else torch.device("cpu")
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        number = torch.tensor([rank], device=device)
        distributed.all_reduce(number)
        total = int(number.item())
    finally:
        distributed.destroy_process_group()
    expected = world * (world - 1) // 2
    if total != expected:
        raise JobError("ranks_disagree", f"{world} ranks add up to {total}, not {expected}.", "Look at the network.")
    return total


def _publish(record: Record, ranks: Path, world: int) -> None:
    deadline = time.monotonic() + _WAIT_SECONDS
    while len(files := sorted(ranks.glob("*.json"), key=lambda file: int(file.stem))) < world:
        if time.monotonic() > deadline:
            cause = f"{len(files)} of {world} ranks reported within {_WAIT_SECONDS:.0f} s."
            raise JobError("rank_missing", cause, "Is the run directory on storage that every node shares?")
        time.sleep(0.1)
    reports = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    folder = record.dir / "report"
    with staged(folder) as beside:
        write_json(beside / "probe.json", {"ranks": reports})
    record.artifact("probe_report", folder)
