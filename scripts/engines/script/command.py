"""The command of a script: its words, and the files that they point to, for one run directory."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.args.meaning import ScriptArgs, ScriptSpec, meanings
from scripts.args.megatron_lm import MegatronLmArgs
from scripts.engines.script.argv import Argv, compose
from scripts.engines.script.cards import card_words
from scripts.engines.script.flags import Interface
from scripts.engines.script.outputs import outputs_of
from scripts.run.files import write_text
from scripts.run.problems import JobError


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


def with_inputs(args: ScriptArgs) -> ScriptArgs:
    """`args` with what is only known where the inputs are: the iteration to take, the files of prepared data."""
    from scripts.checkpoints import concrete_iteration

    found: dict[str, Any] = {}
    for field, meaning in meanings(args):
        value = getattr(args, field.name)
        if meaning.concrete and value is not None:
            found[field.name] = str(concrete_iteration(Path(value)))
        elif meaning.consumes == "binidx" and value and len(value) == 1:
            found[field.name] = _blend_of(Path(value[0]), f"args.{field.name}")
    return dataclasses.replace(args, **found)


def _blend_of(folder: Path, key: str) -> list[int | str]:
    """What prepare_data left in a folder, each file weighed by its tokens; a prefix alone stays one."""
    from scripts.checkpoints.datasets import blend, token_files

    if not folder.is_dir():
        return [1, str(folder)]
    files = blend(token_files(folder))
    if not files:
        raise JobError("no_data", f"{key}: {folder} holds no .bin and .idx files.", "Make them with prepare_data.")
    return files


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
