"""From an algorithm's YAML to a Fiddle Partial of its entrypoint."""

from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs import CONFIGS
from scripts.args.meaning import ScriptSpec, Torchrun
from scripts.args.typed import parse_yaml
from scripts.run.problems import Problem, ProblemsError, nearest

if TYPE_CHECKING:
    import nemo_run as run

SECTIONS = ("engine", "script", "args", "torchrun", "extra_args")


@dataclass(frozen=True, kw_only=True)
class Family:
    """Recipes that differ in values only: one entrypoint, one class of arguments, a folder of configs."""

    name: str  # of the folder in configs/, and of the recipe over its default.yaml
    entrypoint: Callable[..., None]
    args: type
    strategies: tuple[str, ...] = ()  # when to use which, in a sentence each
    also: tuple[str, ...] = ()  # artifact types that it leaves behind and no argument names
    errors: tuple[str, ...] = ()  # problems and failures that are its own, by name

    @property
    def algorithm(self) -> str:
        """What its entrypoint carries out."""
        return self.entrypoint.__name__

    def recipe(self, config: str = "default") -> "run.Partial[None]":
        """The Partial with the values of configs/<family>/<config>.yaml.

        Raises ProblemsError when the file has a key that the algorithm does not know.
        """
        import nemo_run as run

        from recipes.values import merge

        partial = run.Partial(
            self.entrypoint,
            recipe=self.name if config == "default" else f"{self.name}_{config}",
            engine="auto",
            script=run.Config(ScriptSpec),
            args=run.Config(self.args, **_made(self.args)),
            torchrun=run.Config(Torchrun),
            extra_args=[],
        )
        problems = merge(partial, load_yaml(config_path(self.name, config)))
        if problems:
            raise ProblemsError(problems)
        return partial

    def hardware(self, config: str = "default") -> str | None:
        """The GPU that a config's values are made for, of configs/gpus.yaml; None where any does, or none."""
        from recipes.values import HARDWARE

        stated = load_yaml(config_path(self.name, config)).get(HARDWARE)
        return stated["gpu"] if stated else None


def _made(cls: type) -> dict[str, Any]:
    """Values that Fiddle cannot read from the class, because each object gets its own."""
    return {field.name: field.default_factory() for field in fields(cls) if field.default_factory is not MISSING}


def config_path(family: str, name: str) -> Path:
    """The shipped file for a bare config name (`fp8`), else the path itself. Raises ProblemsError for neither."""
    shipped = CONFIGS / family / f"{name}.yaml"
    path = shipped if shipped.is_file() else Path(name).expanduser()
    if path.is_file():
        return path
    names = [file.stem for file in (CONFIGS / family).glob("*.yaml")]
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
        value = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        cause = " ".join(str(error).split())
        raise ProblemsError([Problem(name="unreadable_config", key="file", value=path, cause=cause)]) from error
    if value is None:
        value = {}
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        cause = f"a mapping with the sections {', '.join(SECTIONS)} is expected"
        raise ProblemsError([Problem(name="unreadable_config", key="file", value=path, cause=cause)])
    return value
