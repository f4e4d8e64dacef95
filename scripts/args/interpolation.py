"""Values that are only true on the node: `${oc.env:NEMO_RUN_DIR,...}` and `${run_tag}`."""

import os
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path, PurePath
from typing import Any, TypeVar

from scripts.args.meaning import value_of, values_of
from scripts.run.files import expanded
from scripts.run.problems import JobError

Args = TypeVar("Args")


def resolve_args(args: Args, *, run_dir: Path, at_home: bool = True, secrets: Collection[str] = ()) -> Args:
    """`args` as they are where the job runs; with `at_home` a path's `~` is the home of whoever asks.

    `secrets` are those of `resolve`. Raises JobError as it does.
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
    Raises JobError `unresolved_value` naming the key, for a variable that is not set and has no default, or an
    interpolation that does not parse.
    """
    with _variables({**{name: f"<{name}>" for name in secrets}, "NEMO_RUN_DIR": str(run_dir)}):
        return {key: _resolve(key, value, run_tag) for key, value in values.items()}


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


def _resolve(key: str, value: Any, run_tag: str) -> Any:
    if isinstance(value, dict):
        return {k: _resolve(f"{key}.{k}", v, run_tag) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_resolve(f"{key}[{i}]", v, run_tag) for i, v in enumerate(value)]
    if not isinstance(value, str) or "${" not in value:
        return value
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        return OmegaConf.create({"run_tag": run_tag, "value": value}).value
    except OmegaConfBaseException as error:
        cause = f"{key}={value}: {str(error).splitlines()[0]}"
        raise JobError("unresolved_value", cause, "Set the variable, or give it a default.") from error


def tag_of(args: Any) -> str:
    """What `${run_tag}` stands for; empty for an algorithm whose outputs are not named after a model."""
    model = value_of(args, "model", "")
    return run_tag(model, value_of(args, "format") or value_of(args, "format_recipe", "")) if model else ""


def run_tag(model: str, variant: str) -> str:
    """A folder name that says what was made of which model: `Qwen/Qwen3-8B`, `fp8` -> `Qwen3-8B-fp8`."""
    stem = PurePath(variant).stem if variant.endswith((".yaml", ".yml")) else variant
    name = PurePath(model.rstrip("/")).name.replace(":", "-")
    return re.sub(r"[^A-Za-z0-9._-]+", "-", f"{name}-{stem}").strip("-.") or "model"
