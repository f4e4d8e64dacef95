"""What every command shares: its one JSON document, how it says what is wrong, and its exit status."""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from scripts.run.problems import JobError, Problem, ProblemsError

FAILED, REFUSED, INTERRUPTED = 1, 2, 130
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]


def print_json(value: Any) -> None:
    """Print `value`; what JSON does not know becomes text. In ASCII: any terminal and any locale can take it."""
    print(json.dumps(value, indent=2, default=str))


def print_problems(problems: Sequence[Problem]) -> None:
    """One to a line on standard error, which leaves a JSON document whole."""
    for problem in problems:
        print(problem, file=sys.stderr)


@contextmanager
def exits(*, as_json: bool = False) -> Iterator[dict[str, Any]]:
    """What is wrong in the block is printed, or is the JSON document, and becomes the exit status.

    The block may put more into the document of a refusal.
    """
    document: dict[str, Any] = {}
    try:
        yield document
    except ProblemsError as error:
        if as_json:
            print_json(document | {"state": "refused", "problems": [one.as_data() for one in error.problems]})
        print_problems(error.problems)
        errors = sum(problem.severity == "error" for problem in error.problems)
        print(f"{errors} problem{'s' if errors > 1 else ''}; nothing was submitted.", file=sys.stderr)
        raise typer.Exit(REFUSED) from None
    except JobError as error:
        if as_json:
            print_json({"state": "failed", "error": error.as_data()})
        print(f"failed: {error}", file=sys.stderr)
        raise typer.Exit(FAILED) from None
