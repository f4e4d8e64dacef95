"""What is wrong with the values of prepare_data, evaluate and serve by themselves: as the node sees it, but here."""

from collections.abc import Iterator

from recipes.spec import Spec
from scripts.args.data import PrepareDataArgs
from scripts.args.evaluate import EvaluateArgs
from scripts.args.serve import ServeArgs
from scripts.problems import Problem


def tool_checks(spec: Spec) -> Iterator[Problem]:
    """Every Problem of a tool's own values; none for what is no tool."""
    args = spec.resolved
    if isinstance(args, PrepareDataArgs):
        from scripts.data.sources import source_problems

        yield from source_problems(args)
    elif isinstance(args, EvaluateArgs):
        from scripts.evaluation.checks import evaluate_problems

        yield from evaluate_problems(args)
    elif isinstance(args, ServeArgs):
        from scripts.serving.checks import serve_problems

        yield from (problem for problem in serve_problems(args) if problem.name != "missing_input")


def tool_notes(spec: Spec) -> Iterator[str]:
    """Named warnings: what a score must not be taken for."""
    if isinstance(spec.args, EvaluateArgs) and spec.args.limit is not None:
        yield f"limited_run_used_as_quality_signal: {spec.args.limit:g} of each task's questions shows that it runs"
