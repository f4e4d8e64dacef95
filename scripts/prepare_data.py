"""Entrypoint of prepare_data: text becomes the binary data that Megatron trains on."""

from typing import TYPE_CHECKING

from scripts.algorithms import carry_out
from scripts.args.data import PrepareDataArgs
from scripts.args.meaning import Engine, ScriptArgs, ScriptSpec, Torchrun

if TYPE_CHECKING:
    from scripts.engines.script.command import ScriptJob
    from scripts.run.record import Record


def prepare_data(
    *,
    recipe: str = "prepare_data",
    engine: Engine = "auto",
    script: ScriptSpec = ScriptSpec(),
    args: ScriptArgs = PrepareDataArgs(),
    torchrun: Torchrun = Torchrun(),
    extra_args: list[str] = [],  # noqa: B006 - NeMo-Run reads the default; nothing changes it
) -> None:
    """Tokenize what `args` names, inside a recorded run directory.

    report/report.json says how much data it became, and what a training takes as `data_paths`. Raises
    SystemExit with status 1 after a failure; run.json then holds the cause.
    """
    carry_out(
        "prepare_data",
        recipe=recipe,
        engine=engine,
        script=script,
        args=args,
        torchrun=torchrun,
        extra_args=extra_args,
        tool=_prepare,
    )


def _prepare(job: "ScriptJob", record: "Record") -> None:
    from scripts.data.run import prepare

    prepare(job, record)
