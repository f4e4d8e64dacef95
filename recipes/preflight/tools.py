"""What is wrong with the values of prepare_data, evaluate and serve by themselves: as the node sees it, but here."""

from collections.abc import Iterator

from recipes.experiment.job import Job
from scripts.args.data import PrepareDataArgs
from scripts.args.evaluate import EvaluateArgs
from scripts.args.serve import ServeArgs
from scripts.run.problems import JobError, Problem
from scripts.run.registry import check


@check("no_tasks", "wrong_value", "not_of_this_backend", "one_data_source", "out_of_range", engines=("script", None))
def tool_values(job: Job) -> Iterator[Problem]:
    """Every Problem of a tool's own values; none for what is no tool."""
    args = job.resolved
    if isinstance(args, PrepareDataArgs):
        from scripts.data.sources import source_problems

        yield from source_problems(args)
    elif isinstance(args, EvaluateArgs):
        from scripts.evaluation.checks import evaluate_problems

        yield from evaluate_problems(args)
    elif isinstance(args, ServeArgs):
        from scripts.serving.checks import serve_problems

        yield from (problem for problem in serve_problems(args) if problem.name != "missing_input")


@check("megatron_core_missing", "harness_not_installed", "server_not_installed", engines=("script", None))
def tool_installed(job: Job) -> Iterator[Problem]:
    """What a tool needs and this environment, in which a local job runs, does not have."""
    if not job.place.runs_here:
        return
    try:
        _refuse_without(job)
    except JobError as error:
        key, value = ("script.path", job.script.path) if job.script.path else ("executor", "local")
        yield Problem(name=error.name, key=key, value=value, cause=error.cause.rstrip("."), remedy=error.remedy)


def _refuse_without(job: Job) -> None:
    if isinstance(job.args, PrepareDataArgs):
        from scripts.data.sources import refuse_without_core

        refuse_without_core()
    elif isinstance(job.args, EvaluateArgs):
        from scripts.evaluation.checks import refuse_without_harness

        refuse_without_harness(job.script)
    elif isinstance(job.args, ServeArgs):
        from scripts.serving.servers import SERVERS, find_program

        find_program(SERVERS[job.args.server], job.script.path)
