"""The catalogue of recipes: explicit, ordered, no names found by walking packages."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from recipes import (
    conversion,
    distillation,
    exporting,
    generation,
    megatron_lm,
    probing,
    pruning,
    quantization,
    tooling,
)
from recipes.family import Family
from scripts.args.meaning import meanings
from scripts.run.problems import Problem, ProblemsError, nearest

if TYPE_CHECKING:
    import nemo_run as run

Build = Callable[[], "run.Partial[None]"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """A name in the catalogue: the function that builds it, and the family it belongs to."""

    build: Build
    family: Family

    @property
    def name(self) -> str:
        """What the command line calls it."""
        return self.build.__name__

    @property
    def algorithm(self) -> str:
        """What its entrypoint carries out."""
        return self.family.algorithm

    @property
    def summary(self) -> str:
        """The first line of the function's docstring."""
        return (self.build.__doc__ or "").splitlines()[0]

    @property
    def hardware(self) -> str | None:
        """The GPU that its values are made for; None where it runs without one."""
        config = self.name.removeprefix(self.family.name).removeprefix("_")
        return self.family.hardware(config or "default")

    @property
    def consumes(self) -> tuple[str, ...]:
        """The artifact types that its arguments name as input."""
        return tuple(dict.fromkeys(meaning.consumes for _, meaning in meanings(self.family.args) if meaning.consumes))

    @property
    def produces(self) -> tuple[str, ...]:
        """The artifact types that it can leave behind."""
        named = [meaning.produces for _, meaning in meanings(self.family.args) if meaning.produces]
        return tuple(dict.fromkeys([*named, *self.family.also]))


def _index(families: Mapping[Family, tuple[Build, ...]]) -> dict[str, Recipe]:
    index: dict[str, Recipe] = {}
    for family, builds in families.items():
        for build in builds:
            if build.__name__ in index:
                raise ValueError(f"two recipes are named {build.__name__}")
            index[build.__name__] = Recipe(build=build, family=family)
    return index


#: Families in the order in which they are listed, each with the functions that build its recipes.
_FAMILIES: dict[Family, tuple[Build, ...]] = {
    quantization.QUANTIZE: (
        quantization.quantize,
        quantization.quantize_fp8,
        quantization.quantize_nvfp4,
        quantization.quantize_int8_sq,
        quantization.quantize_fp8_blockwise,
        quantization.quantize_int4_awq,
        quantization.quantize_w4a8_awq,
        quantization.quantize_mamba_moe_fp8_aggressive,
        quantization.quantize_mamba_moe_fp8_conservative,
        quantization.quantize_mamba_moe_nvfp4_aggressive,
        quantization.quantize_mamba_moe_nvfp4_conservative,
        quantization.quantize_tiny,
    ),
    quantization.QUANTIZE_VLM: (
        quantization.quantize_vlm,
        quantization.quantize_vlm_qwen3_vl_30b,
        quantization.quantize_vlm_nvfp4,
        quantization.quantize_vlm_tiny,
    ),
    quantization.QUANTIZE_MODELOPT: (
        quantization.quantize_modelopt,
        quantization.quantize_modelopt_nvfp4,
        quantization.quantize_modelopt_recipe,
        quantization.quantize_modelopt_tiny,
    ),
    generation.GENERATE: (generation.generate,),
    generation.GENERATE_VLM: (generation.generate_vlm,),
    generation.GENERATE_VLLM: (generation.generate_vllm,),
    exporting.EXPORT: (exporting.export,),
    exporting.EXPORT_MODELOPT: (exporting.export_modelopt,),
    exporting.EXPORT_DISTILLED: (exporting.export_distilled,),
    pruning.PRUNE: (
        pruning.prune,
        pruning.prune_active,
        pruning.prune_memory,
        pruning.prune_fixed,
        pruning.prune_uneven,
        pruning.prune_tiny,
    ),
    distillation.DISTILL: (
        distillation.distill,
        distillation.distill_mock,
        distillation.distill_tiny,
        distillation.distill_pruned,
    ),
    distillation.QAD: (
        distillation.qad,
        distillation.qad_tiny,
    ),
    distillation.DISTILL_LLAMA: (distillation.distill_llama,),
    distillation.QAT: (
        distillation.qat,
        distillation.qat_tiny,
    ),
    conversion.HF_TO_MEGATRON: (conversion.hf_to_megatron,),
    conversion.MEGATRON_TO_HF: (conversion.megatron_to_hf,),
    conversion.MERGE_LORA: (conversion.merge_lora,),
    megatron_lm.MLM_CONVERT: (
        megatron_lm.mlm_convert,
        megatron_lm.mlm_convert_eagle3,
    ),
    megatron_lm.MLM_QUANTIZE: (
        megatron_lm.mlm_quantize,
        megatron_lm.mlm_quantize_nvfp4,
        megatron_lm.mlm_quantize_tiny,
    ),
    megatron_lm.MLM_EXPORT: (megatron_lm.mlm_export,),
    megatron_lm.MLM_GENERATE: (
        megatron_lm.mlm_generate,
        megatron_lm.mlm_generate_speculative,
    ),
    megatron_lm.MLM_MMLU: (
        megatron_lm.mlm_mmlu,
        megatron_lm.mlm_mmlu_tiny,
    ),
    megatron_lm.MLM_PRUNE: (
        megatron_lm.mlm_prune,
        megatron_lm.mlm_prune_targets,
    ),
    megatron_lm.MLM_FINETUNE: (megatron_lm.mlm_finetune,),
    megatron_lm.MLM_DISTILL: (megatron_lm.mlm_distill,),
    megatron_lm.MLM_VALIDATE: (megatron_lm.mlm_validate,),
    tooling.PREPARE_DATA: (
        tooling.prepare_data,
        tooling.prepare_data_chat,
        tooling.prepare_data_tiny,
    ),
    tooling.EVALUATE: (
        tooling.evaluate,
        tooling.evaluate_chat,
        tooling.evaluate_tiny,
    ),
    tooling.SERVE: (
        tooling.serve,
        tooling.serve_trtllm,
        tooling.serve_sglang,
        tooling.serve_tiny,
    ),
    probing.PROBE: (probing.probe,),
}
RECIPES = _index(_FAMILIES)


def find(name: str) -> Recipe:
    """The recipe of that name. Raises ProblemsError with the nearest one."""
    if name in RECIPES:
        return RECIPES[name]
    cause = "there is no such recipe"
    raise ProblemsError(
        [Problem(name="unknown_recipe", key="recipe", value=name, cause=cause, remedy=nearest(name, RECIPES))]
    )


def describe(recipe: Recipe) -> dict[str, Any]:
    """A recipe as plain data: values with meanings and types, artifacts, strategies, errors, releases."""
    from recipes.experiment.releases import releases
    from recipes.values import field_types
    from scripts.engines.script.cards import cards

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
        "hardware": recipe.hardware,
        "strategies": list(recipe.family.strategies),
        "errors": list(recipe.family.errors),
        "model_cards": sorted(cards()) if hasattr(recipe.family.args, "model_card") else [],
        "releases": releases(partial),
    }


def _meaning(holder: Any, name: str) -> str:
    if not name:
        return ""
    fields = {field.name: field for field in dataclasses.fields(holder.__fn_or_cls__)}
    return str(fields[name].metadata["doc"])


def _type_name(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) else str(kind).replace("typing.", "")
