"""Recipes for NVIDIA ModelOpt as NeMo-Run experiments: the public Python API.

    from recipes import quantize_fp8, submit

    recipe = quantize_fp8()
    recipe.args.hf_model_id = "tiny:qwen3"
    job = submit(recipe, "local")
    print(job.state, job.dir)

Importing this imports neither torch nor NeMo-Run; building a recipe imports NeMo-Run.
"""

from recipes.catalogue import RECIPES, find
from recipes.conversion import (
    hf_to_megatron,
    megatron_to_hf,
    merge_lora,
)
from recipes.distillation import (
    distill,
    distill_llama,
    distill_mock,
    distill_pruned,
    distill_tiny,
    qad,
    qad_tiny,
    qat,
    qat_tiny,
)
from recipes.experiment.chain import chain
from recipes.experiment.examine import Stage, prepare
from recipes.experiment.standing import Run
from recipes.experiment.submit import submit, submit_all
from recipes.experiment.sweep import sweep
from recipes.exporting import (
    export,
    export_distilled,
    export_modelopt,
)
from recipes.generation import (
    generate,
    generate_vllm,
    generate_vlm,
)
from recipes.megatron_lm import (
    mlm_convert,
    mlm_convert_eagle3,
    mlm_distill,
    mlm_export,
    mlm_finetune,
    mlm_generate,
    mlm_generate_speculative,
    mlm_mmlu,
    mlm_mmlu_tiny,
    mlm_prune,
    mlm_prune_targets,
    mlm_quantize,
    mlm_quantize_nvfp4,
    mlm_quantize_tiny,
    mlm_validate,
)
from recipes.planner.plan import plan
from recipes.probing import probe
from recipes.pruning import (
    prune,
    prune_active,
    prune_fixed,
    prune_memory,
    prune_tiny,
    prune_uneven,
)
from recipes.quantization import (
    quantize,
    quantize_fp8,
    quantize_fp8_blockwise,
    quantize_int4_awq,
    quantize_int8_sq,
    quantize_mamba_moe_fp8_aggressive,
    quantize_mamba_moe_fp8_conservative,
    quantize_mamba_moe_nvfp4_aggressive,
    quantize_mamba_moe_nvfp4_conservative,
    quantize_modelopt,
    quantize_modelopt_nvfp4,
    quantize_modelopt_recipe,
    quantize_modelopt_tiny,
    quantize_nvfp4,
    quantize_tiny,
    quantize_vlm,
    quantize_vlm_nvfp4,
    quantize_vlm_qwen3_vl_30b,
    quantize_vlm_tiny,
    quantize_w4a8_awq,
)
from recipes.tooling import (
    evaluate,
    evaluate_chat,
    evaluate_tiny,
    prepare_data,
    prepare_data_chat,
    prepare_data_tiny,
    serve,
    serve_sglang,
    serve_tiny,
    serve_trtllm,
)
from scripts.run.problems import Problem, ProblemsError

__all__ = [
    "RECIPES",
    "Problem",
    "ProblemsError",
    "Run",
    "Stage",
    "chain",
    "distill",
    "distill_llama",
    "distill_mock",
    "distill_pruned",
    "distill_tiny",
    "evaluate",
    "evaluate_chat",
    "evaluate_tiny",
    "export",
    "export_distilled",
    "export_modelopt",
    "find",
    "generate",
    "generate_vllm",
    "generate_vlm",
    "hf_to_megatron",
    "megatron_to_hf",
    "merge_lora",
    "mlm_convert",
    "mlm_convert_eagle3",
    "mlm_distill",
    "mlm_export",
    "mlm_finetune",
    "mlm_generate",
    "mlm_generate_speculative",
    "mlm_mmlu",
    "mlm_mmlu_tiny",
    "mlm_prune",
    "mlm_prune_targets",
    "mlm_quantize",
    "mlm_quantize_nvfp4",
    "mlm_quantize_tiny",
    "mlm_validate",
    "plan",
    "prepare",
    "prepare_data",
    "prepare_data_chat",
    "prepare_data_tiny",
    "probe",
    "prune",
    "prune_active",
    "prune_fixed",
    "prune_memory",
    "prune_tiny",
    "prune_uneven",
    "qad",
    "qad_tiny",
    "qat",
    "qat_tiny",
    "quantize",
    "quantize_fp8",
    "quantize_fp8_blockwise",
    "quantize_int4_awq",
    "quantize_int8_sq",
    "quantize_mamba_moe_fp8_aggressive",
    "quantize_mamba_moe_fp8_conservative",
    "quantize_mamba_moe_nvfp4_aggressive",
    "quantize_mamba_moe_nvfp4_conservative",
    "quantize_modelopt",
    "quantize_modelopt_nvfp4",
    "quantize_modelopt_recipe",
    "quantize_modelopt_tiny",
    "quantize_nvfp4",
    "quantize_tiny",
    "quantize_vlm",
    "quantize_vlm_nvfp4",
    "quantize_vlm_qwen3_vl_30b",
    "quantize_vlm_tiny",
    "quantize_w4a8_awq",
    "serve",
    "serve_sglang",
    "serve_tiny",
    "serve_trtllm",
    "submit",
    "submit_all",
    "sweep",
]
