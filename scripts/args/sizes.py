"""Sizes of memory as people write them: 16GiB, 24 GB, 800MiB."""

import re

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT])(i?)B", re.IGNORECASE)
_POWERS = {"k": 1, "m": 2, "g": 3, "t": 4}
#: What the place has.
AUTO = "auto"


def bytes_of(text: str | None) -> int | None:
    """A size in bytes; None of null and of `auto`. Raises ValueError saying how sizes are written."""
    if text is None or text == AUTO:
        return None
    found = _SIZE.fullmatch(text.strip())
    size = round(float(found[1]) * (1024 if found[3] else 1000) ** _POWERS[found[2].lower()]) if found else 0
    if not size:
        raise ValueError(f"{text!r} is no size of memory")
    return size
