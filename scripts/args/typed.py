"""Values from a command line or a YAML file, converted to the type that a field declares."""

import re
from functools import cache
from typing import Any, get_args, get_origin

from scripts.run.problems import nearest

#: YAML 1.1 takes 6e9 and 1e-5 for texts; people mean numbers.
_FLOAT = re.compile(r"[-+]?(?:\d[\d_]*)(?:\.[\d_]*)?[eE][-+]?\d+")
_NULLS = ("null", "None", "~")


def convert(kind: Any, value: Any, *, strict: bool) -> Any:
    """`value` as a `kind`. With `strict` it has its type already (YAML); else it may be text to parse.

    Text for a string field is taken literally: `1e3`, `yes` and `$(x)` stay what they are; `null`
    is None where the field allows it. Raises ValueError saying what would be right.
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
                value = parse_yaml(value)
            except yaml.YAMLError as error:
                raise ValueError(f"does not parse: {' '.join(str(error).split())}") from error
    items = next((get_args(one) for one in get_args(kind) if get_origin(one) is list), ())
    if type(value) in items:  # one of a list that need not be, without its brackets
        value = [value]
    try:
        return _adapter(kind).validate_python(value, strict=strict)
    except ValidationError as error:
        detail = error.errors()[0]
        if detail["type"] == "literal_error":
            choices = [str(choice) for choice in get_args(kind)]
            raise ValueError(f"is not one of its choices.  {nearest(str(value), choices)}") from error
        raise ValueError(f"{detail['msg'][0].lower()}{detail['msg'][1:]}") from error


@cache
def _adapter(kind: Any) -> Any:
    from pydantic import ConfigDict, TypeAdapter

    return TypeAdapter(kind, config=ConfigDict(allow_inf_nan=False))


def parse_yaml(text: str) -> Any:
    """A YAML document, in which 6e9 is a number. Raises yaml.YAMLError."""
    import yaml

    try:
        return yaml.load(text, Loader=_loader())
    except (ValueError, KeyError, AttributeError, RecursionError) as error:
        # Half of a surrogate pair, 2024-13-45, 0b_, `!!int x`: PyYAML lets what it calls fail in its own way.
        raise yaml.YAMLError(f"{type(error).__name__}: {error}") from error


@cache
def _loader() -> Any:
    import yaml

    base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where PyYAML was built with it

    class Loader(base):  # type: ignore[misc]
        """SafeLoader with the floats of YAML 1.2."""

    Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789"))
    return Loader
