"""Arguments of `probe`."""

from dataclasses import dataclass
from typing import ClassVar

from scripts.args.meaning import ScriptArgs, doc


@dataclass(frozen=True, kw_only=True)
class ProbeArgs(ScriptArgs):
    """What `probe` does: the cheapest job that goes all the way, to try an executor with."""

    TAKES_WORDS: ClassVar[bool] = False

    message: str = doc("text that comes back in report/probe.json exactly as it was given", "hello")
    seconds: float = doc("how long every rank stays, to watch, follow or cancel it", 0.0)
    exit_code: int = doc("0 succeeds; anything else fails with it, on `fail_rank`", 0)
    fail_rank: int = doc("the rank that fails", 0)
    fail_attempts: int = doc("fail only in this many attempts, then succeed; 0 fails in every one", 0)
    communicate: bool = doc("with several ranks: add their numbers up (NCCL with GPUs, else Gloo)", True)
