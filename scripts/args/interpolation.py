"""Values that are only true on the node: `${oc.env:NEMO_RUN_DIR,...}` and `${run_tag}`."""

import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path, PurePath
from typing import Any, TypeVar

from scripts.args.meaning import value_of, values_of
from scripts.run.files import expanded
from scripts.run.problems import JobError, Problem

Args = TypeVar("Args")
#: A reference to no variable and to no run.
_NAMELESS = re.compile(r"\$\{\s*(?:oc\.env|artifact)\s*:\s*\}")


class UnresolvedError(JobError):
    """Values that cannot be filled in: `problems` holds each, the error itself tells the first."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        first = problems[0].as_error()
        super().__init__(first.name, first.cause, first.remedy)
        self.problems = tuple(problems)


def resolve_args(args: Args, *, run_dir: Path, at_home: bool = True, secrets: Collection[str] = ()) -> Args:
    """`args` as they are where the job runs; with `at_home` a path's `~` is the home of whoever asks.

    `secrets` are those of `resolve`. Raises UnresolvedError as it does.
    """
    given = asdict(args)  # type: ignore[call-overload]
    values = resolve(given, run_dir=run_dir, run_tag=tag_of(args), secrets=secrets)
    for name, _, meaning in values_of(args) if at_home else ():
        if meaning.names:
            values[name] = _at_home(values[name])
    return type(args)(**values)


def _at_home(value: Any) -> Any:
    if isinstance(value, list):
        return [_at_home(item) for item in value]
    return str(expanded(value)) if isinstance(value, str) and value.startswith("~") else value


def resolve(values: dict[str, Any], *, run_dir: Path, run_tag: str, secrets: Collection[str] = ()) -> dict[str, Any]:
    """Replace every OmegaConf interpolation in string values; everything else passes untouched.

    `run_dir` is what NEMO_RUN_DIR stands for; the variables in `secrets` stand for their names in angle brackets.
    Raises UnresolvedError for variables that are not set and have no default, and interpolations that do not parse.
    """
    problems: list[Problem] = []
    own = {"NEMO_RUN_DIR": str(run_dir), "PWD": os.environ.get("PWD") or str(Path.cwd())}  # which cron does not set
    with _variables({**{name: f"<{name}>" for name in secrets}, **own}):
        found = {key: _resolve(f"args.{key}", value, run_tag, problems) for key, value in values.items()}
    if problems:
        raise UnresolvedError(problems)
    return found


@contextmanager
def _variables(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _resolve(key: str, value: Any, run_tag: str, problems: list[Problem]) -> Any:
    if isinstance(value, dict):
        return {k: _resolve(f"{key}.{k}", v, run_tag, problems) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_resolve(f"{key}[{i}]", v, run_tag, problems) for i, v in enumerate(value)]
    if not isinstance(value, str) or "${" not in value:
        return value
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        return OmegaConf.create({"run_tag": run_tag, "value": value}).value
    except OmegaConfBaseException as error:
        cause, remedy = str(error).splitlines()[0], "Set the variable, or give it a default."
        if nameless := _NAMELESS.search(value):
            cause = f"{nameless[0]} names nothing"
            remedy = "Write ${oc.env:NAME} for a variable, ${artifact:RUN} for what a run leaves."
        elif value.count("{") > value.count("}"):
            cause, remedy = "a reference that begins with ${ is not closed", "Close it with }."
        problems.append(Problem(name="unresolved_value", key=key, value=value, cause=cause, remedy=remedy))
        return value


def tag_of(args: Any) -> str:
    """What `${run_tag}` stands for; empty for an algorithm whose outputs are not named after a model."""
    model = value_of(args, "model", "")
    return run_tag(model, args.variant()) if model else ""


def run_tag(model: str, variant: str) -> str:
    """A folder name that says what was made of which model: `Qwen/Qwen3-8B`, `fp8` -> `Qwen3-8B-fp8`."""
    stem = PurePath(variant).stem if variant.endswith((".yaml", ".yml")) else variant
    name = PurePath(model.rstrip("/")).name.replace(":", "-")
    return re.sub(r"[^A-Za-z0-9._-]+", "-", f"{name}-{stem}").strip("-.") or "model"
