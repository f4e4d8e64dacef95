"""Preflight: every mistake in a job that can be seen where it is submitted, all at once, nothing written.

No check imports torch, none touches the network but those of `hub`, and these only for a run that is about to start.
"""

from typing import TYPE_CHECKING, Any

from recipes.experiment.job import Job
from recipes.preflight import (
    access,
    bridge_engine,
    contradictions,
    environment,
    formats,
    hardware,
    hf_engine,
    history,
    inputs,
    layout,
    memory,
    places,
    pruning,
    references,
    script_engine,
    stores,
    teacher,
    tracking,
    walltime,
)
from recipes.preflight.bridge_engine import bridge_notes
from recipes.preflight.hf_engine import quantize_notes
from recipes.preflight.script_engine import script_notes
from scripts.args import constraints
from scripts.data import sources
from scripts.engines import users_program
from scripts.engines.hf import search_checks
from scripts.engines.hf.best import preflight as best
from scripts.evaluation import checks as evaluation
from scripts.evaluation import gate
from scripts.run.problems import Problem
from scripts.run.registry import REGISTRY, Check, Findings, OnNode, carry_out, checks_of
from scripts.serving import checks as serving

if TYPE_CHECKING:
    import nemo_run as run

#: The modules whose checks are made, in the order in which Problems are reported.
SUBJECTS = (
    constraints,
    environment,
    references,
    hf_engine,
    search_checks,
    best,
    bridge_engine,
    script_engine,
    evaluation,
    gate,
    serving,
    sources,
    users_program,
    contradictions,
    teacher,
    layout,
    pruning,
    formats,
    hardware,
    memory,
    inputs,
    history,
    access,
    places,
    stores,
    tracking,
    walltime,
)


def of_values(partial: "run.Partial[Any]") -> tuple[Problem, ...]:
    """What is wrong with the arguments of a recipe wherever it runs: all that is told where the place is not known."""
    from fiddle import build

    checks = [one for one in checks_of(*SUBJECTS) if one.of_values]
    # Which Python it is going to be, nobody knows either.
    job = OnNode(
        resolved=build(partial.args), script=build(partial.script), engine=partial.engine, in_this_python=False
    )
    return carry_out(checks, job).problems


def preflight(job: Job) -> Findings:
    """Every Problem of `job`, and what could not be checked because a fact is not known."""
    return carry_out(_checks(), job)


def is_usable(job: Job) -> bool:
    """Whether its values are such that it could be run somewhere: whether here and now is another question."""
    found = carry_out([one for one in _checks() if one.decisive or one.of_values], job)
    return found.usable and all(problem.severity != "error" for problem in found.problems)


def _checks() -> list[Check]:
    listed = checks_of(*SUBJECTS)
    modules = {one.module for one in listed}
    others = (one for one in REGISTRY.values() if one.module not in modules)
    return [one for one in (*listed, *others) if one.where != "node"]


def notes(job: Job) -> list[str]:
    """What a user should know although nothing is wrong."""
    of_engine = {"script": script_notes, "hf": quantize_notes, "bridge": bridge_notes}
    return list(of_engine[job.engine](job)) if job.engine else []
