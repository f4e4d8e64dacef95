"""Entrypoints: what the recipes of each algorithm run on the node. One frame, one table.

An entrypoint takes the values of its recipe and carries them out inside a recorded run directory: it resolves what is
only true on the node, chooses the engine, and raises SystemExit with status 1 after a failure; run.json then holds the
cause. Entrypoints differ in the row of ALGORITHMS that they carry out, and in the class of their `args`.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from scripts.args import megatron_lm as mlm
from scripts.args.auto_quantize import AutoQuantizeArgs
from scripts.args.best import BestArgs
from scripts.args.convert import HfToMegatronArgs, MegatronToHfArgs, MergeLoraArgs
from scripts.args.data import PrepareDataArgs
from scripts.args.distill import DistillArgs, DistillBridgeArgs, QadArgs, QatArgs
from scripts.args.evaluate import EvaluateArgs
from scripts.args.export import ExportArgs, ExportDistilledArgs, ExportModelOptArgs
from scripts.args.generate import GenerateArgs, GenerateVllmArgs, GenerateVlmArgs
from scripts.args.interpolation import resolve_args
from scripts.args.meaning import Engine, Role, ScriptArgs, ScriptSpec, Torchrun, field_of, value_of
from scripts.args.probe import ProbeArgs
from scripts.args.program import ProgramArgs
from scripts.args.prune import PruneArgs
from scripts.args.quantize import QuantizeArgs, QuantizeModelOptArgs, QuantizeVlmArgs
from scripts.args.serve import ServeArgs
from scripts.engines.bridge.engine import run_bridge
from scripts.engines.choice import TITLES, can_run, choose_engine, refuse_ranks
from scripts.engines.script.engine import run_script
from scripts.engines.script.locate import installed
from scripts.evaluation.gate import keep_gate
from scripts.run.problems import JobError
from scripts.run.record import Follower, Record
from scripts.run.session import run_job, values_given
from scripts.stores.fetch import fetched
from scripts.stores.publish import publish, taken_up

_SIZES: tuple[Role, ...] = ("tp", "pp", "ep", "etp")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Algorithm:
    """An algorithm: its families of recipes, and what carries the first of them out besides NVIDIA's script.

    Work is a `module:function`, imported when it is done. The other families are scripts.
    """

    doc: str
    families: Mapping[str, type[ScriptArgs]]  # the class of `args` of each, by the name that its recipes begin with
    hf: str = ""  # what the hf engine does, of the arguments and the record
    tool: str = ""  # what an algorithm without engines does, because it is more than a script: one process
    command: str = ""  # the words that the tool is going to run, as far as they are known before
    ranks: str = ""  # what every rank does of the values and words as they were given, without a script
    leaves: tuple[str, ...] = ()  # artifact types that the work leaves behind and no argument names

    @property
    def args(self) -> type[ScriptArgs]:
        """The class that the work is for, whose defaults an entrypoint takes that is called without."""
        return next(iter(self.families.values()))


#: Every algorithm, by the name of its entrypoint.
ALGORITHMS = {
    "quantize": Algorithm(
        doc="Quantize a checkpoint.",
        families={
            "quantize": QuantizeArgs,
            "auto_quantize": AutoQuantizeArgs,
            "quantize_vlm": QuantizeVlmArgs,
            "quantize_modelopt": QuantizeModelOptArgs,
            "mlm_quantize": mlm.MlmQuantizeArgs,
        },
        hf="scripts.engines.hf.engine:quantize_checkpoint",
        leaves=("eval_results",),
    ),
    "best": Algorithm(
        doc="Search for the smallest mixture of formats within limits, and quantize to it.",
        families={"best": BestArgs},
        hf="scripts.engines.hf.best.rungs:find_best",
        leaves=("eval_results", "recipe"),
    ),
    "generate": Algorithm(
        doc="Continue prompts with a quantized checkpoint.",
        families={
            "generate": GenerateArgs,
            "generate_vlm": GenerateVlmArgs,
            "generate_vllm": GenerateVllmArgs,
            "mlm_generate": mlm.MlmGenerateArgs,
        },
    ),
    "export": Algorithm(
        doc="Write a Megatron checkpoint as a deployable Hugging Face one.",
        families={
            "export": ExportArgs,
            "export_modelopt": ExportModelOptArgs,
            "export_distilled": ExportDistilledArgs,
            "mlm_export": mlm.MlmExportArgs,
        },
    ),
    "prune": Algorithm(
        doc="Remove the parameters of a model that matter least (Minitron, arXiv:2407.14679).",
        families={"prune": PruneArgs, "mlm_prune": mlm.MlmPruneArgs},
    ),
    "distill": Algorithm(
        doc="Teach a student with the logits of a teacher; with a quantized student, QAD.",
        families={
            "distill": DistillArgs,
            "qad": QadArgs,
            "distill_llama": DistillBridgeArgs,
            "mlm_distill": mlm.MlmFinetuneArgs,
        },
    ),
    "qat": Algorithm(doc="Train a quantized checkpoint on, with its scales frozen.", families={"qat": QatArgs}),
    "convert": Algorithm(
        doc="Turn a checkpoint into another kind of checkpoint.",
        families={
            "hf_to_megatron": HfToMegatronArgs,
            "megatron_to_hf": MegatronToHfArgs,
            "merge_lora": MergeLoraArgs,
            "mlm_convert": mlm.MlmConvertArgs,
        },
    ),
    "finetune": Algorithm(
        doc="Train a checkpoint with Megatron-LM, with a teacher where there is one.",
        families={"mlm_finetune": mlm.MlmFinetuneArgs},
    ),
    "validate": Algorithm(
        doc="Measure how many draft tokens a speculative model has accepted.",
        families={"mlm_validate": mlm.MlmValidateArgs},
    ),
    "evaluate": Algorithm(
        doc="Score a checkpoint on tasks of a harness; report/ holds the scores.",
        families={"evaluate": EvaluateArgs, "mlm_mmlu": mlm.MlmMmluArgs},
        tool="scripts.evaluation.run:score_checkpoint",
        command="scripts.evaluation.run:expected_command",
        leaves=("eval_results",),
    ),
    "serve": Algorithm(
        doc="Serve a checkpoint, ask it, and stop it; report/serve.json holds the answers.\n\n"
        "`script.path` names the server's program where it is not on PATH; `extra_args` are its last words.",
        families={"serve": ServeArgs},
        tool="scripts.serving.run:check_server",
        command="scripts.serving.run:expected_command",
        leaves=("eval_results",),
    ),
    "prepare_data": Algorithm(
        doc="Tokenize text; report/report.json says how much data it became, and what training takes as `data_paths`.",
        families={"prepare_data": PrepareDataArgs},
        tool="scripts.data.run:prepare",
    ),
    "program": Algorithm(
        doc="Run a program of yours, and look at what it leaves: a stage of a pipeline that no recipe has.",
        families={"program": ProgramArgs},
        ranks="scripts.engines.users_program:run_program",
    ),
    "probe": Algorithm(
        doc="Report from every rank; fail where `args` say so.",
        families={"probe": ProbeArgs},
        ranks="scripts.probe:report",
        leaves=("probe_report",),
    ),
}


@cache
def entrypoint(name: str) -> Callable[..., None]:
    """The function that a Partial names: importable as scripts.entrypoints.NAME, with the signature of all of them."""

    def function(
        *,
        recipe: str = name,
        engine: Engine = "auto",
        script: ScriptSpec = ScriptSpec(),
        args: ScriptArgs = ALGORITHMS[name].args(),
        torchrun: Torchrun = Torchrun(),
        extra_args: list[str] = [],  # noqa: B006 - NeMo-Run reads the default; nothing changes it
    ) -> None:
        values = values_given(engine, script, args, torchrun, extra_args)

        def job(record: Record) -> None:
            _carry_out(name, engine=engine, script=script, args=args, extra_args=extra_args, record=record)

        run_job(name=recipe, algorithm=name, values=values, job=job)

    function.__name__ = function.__qualname__ = name
    function.__doc__ = ALGORITHMS[name].doc
    return function


def __getattr__(name: str) -> Callable[..., None]:
    """The entrypoint of an algorithm of the table (PEP 562)."""
    if name not in ALGORITHMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return entrypoint(name)


#: Where version 0.1 kept what the recipes in its run folders name, and where that is now.
_MOVED = {
    **{(f"scripts.{name}", name): __name__ for name in ("quantize", "evaluate", "serve", "prepare_data", "probe")},
    **dict.fromkeys([("scripts.types", "ScriptSpec"), ("scripts.types", "Torchrun")], "scripts.args.meaning"),
}


def current(document: Any) -> Any:
    """A recipe as Fiddle writes it in JSON, with today's modules for those that an older run folder names."""
    if isinstance(document, list):
        return [current(item) for item in document]
    if not isinstance(document, dict):
        return document
    if document.get("type") == "pyref":
        return document | {"module": _MOVED.get((document["module"], document["name"]), document["module"])}
    return {key: current(value) for key, value in document.items()}


def _carry_out(
    name: str, *, engine: Engine, script: ScriptSpec, args: ScriptArgs, extra_args: list[str], record: Record
) -> None:
    """Resolve what is only true here, do the work, publish and judge what came of it where the job has to."""
    is_made = taken_up(record)
    if ALGORITHMS[name].ranks:
        if not is_made:
            _loaded(ALGORITHMS[name].ranks)(args, extra_args, record)
        publish(record)
        return
    resolved = resolve_args(args, run_dir=record.dir)
    if not is_made:
        record.update(resolved={"args": dataclasses.asdict(resolved)})
        _work(name, engine, script, fetched(resolved, record), extra_args, record)
    publish(record)
    if not isinstance(record, Follower):
        keep_gate(value_of(resolved, "gate"), record)


def _work(
    name: str, engine: Engine, script: ScriptSpec, resolved: ScriptArgs, extra_args: list[str], record: Record
) -> None:
    """By the engine that was asked for, or is here."""
    args, algorithm = resolved, ALGORITHMS[name]
    if engine == "hf" and not (algorithm.hf and args.HF_ENGINE):
        raise JobError("engine_cannot", f"{name} is not an algorithm of the hf engine.", "Use engine=auto.")
    if algorithm.tool and isinstance(args, algorithm.args):
        refuse_ranks(f"{name}, which spreads over the GPUs by itself,")
        _loaded(algorithm.tool)(resolved, script, extra_args, record)
        return
    if engine != "auto" and not can_run(type(args), engine):
        raise JobError("engine_cannot", f"the {engine} engine cannot do what is asked of {name}.", "Use engine=auto.")
    chosen = choose_engine(engine, args, script, has_script=lambda: installed(args.SCRIPTS)) or "script"
    record.update(engine=chosen)
    record.line(f"engine: {TITLES[chosen]}")
    if chosen == "script":
        run_script(resolved, script, extra_args, record)
        return
    if chosen == "bridge":
        run_bridge(resolved, script, record)
        return
    # The checks of preflight that a recipe in somebody's own experiment has not been through.
    if script.path is not None or extra_args:
        cause = f"script.path={script.path}, extra_args={extra_args}, and the hf engine runs no script."
        raise JobError("script_unused", cause, "Remove them.")
    sizes = [(field_of(resolved, size), value_of(resolved, size, 1)) for size in _SIZES]
    unused = [f"args.{field}={value}" for field, value in sizes if value != 1]
    if unused:
        record.line(f"{', '.join(unused)}: not used, the hf engine has no parallelism")
    _loaded(algorithm.hf)(resolved, record)


def tool_command(
    name: str, args: ScriptArgs, script: ScriptSpec, extra_args: Sequence[str], run_dir: Path, *, here: bool
) -> tuple[str, ...] | None:
    """What an algorithm's tool is going to run, of resolved `args`; `<...>` is known on the node only.

    `here`: on this machine, in this Python.
    """
    algorithm = ALGORITHMS[name]
    if not algorithm.command or not isinstance(args, algorithm.args):
        return None
    return tuple(_loaded(algorithm.command)(args, script, extra_args, run_dir, here=here))


def _loaded(work: str) -> Callable[..., Any]:
    """The function that `module:function` names. Engines and tools are slow to import, and a job needs one of them."""
    module, _, name = work.partition(":")
    function: Callable[..., Any] = getattr(import_module(module), name)
    return function
