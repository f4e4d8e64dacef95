"""What commands print with --json: the envelope, held against its schema, and what is in it."""

import json
from functools import cache
from typing import Any

from jsonschema import Draft202012Validator

from configs import CONFIGS


@cache
def _schema() -> Draft202012Validator:
    return Draft202012Validator(json.loads((CONFIGS / "schemas" / "answer.json").read_text(encoding="utf-8")))


def answer_of(text: str) -> dict[str, Any]:
    """The one document that a command printed."""
    document: dict[str, Any] = json.loads(text)
    _schema().validate(document)
    return document


def data_of(text: str) -> Any:
    """What the command found; runs as a list, and of `run` and `resume` on one run, that run."""
    document = answer_of(text)
    data = document["data"]
    if document["command"] in ("ps", "cancel", "du"):
        return data["runs"]
    alone = document["command"] in ("run", "resume") and data is not None and len(data["runs"]) == 1
    return data["runs"][0] | {key: value for key, value in data.items() if key != "runs"} if alone else data
