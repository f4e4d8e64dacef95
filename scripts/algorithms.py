"""The frame of every entrypoint that has arguments: values, late values, the choice of engine, the record."""

import dataclasses
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from scripts.args.interpolation import resolve, tag_of
from scripts.args.meaning import Engine, ScriptArgs, ScriptSpec, Torchrun
from scripts.engines.script.locate import installed
from scripts.run.errors import JobError
from scripts.run.record import Record
from scripts.run.session import run_job, values_given

if TYPE_CHECKING:
    from scripts.engines.script.command import ScriptJob

Work = Callable[["ScriptJob", Record], None]
ENGINES = {"script": "script (NVIDIA's own, as it is)", "hf": "hf (ModelOpt on a Transformers model, one process)"}
_SIZES = ("tp", "pp", "ep", "etp")


def carry_out(
    algorithm: str,
    *,
    recipe: str,
    engine: Engine,
    script: ScriptSpec,
    args: ScriptArgs,
    torchrun: Torchrun,
    extra_args: list[str],
    hf: Work | None = None,
    tool: Work | None = None,
) -> None:
    """Carry out one job inside its run directory. Raises SystemExit unless it succeeded (see run_job).

    `hf` is what the hf engine does, where it can do the algorithm; `tool` is what an algorithm does that
    has no engines, because it is more than a script.
    """
    values = values_given(engine, script, args, torchrun, extra_args)

    def job(record: Record) -> None:
        from scripts.engines.script.command import ScriptJob

        resolved = type(args)(**resolve(values["args"], run_dir=record.dir, run_tag=tag_of(args)))
        record.update(resolved={"args": dataclasses.asdict(resolved)})
        work = _work(algorithm, engine, args, script, record, hf=hf, tool=tool)
        work(ScriptJob(args=resolved, script=script, extra_args=extra_args), record)

    run_job(name=recipe, algorithm=algorithm, values=values, job=job)


def _work(
    algorithm: str,
    engine: Engine,
    args: ScriptArgs,
    script: ScriptSpec,
    record: Record,
    *,
    hf: Work | None,
    tool: Work | None,
) -> Work:
    if (engine == "hf" and hf is None) or (tool is not None and engine == "hf"):
        raise JobError("engine_cannot", f"{algorithm} is not an algorithm of the hf engine.", "Use engine=auto.")
    if tool is not None:
        _refuse_ranks(f"{algorithm}, which spreads over the GPUs by itself,")
        return tool
    chosen = choose_engine(engine, args, script)
    record.update(engine=chosen)
    record.line(f"engine: {ENGINES[chosen]}")
    if chosen == "hf":
        assert hf is not None  # HF_ENGINE says so
        return _checked(hf)
    from scripts.engines.script.engine import run_script

    return run_script


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


def _checked(hf: Work) -> Work:
    """The hf engine, after the checks of preflight that a recipe in somebody's own experiment has not been through."""

    def work(job: "ScriptJob", record: Record) -> None:
        _refuse_ranks("the hf engine")
        if job.script.path is not None or job.extra_args:
            cause = f"script.path={job.script.path}, extra_args={job.extra_args}, and the hf engine runs no script."
            raise JobError("script_unused", cause, "Remove them.")
        unused = [f"args.{name}={value}" for name in _SIZES if (value := getattr(job.args, name)) not in (1, None)]
        if unused:
            record.line(f"{', '.join(unused)}: not used, the hf engine has no parallelism")
        hf(job, record)

    return work


def _refuse_ranks(who: str) -> None:
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1:
        cause = f"{who} is one process, not {world}."
        raise JobError("world_size_not_one", cause, "Set torchrun.nproc_per_node=1 and torchrun.nnodes=1.")
