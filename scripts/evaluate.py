"""Entrypoint of evaluate: scores of a checkpoint, before and after what was done to it."""

from typing import TYPE_CHECKING

from scripts.algorithms import carry_out
from scripts.args.evaluate import EvaluateArgs
from scripts.args.meaning import Engine, ScriptArgs, ScriptSpec, Torchrun

if TYPE_CHECKING:
    from scripts.engines.script.command import ScriptJob
    from scripts.run.record import Record


def evaluate(
    *,
    recipe: str = "evaluate",
    engine: Engine = "auto",
    script: ScriptSpec = ScriptSpec(),
    args: ScriptArgs = EvaluateArgs(),
    torchrun: Torchrun = Torchrun(),
    extra_args: list[str] = [],  # noqa: B006 - NeMo-Run reads the default; nothing changes it
) -> None:
    """Score a checkpoint as `args` says, inside a recorded run directory; report/ holds the scores.

    Raises SystemExit with status 1 after a failure; run.json then holds the cause.
    """
    carry_out(
        "evaluate",
        recipe=recipe,
        engine=engine,
        script=script,
        args=args,
        torchrun=torchrun,
        extra_args=extra_args,
        tool=_evaluate,
    )


def _evaluate(job: "ScriptJob", record: "Record") -> None:
    from scripts.evaluation.run import score_checkpoint

    score_checkpoint(job, record)
