"""Checks on the submitting machine: every mistake that can be seen there, all at once, nothing written.

None imports torch, none touches the network but those of `hub`, and these only for a run that is
about to start.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from importlib import util
from pathlib import Path

from recipes.experiment.job import Job
from recipes.preflight import (
    access,
    batches,
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
    values,
    vocabularies,
    walltime,
)
from recipes.preflight.families import family_checks
from recipes.preflight.frame import Check, Findings, carry_out
from recipes.preflight.outputs import disk_problems, output_problems
from recipes.preflight.quantize import quantize_checks, quantize_notes
from recipes.preflight.scripts import input_problems, script_checks, script_notes
from recipes.preflight.tools import installed_checks, tool_checks
from scripts.args.meaning import meanings
from scripts.run.problems import Problem

#: What the hf engine imports; the local executor runs it in the environment that submits.
ENGINE_PACKAGES = ("torch", "transformers", "modelopt", "datasets", "safetensors", "jinja2", "matplotlib")


def preflight(job: Job) -> Findings:
    """Every Problem of `job`, and what could not be checked because a fact is not known."""
    unusable = (*_characters(job), *_nameless(job))
    if unusable:
        return Findings(problems=unusable, usable=False)
    named = carry_out(NAMED, job)
    problems = [problem for check in (*COMMON, *CHECKS[job.engine]) for problem in check(job)]
    return Findings(problems=(*problems, *named.problems), skipped=named.skipped)


def notes(job: Job) -> list[str]:
    """What a user should know although nothing is wrong."""
    of_engine = {"script": script_notes, "hf": quantize_notes}
    return list(of_engine[job.engine](job)) if job.engine else []


def _characters(job: Job) -> Iterator[Problem]:
    for field in fields(job.resolved):
        value = getattr(job.resolved, field.name)
        if any(isinstance(one, str) and "\0" in one for one in (value if isinstance(value, list) else [value])):
            cause = "no file name or argument can hold a NUL character"
            yield Problem(name="wrong_value", key=f"args.{field.name}", value=repr(value), cause=cause)


def _nameless(job: Job) -> Iterator[Problem]:
    """An output is made beside its place and renamed, so its path must end in a name."""
    for field, meaning in meanings(job.resolved):
        value = getattr(job.resolved, field.name)
        if meaning.produces and isinstance(value, str) and Path(value).name in ("", ".."):
            cause = "it does not end in the name of a folder to make"
            remedy = "Name a folder, or null where the output is not wanted."
            yield Problem(name="wrong_value", key=f"args.{field.name}", value=repr(value), cause=cause, remedy=remedy)


def _home(job: Job) -> Iterator[Problem]:
    """NeMo-Run puts its home into shell lines, scripts and mounts as it is."""
    from nemo_run.config import get_nemorun_home

    home = get_nemorun_home()
    wrong = sorted(set(re.findall(r"[^\w@%+=:,./~-]|:" if job.profile.kind == "docker" else r"[^\w@%+=:,./~-]", home)))
    if job.profile.kind != "local" and wrong:
        cause = f"what NeMo-Run does for {job.profile.kind} breaks on {' '.join(map(repr, wrong))} in its path"
        remedy = "Set NEMORUN_HOME to a folder whose path has letters, digits and . _ / - only."
        yield Problem(name="wrong_home", key="NEMORUN_HOME", value=home, cause=cause, remedy=remedy)


def _shape(job: Job) -> Iterator[Problem]:
    if not job.capabilities.multi_node and job.shape.nodes != 1:
        key = "torchrun.nnodes" if job.torchrun.nnodes != 1 else "executor.nodes"
        cause = f"the {job.profile.kind} executor has one machine"
        yield Problem(name="too_many_nodes", key=key, value=job.shape.nodes, cause=cause, remedy=f"Use {key}=1.")
    shape = {"torchrun.nproc_per_node": job.torchrun.nproc_per_node, "torchrun.nnodes": job.torchrun.nnodes}
    for key, value in shape.items() | {("executor.nodes", 1 if job.profile.nodes is None else job.profile.nodes)}:
        if value < 1:
            yield Problem(name="out_of_range", key=key, value=value, cause="at least 1 is needed")


def _installed(job: Job) -> Iterator[Problem]:
    if job.profile.kind != "local":
        return  # `executors check` looks at the place itself
    missing = [name for name in ENGINE_PACKAGES if util.find_spec(name) is None]
    if missing:
        cause = f"the job runs in this environment, which lacks {', '.join(missing)}"
        remedy = 'Install them: pip install "modelopt-recipes[hf]", or ".[hf]" in a checkout.'
        yield Problem(name="engine_not_installed", key="engine", value="hf", cause=cause, remedy=remedy)


_MODULES = (
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
#: Checks against what is known of models and places: each says itself what it needs, and to which jobs it applies.
NAMED: tuple[Check, ...] = tuple(check for module in _MODULES for check in module.CHECKS)
COMMON: tuple[Callable[[Job], Iterator[Problem]], ...] = (_home, _shape)
#: By engine; None is an algorithm without a choice.
CHECKS: Mapping[str | None, tuple[Callable[[Job], Iterator[Problem]], ...]] = {
    "hf": (_installed, quantize_checks, output_problems, disk_problems),
    "script": (script_checks, family_checks, tool_checks, installed_checks, output_problems, disk_problems),
    None: (input_problems, tool_checks, installed_checks, output_problems),
}
