"""`${artifact:NAME}` in a value: what another stage, or an earlier run, leaves behind.

Where a run will leave its outputs is known when it is submitted, and so are these. NAME is a stage
of the same experiment or a run's id; `${artifact:NAME.checkpoint_hf}` says which, where there are several.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from recipes.experiment.store import find_run
from scripts.run.problems import Problem, ProblemsError, nearest
from scripts.run.record import read_record

if TYPE_CHECKING:
    import nemo_run as run

_REFERENCE = re.compile(r"\$\{artifact:([^.}]+)(?:\.(\w+))?\}")
Outputs = Sequence[Mapping[str, str]]  # {"type": ..., "path": ...}


@dataclass(frozen=True, kw_only=True)
class Referenced:
    """A recipe whose references were replaced by paths."""

    partial: "run.Partial[Any]"
    promised: frozenset[str]  # args that name what is not there yet
    problems: tuple[Problem, ...]


def names_in(partial: "run.Partial[Any]") -> list[str]:
    """The stages and runs that a recipe's values refer to."""
    return [match[1] for _, text in _texts(partial) for match in _REFERENCE.finditer(text)]


def with_paths(partial: "run.Partial[Any]", made: Mapping[str, Outputs]) -> Referenced:
    """`partial` with every reference replaced; `made` holds the outputs of the stages before it."""
    from fiddle import copy_with

    problems: list[Problem] = []
    values: dict[str, Any] = {}
    for name, text in _texts(partial):
        if _REFERENCE.search(text):
            value = getattr(partial.args, name)
            values[name] = _replaced(value, f"args.{name}", made, problems)
    if not values:
        return Referenced(partial=partial, promised=frozenset(), problems=())
    args = copy_with(partial.args, **values)
    return Referenced(
        partial=copy_with(partial, args=args), promised=frozenset(values), problems=tuple(dict.fromkeys(problems))
    )


def _texts(partial: "run.Partial[Any]") -> Iterator[tuple[str, str]]:
    for field in fields(partial.args.__fn_or_cls__):
        value = getattr(partial.args, field.name)
        for item in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(item, str):
                yield field.name, item


def _replaced(value: Any, key: str, made: Mapping[str, Outputs], problems: list[Problem]) -> Any:
    if isinstance(value, (list, tuple)):
        return [_replaced(item, key, made, problems) for item in value]
    if not isinstance(value, str):
        return value

    def path(match: re.Match[str]) -> str:
        found, problem = _path(match[1], match[2], key, match[0], made)
        problems.extend([problem] if problem else [])
        return found

    return _REFERENCE.sub(path, value)


def _path(name: str, kind: str | None, key: str, text: str, made: Mapping[str, Outputs]) -> tuple[str, Problem | None]:
    try:
        outputs = made[name] if name in made else _outputs_of_run(name)
    except ProblemsError:
        cause, remedy = f"there is no stage or run {name}", nearest(name, made) if made else ""
        return text, Problem(name="unknown_artifact", key=key, value=text, cause=cause, remedy=remedy)
    fitting = [output for output in outputs if kind is None or output["type"] == kind]
    if len({output["path"] for output in fitting}) == 1:
        return fitting[0]["path"], None
    types = ", ".join(output["type"] for output in outputs)
    cause = f"{name} leaves {types or 'nothing'}" + ("" if fitting or kind is None else f", no {kind}")
    remedy = f"Say which: ${{artifact:{name}.TYPE}}." if fitting else ""
    return text, Problem(name="unknown_artifact", key=key, value=text, cause=cause, remedy=remedy)


def _outputs_of_run(name: str) -> Outputs:
    """What a run left, or is going to leave. Raises ProblemsError for a run that is not known."""
    record = read_record(find_run(name).dir)
    outputs: Outputs = record["outputs"] if record.get("outputs") else record.get("expects", [])
    return outputs
