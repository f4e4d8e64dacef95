"""What ModelOpt cannot quantize in Megatron without a GPU is refused where the job is submitted, by name."""

from typing import Any

import pytest

from recipes.catalogue import RECIPES
from recipes.experiment.examine import examine
from recipes.experiment.stage import Options, Stage


@pytest.mark.parametrize(
    ("model", "tp", "ep", "refused"),
    [
        ("Qwen/Qwen3-30B-A3B", 2, 2, True),
        ("Qwen/Qwen3-30B-A3B", 2, 1, False),
        ("Qwen/Qwen3-30B-A3B", 1, 2, False),
        ("Qwen/Qwen3-8B", 2, 2, False),
    ],
)
def test_experts_are_split_one_way(model: str, tp: int, ep: int, refused: bool) -> None:
    assert told("experts_split_twice", hf_model_id=model, tp=tp, ep=ep) == ([("args.ep", 2)] if refused else [])


@pytest.mark.parametrize(("model", "refused"), [("Qwen/Qwen3-VL-8B-Instruct", True), ("Qwen/Qwen3-8B", False)])
def test_a_vision_tower_needs_a_gpu(model: str, refused: bool) -> None:
    assert told("vision_needs_gpu", hf_model_id=model) == ([("args.hf_model_id", model)] if refused else [])


@pytest.mark.parametrize("name", ["nvfp4_gptq", "int4_gptq", "nvfp4_svdquant", "nvfp4_mse"])
def test_what_fails_on_the_layers_of_megatron_is_refused(name: str) -> None:
    """All formats were tried: these three end in a TypeError of ModelOpt's."""
    values = {"hf_model_id": "Qwen/Qwen3-8B", "export_quant_cfg": name}
    found = [("args.export_quant_cfg", name)] if name != "nvfp4_mse" else []
    assert told("unsupported_quant_recipe", **values) == found


def told(name: str, **values: Any) -> list[tuple[str | None, Any]]:
    partial = RECIPES["quantize_fp8"].build()
    partial.engine, partial.script.runtime = "bridge", "cpu"
    for key, value in values.items():
        setattr(partial.args, key, value)
    found = examine([Stage(name="q", partial=partial)], "local", Options(online=False)).errors
    return [(one.key, one.value) for one in found if one.name == name]
