"""From typed arguments to the words of a script's command line, as that script's own parser expects them."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scripts.args.meaning import FlagStyle, Meaning, meanings
from scripts.engines.script.flags import Flag, Interface, plain
from scripts.run.problems import Problem, nearest

#: What a key/value cache format means to a script of the time when there was no other.
_SWITCHED_ON = "fp8"


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
        if meaning.engine == "hf" or meaning.into or meaning.card or value is None:
            continue
        key = f"args.{field.name}"
        names = flags_of(meaning, field.name)
        flag = next((found for name in names if (found := interface.find(name))), None)
        if value is False and (flag is None or flag.kind != "toggle"):
            continue
        if flag is None and not any(map(interface.refuses, names)):
            flag = Flag(names=(_spelled(names[0], style),), kind=_kind_of(value))
        if flag is not None:
            values.append(_Value(key=key, flag=flag, value=_as_called(value, flag, meaning)))
        elif meaning.optional:
            left_out.append(key)
        elif value != _default(field):
            flag_name = _spelled(names[0], style)
            cause = f"this script has no flag {flag_name}"
            remedy = nearest(flag_name, [flag.name for flag in interface.flags])
            problems.append(Problem(name="unknown_flag", key=key, value=value, cause=cause, remedy=remedy))
    return values, problems, left_out


def _as_called(value: Any, flag: Flag, meaning: Meaning) -> Any:
    """A value by the name that this release has for it."""
    if not isinstance(value, str) or value not in meaning.aliases or (flag.choices and value in flag.choices):
        return value
    return meaning.aliases[value]


def _default(field: Any) -> Any:
    from dataclasses import MISSING

    return field.default_factory() if field.default_factory is not MISSING else field.default


def _spelled(name: str, style: FlagStyle) -> str:
    return "--" + (name.replace("_", "-") if style == "hyphen" else name)


def _kind_of(value: Any) -> Any:
    return "on" if value is True else "list" if isinstance(value, (list, tuple)) else "value"


def _words(one: _Value) -> Iterator[str]:
    name, kind, value = one.flag.name, one.flag.kind, one.value
    if kind in ("on", "off"):
        if value is True or value == _SWITCHED_ON:
            yield name
    elif kind == "toggle":
        yield name if value else f"--no-{name.removeprefix('--')}"
    elif kind == "list":
        texts = [_text(item, one.flag) for item in _items(value)]
        if len(texts) == 1 and texts[0].startswith("-"):
            yield f"{name}={texts[0]}"
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
    kind, value = one.flag.kind, one.value
    if kind in ("on", "off", "toggle") and not isinstance(value, bool) and value not in ("none", _SWITCHED_ON):
        cause = f"{one.flag.name} is a switch of this script: none or {_SWITCHED_ON}"
        yield Problem(name="unsupported_choice", key=one.key, value=value, cause=cause)
    texts = [_text(item, one.flag) for item in (_items(value) if kind in ("list", "append") else [value])]
    if one.flag.choices is not None and kind in ("value", "list", "append"):
        for text in texts:
            if text not in one.flag.choices:
                cause = f"{one.flag.name} of this script does not know it"
                yield Problem(
                    name="unsupported_choice",
                    key=one.key,
                    value=text,
                    cause=cause,
                    remedy=nearest(text, one.flag.choices),
                )
    if kind in ("value", "list", "append") and "--" in texts:
        cause = "argparse takes -- for the end of the flags, wherever it stands"
        yield Problem(name="looks_like_a_flag", key=one.key, value=value, cause=cause)
    elif kind == "list" and len(texts) > 1 and any(text.startswith("-") and not _negative(text) for text in texts):
        cause = "argparse takes a word of a list that begins with a hyphen for a flag"
        yield Problem(
            name="looks_like_a_flag", key=one.key, value=value, cause=cause, remedy="Give ./-name for a file."
        )


def _negative(text: str) -> bool:
    """As argparse decides it: -1 and -0.5, but not -1e-5."""
    import re

    return re.fullmatch(r"-\d+|-\d*\.\d+", text) is not None


def _missing(values: Sequence[_Value], interface: Interface, extra_args: Sequence[str]) -> Iterator[Problem]:
    if interface.commands:
        return  # a flag may be another command's
    given = {value.flag for value in values} | {interface.find(name) for name in _flag_words(extra_args)}
    for flag in interface.flags:
        if flag.required and flag not in given:
            key = f"args.{plain(flag.name)}"
            yield Problem(name="missing_flag", key=key, value=None, cause=f"this script requires {flag.name}")


def _flag_words(extra_args: Sequence[str]) -> Iterator[str]:
    for word in extra_args:
        if word.startswith("--") and word != "--":
            yield word.partition("=")[0]


def _extra_problems(values: Sequence[_Value], interface: Interface, extra_args: Sequence[str]) -> Iterator[Problem]:
    keys: Mapping[Flag, str] = {value.flag: value.key for value in values}
    known = {plain(name): flag for flag in interface.flags for name in flag.names} | {
        plain(flag.name): flag for flag in keys
    }
    for name in _flag_words(extra_args):
        flag = known.get(plain(name)) or known.get(plain(name).removeprefix("no_"))
        if flag is not None and flag in keys:
            cause = f"{keys[flag]} gives the same flag"
            yield Problem(name="flag_twice", key="extra_args", value=name, cause=cause, remedy=f"Set {keys[flag]}.")
        elif flag is None and interface.refuses(name):
            cause = f"this script has no flag {name}"
            remedy = nearest(name, [flag.name for flag in known.values()])
            yield Problem(name="unknown_flag", key="extra_args", value=name, cause=cause, remedy=remedy)
