"""The frame of every entrypoint that has a script: values, late values, the choice of engine, the record."""

import dataclasses
import os
from collections.abc import Callable
from typing import Any, Literal

from scripts.errors import JobError
from scripts.late import resolve, tag_of
from scripts.record import Record
from scripts.script.locate import installed
from scripts.session import run_job
from scripts.types import Engine, ScriptArgs, ScriptSpec, Torchrun

_SIZES = ("tp", "pp", "ep", "etp")
HfEngine = Callable[[Any, Record], None]


def carry_out(
    algorithm: str,
    *,
    recipe: str,
    engine: Engine,
    script: ScriptSpec,
    args: ScriptArgs,
    torchrun: Torchrun,
    extra_args: list[str],
    hf: HfEngine | None = None,
) -> None:
    """Carry out one job inside its run directory. Raises SystemExit unless it succeeded (see run_job)."""
    given = dataclasses.asdict(args)
    values = {
        "engine": engine,
        "script": dataclasses.asdict(script),
        "args": given,
        "torchrun": dataclasses.asdict(torchrun),
        "extra_args": list(extra_args),
    }

    def job(record: Record) -> None:
        resolved = type(args)(**resolve(given, run_dir=record.dir, run_tag=tag_of(args)))
        chosen = choose_engine(engine, args, script)
        record.update(engine=chosen, resolved={"args": dataclasses.asdict(resolved)})
        record.line(f"engine: {ENGINES[chosen]}")
        if chosen == "script":
            from scripts.script.command import ScriptJob
            from scripts.script.engine import run_script

            run_script(ScriptJob(args=resolved, script=script, extra_args=extra_args), record)
        elif hf is None:
            cause = f"{algorithm} is not an algorithm of the hf engine."
            raise JobError("engine_cannot", cause, "Use engine=script.")
        else:
            _refuse_unused(script, extra_args)
            unused = [f"args.{name}={value}" for name in _SIZES if (value := getattr(args, name)) != 1]
            if unused:
                record.line(f"{', '.join(unused)}: not used, the hf engine has no parallelism")
            hf(resolved, record)

    run_job(name=recipe, algorithm=algorithm, values=values, job=job)


ENGINES = {"script": "script (NVIDIA's own, as it is)", "hf": "hf (ModelOpt on a Transformers model, one process)"}


def choose_engine(engine: Engine, args: ScriptArgs, script: ScriptSpec) -> Literal["script", "hf"]:
    """What `auto` stands for here: the script that was named or is installed, else ModelOpt itself where it can."""
    if engine != "auto":
        return engine
    if not args.HF_ENGINE:
        return "script"
    model = getattr(args, "hf_model_id", "")
    if script.path is None and (model.startswith("tiny:") or not installed(args.SCRIPTS)):
        return "hf"
    return "script"


def _refuse_unused(script: ScriptSpec, extra_args: list[str]) -> None:
    """The checks of preflight that a recipe in somebody's own experiment has not been through."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1:
        cause = f"the hf engine runs as one process, not {world}."
        raise JobError("world_size_not_one", cause, "Launch it without torchrun.")
    if script.path is not None or extra_args:
        cause = f"script.path={script.path}, extra_args={extra_args}, and the hf engine runs no script."
        raise JobError("script_unused", cause, "Remove them.")
