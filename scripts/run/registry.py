"""The one registry of checks: what can be wrong with a job, looked for where it is submitted and where it runs.

    @check("gated_without_token", needs=("model",), engines=("script", "hf"), can_force=True)
    def gated(job: Job) -> Iterator[Problem]:
        yield Problem(key="args.hf_model_id", value=name, cause="its repository is gated")

The function is all there is to it. What the decorator says holds for each of its Problems: the name, where it has
none of its own; that it can be forced; that it is a warning.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any, Literal, TypeVar

from scripts.args.meaning import Role, ScriptSpec, value_of
from scripts.run.problems import Problem, Severity


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A check that could not be made, and the facts that were missing."""

    name: str = ""  # of the check; it is filled in
    missing: tuple[str, ...]

    def __str__(self) -> str:
        return f"not checked: {self.name} (not known: {', '.join(self.missing)})"


Found = Iterable[Problem | Skipped]  # Skipped: a fact turned out to be missing on the way
Run = Callable[[Any], Found]
_Run = TypeVar("_Run", bound=Run)


@dataclass(frozen=True, kw_only=True)
class Check:
    """One check: a pure function over a job, the jobs that it is for, and the facts without which it is skipped.

    A fact is an attribute of the job that may be None (`gpu`, `model`), or a field of it: `model.heads`. What does
    not apply to a job is not skipped, but absent.
    """

    name: str  # of the Problem that it reports; its main one, where there are several
    run: Run
    also: tuple[str, ...] = ()  # the others
    needs: tuple[str, ...] = ()
    roles: tuple[Role, ...] = ()  # the job has an argument in each, and each is set
    args: tuple[type, ...] = ()  # the classes of arguments that it is for; none: all
    engines: tuple[str | None, ...] = ()  # None among them: algorithms that have no choice of engine
    algorithms: tuple[str, ...] = ()
    applies: Callable[[Any], bool] | None = None  # what else the job must be like
    can_force: bool = False
    severity: Severity = "error"
    where: Literal["submit", "node", "both"] = "submit"
    of_values: bool = False  # it asks for arguments alone, whatever place they are for
    decisive: bool = False  # where it finds something, nothing else can be said of the job
    module: str = ""

    def is_for(self, job: Any) -> bool:
        """Whether the job is of the kind at all."""
        return (
            (not self.engines or job.engine in self.engines)
            and (not self.algorithms or job.algorithm in self.algorithms)
            and (not self.args or isinstance(job.resolved, self.args))
            and all(value_of(job.resolved, role) is not None for role in self.roles)
            and (self.applies is None or self.applies(job))
        )

    def found(self, job: Any) -> Iterator[Problem | Skipped]:
        """What it says of a job that it is for."""
        missing = tuple(need for need in self.needs if not _known(need, job))
        for one in (Skipped(missing=missing),) if missing else self.run(job):
            name = one.name or self.name
            if isinstance(one, Skipped):
                yield replace(one, name=name)
                continue
            severity = one.severity if self.severity == "error" else self.severity
            yield replace(one, name=name, severity=severity, can_force=one.can_force or self.can_force)


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What the checks of one job came to."""

    problems: tuple[Problem, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    usable: bool = True  # else the values are such that nothing more can be said of the job


#: Every check, by the name of its function, in the order in which modules were imported.
REGISTRY: dict[str, Check] = {}


def check(name: str, *also: str, args: type | tuple[type, ...] = (), **facts: Any) -> Callable[[_Run], _Run]:
    """Make a function a check; `facts` are those of Check. Raises ValueError where two have the same name."""

    def register(function: _Run) -> _Run:
        called = function.__name__
        if called in REGISTRY:
            raise ValueError(f"two checks are named {called}: of {REGISTRY[called].module} and {function.__module__}")
        classes = args if isinstance(args, tuple) else (args,)
        REGISTRY[called] = Check(name=name, also=also, args=classes, run=function, module=function.__module__, **facts)
        return function

    return register


def checks_of(*modules: ModuleType) -> tuple[Check, ...]:
    """The checks that modules define, in their order."""
    return tuple(one for module in modules for one in REGISTRY.values() if one.module == module.__name__)


def carry_out(checks: Sequence[Check], job: Any) -> Findings:
    """Run every check that applies and whose facts are known; alone the decisive ones where they find something."""
    decisive = [one for each in checks if each.decisive and each.is_for(job) for one in each.found(job)]
    found = decisive or [one for each in checks if not each.decisive and each.is_for(job) for one in each.found(job)]
    problems = tuple(one for one in found if isinstance(one, Problem))
    return Findings(
        problems=tuple(one for number, one in enumerate(problems) if one not in problems[:number]),
        skipped=tuple(one for one in found if isinstance(one, Skipped)),
        usable=not decisive,
    )


@dataclass(frozen=True, kw_only=True)
class OnNode:
    """What a job answers to a check where it runs, as a Job does where it is submitted."""

    resolved: Any
    script: ScriptSpec = field(default_factory=ScriptSpec)
    engine: str = "script"
    in_this_python: bool = True


def refuse(args: Any, script: ScriptSpec, *modules: ModuleType) -> None:
    """On the node: raise JobError for the first thing wrong that nobody can have forced, by the checks of modules."""
    checks = [one for one in checks_of(*modules) if one.where != "submit"]
    for problem in carry_out(checks, OnNode(resolved=args, script=script)).problems:
        if problem.severity == "error" and not problem.can_force:
            raise problem.as_error()


def _known(need: str, job: Any) -> bool:
    value = job
    for name in need.split("."):
        value = getattr(value, name)
        if value is None:
            return False
    return True
