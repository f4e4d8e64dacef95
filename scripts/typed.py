"""Values from a command line or a YAML file, converted to the type that a field declares."""

from typing import Any, get_args, get_origin

from scripts.problems import nearest

_NULLS = ("null", "None", "~")


def convert(kind: Any, value: Any, *, strict: bool) -> Any:
    """`value` as a `kind`. With `strict` it has its type already (YAML); else it may be text to parse.

    Text for a string field is taken literally: `1e3`, `yes` and `$(x)` stay what they are; `null`
    is None where the field allows it. Raises ValueError saying what would be right.
    """
    from pydantic import TypeAdapter, ValidationError

    if not strict and isinstance(value, str):
        optional = type(None) in get_args(kind)
        if optional and value in _NULLS:
            return None
        if kind is str or (optional and str in get_args(kind)):
            return value
        if get_origin(kind) in (list, dict):
            value = _yaml(value)
    try:
        return TypeAdapter(kind).validate_python(value, strict=strict)
    except ValidationError as error:
        detail = error.errors()[0]
        if detail["type"] == "literal_error":
            choices = [str(choice) for choice in get_args(kind)]
            raise ValueError(f"is not one of its choices.  {nearest(str(value), choices)}") from error
        raise ValueError(f"{detail['msg'][0].lower()}{detail['msg'][1:]}") from error


def _yaml(text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"does not parse: {' '.join(str(error).split())}") from error
