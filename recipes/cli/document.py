"""What every command shares: its one JSON document, how it says what is wrong, and its exit status."""

import json
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, TextIO

import typer

from scripts.run.problems import JobError, Problem, ProblemsError, shown
from scripts.run.record import DamagedRecordError

FAILED, REFUSED, INTERRUPTED = 1, 2, 130
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]


def say(text: object, *, to: TextIO | None = None, as_line: bool = False) -> None:
    """Print a text for a person. Values come from files: none of them commands the terminal, or ends an `as_line`."""
    print(shown(text).replace("\n", "\\n") if as_line else shown(text), file=to, flush=True)


def print_json(value: Any) -> None:
    """Print `value`; what JSON does not know becomes text, NaN null. In ASCII: any terminal and locale can take it."""
    print(json.dumps(_finite(value), indent=2, default=str))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_problems(problems: Sequence[Problem]) -> None:
    """One to a line on standard error, which leaves a JSON document whole."""
    for problem in problems:
        say(problem, to=sys.stderr)


@contextmanager
def exits(*, as_json: bool = False, submits: bool = False) -> Iterator[dict[str, Any]]:
    """What is wrong in the block is printed, or is the JSON document, and becomes the exit status.

    The block may put more into the document of a refusal. `submits`: it would have submitted something.
    """
    document: dict[str, Any] = {}
    try:
        yield document
    except ProblemsError as error:
        if as_json:
            print_json(document | {"state": "refused", "problems": [one.as_data() for one in error.problems]})
        print_problems(error.problems)
        errors = sum(problem.severity == "error" for problem in error.problems)
        if submits:
            say(f"{errors} problem{'s' if errors > 1 else ''}; nothing was submitted.", to=sys.stderr)
        raise typer.Exit(REFUSED) from None
    except (JobError, DamagedRecordError) as error:
        cause = error if isinstance(error, JobError) else JobError("damaged_record", str(error))
        if as_json:
            print_json({"state": "failed", "error": cause.as_data()})
        say(f"failed: {cause}", to=sys.stderr)
        raise typer.Exit(FAILED) from None


def exit_status(states: Sequence[str]) -> int:
    """0 only if every run succeeded; 130 when the worst that happened is that somebody stopped it."""
    if all(state == "succeeded" for state in states):
        return 0
    return INTERRUPTED if set(states) <= {"succeeded", "cancelled"} else FAILED
