"""Secrets of a job: what holds one, and a file of mode 0600 that is named to it, read once, and removed at its end."""

import json
import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from scripts.run.problems import JobError

#: Names the file; a JSON object of variable names and values.
VARIABLE = "MODELOPT_RECIPES_SECRETS"
#: Not TOKENIZERS_PARALLELISM or MAX_TOKENS, not HF_TOKEN_PATH.
_SECRET = re.compile(r"(?:TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|CREDENTIALS?)(?![A-Za-z])", re.IGNORECASE)
SWITCHES = frozenset({"", "0", "1", "true", "false", "yes", "no", "on", "off"})
#: Characters below which a variable's value may well be a word of the job's own.
_LEAST_SECRET = 8


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


def secrets_here(listed: Collection[str]) -> dict[str, str]:
    """The variables of this environment that hold secrets, by their names or because a profile lists them."""
    named = {name: value for name, value in os.environ.items() if name in listed or looks_secret(name)}
    return {name: value for name, value in named.items() if value.lower() not in SWITCHES}


def masked(value: Any, secrets: Mapping[str, str]) -> Any:
    """Plain data in which the name of a secret, in angle brackets, stands for its value."""
    if isinstance(value, dict):
        return {key: masked(item, secrets) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [masked(item, secrets) for item in value]
    if isinstance(value, str):
        for name in holds(value, secrets):
            value = value.replace(secrets[name], f"<{name}>")
    return value


def holds(text: str, secrets: Mapping[str, str]) -> list[str]:
    """The names of those secrets whose values stand in a text."""
    return [name for name, secret in secrets.items() if len(secret) >= _LEAST_SECRET and secret in text]
