"""Secrets of a job: what holds one, how they are kept out of what is written, and the file that brings them.

It has mode 0600, is named to the job, read once, and removed at the job's end.
"""

import json
import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from scripts.run.problems import JobError

#: Names the file; a JSON object of variable names and values.
VARIABLE = "MODELOPT_RECIPES_SECRETS"
#: Names of variables that a profile lists as secrets, and that do not look like it, with commas.
NAMES = "MODELOPT_RECIPES_SECRET_NAMES"
VARIABLES = (VARIABLE, NAMES)
#: Not TOKENIZERS_PARALLELISM or MAX_TOKENS, not HF_TOKEN_PATH.
_SECRET = re.compile(r"(?:TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|CREDENTIALS?)(?![A-Za-z])", re.IGNORECASE)
SWITCHES = frozenset({"", "0", "1", "true", "false", "yes", "no", "on", "off"})
#: Characters below which a variable's value may well be a word of the job's own.
_LEAST_SECRET = 8
#: What tokens of well-known services look like, and what stands where one is said.
_TOKEN = re.compile(
    r"\b(?:hf_|nvapi-|ghp_|glpat-|sk-|AKIA)[A-Za-z0-9_-]{6,200}|(?<=://)[^/\s@]{1,200}(?=@)|(?<=[Bb]earer )\S{1,300}"
    r"|(?i:(?<=token=)|(?<=token: )|(?<=password=)|(?<=password: )|(?<=api_key=)|(?<=secret=))[^\s&,;'\"]{1,300}"
)


def variables_of(file: str | None, listed: Collection[str]) -> dict[str, str]:
    """What a job is told of its secrets: their file, and which of them are hidden though their names do not say so."""
    told = {VARIABLE: file or "", NAMES: ",".join(name for name in listed if not looks_secret(name))}
    return {name: value for name, value in told.items() if value}


def load_secrets() -> list[str]:
    """Put the secrets into this process's environment; return their names. Nothing happens where no file is named.

    A variable that is set already wins. Raises JobError `secrets_unreadable` for a file that others
    may read, or that is not what it should be; one that is gone was used up by an earlier rank.
    """
    given = os.environ.get(VARIABLE)
    if not given:
        return []
    path = Path(given)
    try:
        with path.open(encoding="utf-8") as handle:
            if os.fstat(handle.fileno()).st_mode & 0o077:
                raise JobError("secrets_unreadable", f"{path} can be read by others.", "chmod 600 it.")
            values = json.load(handle)
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:  # the content is never shown
        cause = f"{path}: {type(error).__name__}."
        raise JobError("secrets_unreadable", cause, "Submit again; the submitter writes it anew.") from None
    for name, value in values.items():
        os.environ.setdefault(name, value)
    return sorted(values)


def forget_secrets() -> None:
    """Remove the file: the job is over, and nobody else needs it."""
    given = os.environ.get(VARIABLE)
    if given:
        Path(given).unlink(missing_ok=True)


def pack_secrets(names: list[str]) -> bytes | None:
    """The file's content for those of `names` that are set in this environment; None when none is."""
    values = {name: os.environ[name] for name in names if os.environ.get(name)}
    return json.dumps(values).encode() if values else None


def looks_secret(name: str) -> bool:
    """Whether a variable of this name holds a secret, as far as names tell."""
    return _SECRET.search(name) is not None and not name.upper().endswith(("_PATH", "_FILE", "_DIR"))


def secrets_here(listed: Collection[str] = ()) -> dict[str, str]:
    """The variables of this environment that hold secrets, by their names or because a profile lists them."""
    listed = {*listed, *os.environ.get(NAMES, "").split(",")}
    named = {name: value for name, value in os.environ.items() if name in listed or looks_secret(name)}
    return {name: value for name, value in named.items() if value.lower() not in SWITCHES}


def masked(value: Any, secrets: Mapping[str, str]) -> Any:
    """Plain data in which the name of a secret, in angle brackets, stands for its value."""
    if isinstance(value, dict):
        return {key: masked(item, secrets) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [masked(item, secrets) for item in value]
    if isinstance(value, str):
        for name in sorted(holds(value, secrets), key=lambda name: -len(secrets[name])):  # one may begin another
            value = value.replace(secrets[name], f"<{name}>")
    return value


def holds(text: str, secrets: Mapping[str, str]) -> list[str]:
    """The names of those secrets whose values stand in a text."""
    return [name for name, secret in secrets.items() if len(secret) >= _LEAST_SECRET and secret in text]


def redacted(text: str) -> str:
    """A text without the secrets of this environment, and without what looks like a token."""
    return _TOKEN.sub("***", masked(text, secrets_here()))


class Mask:
    """What somebody prints, in pieces, without the secrets of this environment: names in angle brackets stand there."""

    def __init__(self) -> None:
        found = {name: value for name, value in secrets_here().items() if len(value) >= _LEAST_SECRET}
        names = sorted(found, key=lambda name: -len(found[name]))
        self._names = {os.fsencode(found[name]): f"<{name}>".encode() for name in names}
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """What can be shown by now: what may be the beginning of a secret waits for the next piece."""
        data = self._held + data
        for secret, name in self._names.items():
            data = data.replace(secret, name)
        begun = (length for secret in self._names for length in range(1, len(secret)) if data.endswith(secret[:length]))
        shown = len(data) - max(begun, default=0)
        self._held = data[shown:]
        return data[:shown]

    def rest(self) -> bytes:
        """What waited when nothing came any more."""
        return self._held
