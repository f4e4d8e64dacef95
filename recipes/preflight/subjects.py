"""Preflight: every mistake in a job that can be seen where it is submitted, all at once, nothing written.

No check imports torch, none touches the network but those of `hub`, and these only for a run that is about to start.
"""

from recipes.experiment.job import Job
from recipes.preflight import (
    access,
    batches,
    environment,
    families,
    formats,
    hardware,
    history,
    inputs,
    layout,
    memory,
    outputs,
    places,
    pruning,
    quality,
    quantize,
    scripts,
    tools,
    values,
    vocabularies,
    walltime,
)
from recipes.preflight.quantize import quantize_notes
from recipes.preflight.scripts import script_notes
from scripts.run.registry import REGISTRY, Findings, carry_out, checks_of

#: The modules whose checks are made, in the order in which Problems are reported.
SUBJECTS = (
    environment,
    quantize,
    scripts,
    families,
    tools,
    layout,
    batches,
    values,
    pruning,
    formats,
    hardware,
    memory,
    inputs,
    vocabularies,
    history,
    quality,
    access,
    places,
    outputs,
    walltime,
)


def preflight(job: Job) -> Findings:
    """Every Problem of `job`, and what could not be checked because a fact is not known."""
    listed = checks_of(*SUBJECTS)
    modules = {one.module for one in listed}
    others = (one for one in REGISTRY.values() if one.module not in modules)
    return carry_out([one for one in (*listed, *others) if one.where != "node"], job)


def notes(job: Job) -> list[str]:
    """What a user should know although nothing is wrong."""
    of_engine = {"script": script_notes, "hf": quantize_notes}
    return list(of_engine[job.engine](job)) if job.engine else []
