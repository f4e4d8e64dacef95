"""What every command shares: its one JSON answer, how it says what is wrong, and its exit status."""

import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer
from typer.core import TyperCommand, TyperGroup

from scripts.evaluation.verdict import number_of
from scripts.run.problems import JobError, Problem, ProblemsError, is_disk_full, shown
from scripts.run.record import DamagedRecordError

FAILED, REFUSED, INTERRUPTED = 1, 2, 130
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document; configs/schemas/answer.json.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print the runs' ids alone, and what is wrong.")]
#: Of the answer. Raised when a key changes its meaning or goes away.
_SCHEMA = 1
_OUTCOMES = {0: "done", REFUSED: "refused", INTERRUPTED: "stopped"}
#: The words of the command that runs, whichever program it was called by: `ps`, `executors check`.
_COMMAND: ContextVar[str] = ContextVar("command", default="")


class _Named:
    """Notes its own words while it runs; paragraphs of its help are as wide as the terminal, not as the source."""

    def __init__(self, *args: Any, help: str | None = None, **values: Any) -> None:
        paragraphs = (" ".join(paragraph.split()) for paragraph in (help or "").split("\n\n"))
        super().__init__(*args, help="\n\n".join(paragraphs), **values)  # type: ignore[call-arg]

    def invoke(self, ctx: Any) -> Any:
        words, at = [], ctx
        while at.parent is not None and at.info_name != "experiment":
            words += [] if at.command.hidden else [str(at.info_name)]
            at = at.parent
        before = _COMMAND.set(" ".join(reversed(words)))
        try:
            return super().invoke(ctx)  # type: ignore[misc]
        except OSError as error:
            if not is_disk_full(error):
                raise
            # What standard output goes to has no room; nothing of it is to be tried again at the end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            say(f"failed: {JobError.of_os_error(error)}", to=sys.stderr)
            raise typer.Exit(FAILED) from None
        finally:
            _COMMAND.reset(before)


class Command(_Named, TyperCommand):
    """What each of our commands is."""


class Group(_Named, TyperGroup):
    """The same of commands that stand together, and do something by themselves."""


def say(text: object, *, to: TextIO | None = None, as_line: bool = False) -> None:
    """Print a text for a person. Values come from files: none of them commands the terminal, or ends an `as_line`."""
    words = shown(text).replace("\n", "\\n") if as_line else shown(text)
    encoding = (to or sys.stdout).encoding or "utf-8"
    print(words.encode(encoding, "replace").decode(encoding), file=to, flush=True)


def answer(data: Any, *, status: int = 0, problems: Sequence[Problem] = (), error: JobError | None = None) -> None:
    """Print what a command found, in the envelope that every command has; `status` is what it is going to exit with.

    What JSON does not know becomes text, NaN null. In ASCII: any terminal and locale can take it.
    """
    whole = envelope(_COMMAND.get(), data, status=status, problems=problems, error=error)
    print(json.dumps(_finite(whole), indent=2, default=str))


def envelope(
    command: str, data: Any, *, status: int, problems: Sequence[Problem] = (), error: JobError | None = None
) -> dict[str, Any]:
    """A command's answer as configs/schemas/answer.json describes it."""
    return {
        "schema": _SCHEMA,
        "command": command,
        "outcome": _OUTCOMES.get(status, "failed"),
        "exit_status": status,
        "problems": [problem.as_data() for problem in problems],
        "error": error and error.as_data(),
        "data": data,
    }


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
    """What is wrong in the block is printed, is the JSON answer too, and becomes the exit status.

    The block may put data into the answer of a refusal. `submits`: it would have submitted something.
    """
    data: dict[str, Any] = {}
    try:
        yield data
    except ProblemsError as error:
        if as_json:
            answer(data or None, status=REFUSED, problems=error.problems)
        print_problems(error.problems)
        errors = sum(problem.severity == "error" for problem in error.problems)
        if submits:
            say(f"{errors} problem{'s' if errors > 1 else ''}; nothing was submitted.", to=sys.stderr)
        raise typer.Exit(REFUSED) from None
    except (JobError, DamagedRecordError) as error:
        cause = cause_of(error)
        if as_json:
            answer(data or None, status=FAILED, error=cause)
        say(f"failed: {cause}", to=sys.stderr)
        raise typer.Exit(FAILED) from None
    except KeyboardInterrupt:
        if as_json:
            answer(data or None, status=INTERRUPTED)
        raise typer.Exit(INTERRUPTED) from None


def cause_of(error: Exception) -> JobError:
    """What a run, its record or this machine did not let happen, under the name that it has."""
    if isinstance(error, OSError):
        return JobError.of_os_error(error)
    return error if isinstance(error, JobError) else JobError("damaged_record", str(error))


def share(text: str | None, key: str) -> float | None:
    """`1%` or `0.01`, given by an option; None where it is not. Raises ProblemsError."""
    if text is None:
        return None
    try:
        value = number_of(text, key)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        cause = "a share is expected, such as 1% or 0.01"
        raise ProblemsError([Problem(name="wrong_value", key=key, value=text, cause=cause)])
    return value


def write_new(file: Path, text: str, key: str) -> None:
    """Write a whole file that somebody asked for by an option. Raises ProblemsError where there is one, JobError."""
    try:
        with file.open("x", encoding="utf-8") as out:
            out.write(text)
    except FileExistsError:
        remedy = "Choose another name."
        wrong = Problem(name="output_exists", key=key, value=file, cause="there is such a file", remedy=remedy)
        raise ProblemsError([wrong]) from None
    except OSError as error:
        with suppress(OSError):
            file.unlink()  # the half of it
        raise JobError.of_os_error(error) from error


def exit_status(states: Sequence[str]) -> int:
    """0 only if every run succeeded; 130 when the worst that happened is that somebody stopped it."""
    if all(state == "succeeded" for state in states):
        return 0
    return INTERRUPTED if set(states) <= {"succeeded", "cancelled"} else FAILED
