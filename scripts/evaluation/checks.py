"""What can be wrong with the values of an evaluation by themselves."""

from collections.abc import Iterator
from importlib import util

from scripts.args.evaluate import EvaluateArgs
from scripts.args.meaning import ScriptSpec
from scripts.run.problems import JobError, Problem


def refuse_without_harness(script: ScriptSpec) -> None:
    """Raise JobError `harness_not_installed` where this Python cannot run it."""
    if script.path is None and util.find_spec("lm_eval") is None:
        cause = "the lm-evaluation-harness is not installed in this Python."
        raise JobError("harness_not_installed", cause, 'Use a container that has it, or: pip install "lm-eval>=0.4.9"')


def evaluate_problems(args: EvaluateArgs) -> Iterator[Problem]:
    """Every Problem of `args`, before anything is looked at."""
    if not args.tasks:
        yield Problem(name="no_tasks", key="args.tasks", value=[], cause="there is nothing to score")
    for task in args.tasks:
        if "," in task:
            cause = "the harness takes a comma for the end of a task's name"
            remedy = "Make each task an entry of its own; for a YAML file whose path has a comma use args.include_path."
            yield Problem(name="wrong_value", key="args.tasks", value=task, cause=cause, remedy=remedy)
    unused = {"vllm": ("parallelize", "tensor_parallel_size=2"), "hf": ("tensor_parallel_size", "parallelize=true")}
    if args.backend in unused:
        name, instead = unused[args.backend]
        value = getattr(args, name)
        if value > 1 or value is True:
            cause = f"it is not {args.backend}'s way to use several GPUs"
            remedy = f"Use args.{instead} or the like."
            yield Problem(name="not_of_this_backend", key=f"args.{name}", value=value, cause=cause, remedy=remedy)
    if args.fewshot_as_multiturn and not args.apply_chat_template:
        cause = "the turns of a chat need args.apply_chat_template=true"
        yield Problem(name="wrong_value", key="args.fewshot_as_multiturn", value=True, cause=cause)
