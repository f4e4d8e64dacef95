"""Entrypoints of the algorithms that scripts carry out: what their recipes run on the node.

Each takes the values of its recipe, runs inside a recorded run directory, and raises SystemExit with
status 1 after a failure. They differ in name only: what a job does is in the class of its `args`.
"""

from scripts.algorithms import carry_out
from scripts.args.meaning import Engine, ScriptArgs, ScriptSpec, Torchrun


def generate(
    *, recipe: str, engine: Engine, script: ScriptSpec, args: ScriptArgs, torchrun: Torchrun, extra_args: list[str]
) -> None:
    """Continue prompts with a quantized checkpoint."""
    carry_out(
        "generate", recipe=recipe, engine=engine, script=script, args=args, torchrun=torchrun, extra_args=extra_args
    )


def export(
    *, recipe: str, engine: Engine, script: ScriptSpec, args: ScriptArgs, torchrun: Torchrun, extra_args: list[str]
) -> None:
    """Write a Megatron checkpoint as a deployable Hugging Face one."""
    carry_out(
        "export", recipe=recipe, engine=engine, script=script, args=args, torchrun=torchrun, extra_args=extra_args
    )


def prune(
    *, recipe: str, engine: Engine, script: ScriptSpec, args: ScriptArgs, torchrun: Torchrun, extra_args: list[str]
) -> None:
    """Remove the parameters of a model that matter least."""
    carry_out("prune", recipe=recipe, engine=engine, script=script, args=args, torchrun=torchrun, extra_args=extra_args)


def distill(
    *, recipe: str, engine: Engine, script: ScriptSpec, args: ScriptArgs, torchrun: Torchrun, extra_args: list[str]
) -> None:
    """Teach a student with the logits of a teacher; with a quantized student, QAD."""
    carry_out(
        "distill", recipe=recipe, engine=engine, script=script, args=args, torchrun=torchrun, extra_args=extra_args
    )


def qat(
    *, recipe: str, engine: Engine, script: ScriptSpec, args: ScriptArgs, torchrun: Torchrun, extra_args: list[str]
) -> None:
    """Train a quantized checkpoint on, with its scales frozen."""
    carry_out("qat", recipe=recipe, engine=engine, script=script, args=args, torchrun=torchrun, extra_args=extra_args)


def convert(
    *, recipe: str, engine: Engine, script: ScriptSpec, args: ScriptArgs, torchrun: Torchrun, extra_args: list[str]
) -> None:
    """Turn a checkpoint into another kind of checkpoint."""
    carry_out(
        "convert", recipe=recipe, engine=engine, script=script, args=args, torchrun=torchrun, extra_args=extra_args
    )


def evaluate(
    *, recipe: str, engine: Engine, script: ScriptSpec, args: ScriptArgs, torchrun: Torchrun, extra_args: list[str]
) -> None:
    """Score a checkpoint on tasks of a harness."""
    carry_out(
        "evaluate", recipe=recipe, engine=engine, script=script, args=args, torchrun=torchrun, extra_args=extra_args
    )


def finetune(
    *, recipe: str, engine: Engine, script: ScriptSpec, args: ScriptArgs, torchrun: Torchrun, extra_args: list[str]
) -> None:
    """Train a checkpoint with Megatron-LM, with a teacher where there is one."""
    carry_out(
        "finetune", recipe=recipe, engine=engine, script=script, args=args, torchrun=torchrun, extra_args=extra_args
    )


def validate(
    *, recipe: str, engine: Engine, script: ScriptSpec, args: ScriptArgs, torchrun: Torchrun, extra_args: list[str]
) -> None:
    """Measure how many draft tokens a speculative model has accepted."""
    carry_out(
        "validate", recipe=recipe, engine=engine, script=script, args=args, torchrun=torchrun, extra_args=extra_args
    )
