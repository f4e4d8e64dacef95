"""Values that a script takes from a configuration instead of from flags: Megatron-Bridge's training recipes."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

Value = TypeVar("Value", int, bool, str)


def configured(config: Mapping[str, Any], words: Sequence[str], key: str, default: Value) -> Value:
    """A dotted key as the script reads it: `a.b=c` among its words, else the configuration, else `default`.

    A value of another type than the default's is the script's to refuse, and counts as the default here.
    """
    section, _, name = key.partition(".")
    values = config.get(section)
    value = values.get(name) if isinstance(values, dict) else None
    for word in words:
        said, equals, text = word.partition("=")
        if equals and said == key:
            value = _parsed(text, type(default))
    return value if type(value) is type(default) else default


def _parsed(text: str, kind: type) -> Any:
    if kind is bool:
        return {"true": True, "false": False}.get(text.lower())
    if kind is int:
        return int(text) if re.fullmatch(r"-?[0-9]{1,18}", text) else None
    return text
