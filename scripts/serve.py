"""Entrypoint of serve: whether a server can load a checkpoint, and what it answers."""

from typing import TYPE_CHECKING

from scripts.algorithms import carry_out
from scripts.args.meaning import Engine, ScriptArgs, ScriptSpec, Torchrun
from scripts.args.serve import ServeArgs

if TYPE_CHECKING:
    from scripts.engines.script.command import ScriptJob
    from scripts.run.record import Record


def serve(
    *,
    recipe: str = "serve",
    engine: Engine = "auto",
    script: ScriptSpec = ScriptSpec(),
    args: ScriptArgs = ServeArgs(),
    torchrun: Torchrun = Torchrun(),
    extra_args: list[str] = [],  # noqa: B006 - NeMo-Run reads the default; nothing changes it
) -> None:
    """Serve a checkpoint, ask it, stop it, inside a recorded run directory; report/serve.json holds the answers.

    `script.path` names the server's program where it is not on PATH; `extra_args` are its last words. Raises
    SystemExit with status 1 after a failure; run.json then holds the cause.
    """
    carry_out(
        "serve",
        recipe=recipe,
        engine=engine,
        script=script,
        args=args,
        torchrun=torchrun,
        extra_args=extra_args,
        tool=_serve,
    )


def _serve(job: "ScriptJob", record: "Record") -> None:
    from scripts.serving.run import check_server

    check_server(job, record)
