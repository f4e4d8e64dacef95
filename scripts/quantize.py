"""Entrypoint of the quantize algorithm: what a quantize recipe runs on the node."""

import dataclasses
import os

from scripts.errors import JobError
from scripts.late import resolve, run_tag
from scripts.record import Record
from scripts.session import run_job
from scripts.types import Engine, QuantizeArgs, ScriptSpec, Torchrun


def quantize(
    *,
    recipe: str = "quantize",
    engine: Engine = "auto",
    script: ScriptSpec = ScriptSpec(),
    args: QuantizeArgs = QuantizeArgs(),
    torchrun: Torchrun = Torchrun(),
    extra_args: list[str] = [],  # noqa: B006 - NeMo-Run reads the default; nothing changes it
) -> None:
    """Quantize a checkpoint as `args` says, inside a recorded run directory.

    Raises SystemExit with status 1 after a failure; run.json then holds the cause.
    """
    values = {
        "engine": engine,
        "script": dataclasses.asdict(script),
        "args": dataclasses.asdict(args),
        "torchrun": dataclasses.asdict(torchrun),
        "extra_args": list(extra_args),
    }

    def job(record: Record) -> None:
        tag = run_tag(args.hf_model_id, args.export_quant_cfg)
        resolved = resolve(dataclasses.asdict(args), run_dir=record.dir, run_tag=tag)
        record.update(engine="hf", resolved={"args": resolved})
        record.line("engine: hf (ModelOpt on a Transformers model, one process)")
        _refuse_unused(args, script, extra_args)
        from scripts.hf.engine import quantize_checkpoint

        quantize_checkpoint(QuantizeArgs(**resolved), record)

    run_job(name=recipe, algorithm="quantize", values=values, job=job)


def _refuse_unused(args: QuantizeArgs, script: ScriptSpec, extra_args: list[str]) -> None:
    """The checks of preflight that a recipe in somebody's own experiment has not been through."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1:
        cause = f"the hf engine runs as one process, not {world}."
        raise JobError("world_size_not_one", cause, "Launch it without torchrun.")
    if max(args.tp, args.pp, args.ep, args.etp) > 1:
        cause = f"tp={args.tp} pp={args.pp} ep={args.ep} etp={args.etp}, and the hf engine has no parallelism."
        raise JobError("engine_has_no_parallelism", cause, "Set them to 1.")
    if script.path is not None or extra_args:
        cause = f"script.path={script.path}, extra_args={extra_args}, and the hf engine runs no script."
        raise JobError("script_unused", cause, "Remove them.")
