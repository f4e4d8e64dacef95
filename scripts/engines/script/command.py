"""The command of a script: from typed arguments to words as its own parser expects them, and the files they name."""

import dataclasses
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.args.meaning import FlagStyle, Meaning, ScriptArgs, ScriptSpec, fields_of, meanings, value_of, values_of
from scripts.checkpoints import concrete_iteration
from scripts.checkpoints.datasets import blend, token_files
from scripts.engines.outputs import outputs_of
from scripts.engines.script.cards import card_words
from scripts.engines.script.flags.interface import Flag, Interface, plain
from scripts.run.files import is_folder, write_text
from scripts.run.problems import JobError, Problem, nearest

#: What a key/value cache format means to a script of the time when there was no other.
_SWITCHED_ON = "fp8"
#: How many words after a flag are its own; a switch has none.
_ROOM = {"value": 1, "append": 1, "list": math.inf}
#: As argparse decides it: not -1 and -0.5, but -1e-5.
_TAKEN_FOR_A_FLAG = re.compile(r"-(?!(?:\d+|\d*\.\d+)\Z)")


@dataclass(frozen=True, kw_only=True)
class Argv:
    """The words after the script's name, and what is wrong with them."""

    words: tuple[str, ...]
    problems: tuple[Problem, ...]
    left_out: tuple[str, ...]  # keys of values that this script has no flag for, and can do without


@dataclass(frozen=True, kw_only=True)
class _Value:
    """One argument that has a flag."""

    key: str
    flag: Flag
    value: Any


def command_words(
    args: ScriptArgs, script: ScriptSpec, extra_args: Sequence[str], *, name: str, interface: Interface, run_dir: Path
) -> Argv:
    """The words after the script's name, with outputs and files where this run has them.

    `args` are resolved; `name` is the script's in the flag tables, `interface` what that one accepts.
    """
    values: dict[str, Any] = {output.field: str(output.written) for output in outputs_of(args, run_dir)}
    command = list(args.COMMANDS.get(name, ()))
    for field, value, meaning in values_of(args):
        if meaning.file and value:
            values[field] = str(run_dir / meaning.file)
        elif meaning.card:
            command += card_words(value)
            values |= {tokenizer: value_of(args, "tokenizer", value) for tokenizer in fields_of(args, "tokenizer")}
    said = dataclasses.replace(args, **values)
    return compose(said, interface, style=script.flag_style, extra_args=extra_args, command=command)


def with_inputs(args: ScriptArgs) -> ScriptArgs:
    """`args` with what is only known where the inputs are: the iteration to take, the files of prepared data."""
    rows = [(field, value) for field, value, meaning in values_of(args) if meaning.concrete and value is not None]
    taken: dict[str, Any] = {field: str(concrete_iteration(Path(value))) for field, value in rows}
    return dataclasses.replace(args, **taken, **blends(args))


def blends(args: ScriptArgs) -> dict[str, Any]:
    """What fields of training data mean that name one folder or prefix: a weight and a prefix for each file.

    Raises JobError `no_data` where the folder has none.
    """
    found: dict[str, Any] = {}
    for field, value, meaning in values_of(args):
        if meaning.consumes == "binidx" and value and len(value) == 1:
            # What prepare_data left in a folder, each file weighed by its tokens; a prefix alone stays one.
            folder = Path(value[0])
            found[field] = blend(token_files(folder)) if is_folder(folder) else [1, str(folder)]
            if not found[field]:
                cause = f"args.{field}: {folder} holds no .bin and .idx files."
                raise JobError("no_data", cause, "Make them with prepare_data.")
    return found


def file_content(args: Any, name: str) -> dict[str, Any]:
    """The mapping that goes to file `name`, with the values of other fields that belong into it."""
    given: Any = next((value for _, value, meaning in values_of(args) if meaning.file == name), {})
    content: dict[str, Any] = json.loads(json.dumps(given))
    for _, value, meaning in values_of(args):
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

    for _, value, meaning in values_of(args):
        if meaning.file and value:
            write_text(run_dir / meaning.file, yaml.safe_dump(file_content(args, meaning.file), sort_keys=False))


def compose(
    args: Any, interface: Interface, *, style: FlagStyle, extra_args: Sequence[str] = (), command: Sequence[str] = ()
) -> Argv:
    """The words for `args`; None and switches that are off are left out, `extra_args` come last as they are.

    A field goes to the flag of its name, or of one of the names that older releases have for it. Lists
    come first, where no later word can be taken for one of theirs.
    """
    interface = interface.under(command[0]) if command else interface
    values, problems, left_out = _addressed(args, interface, style)
    problems += [problem for value in values for problem in _refused(value)]
    problems += _missing(values, interface, extra_args)
    problems += _extra_problems(values, interface, extra_args)
    words = [*command]
    for one in sorted(values, key=lambda value: value.flag.kind != "list"):
        words += _words(one)
    return Argv(words=(*words, *extra_args), problems=tuple(problems), left_out=tuple(left_out))


def flags_of(meaning: Meaning, name: str) -> tuple[str, ...]:
    """What scripts call a field, newest release first."""
    return meaning.flags or (name,)


def _addressed(args: Any, interface: Interface, style: FlagStyle) -> tuple[list[_Value], list[Problem], list[str]]:
    values: list[_Value] = []
    problems: list[Problem] = []
    left_out: list[str] = []
    for field, meaning in meanings(args):
        value = getattr(args, field.name)
        if not meaning.used_by("script") or meaning.into or meaning.card or value is None:
            continue
        key = f"args.{field.name}"
        names = flags_of(meaning, field.name)
        flag = next((found for name in names if (found := interface.find(name))), None)
        if value is False and (flag is None or flag.kind != "toggle"):
            continue
        spelled = "--" + (names[0].replace("_", "-") if style == "hyphen" else names[0])
        if flag is None and not any(map(interface.refuses, names)):
            listed = isinstance(value, (list, tuple))
            flag = Flag(names=(spelled,), kind="on" if value is True else "list" if listed else "value")
        if flag is not None:
            if isinstance(value, str) and not (flag.choices and value in flag.choices):
                value = meaning.aliases.get(value, value)  # as this release calls it
            values.append(_Value(key=key, flag=flag, value=value))
        elif meaning.optional:
            left_out.append(key)
        elif value != (field.default if field.default_factory is dataclasses.MISSING else field.default_factory()):
            cause = f"this script has no flag {spelled}"
            remedy = nearest(spelled, [flag.name for flag in interface.flags])
            problems.append(Problem(name="unknown_flag", key=key, value=value, cause=cause, remedy=remedy))
    return values, problems, left_out


def _words(one: _Value) -> Iterator[str]:
    name, kind, value = one.flag.name, one.flag.kind, one.value
    if kind in ("on", "off"):
        if value is True or value == _SWITCHED_ON:
            yield name
    elif kind == "toggle":
        yield name if value else f"--no-{name.removeprefix('--')}"
    elif kind == "list":
        texts = [_text(item, one.flag) for item in _items(value)]
        if len(texts) == 1:
            yield from _pair(name, texts[0])
        elif texts:
            yield from (name, *texts)
    elif kind == "append":
        for item in _items(value):
            yield from _pair(name, _text(item, one.flag))
    else:
        yield from _pair(name, _text(value, one.flag))


def _pair(name: str, text: str) -> Iterator[str]:
    """argparse takes a word that begins with a hyphen for a flag, unless it is joined to its own."""
    if text.startswith("-"):
        yield f"{name}={text}"
    else:
        yield from (name, text)


def _items(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _text(value: Any, flag: Flag) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, (dict, list, tuple)):
        return json.dumps(value)
    if isinstance(value, float) and flag.type == "int" and value.is_integer():
        return str(int(value))
    return repr(value)


def _refused(one: _Value) -> Iterator[Problem]:
    """What argparse itself would refuse."""
    flag, kind, value = one.flag, one.flag.kind, one.value
    if kind in ("on", "off", "toggle"):
        if not isinstance(value, bool) and value not in ("none", _SWITCHED_ON):
            cause = f"{flag.name} is a switch of this script: none or {_SWITCHED_ON}"
            yield Problem(name="unsupported_choice", key=one.key, value=value, cause=cause)
        return
    texts = [_text(item, flag) for item in (_items(value) if kind in ("list", "append") else [value])]
    for text in texts:
        if flag.choices is not None and text not in flag.choices:
            cause, remedy = f"{flag.name} of this script does not know it", nearest(text, flag.choices)
            yield Problem(name="unsupported_choice", key=one.key, value=text, cause=cause, remedy=remedy)
    if "--" in texts:
        cause = "argparse takes -- for the end of the flags, wherever it stands"
        yield Problem(name="looks_like_a_flag", key=one.key, value=value, cause=cause)
    elif kind == "list" and len(texts) > 1 and any(map(_TAKEN_FOR_A_FLAG.match, texts)):
        cause = "argparse takes a word of a list that begins with a hyphen for a flag"
        remedy = "Give ./-name for a file."
        yield Problem(name="looks_like_a_flag", key=one.key, value=value, cause=cause, remedy=remedy)


def _missing(values: Sequence[_Value], interface: Interface, extra_args: Sequence[str]) -> Iterator[Problem]:
    given = {value.flag for value in values} | {interface.find(name) for name in _flag_words(extra_args)}
    for flag in interface.flags if not interface.commands else ():  # with commands it may be another one's
        if flag.required and flag not in given:
            key = f"args.{plain(flag.name)}"
            yield Problem(name="missing_flag", key=key, value=None, cause=f"this script requires {flag.name}")


def _flag_words(extra_args: Sequence[str]) -> Iterator[str]:
    for word in extra_args:
        if word.startswith("--") and word != "--":
            yield word.partition("=")[0]


def _extra_problems(values: Sequence[_Value], interface: Interface, extra_args: Sequence[str]) -> Iterator[Problem]:
    keys: Mapping[Flag, str] = {value.flag: value.key for value in values}
    known = {plain(name): flag for flag in interface.flags for name in flag.names}
    known |= {plain(flag.name): flag for flag in keys}
    for name in _flag_words(extra_args):
        flag = known.get(plain(name)) or known.get(plain(name).removeprefix("no_"))
        if flag is not None and flag in keys:
            cause = f"{keys[flag]} gives the same flag"
            yield Problem(name="flag_twice", key="extra_args", value=name, cause=cause, remedy=f"Set {keys[flag]}.")
        elif flag is None and interface.refuses(name):
            cause = f"this script has no flag {name}"
            remedy = nearest(name, [flag.name for flag in known.values()])
            # They are there for flags that nobody knows of yet.
            unknown = Problem(name="unknown_flag", key="extra_args", value=name, cause=cause, remedy=remedy)
            yield dataclasses.replace(unknown, can_force=True)
    if interface.closed:
        yield from _stray(known, extra_args)


def _stray(known: Mapping[str, Flag], extra_args: Sequence[str]) -> Iterator[Problem]:
    """Words that belong to no flag: argparse refuses them, after minutes in a queue."""
    last, room = "", 0.0  # how many values the last flag still takes; one that nobody knows may take any number
    for word in extra_args:
        if _TAKEN_FOR_A_FLAG.match(word):
            last, joined, _ = word.partition("=")
            flag = known.get(plain(last)) or known.get(plain(last).removeprefix("no_"))
            room = 0 if joined or last == "--" else math.inf if flag is None else _ROOM.get(flag.kind, 0)
        elif room:
            room -= 1
        else:
            cause = f"{last} takes no value, or has one already" if last.strip("-") else "no flag stands before it"
            remedy = "Leave it out, or write the flag that it is for."
            yield Problem(name="stray_word", key="extra_args", value=word, cause=cause, remedy=remedy)
