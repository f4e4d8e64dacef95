"""What every rank of a job does around the process that does its work: prepare, run it, wait for the others, verify.

Nothing heavy is imported here: the work has a process of its own, a script of NVIDIA's or our own bridge engine.
"""

import os
import re
import shlex
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.engines import outputs as out
from scripts.engines.child import LOG_BYTES, Ended, Output, SilentError, last_words, run_child
from scripts.run.files import write_json
from scripts.run.problems import JobError
from scripts.run.record import Follower, Record, read_json

_WAIT_SECONDS = 1800.0  # as long as torch's own store waits
_PREPARE_SECONDS = 600.0  # ranks start together, but for what a slow file system makes of their imports
_PREPARED = "prepared.json"
#: Ranks other than 0 share the launcher's log with it, and say the same.
_OTHER_LOG_BYTES = 8 << 20
_SHOWN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "CUDA_VISIBLE_DEVICES")
#: The last line of a traceback, or argparse's own word; once a process group exists torch puts [rank0] in front.
_ERROR = re.compile(
    r"^(?:\[rank\d+\]: )?((?:(?:\w+\.)*\w*(?:Error|Exception|Interrupt|Failure)\b|\S+: error: ).*)", re.MULTILINE
)


@dataclass(frozen=True, kw_only=True)
class Child:
    """The process that does one rank's work."""

    name: str  # what messages call it
    words: Sequence[str]
    env: Mapping[str, str]
    silence_minutes: float  # how long rank 0 may print nothing; 0 waits forever
    ranked: bool = True  # whether it expects to be told its rank, as torchrun tells it
    card: bool = True  # whether what it leaves for the hub gets a model card; a user's own work stays as it is
    error: Path | None = None  # where it says why it failed, in the words of run.json


def across_ranks(child: Child, outputs: Sequence[out.Output], prepare: Callable[[], None], record: Record) -> None:
    """Run `child` on this rank. Raises JobError for everything that is understood.

    Rank 0 makes room for the outputs and calls `prepare`, waits for every rank at the end, and verifies and publishes
    what is there; the others wait until it has prepared.
    """
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    ranks = record.dir / "ranks"
    if not isinstance(record, Follower):
        with record.phase("prepare"):
            out.prepare(list(outputs), record)
            prepare()
            write_json(ranks / _PREPARED, _launch())
    else:
        cause = "rank 0 had not prepared the run within {minutes:.0f} minutes."
        _wait(lambda: read_json(ranks / _PREPARED) != _launch(), _PREPARE_SECONDS, cause)
    with record.phase("run the script"):
        ended = _run(child, rank, record)
    write_json(ranks / f"{rank}.json", {"rank": rank, "host": socket.gethostname(), "seconds": ended.seconds})
    if not isinstance(record, Follower):
        cause = "ranks {missing} did not end within {minutes:.0f} minutes of rank 0."
        _wait(lambda: [one for one in range(world) if read_json(ranks / f"{one}.json") is None], _WAIT_SECONDS, cause)
        with record.phase("verify"):
            out.finish(list(outputs), record, card=child.card)


def _run(child: Child, rank: int, record: Record) -> Ended:
    env = {**child.env, **({} if "RANK" in os.environ or not child.ranked else _lone_rank())}
    logs = record.dir / "logs"
    shown = {name: env[name] for name in _SHOWN if name in env}
    write_json(logs / f"rank{rank}.command.json", {"host": socket.gethostname(), "argv": child.words, "env": shown})
    record.line(f"rank {rank}: {shlex.join(child.words)}")
    output = Output(logs / f"rank{rank}.tail.log", limit=LOG_BYTES if rank == 0 else _OTHER_LOG_BYTES)
    silence = child.silence_minutes * 60 if rank == 0 else 0
    try:
        ended = run_child(
            child.words,
            env=env,
            output=output,
            silence=silence,
            progress=lambda done, of: record.progress(done, of, "steps"),
            measured=record.measured,
        )
    except SilentError:
        cause = f"{child.name} printed nothing for {child.silence_minutes:g} minutes, and was stopped."
        raise JobError("script_hangs", cause, "Look for a rank that died, or raise script.silence_minutes.") from None
    except OSError as error:
        raise JobError("script_not_started", f"{child.name}: {error}.", "Can this Python run it?") from error
    if ended.status:
        said = read_json(child.error) if child.error else None
        if said is not None and all(isinstance(said.get(part), str) for part in ("name", "message", "remedy")):
            raise JobError(said["name"], said["message"], said["remedy"])
        raise _failure(child.name, ended)
    return ended


def _lone_rank() -> dict[str, str]:
    """What torchrun tells the only process of a job.

    Port 0: it listens on one that is free when it comes to listen, which may be half a minute of imports from here.
    One that were chosen here could be another's by then.
    """
    one = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    return one | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}


def _failure(name: str, ended: Ended) -> JobError:
    remedy = "The end of its output is in this rank's file in logs/."
    if ended.status < 0:
        cause = f"{name} was killed by signal {-ended.status}."
        if ended.status == -9:
            remedy = "SIGKILL is what the kernel does when memory runs out; look at the machine's memory."
        return JobError("script_killed", cause, remedy)
    words = last_words(ended.tail, _ERROR).rstrip(".") or "it said nothing"
    return JobError("script_failed", f"{name} ended with status {ended.status}: {words}.", remedy)


def _launch() -> dict[str, str | None]:
    """What all ranks of one launch have in common, and no other launch of the same run."""
    return {name: os.environ.get(name) for name in ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT")}


def _wait(missing: Callable[[], Any], seconds: float, cause: str) -> None:
    """Until nothing is missing. Raises JobError `rank_missing`, whose cause may say what is, and how many minutes."""
    deadline = time.monotonic() + seconds
    while found := missing():
        if time.monotonic() > deadline:
            cause = cause.format(missing=found, minutes=seconds / 60)
            raise JobError("rank_missing", cause, "Is the run directory on storage that every node shares?")
        time.sleep(0.05)
