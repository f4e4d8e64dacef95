"""Recipes for NVIDIA ModelOpt as NeMo-Run experiments: the public Python API.

    from recipes import quantize_fp8, submit

    recipe = quantize_fp8()
    recipe.args.hf_model_id = "tiny:qwen3"
    job = submit(recipe, "local")
    print(job.state, job.dir)

Every recipe of the catalogue is a function here, the user's own too: `from recipes import quantize_mine`. Importing
this imports neither torch nor NeMo-Run; building a recipe imports NeMo-Run.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from recipes.catalogue import RECIPES, find, function_of
from recipes.experiment.chain import chain
from recipes.experiment.pipeline import pipeline
from recipes.experiment.prepare import prepare
from recipes.experiment.runs import Run
from recipes.experiment.stage import Stage
from recipes.experiment.submit import submit, submit_all, sweep
from recipes.planner.plan import plan
from scripts.run.problems import Problem, ProblemsError

if TYPE_CHECKING:
    import nemo_run as run

__all__ = [
    "RECIPES",
    "Problem",
    "ProblemsError",
    "Run",
    "Stage",
    "chain",
    "find",
    "pipeline",
    "plan",
    "prepare",
    "submit",
    "submit_all",
    "sweep",
]


def __getattr__(name: str) -> Callable[[], "run.Partial[None]"]:
    """The function of a recipe (PEP 562)."""
    if (recipe := RECIPES.get(name)) is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return function_of(recipe)


def __dir__() -> list[str]:
    return sorted([*globals(), *RECIPES])
