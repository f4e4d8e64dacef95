"""What a check is: a pure function over a Job, the Problems that it may report, and the facts that it needs."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from recipes.experiment.job import Job
from scripts.run.problems import Problem


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A check that could not be made, and the facts that were missing."""

    name: str
    missing: tuple[str, ...]

    def __str__(self) -> str:
        return f"not checked: {self.name} (not known: {', '.join(self.missing)})"


@dataclass(frozen=True, kw_only=True)
class Check:
    """One check. It is run where every fact that it `needs` is known, and named as skipped where one is not.

    A fact is `gpu`, `model` (anything is known of it), or a field of the model's facts: `model.heads`.
    `applies` says whether the job is of the kind at all; what does not apply is not skipped, but absent.
    """

    name: str  # of the Problem that it reports; its main one, where there are several
    run: Callable[[Job], Iterator[Problem | Skipped]]  # Skipped: a fact turned out to be missing on the way
    needs: tuple[str, ...] = ()
    applies: Callable[[Job], bool] = lambda _: True


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What the checks of one job came to."""

    problems: tuple[Problem, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    usable: bool = True  # else the values are such that nothing more can be said of the job


def carry_out(checks: Sequence[Check], job: Job) -> Findings:
    """Run every check that applies and whose facts are known."""
    problems: list[Problem] = []
    skipped: list[Skipped] = []
    for check in checks:
        if not check.applies(job):
            continue
        missing = tuple(need for need in check.needs if not _known(need, job))
        if missing:
            skipped.append(Skipped(name=check.name, missing=missing))
            continue
        for found in check.run(job):
            if isinstance(found, Skipped):
                skipped.append(found)
            else:
                problems.append(found)
    return Findings(problems=tuple(problems), skipped=tuple(skipped))


def _known(need: str, job: Job) -> bool:
    owner, _, field = need.partition(".")
    value = getattr(job, owner)
    return value is not None and (not field or getattr(value, field) is not None)
