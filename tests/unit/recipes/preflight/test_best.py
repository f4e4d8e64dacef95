"""A search that cannot be, and formats of layers that are not there, are refused where they are submitted."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recipes.catalogue import RECIPES
from recipes.experiment.examine import examine
from recipes.experiment.stage import Options, Stage
from recipes.planner.disk import outputs_bytes
from recipes.preflight.subjects import notes
from scripts.engines.hf.best import preflight


def found(recipe: str, processes: int = 1, **values: Any) -> list[tuple[str, str]]:
    partial = RECIPES[recipe].build()
    partial.torchrun.nproc_per_node = processes
    for name, value in {"hf_model_id": "tiny:qwen3", **values}.items():
        setattr(partial.args, name, value)
    return [(one.name, one.key) for one in examine([Stage(name="b", partial=partial)], "local", Options()).errors]


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"max_kl": None}, ("no_limit", "args.max_kl")),
        ({"formats": ["fp9"]}, ("unsupported_quant_recipe", "args.formats")),
        ({"formats": []}, ("missing_value", "args.formats")),
        ({"server": "vllm", "formats": ["int4_awq"]}, ("unservable_checkpoint", "args.formats")),
        ({"formats": ["fp9"], "trials": 2}, ("unsupported_quant_recipe", "args.formats")),  # nothing of trials
        ({"formats": "fp8"}, ("wrong_value", "args.formats")),  # letters are no formats
        ({"trials": 9}, ("out_of_range", "args.trials")),
        ({"target_size": 1.5}, ("out_of_range", "args.target_size")),
        ({"eval_size": 0}, ("out_of_range", "args.eval_size")),
        ({"export_dir": None}, ("no_output", "args.export_dir")),
    ],
)
def test_a_search_that_cannot_be(values: dict[str, Any], problem: tuple[str, str]) -> None:
    assert found("best_tiny", **values) == [problem]


def test_a_search_says_what_passes_and_when_it_ends() -> None:
    partial = RECIPES["best_tiny"].build()
    job = examine([Stage(name="b", partial=partial)], "local", Options()).jobs[0]
    assert notes(job)[0] == "what keeps max_kl 0.01 passes; at most 40 trials and 10 minutes"
    assert {key for key, _, _ in job.outputs} == set(outputs_bytes(job))


def test_a_search_that_can_be() -> None:
    assert found("best_tiny") == []
    assert found("best_tiny", max_kl=None, target_size=0.5, server="trtllm", formats=["fp8", "int4_awq"]) == []


def test_both_are_one_process() -> None:
    refused = [("world_size_not_one", "torchrun.nproc_per_node")]
    assert found("best_tiny", processes=2) == refused
    assert found("quantize_fp8", processes=2, layer_formats={"fp8_blockwise": ["*.mlp.*"]}) == refused


def test_optuna_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "missing_tool", lambda kind: "pip install it")
    assert found("best_tiny") == [("search_not_installed", "executor")]


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"layer_formats": {"fp9": ["*"]}}, "unsupported_quant_recipe"),
        ({"layer_formats": {"int4_awq": ["*"]}, "weight_only": True}, "contradiction"),
        ({"layer_formats": {"int4_awq": ["*"]}, "export_quant_cfg": "FP8_DEFAULT_CFG"}, "contradiction"),
    ],
)
def test_formats_of_layers_that_cannot_be(values: dict[str, Any], problem: str) -> None:
    assert (problem, "args.layer_formats") in found("quantize_fp8", **values)


def test_layers_that_servers_fuse_have_one_format(fake_model: Callable[..., Path]) -> None:
    model = {"hf_model_id": str(fake_model())}
    differ = ("fused_layers_differ", "args.layer_formats")
    assert differ in found("quantize_fp8", **model, layer_formats={"int4_awq": ["*.q_proj"]})
    assert differ in found("quantize_fp8", **model, layer_formats={"none": ["*.0.self_attn.v_proj"]})
    assert differ not in found("quantize_fp8", **model, layer_formats={"int4_awq": ["*.[qkv]_proj"]})
