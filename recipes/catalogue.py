"""The catalogue of recipes: explicit, ordered, no names found by walking packages."""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from recipes import quantization as family
from recipes.probing import probe
from scripts.problems import Problem, ProblemsError, nearest

if TYPE_CHECKING:
    import nemo_run as run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """A name in the catalogue: the function that builds it, and what it takes and leaves."""

    name: str
    build: Callable[[], "run.Partial[None]"]
    algorithm: str
    consumes: tuple[str, ...]
    produces: tuple[str, ...]

    @property
    def summary(self) -> str:
        """The first line of the function's docstring."""
        return (self.build.__doc__ or "").splitlines()[0]


def _quantize(build: Callable[[], "run.Partial[None]"]) -> Recipe:
    return Recipe(
        name=build.__name__,
        build=build,
        algorithm="quantize",
        consumes=("checkpoint_hf",),
        produces=("checkpoint_modelopt", "checkpoint_hf", "eval_results"),
    )


def _index(*recipes: Recipe) -> dict[str, Recipe]:
    index: dict[str, Recipe] = {}
    for recipe in recipes:
        if recipe.name in index:
            raise ValueError(f"two recipes are named {recipe.name}")
        index[recipe.name] = recipe
    return index


RECIPES = _index(
    _quantize(family.quantize),
    _quantize(family.quantize_fp8),
    _quantize(family.quantize_nvfp4),
    _quantize(family.quantize_int8_sq),
    _quantize(family.quantize_fp8_blockwise),
    _quantize(family.quantize_int4_awq),
    _quantize(family.quantize_w4a8_awq),
    _quantize(family.quantize_tiny),
    Recipe(name="probe", build=probe, algorithm="probe", consumes=(), produces=("probe_report",)),
)


def find(name: str) -> Recipe:
    """The recipe of that name. Raises ProblemsError with the nearest one."""
    if name in RECIPES:
        return RECIPES[name]
    cause = "there is no such recipe"
    raise ProblemsError(
        [Problem(name="unknown_recipe", key="recipe", value=name, cause=cause, remedy=nearest(name, RECIPES))]
    )


def describe(recipe: Recipe) -> dict[str, Any]:
    """A recipe as plain data: values with their meanings and types, what it consumes and produces."""
    from recipes.overrides import field_types

    partial = recipe.build()
    values = []
    for key, kind in field_types(partial).items():
        section, _, name = key.partition(".")
        holder = getattr(partial, section)
        value = getattr(holder, name) if name else holder
        values.append({"key": key, "value": value, "type": _type_name(kind), "meaning": _meaning(holder, name)})
    return {
        "name": recipe.name,
        "summary": recipe.summary,
        "algorithm": recipe.algorithm,
        "consumes": list(recipe.consumes),
        "produces": list(recipe.produces),
        "values": values,
    }


def _meaning(holder: Any, name: str) -> str:
    if not name:
        return ""
    fields = {field.name: field for field in dataclasses.fields(holder.__fn_or_cls__)}
    return str(fields[name].metadata["doc"])


def _type_name(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) else str(kind).replace("typing.", "")
