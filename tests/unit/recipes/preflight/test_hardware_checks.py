"""What a place's GPUs, a format or Minitron cannot do is told before a job waits for them."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from recipes.preflight import contradictions, formats, hardware, layout, pruning
from scripts.run.problems import Problem
from scripts.run.registry import carry_out, checks_of
from tests.unit.recipes.preflight.test_layout_checks import EXPERTS, HYBRID, LLAMA, findings, spec_for
from tests.unit.recipes.preflight.test_layout_checks import model as model

Make = Callable[..., str]
VIRTUAL = "virtual_pipeline_model_parallel_size"
SCRIPT = {"args__hf_model_id": "Qwen/Qwen3-8B", "args__tp": 8, "args__ep": 1}
#: Widths that fill every block on 8 ranks.
EVEN = {"hidden_size": 4096, "intermediate_size": 8192, "num_attention_heads": 32, "num_key_value_heads": 8}


def told(checks: Any, recipe: str, gpu: str = "", /, **values: Any) -> list[Problem]:
    profile = {**values.pop("profile", {}), **({"gpu": gpu} if gpu else {})}
    return list(findings(checks_of(checks), recipe, profile=profile, **values).problems)


def told_as(checks: Any, recipe: str, gpu: str = "", /, **values: Any) -> list[tuple[str, str, str]]:
    return [(one.name, one.severity, one.key) for one in told(checks, recipe, gpu, **values)]


def test_a_process_takes_a_gpu() -> None:
    values = {**SCRIPT, "torchrun__nproc_per_node": 8}
    (problem,) = told(hardware, "quantize_fp8", "h100", profile={"gpus": "4"}, **values)
    assert (problem.name, problem.key, problem.value) == ("more_processes_than_gpus", "torchrun.nproc_per_node", 8)
    assert "has 4" in problem.cause
    assert problem.can_force
    assert told(hardware, "quantize_fp8", "h100", profile={"gpus": "8"}, **values) == []
    assert told(hardware, "quantize_fp8", "h100", **values) == [], "nobody says how many there are"


def test_conversion_without_gpus_takes_none() -> None:
    values = {"torchrun__nproc_per_node": 8, "args__tp": 8, "profile": {"gpus": "1"}}
    assert told(hardware, "hf_to_megatron", args__device="cpu", **values) == []
    assert [one.name for one in told(hardware, "hf_to_megatron", **values)] == ["more_processes_than_gpus"]


def test_a_server_takes_as_many_gpus_as_it_is_told() -> None:
    values = {"args__checkpoint": "/c", "args__tensor_parallel_size": 4, "profile": {"gpus": "2"}}
    assert told_as(hardware, "serve", **values) == [
        ("more_processes_than_gpus", "error", "args.tensor_parallel_size"),
    ]


def test_tensor_parallelism_belongs_inside_a_machine() -> None:
    values = {**SCRIPT, "args__tp": 16, "torchrun__nnodes": 2}
    assert told_as(hardware, "quantize_fp8", "h100", **values) == [
        ("tensor_parallel_across_machines", "warning", "args.tp")
    ]
    assert told(hardware, "quantize_fp8", "h100", **{**values, "args__tp": 8}) == []


@pytest.mark.parametrize(
    ("recipe", "gpu", "values", "severity"),
    [
        ("quantize_fp8", "v100-32gb", SCRIPT, "error"),
        ("quantize_fp8", "a100-80gb", SCRIPT, None),
        ("mlm_quantize", "t4", {"args__load": "/c", "args__bf16": False}, None),
        ("export", "t4", {"args__megatron_load_path": "/c", "args__dtype": "float16"}, None),
        ("quantize_tiny", "t4", {"engine": "hf", "args__device": "cuda", "args__dtype": "bfloat16"}, "warning"),
        ("quantize_tiny", "t4", {"engine": "hf", "args__dtype": "float32"}, None),
        ("quantize_tiny", "t4", {"engine": "hf", "args__device": "cpu", "args__dtype": "bfloat16"}, None),
    ],
)
def test_bf16(recipe: str, gpu: str, values: dict[str, Any], severity: str | None) -> None:
    found = [one for one in told(hardware, recipe, gpu, **values) if one.name == "gpu_without_bf16"]
    assert [one.severity for one in found] == ([severity] if severity else [])
    assert all((one.key, one.value) == ("executor.gpu", gpu) for one in found)


@pytest.mark.parametrize(
    ("recipe", "gpu", "name", "severity"),
    [
        ("quantize_fp8", "a100-80gb", "format_needs_newer_gpu", "warning"),
        ("quantize_fp8", "l40s", None, None),
        ("quantize_int8_sq", "a100-80gb", None, None),
        ("quantize_nvfp4", "h100-80gb", "format_not_native", "warning"),
        ("quantize_nvfp4", "b200", None, None),
        ("quantize_mamba_moe_nvfp4_aggressive", "h100-80gb", "format_not_native", "warning"),
        ("quantize_mamba_moe_fp8_aggressive", "a100-80gb", "format_needs_newer_gpu", "warning"),
    ],
)
def test_kernels_of_what_is_made(recipe: str, gpu: str, name: str | None, severity: str) -> None:
    """It is calibrated in 16 bits on any GPU: only what comes of it needs the kernels."""
    found = told(hardware, recipe, gpu, engine="script")
    assert [(one.name, one.severity) for one in found] == ([(name, severity)] if name else [])
    assert all(one.key == "args.export_quant_cfg" for one in found)


@pytest.mark.parametrize(
    ("recipe", "key"), [("serve", "checkpoint"), ("evaluate", "checkpoint"), ("generate_vllm", "model")]
)
def test_kernels_of_what_is_served(model: Make, recipe: str, key: str) -> None:
    quantized = {"quant_method": "modelopt", "quant_algo": "FP8"}
    folder = model(LLAMA, quantization_config=quantized)
    (problem,) = told(hardware, recipe, "a100-80gb", **{f"args__{key}": folder})
    assert (problem.name, problem.severity, problem.key) == ("format_needs_newer_gpu", "error", f"args.{key}")
    assert "8.9" in problem.cause
    assert "8.0" in problem.cause
    assert "int8_sq" in problem.remedy
    assert problem.can_force
    assert told(hardware, recipe, "h100-80gb", **{f"args__{key}": folder}) == []


def test_a_gpu_that_nobody_named_stops_nothing(model: Make) -> None:
    """What a recipe is stated for may be another GPU than the one that it gets."""
    from dataclasses import replace

    from recipes.planner.gpus import gpu_of

    folder = model(LLAMA, quantization_config={"quant_method": "modelopt", "quant_algo": "FP8"})
    spec = spec_for("serve", args__checkpoint=folder)
    assumed = replace(spec, gpu=gpu_of(spec.place, "a100-80gb"))
    assert [one.severity for one in carry_out(checks_of(hardware), assumed).problems] == ["warning"]
    unknown = carry_out(checks_of(hardware), replace(spec, gpu=None))
    assert ("format_needs_newer_gpu", ("gpu",)) in [(one.name, one.missing) for one in unknown.skipped]


@pytest.mark.parametrize(
    ("recipe", "config", "values", "cause"),
    [
        (
            "quantize_nvfp4",
            {**EVEN, "intermediate_size": 8256},
            {"tp": 8},
            "the MLP has 1032 inputs, no multiple of 16",
        ),
        ("quantize_int4_awq", {**EVEN, "intermediate_size": 8256}, {"tp": 2}, "the MLP has 4128 inputs"),
        ("quantize_int4_awq", {**EVEN, "head_dim": 64}, {"tp": 32, "pp": 1}, "the heads has 64 inputs"),
        ("quantize_fp8_blockwise", {**EVEN, "hidden_size": 4160}, {"tp": 1}, "the hidden width has 4160 inputs"),
        ("quantize_nvfp4", EVEN, {"tp": 8}, None),
        ("quantize_fp8", {**EVEN, "intermediate_size": 8200}, {"tp": 8}, None),
        ("quantize_nvfp4", {**EXPERTS, **EVEN, "moe_intermediate_size": 776}, {"etp": 2}, "an expert has 388 inputs"),
        ("quantize_nvfp4", {**HYBRID, "mamba_head_dim": 40}, {"tp": 8}, None),
        ("quantize_nvfp4", {**HYBRID, "mamba_head_dim": 41}, {"tp": 8}, "Mamba's heads has 328 inputs"),
    ],
)
def test_blocks_are_whole_on_every_rank(
    model: Make, recipe: str, config: Mapping[str, Any], values: dict[str, int], cause: str | None
) -> None:
    args = {f"args__{name}": value for name, value in {"tp": 1, "ep": 1, **values}.items()}
    shape = {"torchrun__nnodes": 4, "engine": "script"}
    found = told(formats, recipe, args__hf_model_id=model(LLAMA, **config), **shape, **args)
    found = [one for one in found if one.name == "format_does_not_fit"]
    assert [one.key for one in found] == (["args.export_quant_cfg"] if cause else [])
    assert not cause or (cause in found[0].cause and "fit any width" in found[0].remedy)
    exported = recipe == "quantize_nvfp4"
    assert all(one.severity == ("error" if exported else "warning") for one in found), "ModelOpt calibrates it"


def test_fewer_ranks_are_offered_where_their_blocks_are_whole(model: Make) -> None:
    folder = model(LLAMA, **{**EVEN, "intermediate_size": 8256})
    (problem,) = told(formats, "quantize_nvfp4", args__hf_model_id=folder, args__tp=8, args__ep=1, engine="script")
    assert problem.remedy.startswith("Try args.tp=4, or another format")


def test_what_the_megatron_exporter_cannot_write_is_a_warning() -> None:
    for recipe in ("quantize_int8_sq", "quantize_w4a8_awq", "quantize_fp8_blockwise", "quantize_int4_awq"):
        found = told_as(formats, recipe, **{**SCRIPT, "engine": "script"})
        assert ("format_not_exportable", "warning", "args.export_quant_cfg") in found, recipe
    assert told(formats, "quantize_fp8", **SCRIPT, engine="script") == []
    assert told(formats, "quantize_int8_sq", args__hf_model_id="Qwen/Qwen3-8B", engine="hf") == []


@pytest.mark.parametrize(
    ("recipe", "key"),
    [("quantize_fp8", "hf_model_id"), ("prune", "hf_model_name_or_path"), ("distill_mock", "student_hf_path")],
)
def test_nothing_is_made_of_what_is_quantized_already(model: Make, recipe: str, key: str) -> None:
    ours = model(LLAMA, quantization_config={"quant_method": "modelopt", "quant_algo": "NVFP4"})
    assert told_as(formats, recipe, **{f"args__{key}": ours}) == [("already_quantized", "error", f"args.{key}")]
    theirs = model(LLAMA, name="theirs", quantization_config={"quant_method": "mxfp4"})
    assert told_as(formats, recipe, **{f"args__{key}": theirs}) == [("already_quantized", "warning", f"args.{key}")]


@pytest.mark.parametrize(
    ("sizes", "name", "remedy"),
    [
        ({"hiden_size": 2048}, "unknown_key", "Did you mean hidden_size?"),
        ({"hidden_size": "2048"}, "wrong_value", ""),
        ({"hidden_size": 0}, "wrong_value", ""),
        ({"hidden_size": 4096}, "pruned_size_out_of_reach", "Use a number below 3072, or leave it out."),
        ({"hidden_size": 2000}, "pruned_size_out_of_reach", "Try 1984, or 2048."),
        ({"num_attention_heads": 20}, "pruned_size_out_of_reach", "Try 18, or 24."),
        ({"num_attention_heads": 5}, "pruned_size_out_of_reach", "Try 6."),
        ({"num_query_groups": 3}, "pruned_size_out_of_reach", "Leave it out."),
        ({"num_layers": 40}, "pruned_size_out_of_reach", "Use a number below 36, or leave it out."),
        ({"num_query_groups": 6, "num_layers": 30, "hidden_size": 3072, "num_attention_heads": 18}, None, ""),
    ],
)
def test_a_fixed_architecture_is_a_smaller_one(model: Make, sizes: Any, name: str | None, remedy: str) -> None:
    args = {"args__prune_target_params": None, "args__prune_export_config": sizes}
    found = told(pruning, "prune", args__hf_model_name_or_path=model(), **args)
    assert [one.name for one in found] == ([name] if name else [])
    assert all(one.key.startswith("args.prune_export_config.") and one.remedy.startswith(remedy) for one in found)


def test_sizes_by_flag_are_judged_too() -> None:
    found = told(pruning, "mlm_prune_targets", args__load="/c", args__target_hidden_size=10**6)
    assert [(one.name, one.key) for one in found] == [("pruned_size_out_of_reach", "args.target_hidden_size")]


def test_a_model_without_mamba_is_offered_no_size_of_it(model: Make) -> None:
    found = told(pruning, "prune", args__hf_model_name_or_path=model(), args__hparams_to_skip=["num_heads"])
    (problem,) = (one for one in found if one.key == "args.hparams_to_skip")
    assert problem.remedy.startswith("Did you mean num_attention_heads?") and "mamba" not in problem.remedy


def test_hparams_that_are_skipped_have_names() -> None:
    (problem,) = told(pruning, "prune", args__hparams_to_skip=["num_attention_heads", "num_query_groups"])
    assert (problem.name, problem.value) == ("unknown_key", "num_query_groups")


@pytest.mark.parametrize(
    ("values", "name", "key", "cause"),
    [
        ({"prune_target_params": 9e9}, "target_out_of_reach", "prune_target_params", "nothing to prune"),
        ({"prune_target_params": 1e9}, "target_out_of_reach", "prune_target_params", "keeps at least"),
        (
            {"prune_target_params": 6e9, "prune_target_active_params": 7e9},
            "target_out_of_reach",
            "prune_target_active_params",
            "more than",
        ),
        ({"prune_target_params": -1.0}, "out_of_range", "prune_target_params", "above 0"),
        ({"max_width_pruning": 1.0}, "out_of_range", "max_width_pruning", "below 1"),
        ({"max_depth_pruning": -0.1}, "out_of_range", "max_depth_pruning", "below 1"),
        ({"prune_target_params": 1e9, "max_width_pruning": 0.7}, None, "", ""),
        ({}, None, "", ""),
    ],
)
def test_targets_are_within_reach(values: dict[str, Any], name: str | None, key: str, cause: str) -> None:
    """Of Qwen3-8B: 8.19 billion parameters."""
    found = told(pruning, "prune", **{f"args__{field}": value for field, value in values.items()})
    assert [(one.name, one.key) for one in found] == ([(name, f"args.{key}")] if name else [])
    assert not found or cause in found[0].cause


@pytest.mark.parametrize(
    ("recipe", "values", "name", "severity"),
    [
        ("distill_llama", {"args__config": {"model": {VIRTUAL: 2}}}, "kd_incompatible", "error"),
        ("distill_llama", {"extra_args": [f"model.{VIRTUAL}=2"]}, "kd_incompatible", "error"),
        ("distill_llama", {"args__config": {"comm_overlap": {"tp_comm_overlap": True}}}, "kd_incompatible", "error"),
        ("distill_llama", {"args__config": {"train": {"manual_gc": True}}}, "kd_incompatible", "warning"),
        ("distill_llama", {"args__config": {"train": {"manual_gc": False}}}, None, None),
        ("distill_llama", {"extra_args": ["train.manual_gc=false"]}, None, None),
        ("qat", {"extra_args": [f"model.{VIRTUAL}=2"]}, "pipeline_not_interleaved", "error"),
        ("qat", {"args__config": {"model": {"tp_comm_overlap": True}}}, None, None),
    ],
)
def test_what_a_configuration_cannot_combine(recipe: str, values: Any, name: str | None, severity: str) -> None:
    found = list(carry_out(checks_of(contradictions), spec_for(recipe, **values)).problems)
    assert [(one.name, one.severity) for one in found] == ([(name, severity)] if name else [])
    assert all(one.key.startswith("args.config.") for one in found)


@pytest.mark.parametrize("recipe", ["quantize_nvfp4", "distill_mock", "prune_active", "mlm_quantize", "qat"])
def test_checks_take_no_time(recipe: str) -> None:
    """A few milliseconds (benchmarks/startup.py says how many); ten times that is something that reads or loops."""
    from timeit import repeat

    spec = spec_for(recipe, profile={"gpu": "h100"}, **({"args__load": "/c"} if recipe.startswith("mlm") else {}))
    checks = [check for each in (layout, hardware, formats, pruning) for check in checks_of(each)]
    carry_out(checks, spec)
    assert min(repeat(lambda: carry_out(checks, spec), number=1, repeat=5)) < 0.050
