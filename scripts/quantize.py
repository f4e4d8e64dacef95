"""Entrypoint of the quantize algorithm: what a quantize recipe runs on the node."""

from typing import TYPE_CHECKING

from scripts.algorithms import carry_out
from scripts.args.meaning import Engine, ScriptArgs, ScriptSpec, Torchrun
from scripts.args.quantize import QuantizeArgs

if TYPE_CHECKING:
    from scripts.engines.script.command import ScriptJob
    from scripts.run.record import Record


def quantize(
    *,
    recipe: str = "quantize",
    engine: Engine = "auto",
    script: ScriptSpec = ScriptSpec(),
    args: ScriptArgs = QuantizeArgs(),
    torchrun: Torchrun = Torchrun(),
    extra_args: list[str] = [],  # noqa: B006 - NeMo-Run reads the default; nothing changes it
) -> None:
    """Quantize a checkpoint as `args` says, inside a recorded run directory.

    Raises SystemExit with status 1 after a failure; run.json then holds the cause.
    """
    carry_out(
        "quantize",
        recipe=recipe,
        engine=engine,
        script=script,
        args=args,
        torchrun=torchrun,
        extra_args=extra_args,
        hf=_on_transformers,
    )


def _on_transformers(job: "ScriptJob", record: "Record") -> None:
    from scripts.engines.hf.engine import quantize_checkpoint

    assert isinstance(job.args, QuantizeArgs)
    quantize_checkpoint(job.args, record)
