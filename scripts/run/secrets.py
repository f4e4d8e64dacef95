"""Secrets of a job: a file of mode 0600 that is named to it, read once, and removed when the job is over."""

import json
import os
from pathlib import Path

from scripts.run.problems import JobError

#: Names the file; a JSON object of variable names and values.
VARIABLE = "MODELOPT_RECIPES_SECRETS"


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
