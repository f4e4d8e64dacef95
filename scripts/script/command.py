"""The command of a script: its words, and the files that they point to, for one run directory."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.args.megatron_lm import MegatronLmArgs
from scripts.files import write_text
from scripts.script.argv import Argv, compose
from scripts.script.cards import card_words
from scripts.script.flags import Interface
from scripts.script.outputs import outputs_of
from scripts.types import ScriptArgs, ScriptSpec, meanings


@dataclass(frozen=True, kw_only=True)
class ScriptJob:
    """What the engine needs to know."""

    args: ScriptArgs  # resolved
    script: ScriptSpec
    extra_args: Sequence[str]


def command_words(job: ScriptJob, interface: Interface, script: str, run_dir: Path) -> Argv:
    """The words after the script's name, with outputs and files where this run has them."""
    values: dict[str, Any] = {output.field: str(output.written) for output in outputs_of(job.args, run_dir)}
    for field, meaning in meanings(job.args):
        if meaning.file and getattr(job.args, field.name):
            values[field.name] = str(run_dir / meaning.file)
    command = list(job.args.COMMANDS.get(script, ()))
    if isinstance(job.args, MegatronLmArgs):
        command += card_words(job.args.model_card)
        values["tokenizer_model"] = job.args.tokenizer_model or job.args.model_card
    args = dataclasses.replace(job.args, **values)
    return compose(args, interface, style=job.script.flag_style, extra_args=job.extra_args, command=command)


def with_iterations(args: ScriptArgs) -> ScriptArgs:
    """`args` with one iteration in the place of a folder of several, where the script wants that."""
    from scripts.checkpoints import concrete_iteration

    found = {
        field.name: str(concrete_iteration(Path(value)))
        for field, meaning in meanings(args)
        if meaning.concrete and (value := getattr(args, field.name)) is not None
    }
    return dataclasses.replace(args, **found)


def file_content(args: Any, name: str) -> dict[str, Any]:
    """The mapping that goes to file `name`, with the values of other fields that belong into it."""
    content: dict[str, Any] = {}
    for field, meaning in meanings(args):
        value = getattr(args, field.name)
        if meaning.file == name:
            content = json.loads(json.dumps(value))
    for field, meaning in meanings(args):
        value = getattr(args, field.name)
        for key in meaning.into if value is not None else ():
            *sections, last = key.split(".")
            inner = content
            for section in sections:
                inner = inner.setdefault(section, {})
            inner[last] = value
    return content


def write_files(args: Any, run_dir: Path) -> None:
    """Write the files that flags point to."""
    import yaml

    for field, meaning in meanings(args):
        if meaning.file and getattr(args, field.name):
            write_text(run_dir / meaning.file, yaml.safe_dump(file_content(args, meaning.file), sort_keys=False))
