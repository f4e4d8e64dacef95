"""A program of the user's own as a job: its words filled in, run on each rank, and what it left published."""

import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

from scripts.args.interpolation import resolve_args
from scripts.args.program import ProgramArgs
from scripts.engines import outputs as out
from scripts.engines.inputs import inputs_of
from scripts.engines.ranks import Child, across_ranks
from scripts.run.problems import JobError, Problem, nearest
from scripts.run.record import Record
from scripts.run.registry import check
from scripts.stores.fetch import fetched

_NAME = re.compile(r"\{(\w+)\}")
_OWN = ("checkpoint", "data", "output_hf", "output_megatron", "run_dir")


@check("bad_command", args=ProgramArgs, of_values=True)
def command(job: Any) -> Iterator[Problem]:
    """There is one, and what it names in braces has a value."""
    args: ProgramArgs = job.resolved
    if not args.command:
        remedy = "Write args.command='[python, sft.py, --model, {checkpoint}, --out, {output_hf}]'."
        yield Problem(key="args.command", value=args.command, cause="there is nothing to run", remedy=remedy)
    for name in dict.fromkeys(name for word in args.command or () for name in _NAME.findall(word)):
        if name not in _OWN:
            cause = f"{{{name}}} stands for nothing"
            yield Problem(key="args.command", value=args.command, cause=cause, remedy=nearest(name, _OWN))
        elif name != "run_dir" and getattr(args, name) is None:
            cause = f"it names {{{name}}}, and args.{name} is null"
            yield Problem(key="args.command", value=args.command, cause=cause, remedy=f"Set args.{name}.")


def run_program(args: ProgramArgs, extra_args: Sequence[str], record: Record) -> None:
    """Run it on this rank, with `extra_args` as its last words.

    Raises JobError where it fails, or leaves something else than it was to leave.
    """
    given = resolve_args(args, run_dir=record.dir)
    resolved = fetched(given, record)
    record.update(resolved={"args": vars(given)}, inputs=inputs_of(resolved))
    outputs = out.outputs_of(resolved, record.dir)
    values = {name: str(value) for name in _OWN if (value := getattr(resolved, name, None)) is not None}
    values |= {output.field: str(output.written) for output in outputs} | {"run_dir": str(record.dir)}
    if not resolved.command:
        raise JobError("bad_command", "there is nothing to run.", "Set args.command.")
    words = [_NAME.sub(lambda name: values.get(name[1], name[0]), word) for word in resolved.command]
    words += extra_args
    child = Child(name=words[0], words=words, env=dict(os.environ), silence_minutes=0, card=False)
    across_ranks(child, outputs, lambda: None, record)
