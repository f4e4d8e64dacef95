"""What carries a job out where `engine=auto` leaves it open; asked by the submitting machine and by the node."""

import os
from collections.abc import Callable
from typing import Literal

from scripts.args.meaning import Engine, ScriptArgs, ScriptSpec, value_of
from scripts.run.problems import JobError

Chosen = Literal["script", "hf", "bridge"]
TITLES: dict[Chosen, str] = {
    "script": "script (NVIDIA's own, as it is)",
    "hf": "hf (ModelOpt on a Transformers model)",
    "bridge": "bridge (Megatron-Bridge and ModelOpt, as installed)",
}


def choose_engine(
    asked: Engine, args: ScriptArgs, script: ScriptSpec, *, has_script: Callable[[], bool]
) -> Chosen | None:
    """The script that was named or that the place has, else ModelOpt itself where it can; None: nothing to choose.

    The bridge engine is taken where it is asked for.

    `has_script` says whether the place has, or will have, one of the algorithm's scripts; it is asked last.
    """
    if not (args.SCRIPTS or args.HF_ENGINE):
        return None
    if asked != "auto":
        return asked
    if not args.SCRIPTS:
        return "hf"
    if not args.HF_ENGINE or script.path is not None or script.release is not None:
        return "script"
    if is_built_in(value_of(args, "model")):
        return "hf"
    return "script" if has_script() else "hf"


def can_run(kind: type[ScriptArgs], engine: str) -> bool:
    """Whether an engine carries out what arguments of that class ask for, wherever it is."""
    return {"script": bool(kind.SCRIPTS), "hf": kind.HF_ENGINE, "bridge": bool(kind.BRIDGE)}.get(
        engine, bool(kind.SCRIPTS)
    )


def is_built_in(model: object) -> bool:
    """Whether that is a model which ships as code, for the hf engine."""
    return isinstance(model, str) and model.startswith("tiny:")


#: Why a search is one process.
SEARCH = "a search for formats compares the losses of whole passes"


def refuse_ranks(who: str) -> None:
    """Raise JobError `world_size_not_one` where `who`, which is one process, was started as several."""
    if (world := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
        cause = f"{who} is one process, not {world}."
        raise JobError("world_size_not_one", cause, "Set torchrun.nproc_per_node=1 and torchrun.nnodes=1.")
