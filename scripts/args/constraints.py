"""What the declarations of arguments say of their values, as checks: of every algorithm there is, or will be."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scripts.args.meaning import MEGATRON, values_of
from scripts.run.problems import Problem
from scripts.run.registry import check


@check("wrong_value", where="both", of_values=True, decisive=True)
def nul_characters(job: Any) -> Iterator[Problem]:
    """No file name and no word of a command can hold one."""
    for name, value, _ in values_of(job.resolved):
        if any(isinstance(one, str) and "\0" in one for one in (value if isinstance(value, list) else [value])):
            cause = "no file name or argument can hold a NUL character"
            yield Problem(key=f"args.{name}", value=repr(value), cause=cause)


@check("wrong_value", where="both", of_values=True, decisive=True)
def nameless_outputs(job: Any) -> Iterator[Problem]:
    """An output is made beside its place and renamed, so its path must end in a name."""
    for name, value, meaning in values_of(job.resolved):
        if meaning.names == "output" and isinstance(value, str) and Path(value).name in ("", ".."):
            cause = "it does not end in the name of a folder to make"
            remedy = "Name a folder, or null where the output is not wanted."
            yield Problem(key=f"args.{name}", value=repr(value), cause=cause, remedy=remedy)


@check("missing_value", "missing_input", engines=(*MEGATRON, None), where="both")
def required_values(job: Any) -> Iterator[Problem]:
    """Arguments without which nothing can be done."""
    for name, value, meaning in values_of(job.resolved):
        if meaning.required and value is None:
            what = "what the script reads" if meaning.consumes else "the script cannot do without it"
            remedy = f"Set args.{name}" + (f" to a {meaning.consumes}." if meaning.consumes else ".")
            kind = "missing_input" if meaning.consumes else "missing_value"
            yield Problem(name=kind, key=f"args.{name}", value=None, cause=f"it is not set: {what}", remedy=remedy)


@check("out_of_range", where="both", of_values=True)
def ranges(job: Any) -> Iterator[Problem]:
    """Numbers of arguments that the engine makes use of."""
    for section, values in (("args", job.resolved), ("script", job.script)):
        for name, value, meaning in values_of(values):
            if meaning.used_by(job.engine) and (cause := meaning.violation(value)):
                yield Problem(key=f"{section}.{name}", value=value, cause=cause)
