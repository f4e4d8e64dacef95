"""What ModelOpt cannot quantize in Megatron without a GPU is refused where the job is submitted, by name."""

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
    partial = RECIPES["quantize_fp8"].build()
    partial.engine, partial.script.runtime = "bridge", "cpu"
    partial.args.hf_model_id, partial.args.tp, partial.args.ep = model, tp, ep
    found = examine([Stage(name="q", partial=partial)], "local", Options(online=False)).errors
    told = [(one.key, one.value) for one in found if one.name == "experts_split_twice"]
    assert told == ([("args.ep", 2)] if refused else [])
