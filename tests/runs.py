"""Runs that are recorded by hand, and our commands about them in this process."""

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import typer
from typer.testing import CliRunner, Result

from executors.base import SchedulerJob
from executors.local import LocalProfile
from recipes import find
from recipes.cli import commands
from recipes.experiment.job import serialized
from recipes.experiment.store import RunFolder
from scripts.run.identity import identity
from scripts.run.record import Record
from tests.jobs import submitted

#: A process of this machine that has ended.
GONE = {**identity(), "pid": 2**22 + 1}


def recorded(home: Path, run_id: str, *, ended: bool = True) -> Path:
    """The folder of a local run that failed; or one of which nobody has said how it ended."""
    folder = RunFolder(dir=home / "runs" / run_id)
    record = Record.submit(folder.dir, id=run_id, recipe="probe", algorithm="probe", values={"args": {}})
    if ended:
        record.finish("failed", {"name": "told_to_fail", "message": "m", "remedy": "r"})
    else:
        record.update(process=GONE, state="running", started_at=record.values["submitted_at"])
    job = SchedulerJob(run_id=run_id, id="local_persistent://x/y", run_dir=str(folder.dir), folder="/f")
    submitted(folder, LocalProfile(), scheduled=job, settled=ended, supervisor=GONE)
    folder.partial.write_text(_recipe())
    (folder.dir / "logs").mkdir()
    (folder.dir / "logs" / "rank0.log").write_text("a line\n")
    return folder.dir


#: Size in MB, KL divergence, perplexity of one whose own is 10.
FIGURES = {
    "fp8": (50, 0.001, 10.01),
    "int8_sq": (50, 0.002, 10.02),  # as large as fp8, and worse
    "nvfp4": (30, 0.02, 10.3),
    "int4_awq": (29, 0.01, 10.09),
    "w4a8_awq": (28, 0.03, 10.2),
}


def quantized(home: Path, fmt: str, report: dict[str, Any] | None = None, **args: Any) -> str:
    """A run of `quantize` with a report, as it would have recorded itself."""
    size, kl, perplexity = FIGURES[fmt]
    run_id = f"sizes-{fmt}_0101-0000-{len(fmt):06x}"
    folder = home / "runs" / run_id
    values = {"engine": "hf", "args": {"hf_model_id": "tiny:qwen3", "export_quant_cfg": fmt, "calib_size": 16, **args}}
    record = Record.submit(folder, id=run_id, recipe="quantize", algorithm="quantize", values=values)
    record.finish("succeeded")
    record.update(started_at="2026-01-01T00:00:00+00:00", finished_at="2026-01-01T00:01:02+00:00")
    scores = {"source": "held", "samples": 8, "tokens": 4000, "perplexity_base": 10.0, "kl_divergence": kl}
    found = {
        "model": "tiny:qwen3",
        "evaluation": scores | {"perplexity_quantized": perplexity, "top1_agreement": 0.97},
        "size": {"base_bytes": 100_000_000, "export_bytes": size * 1_000_000},
    }
    (folder / "report").mkdir()
    (folder / "report" / "report.json").write_text(json.dumps(found | (report or {})))
    return run_id


@contextmanager
def in_time(seconds: float = 5) -> Iterator[None]:
    def late(*_: object) -> None:
        raise TimeoutError(f"took longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@cache
def _recipe() -> str:
    return serialized(find("probe").build())


class Shell:
    """Our commands, each of which must end soon."""

    def __init__(self) -> None:
        self._app = typer.Typer()
        commands.register(self._app)

    def __call__(self, *words: str, seconds: float = 5) -> Result:
        with in_time(seconds):
            return CliRunner().invoke(self._app, words)
