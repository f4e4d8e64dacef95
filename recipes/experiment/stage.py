"""What is asked for: stages, those of a sweep, and how to submit them."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.values import set_value
from scripts.run.problems import Problem, ProblemsError

if TYPE_CHECKING:
    import nemo_run as run


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A recipe inside an experiment: its name there, and the stages (or earlier runs) that must succeed first."""

    name: str
    partial: "run.Partial[Any]"
    executor: str | None = None  # None: the experiment's
    after: Sequence[str] = ()
    profile: Mapping[str, str] | None = None  # overrides of its executor's values; None: those of the experiment
    title: str = ""  # how the run's id begins; "": with the recipe
    pipeline: str = ""  # how the ids of all stages of a pipeline begin; "": it is of none
    wired: bool = True  # False: of a chain, whose stages are fed by each other once it is known where they run
    variant: str = ""  # of a pipeline that is swept: the values that this copy of a stage is for


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to submit, whatever is submitted."""

    profiles: Path | None = None  # a file of executor profiles, instead of the user's own
    online: bool = True  # ask the hub about models that are not here
    force_squash: bool = False
    overrides: Mapping[str, str] = field(default_factory=dict)  # of the executor profile
    force: frozenset[str] = frozenset()  # Problems that do not stop the job, by name
    code: Path | None = None  # whose files travel with the jobs, instead of those of the folder where one is
    fresh: bool = False  # run every stage of a pipeline, those too that were run before of the same


def values_of_recipe(partial: "run.Partial[Any]") -> dict[str, Any]:
    """A recipe's values as plain data, section by section, as a YAML file would hold them."""
    from fiddle import build

    typed = {name: asdict(build(getattr(partial, name))) for name in ("script", "args", "torchrun")}
    return {"engine": partial.engine, **typed, "extra_args": list(partial.extra_args)}


def flat_values(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The same by the keys of a command line: `engine`, `args.calib_size`."""
    for section, content in values.items():
        if isinstance(content, dict):
            yield from ((f"{section}.{name}", value) for name, value in content.items())
        else:
            yield section, content


def stages_of(partial: "run.Partial[Any]", grid: Mapping[str, Sequence[str]], title: str = "") -> list[Stage]:
    """One stage for every combination of `grid`: dotted keys, and texts as a command line would give them.

    Ids begin with `title`, or the recipe, and the values.

    Raises ProblemsError for a key or a value that does not fit.
    """
    problems: list[Problem] = []
    stages = []
    for values in itertools.product(*grid.values()):
        chosen = dict(zip(grid, values, strict=True))
        clone = partial.clone()
        for key, value in chosen.items():
            problems += [problem for problem in set_value(clone, key, value) if problem not in problems]
        name = ",".join(f"{key}={value}" for key, value in chosen.items())
        called = "-".join([title or partial.recipe, *(value.rpartition("/")[2] for value in chosen.values())])
        stages.append(Stage(name=name, partial=clone, title=called))
    if problems:
        raise ProblemsError(problems)
    return stages
