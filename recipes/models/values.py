"""Values of a configuration that somebody else wrote: each is what it should be, or it is not known."""

from collections.abc import Mapping
from typing import Any

#: Larger than any figure of a model, and small enough that products of a few fit a float.
_MOST = 1 << 31


class Values:
    """A section of config.json whose keys may be absent or of any kind.

    A key that is absent or null takes what `absent` has for it: what the model's class in transformers gives it.
    One that is there and cannot be what is asked for is None, and never its default.
    """

    def __init__(self, section: Mapping[str, Any], absent: Mapping[str, int | str] | None = None) -> None:
        self._section = section
        self._absent = absent or {}

    def count(self, *keys: str, least: int = 1) -> int | None:
        """The whole number under the first of `keys` that is there; an absent one can name another key."""
        for key in keys:
            value = self._section.get(key)
            if value is not None:
                return value if type(value) is int and least <= value < _MOST else None
        for key in keys:
            default = self._absent.get(key)
            if default is not None:
                return self.count(default, least=least) if isinstance(default, str) else default
        return None

    def flag(self, key: str, *, absent: bool | None = None) -> bool | None:
        value = self._section.get(key)
        return absent if value is None else value if isinstance(value, bool) else None

    def word(self, *keys: str) -> str | None:
        """The text under the first of `keys` that is there."""
        value = next((value for key in keys if (value := self._section.get(key)) is not None), None)
        return value if isinstance(value, str) else None

    def list(self, key: str) -> list[Any] | None:
        """The list under `key`; of an absent one, an empty list."""
        value = self._section.get(key)
        return [] if value is None else value if isinstance(value, list) else None

    def has(self, key: str) -> bool:
        """Whether there is something under `key`."""
        return self._section.get(key) is not None

    def mentions(self, key: str) -> bool:
        """Whether `key` is there, be it null."""
        return key in self._section

    def section(self, key: str) -> dict[str, Any] | None:
        value = self._section.get(key)
        return value if isinstance(value, dict) else None
