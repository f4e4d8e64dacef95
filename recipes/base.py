"""From an algorithm's YAML to a Fiddle Partial of its entrypoint."""

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.problems import Problem, ProblemsError, nearest
from scripts.types import ScriptSpec, Torchrun

if TYPE_CHECKING:
    import nemo_run as run

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
SECTIONS = ("engine", "script", "args", "torchrun", "extra_args")


def partial_from(
    entrypoint: Callable[..., None], args_type: type, *, recipe: str, algorithm: str, config: str
) -> "run.Partial[None]":
    """The Partial of `entrypoint` with the values of configs/`algorithm`/`config`.yaml.

    Raises ProblemsError when the file has a key that the algorithm does not know.
    """
    import nemo_run as run

    from recipes.overrides import merge

    partial = run.Partial(
        entrypoint,
        recipe=recipe,
        engine="auto",
        script=run.Config(ScriptSpec),
        args=run.Config(args_type),
        torchrun=run.Config(Torchrun),
        extra_args=[],
    )
    problems = merge(partial, load_yaml(config_path(algorithm, config)))
    if problems:
        raise ProblemsError(problems)
    return partial


def config_path(algorithm: str, name: str) -> Path:
    """The shipped file for a bare config name (`fp8`), else the path itself. Raises ProblemsError for neither."""
    shipped = CONFIGS / algorithm / f"{name}.yaml"
    path = shipped if shipped.is_file() else Path(name).expanduser()
    if path.is_file():
        return path
    names = [file.stem for file in (CONFIGS / algorithm).glob("*.yaml")]
    problem = Problem(
        name="unknown_config",
        key="--config",
        value=name,
        cause="there is no such file or config",
        remedy=nearest(name, names),
    )
    raise ProblemsError([problem])


def load_yaml(path: Path) -> Mapping[str, Any]:
    """A YAML file that holds a mapping. Raises ProblemsError saying where it does not parse."""
    return _load(path, path.stat().st_mtime_ns)


@cache
def _load(path: Path, _changed: int) -> Mapping[str, Any]:
    import yaml

    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        cause = " ".join(str(error).split())
        raise ProblemsError([Problem(name="unreadable_config", key="file", value=path, cause=cause)]) from error
    if value is None:
        value = {}
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        cause = f"a mapping with the sections {', '.join(SECTIONS)} is expected"
        raise ProblemsError([Problem(name="unreadable_config", key="file", value=path, cause=cause)])
    return value
