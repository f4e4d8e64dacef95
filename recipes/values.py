"""Setting values on a recipe from files and `key.path=value` words, typed and checked."""

import csv
import dataclasses
import posixpath
import re
import unicodedata
from collections.abc import Collection, Mapping
from copy import deepcopy
from functools import cache, lru_cache
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, get_args, get_origin, get_type_hints

from recipes.planner.gpus import stated_problems
from scripts.args.meaning import Engine
from scripts.args.typed import DEEPEST, convert, parse_yaml, refuse_huge
from scripts.run.files import read_limited
from scripts.run.problems import Problem, ProblemsError, nearest

if TYPE_CHECKING:
    import nemo_run as run

#: Values fill some kilobytes.
_MAX_BYTES = 1 << 20
#: The sections of a recipe's YAML: its values, and what is known of them.
SECTIONS = ("engine", "script", "args", "torchrun", "extra_args")
#: What is said of the values: a line on what they are, when to use which, what can go wrong, and what they vary.
_FACTS = {"summary": str, "extends": str, "strategies": list[str], "errors": list[str]}


def read_text(path: Path) -> str:
    """What a recipe's file says. Raises ProblemsError."""
    try:
        return read_limited(Path(posixpath.realpath(path)), _MAX_BYTES).decode("utf-8")
    except OSError as error:
        raise _unreadable(path, error.strerror or str(error)) from error
    except ValueError as error:
        raise _unreadable(path, str(error)) from error


def load_yaml(path: Path) -> Mapping[str, Any]:
    """A YAML file that holds a mapping. Raises ProblemsError saying where it does not parse."""
    return _parsed(path, read_text(path))


@lru_cache(maxsize=256)
def _parsed(path: Path, text: str) -> Mapping[str, Any]:
    import yaml

    try:
        value = parse_yaml(text)
    except yaml.YAMLError as error:
        raise _unreadable(path, str(error)) from error
    if value is None:
        value = {}
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise _unreadable(path, f"a mapping with the sections {', '.join(SECTIONS)} is expected")
    return value


def _unreadable(path: Path, cause: str) -> ProblemsError:
    cause = " ".join(cause.split())
    return ProblemsError([Problem(name="unreadable_config", key="file", value=path, cause=cause)])


def merge(partial: "run.Partial[Any]", values: Mapping[str, Any]) -> list[Problem]:
    """Set every value of a parsed YAML document on `partial`; return what does not fit."""
    problems: list[Problem] = []
    for section, content in values.items():
        if section == "hardware":  # what the values were made for: a fact about them, not one of them
            problems += stated_problems(content)
        elif section in _FACTS:
            problems += _convert(_FACTS[section], section, content, strict=True)[1]
        elif section in ("script", "args", "torchrun"):
            if not isinstance(content, dict):
                problems.append(_wrong(section, content, "is a section with keys below it"))
                continue
            for key, value in content.items():
                problems += set_value(partial, f"{section}.{key}", value, strict=True)
        elif section == "executor":
            cause = "a recipe says what is run, and not where"
            remedy = "Write executor=NAME on the command line, or -r or -b."
            problems.append(Problem(name="unknown_key", key=section, value=content, cause=cause, remedy=remedy))
        else:
            problems += set_value(partial, section, content, strict=True)
    return problems


def set_value(partial: "run.Partial[Any]", key: str, value: Any, *, strict: bool = False) -> list[Problem]:
    """Set one dotted `key`. With `strict`, `value` has its type already (YAML); else it is text to parse."""
    section, _, name = key.partition(".")
    fields = field_types(partial)
    if key not in fields:
        if (mapping := _mapping_of(key, fields)) is not None:
            return _set_below(partial, mapping, key, value)
        return [_unknown(key, section, name, fields)]
    converted, problems = _convert(fields[key], key, value, strict=strict)
    if not problems:
        setattr(getattr(partial, section) if name else partial, name or section, converted)
    return [dataclasses.replace(one, remedy=_example(partial, key)) for one in problems]


def type_problems(partial: "run.Partial[Any]") -> list[Problem]:
    """What of a recipe has another type than its field: values from files and words have theirs, Python takes any."""
    from fiddle import Config

    problems: list[Problem] = []
    held = {section: getattr(partial, section) for section in ("script", "args", "torchrun")}
    if strange := [section for section, values in held.items() if not isinstance(values, Config)]:
        return [_wrong(one, type(held[one]).__name__, f"is no Config: set {one}.KEY, one by one") for one in strange]
    for key, kind in field_types(partial).items():
        section, _, name = key.partition(".")
        holder = getattr(partial, section)
        value = getattr(holder, name) if name else holder
        if not _is_plain(value):
            cause = f"is a {type(value).__name__}; a key takes what YAML has: texts, numbers, booleans, lists, mappings"
            problems.append(_wrong(key, value if isinstance(value, PurePath) else None, cause))
            continue
        converted, found = _convert(kind, key, value, strict=True)
        if isinstance(converted, list) and isinstance(value, str):  # whose letters would be taken for its items
            found = [_wrong(key, value, f"is a text, where a list is expected: [{value!r}]")]
        problems += [dataclasses.replace(one, remedy=_example(partial, key)) for one in found]
    return problems


def with_defaults(partial: "run.Partial[Any]", keys: Collection[str]) -> "run.Partial[Any] | None":
    """A copy in which these keys have the values of their declarations; None where a whole section is no such thing."""
    from fiddle import Config

    made = deepcopy(partial)
    for key in keys:
        section, _, name = key.partition(".")
        holder = getattr(made, section)
        if not (name and isinstance(holder, Config)):
            return None
        (field,) = (one for one in dataclasses.fields(holder.__fn_or_cls__) if one.name == name)
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        setattr(holder, name, default)
    return made


def _is_plain(value: Any, depth: int = 0) -> bool:
    """Whether a value is what YAML makes: an Enum or a number of NumPy's is none, though it passes for one."""
    if type(value) in (list, dict):
        inner = [*value, *value.values()] if isinstance(value, dict) else value
        return depth < DEEPEST and all(_is_plain(one, depth + 1) for one in inner)
    return type(value) in (str, int, float, bool, type(None))


def _example(partial: "run.Partial[Any]", key: str) -> str:
    """What a value that is no single word is for, in the words of its declaration, which show one."""
    if key == "extra_args":
        return "They are words for the script: extra_args=[--flag, value], or -- --flag value at the end of the line."
    section, _, name = key.partition(".")
    kind = field_types(partial)[key]
    if not name or not {dict, list, str} & {get_origin(one) or one for one in (kind, *get_args(kind))}:
        return ""
    (declared,) = (one for one in dataclasses.fields(getattr(partial, section).__fn_or_cls__) if one.name == name)
    return f"It is: {declared.metadata['doc']}."


def _convert(kind: Any, key: str, value: Any, *, strict: bool) -> tuple[Any, list[Problem]]:
    try:
        return convert(kind, value, strict=strict), []
    except ValueError as error:
        return None, [_wrong(key, value, str(error))]


def _mapping_of(key: str, fields: Mapping[str, Any]) -> str | None:
    """The key of a mapping (`args.config`) that a longer key (`args.config.train.lr`) reaches into."""
    parts = key.split(".")
    mapping = ".".join(parts[:2])
    is_mapping = any(get_origin(kind) is dict for kind in (fields.get(mapping), *get_args(fields.get(mapping))))
    return mapping if len(parts) > 2 and all(parts) and is_mapping else None


def _set_below(partial: "run.Partial[Any]", mapping: str, key: str, value: Any) -> list[Problem]:
    """Set one value inside a mapping; text is read as YAML reads it."""
    import yaml

    section, name = mapping.split(".")
    whole = deepcopy(getattr(getattr(partial, section), name)) or {}
    *sections, last = key.removeprefix(f"{mapping}.").split(".")
    inner = whole
    for part in sections:
        inner = inner.setdefault(part, {})
        if not isinstance(inner, dict):
            return [_wrong(key, value, f"{part} is a value, not a section")]
    try:
        inner[last] = parse_yaml(value) if isinstance(value, str) else value
        refuse_huge(inner[last])
    except yaml.YAMLError as error:
        return [_wrong(key, value, f"does not parse: {' '.join(str(error).split())}")]
    except ValueError as error:
        return [_wrong(key, value, str(error))]
    setattr(getattr(partial, section), name, whole)
    return []


def field_types(partial: "run.Partial[Any]") -> Mapping[str, Any]:
    """Every key that the recipe takes, with its type: `engine`, `script.path`, `args.calib_size`, ..."""
    return _types(*(getattr(partial, section).__fn_or_cls__ for section in ("script", "args", "torchrun")))


@cache
def _types(script: type, args: type, torchrun: type) -> Mapping[str, Any]:
    types: dict[str, Any] = {"engine": Engine, "extra_args": list[str]}
    for section, cls in (("script", script), ("args", args), ("torchrun", torchrun)):
        hints = get_type_hints(cls)
        types |= {f"{section}.{field.name}": hints[field.name] for field in dataclasses.fields(cls)}
    return types


def _unknown(key: str, section: str, name: str, fields: Mapping[str, Any]) -> Problem:
    siblings = [field for field in fields if name and field.startswith(f"{section}.")]
    sections = () if "." in key else {*SECTIONS, "executor", "track"} - {key}
    remedy = nearest(key, siblings or {*fields, *sections})
    return Problem(name="unknown_key", key=key, value=None, cause="there is no such key", remedy=remedy)


def _wrong(key: str, value: Any, cause: str) -> Problem:
    return Problem(name="wrong_value", key=key, value=value, cause=cause)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Words:
    """The `KEY=VALUE` words of a command line, sorted by whom they address."""

    executor: str | None  # None: nobody said
    profile: dict[str, str]
    recipe: dict[str, str]


def parse_words(words: list[str]) -> tuple[Words, list[Problem]]:
    """Sort command-line words into executor name, `executor.KEY` values and recipe values.

    `track=` is short for `executor.track=`, and `run.executor=` for `executor=`. The last word for a key wins, as in a
    shell.
    """
    executor: str | None = None
    profile: dict[str, str] = {}
    recipe: dict[str, str] = {}
    problems = []
    for word in words:
        match = re.match(r"([A-Za-z_][\w.-]*)=(.*)", word, re.ASCII | re.DOTALL)
        if match is None:
            problems.append(_no_override(word))
            continue
        key, value = match[1].removeprefix("run."), match[2]
        if key == "executor":
            executor = value
        elif key == "track":  # with every profile: who runs the job says whom it is told to
            profile[key] = value
        elif key.startswith("executor."):
            profile[key.removeprefix("executor.")] = value
        else:
            recipe[key] = value
    return Words(executor=executor, profile=profile, recipe=recipe), problems


def _no_override(word: str) -> Problem:
    """Why a word is none of the form KEY=VALUE, and what to write."""
    key, equals, _ = word.partition("=")
    foreign = next((letter for letter in key if not letter.isascii()), "")
    cause, remedy = "a word of the form KEY=VALUE is expected", ""
    if equals and foreign:
        cause = f"{foreign!r} in the key is {unicodedata.name(foreign, 'no letter')}"
        remedy = "Type the key anew: keys are letters of ASCII."
    elif word.endswith((".yaml", ".yml")):
        remedy = f"Write --config {word}."
    elif not equals and word.startswith("-"):
        remedy = "Words for the script go after --."
    return Problem(name="not_an_override", key=word, value=None, cause=cause, remedy=remedy)


def parse_sweep(words: list[str]) -> tuple[dict[str, list[str]], list[Problem]]:
    """`KEY=A,B,C` words as a grid of texts; a value that holds a comma is quoted as in CSV."""
    grid: dict[str, list[str]] = {}
    problems = []
    for word in words:
        key, equals, values = word.partition("=")
        if not equals or not key or not values:
            cause = "KEY=A,B,C is expected"
            problems.append(Problem(name="not_a_sweep", key="--sweep", value=word, cause=cause))
            continue
        try:
            (row,) = csv.reader([values])
        except (ValueError, csv.Error):  # lines of several rows, or a quote that does not end
            problems.append(Problem(name="not_a_sweep", key="--sweep", value=word, cause="it is no line of CSV"))
            continue
        if key in grid:
            cause = f"{key} is swept twice"
            remedy = "Say all its values in one --sweep."
            problems.append(Problem(name="not_a_sweep", key="--sweep", value=word, cause=cause, remedy=remedy))
            continue
        grid[key] = row
    return grid, problems
