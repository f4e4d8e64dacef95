"""Recipes for NVIDIA ModelOpt as NeMo-Run experiments: the public Python API.

    from recipes import quantize_fp8, submit

    recipe = quantize_fp8()
    recipe.args.hf_model_id = "tiny:qwen3"
    job = submit(recipe, "local")
    print(job.state, job.dir)

Importing this imports neither torch nor NeMo-Run; building a recipe imports NeMo-Run.
"""

from recipes.catalogue import RECIPES, find
from recipes.preparation import Stage, prepare
from recipes.probing import probe
from recipes.quantization import (
    quantize,
    quantize_fp8,
    quantize_fp8_blockwise,
    quantize_int4_awq,
    quantize_int8_sq,
    quantize_nvfp4,
    quantize_tiny,
    quantize_w4a8_awq,
)
from recipes.standing import Run
from recipes.submission import submit, submit_all
from recipes.sweeps import sweep
from scripts.problems import Problem, ProblemsError

__all__ = [
    "RECIPES",
    "Problem",
    "ProblemsError",
    "Run",
    "Stage",
    "find",
    "prepare",
    "probe",
    "quantize",
    "quantize_fp8",
    "quantize_fp8_blockwise",
    "quantize_int4_awq",
    "quantize_int8_sq",
    "quantize_nvfp4",
    "quantize_tiny",
    "quantize_w4a8_awq",
    "submit",
    "submit_all",
    "sweep",
]
