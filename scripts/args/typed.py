"""Values from a command line or a YAML file, converted to the type that a field declares."""

import json
import re
from collections.abc import Sequence
from functools import cache
from typing import Any, Literal, get_args, get_origin

from scripts.run.problems import nearest

#: YAML 1.1 takes 6e9 and 1e-5 for texts; people mean numbers.
_FLOAT = re.compile(r"[-+]?(?:\d[\d_]*)(?:\.[\d_]*)?[eE][-+]?\d+")
_NULLS = ("null", "None", "~")
_NUMBER = re.compile(r"\[?\s*(\d[\d_]*(?:\.\d*)?(?:[eE][-+]?\d+)?)\s*([kmgbt]?)\s*\]?", re.IGNORECASE)
_SCALES = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "b": 1e9, "t": 1e12}
#: No count, size or seed is larger, and arithmetic in floats overflows far above.
_LARGEST = 1 << 63
#: A document of values has some hundred of nodes, some levels deep; aliases count as what they stand for.
_MOST_NODES, DEEPEST = 100_000, 64
_STR = "tag:yaml.org,2002:str"
_TYPED = [f"tag:yaml.org,2002:{name}" for name in ("int", "float", "bool", "timestamp")]


def convert(kind: Any, value: Any, *, strict: bool) -> Any:
    """`value` as a `kind`. With `strict` it has its type already (YAML); else it may be text to parse.

    Text for a string field is taken literally: `1e3`, `yes` and `$(x)` stay what they are, in a list or a mapping
    of texts too; `null` is None where the field allows it. Raises ValueError saying what would be right.
    """
    import yaml
    from pydantic import ValidationError

    if not strict and isinstance(value, str):
        optional = type(None) in get_args(kind)
        if optional and value in _NULLS:
            return None
        if kind is str or (optional and str in get_args(kind)):
            return value
        if {list, dict} & {get_origin(one) for one in (kind, *get_args(kind))}:
            try:
                value = parse_yaml(value, as_text=_holds_texts(kind))
            except yaml.YAMLError as error:
                raise ValueError(f"does not parse: {' '.join(str(error).split())}") from error
    items = next((get_args(one) for one in get_args(kind) if get_origin(one) is list), ())
    if type(value) in items:  # one of a list that need not be, without its brackets
        value = [value]
    refuse_huge(value)
    try:
        converted = _adapter(kind).validate_python(value, strict=strict)
    except ValidationError as error:
        detail = error.errors()[0]
        if detail["type"] == "literal_error":
            said = nearest(str(detail["input"]), choices(kind))
            raise ValueError(f"is not one of its choices.  {said}") from error
        place, item = _place(value, detail["loc"])
        if place:
            shown = f" is {json.dumps(item)}, and" if isinstance(item, (int, float, type(None))) else ""
            write = f'  Write it in quotes: "{json.dumps(item)}".' if shown and item is not None else ""
            hint = write if detail["type"] == "string_type" else ""
            raise ValueError(f"{place}{shown or ':'} {detail['msg'][0].lower()}{detail['msg'][1:]}{hint}") from error
        if value in ("", None, *_NULLS) and (expected := _expected(kind)):
            raise ValueError(f"is empty.  Write {expected}, or leave the key out.") from error
        meant = _meant({kind, *get_args(kind)}, value)
        if not meant and {list, dict} & {get_origin(one) for one in (kind, *get_args(kind))}:
            meant = _expected(kind)
        hint = f"  Write {meant}." if meant else ""
        raise ValueError(f"{detail['msg'][0].lower()}{detail['msg'][1:]}{hint}") from error
    refuse_huge(converted)
    return converted


def refuse_huge(value: Any) -> None:
    """Raise ValueError for a whole number that nothing here can mean."""
    if isinstance(value, int) and abs(value) > _LARGEST:
        raise ValueError("is a number of more digits than any that is taken")
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ():
        refuse_huge(item)


def _expected(kind: Any) -> str:
    """What may be written for a field; empty where that is not said in a word."""
    words = {int: "a whole number", float: "a number", bool: "true or false", list: "a list, [a, b]"}
    words |= {dict: "a mapping, {key: value}", type(None): "null"}
    named = (words.get(get_origin(one) or one, "") for one in get_args(kind) or (kind,))
    return " or ".join(filter(None, named)) if get_origin(kind) not in (list, dict) else words[get_origin(kind)]


def _holds_texts(kind: Any) -> bool:
    """Whether a type is a list or a mapping of texts, or none."""
    held = [get_args(one)[-1] for one in (kind, *get_args(kind)) if get_origin(one) in (list, dict)]
    return bool(held) and all(one is str for one in held)


def _place(value: Any, path: Sequence[int | str]) -> tuple[str, Any]:
    """Where in a list or a mapping pydantic found something wrong, in words, and what stands there; "": all of it."""
    place = ""
    for part in path:  # the names of a union's types are between
        if isinstance(value, dict) and part in value:
            place, value = f"{place}.{part}", value[part]
        elif isinstance(value, list) and isinstance(part, int) and part < len(value):
            place, value = f"{place}[{part}]", value[part]
    return place.removeprefix("."), value


def choices(kind: Any) -> list[str]:
    """The words that a type of few values takes, wherever it stands in a union or a list."""
    if get_origin(kind) is Literal:
        return [str(choice) for choice in get_args(kind)]
    words = {type(None): ["null"], bool: ["true", "false"]}
    return words.get(kind) or [word for one in get_args(kind) for word in choices(one)]


def _meant(kinds: set[Any], value: Any) -> str:
    """How to write what somebody may have meant: 2k, 1e3 or [8] for a number, a,b for a list; empty: nobody knows."""
    if isinstance(value, list) and len(value) == 1:
        value = str(value[0])
    if not isinstance(value, str):
        return ""
    if any(get_origin(kind) is list for kind in kinds):
        return f"[{value}]" if "," in value and "\n" not in value else ""
    found = _NUMBER.fullmatch(value.strip()) if {int, float} & kinds else None
    if found is None or len(value) > 40:
        return ""
    number = float(found[1].replace("_", "")) * _SCALES[found[2].lower()]
    if not number < _LARGEST:
        return ""
    return f"{number:g}" if int not in kinds else str(int(number))


@cache
def _adapter(kind: Any) -> Any:
    from pydantic import ConfigDict, TypeAdapter

    return TypeAdapter(kind, config=ConfigDict(allow_inf_nan=False))


def dump_yaml(value: Any) -> str:
    """What `parse_yaml` reads back as the same: a text that it would take for a number is in quotes."""
    import yaml

    return str(yaml.dump(value, Dumper=_dumper(), allow_unicode=True, width=1000, sort_keys=False))


@cache
def _dumper() -> type:
    import yaml

    class Dumper(yaml.SafeDumper):
        """SafeDumper with the floats of YAML 1.2."""

    Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789"))
    return Dumper


def parse_yaml(text: str, *, as_text: bool = False) -> Any:
    """A YAML document, in which 6e9 is a number, or with `as_text` the text that stands there.

    Raises yaml.YAMLError, also for a key that stands there twice, and for a document that is too deep, or too large
    with what its aliases stand for; it says the line.
    """
    import yaml

    loader = None
    try:
        _refuse_endless(text)
        loader = _loader()(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _refuse_twice(node, set())
        if as_text:
            _untype(node)
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as error:  # its own words name no file, but "<unicode string>", and quote lines
        raise yaml.YAMLError(_plain(error, text)) from error
    except (ValueError, KeyError, AttributeError, RecursionError) as error:
        # Half of a surrogate pair, 2024-13-45, 0b_, `!!int x`: PyYAML lets what it calls fail in its own way.
        raise yaml.YAMLError(f"{type(error).__name__}: {error}") from error
    finally:
        if loader is not None:
            loader.dispose()


def _plain(error: Any, text: str) -> str:
    """Where a document is no YAML, and why, in one sentence."""
    mark, lines = error.problem_mark or error.context_mark, text.splitlines()
    said = " ".join(filter(None, (error.context, error.problem)))
    if mark is None:
        return said
    if mark.line >= len(lines):  # where PyYAML learns of what was never closed
        return f"at its end, after line {len(lines)}: {said}"
    line = lines[mark.line]
    if "\t" in line[: len(line) - len(line.lstrip())]:
        return f"line {mark.line + 1} is indented with a tab, and YAML takes spaces alone"
    return f"line {mark.line + 1}, column {mark.column + 1}: {said}"


def _refuse_endless(text: str) -> None:
    """Raise yaml.YAMLError by the events of a document, before anything is made of it."""
    import yaml

    sizes: dict[str, int] = {}  # nodes below each anchor, itself included
    open_: list[tuple[str | None, int]] = [(None, 0)]
    for event in yaml.parse(text, Loader=_base()):
        anchor, size, cause = getattr(event, "anchor", None), 0, ""
        if isinstance(event, yaml.AliasEvent):
            size = sizes.get(str(anchor), 0)
            cause = "" if size else f"*{anchor} stands for nothing, or for what it is in"
        elif isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)):
            open_.append((anchor, 1))
            cause = f"it is nested more than {DEEPEST} deep" if len(open_) > DEEPEST else ""
        elif isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
            anchor, size = open_.pop()
        elif isinstance(event, yaml.ScalarEvent):
            size = 1
        if anchor is not None and size:
            sizes[str(anchor)] = size
        open_[-1] = (open_[-1][0], open_[-1][1] + size)
        if open_[-1][1] > _MOST_NODES:
            cause = f"it has more than {_MOST_NODES:,} values, with what its aliases stand for"
        if cause:
            mark: Any = event.start_mark
            raise yaml.YAMLError(f"line {mark.line + 1}: {cause}")


def _refuse_twice(node: Any, seen: set[int]) -> None:
    """Raise yaml.YAMLError for a key that a mapping has twice; PyYAML takes the last one."""
    import yaml

    if id(node) in seen or isinstance(node, yaml.ScalarNode):
        return
    seen.add(id(node))
    lines: dict[str, int] = {}
    for item in node.value:
        key, value = item if isinstance(node, yaml.MappingNode) else (None, item)
        if isinstance(key, yaml.ScalarNode):
            line = key.start_mark.line + 1
            if key.value in lines:
                cause = f"the key {key.value[:80]} stands at line {lines[key.value]} and at line {line}"
                raise yaml.YAMLError(cause)
            lines[key.value] = line
        _refuse_twice(value, seen)


def _untype(node: Any) -> None:
    """Make numbers, truth values and times of a document the texts that they are written as."""
    import yaml

    if isinstance(node, yaml.ScalarNode):
        if node.tag in _TYPED:
            node.tag = _STR
        return
    for item in node.value:
        for inner in item if isinstance(item, tuple) else (item,):
            _untype(inner)


def _base() -> Any:
    import yaml

    return getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where PyYAML was built with it


@cache
def _loader() -> Any:
    base: Any = _base()

    class Loader(base):  # type: ignore[misc]
        """SafeLoader with the floats of YAML 1.2."""

    Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789"))
    return Loader
