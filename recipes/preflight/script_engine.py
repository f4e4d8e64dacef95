"""What can be wrong with a job of the script engine, as far as the submitting machine can tell."""

import posixpath
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from recipes.experiment.job import Job
from recipes.models import hub
from recipes.preflight.paths import path_here
from recipes.preflight.references import faulty
from scripts.args.configuration import SECTIONS, misspelled, mistyped
from scripts.args.meaning import MEGATRON, Meaning, field_of, values_of
from scripts.checkpoints.kinds import checkpoint_problems
from scripts.checkpoints.model import Needs, Trouble, local_model_problems
from scripts.data.texts import require_rows
from scripts.engines.script.command import flags_of
from scripts.engines.script.flags.tables import containers_with, interface_of, releases_of
from scripts.engines.script.locate import is_module, locate
from scripts.run.files import is_folder, is_there
from scripts.run.problems import JobError, Problem
from scripts.run.registry import check

#: What the choice of a format is called where it is not one.
_FORMAT_KEYS = ("args.export_quant_cfg", "args.quant_cfg", "args.recipe")


@check("unknown_flag", "unsupported_choice", "unsupported_quant_recipe", "stray_word", engines=("script",))
def words(job: Job) -> Iterator[Problem]:
    """What the script would not take, or would not be given."""
    try:
        argv = job.command
    except JobError as error:  # a model card that is not there
        yield error.as_problem("args.model_card")
        return
    assert job.addressed is not None
    certain, by = job.addressed.certain, job.addressed.known_by
    which = f"{job.addressed.script} {job.addressed.release or ''}".strip()
    for problem in argv.problems:
        if not certain and _fits_some_release(problem, job):
            continue
        of_format = problem.name == "unsupported_choice" and problem.key in _FORMAT_KEYS
        name = "unsupported_quant_recipe" if of_format else problem.name
        came = _came_with(job, problem.key) if problem.name == "unknown_flag" else ""
        cause = problem.cause + (f" ({which}, by {by})" if certain else "")
        yield replace(problem, name=name, cause=cause, remedy=came or problem.remedy)
    for key in argv.left_out:  # a value that somebody gave is not left out in silence
        name = key.removeprefix("args.")
        if name in job.given and certain:
            cause = f"{job.addressed.release or job.addressed.script} has no flag for it ({by})"
            value = getattr(job.args, name)
            remedy = _came_with(job, key) or "Leave it out."
            yield Problem(name="unknown_flag", key=key, value=value, cause=cause, remedy=remedy)


@check("unknown_key", "wrong_value", engines=("script",), roles=("config",), can_force=True)
def configuration(job: Job) -> Iterator[Problem]:
    """Keys of a training's configuration that Megatron-Bridge has not, or of another type: it would stop at them, on
    the node."""
    field, config = field_of(job.resolved, "config"), job.get("config")

    def where(key: str) -> str:
        section, _, name = key.partition(".")
        held = config.get(section)
        stated = section in config and (not name or (isinstance(held, dict) and name in held))
        return f"args.{field}.{key}" if stated else key

    for key, value, expected in mistyped(config, job.extra_args):
        yield Problem(name="wrong_value", key=where(key), value=value, cause=f"{expected} is expected")
    for key, near in misspelled(config, job.extra_args):
        remedy = f"Did you mean {near}?" if near else f"Sections: {', '.join(sorted(SECTIONS))}."
        yield Problem(key=where(key), value=None, cause="Megatron-Bridge has no such key", remedy=remedy)


def _came_with(job: Job, key: str) -> str:
    """The first release that has a flag for an argument, as a remedy; empty where none has."""
    for field, _, meaning in values_of(job.args):
        if key != f"args.{field}":
            continue
        for script in (one for one in job.args.SCRIPTS if not is_module(one)):
            having = (
                one for one in releases_of(script) if any(map(interface_of(script, one).find, flags_of(meaning, field)))
            )
            if (first := next(having, None)) is not None:
                tags = containers_with(script, first)
                where = f", the container nemo:{tags[0]}" if tags else ""
                return f"It came with {first} of {script}{where}: use that one, or leave it out."
    return ""


def script_notes(job: Job) -> Iterator[str]:
    """What a user should know although nothing is wrong."""
    assert job.addressed is not None
    release, by = job.addressed.release, job.addressed.known_by
    if not job.addressed.certain and not is_module(job.addressed.script):
        yield (
            f"which release of {job.addressed.script} the job will meet is not known here; the command is written for "
            f"{releases_of(job.addressed.script)[-1]}, on the node for the one that is there. script.release names it"
        )
    if job.script.release is not None and by == job.addressed.path:
        yield f"script.release={job.script.release} is not needed: the script is here, and says itself what it takes"
    with suppress(JobError):  # a model card that is not there: a Problem
        for key in job.command.left_out:
            yield f"{key} is left out: {release or by or job.addressed.script} has no such flag"
    for field, value, meaning in values_of(job.args):
        if not meaning.used_by("script") and meaning.produces and field not in job.given and value is not None:
            yield f"args.{field} is the hf engine's; the script does not write it"


@check("script_not_found", engines=("script",))
def script_found(job: Job) -> Iterator[Problem]:
    if not job.place.runs_here:
        return  # the node says so
    try:
        locate(job.args.SCRIPTS, job.script.path)
    except JobError as error:
        key = "script.path" if job.script.path else "executor"
        yield error.as_problem(key, job.script.path or "local")


def _fits_some_release(problem: Problem, job: Job) -> bool:
    """Whether a release that the job may meet takes what the one that it is written for does not."""
    if problem.name == "unknown_flag" and problem.key == "extra_args":
        return True  # for flags newer than the tables
    named = next(((one, of) for one, _, of in values_of(job.args) if f"args.{one}" == problem.key), None)
    if named is None or problem.name not in ("unknown_flag", "unsupported_choice"):
        return False
    name, meaning = named
    scripts = [script for script in job.args.SCRIPTS if not is_module(script)]
    for interface in (interface_of(script, release) for script in scripts for release in releases_of(script)):
        flag = next((found for each in flags_of(meaning, name) if (found := interface.find(each))), None)
        chosen = problem.name == "unknown_flag" or (flag and (flag.choices is None or problem.value in flag.choices))
        if flag and chosen:
            return True
    return False


@check("not_of_this_engine", engines=MEGATRON)
def of_another_engine(job: Job) -> Iterator[Problem]:
    for field, value, meaning in values_of(job.args):
        if not meaning.used_by(job.engine) and field in job.given:
            who = "the script" if job.engine == "script" else "the bridge engine"
            whose, other = ("NVIDIA's script's", "script") if meaning.engine == "nvidia" else ("the hf engine's", "hf")
            cause = f"{who} has nothing of the kind; it is {whose}"
            remedy = f"Leave it out, or use engine={other}."
            yield Problem(key=f"args.{field}", value=value, cause=cause, remedy=remedy)


@check("unknown_data", "missing_data", engines=("script", None))
def data_of_script(job: Job) -> Iterator[Problem]:
    """Scripts read JSONL, folders and data sets; of anything else they would find out when the model is loaded."""
    for field, value, meaning in values_of(job.resolved):
        used = meaning.role in ("data", "eval_data") and meaning.used_by(job.engine) and field not in job.promised
        for item in (value if isinstance(value, list) else [value]) if used else ():
            if not isinstance(item, str) or f"args.{field}" in faulty(job):
                continue
            if job.engine and meaning.names == "data" and item.endswith((".txt", ".md")):
                cause = "the script reads JSONL, and this is text"
                remedy = 'Write a line {"text": ...} for each document.'
                yield Problem(key=f"args.{field}", value=item, cause=cause, remedy=remedy)
            folder = path_here(job, item) if posixpath.isabs(item) or job.here else None
            if folder is not None and is_folder(folder):
                yield from _folder_of_data(f"args.{field}", item, folder, tokens=meaning.consumes == "binidx")


def _folder_of_data(key: str, value: str, folder: Path, *, tokens: bool) -> Iterator[Problem]:
    if not tokens:
        try:
            require_rows(folder)
        except JobError as error:
            yield error.as_problem(key, value)
    elif not any(folder.glob("*.idx")):
        cause, remedy = "it holds no tokenized data (.bin and .idx)", "Name the folder that prepare_data left."
        yield Problem(name="missing_data", key=key, value=value, cause=cause, remedy=remedy)


@check("unknown_model", "missing_input", engines=(*MEGATRON, None))
def inputs_given(job: Job) -> Iterator[Problem]:
    """What is not there, or is something else than what is needed."""
    for field, value, meaning in values_of(job.resolved):
        named = isinstance(value, str) and (meaning.consumes or meaning.names == "model") and not meaning.produces
        given = named and meaning.used_by(job.engine) and field not in job.promised
        key, cause = f"args.{field}", "built-in models are for the hf engine"
        built_in = given and value.startswith("tiny:")
        if built_in and job.engine == "script" and meaning.role != "tokenizer":
            remedy = "Name a folder or a hub model."
            yield Problem(name="unknown_model", key=key, value=value, cause=cause, remedy=remedy)
        elif given and key not in faulty(job) and not (built_in and job.engine):
            yield from _input(job, key, value, meaning)


def _input(job: Job, key: str, value: str, meaning: Meaning) -> Iterator[Problem]:
    """Of what can be looked at from here: all files of a job that sees this machine's, else what is mounted."""
    path = path_here(job, value)
    if path is None or not (job.here or is_there(path)):
        return
    if meaning.names == "model":
        needs: Needs = "all" if meaning.consumes else "shape"
        needs = needs if meaning.role != "tokenizer" else "tokenizer"
        local = not job.here or hub.is_local(value)
        asks = job.online and bool(meaning.consumes)  # what is no input may be in a cache of its own
        found: list[Trouble | None] = (
            [*local_model_problems(str(path), needs=needs)] if local else [hub.model_problem(value, online=asks)]
        )
        for name, cause, remedy in filter(None, found):
            if name != "unmerged_adapter" or meaning.consumes:  # that is said of all of these
                yield Problem(name=name, key=key, value=value, cause=cause, remedy=remedy, can_force=not job.here)
    elif meaning.consumes.startswith("checkpoint_"):
        if is_there(path):
            yield from (replace(one, can_force=not job.here) for one in checkpoint_problems(path, key, meaning))
        else:
            yield Problem(name="missing_input", key=key, value=value, cause="there is no such folder here")
