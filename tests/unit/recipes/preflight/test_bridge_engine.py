"""What Megatron cannot compute without a GPU is refused where the job is submitted, by name."""

import pytest

from recipes.catalogue import RECIPES
from recipes.experiment.examine import examine
from recipes.experiment.stage import Options, Stage

HYBRID, PLAIN = "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-Base-BF16", "Qwen/Qwen3-8B"


@pytest.mark.parametrize(("model", "refused"), [(HYBRID, True), (PLAIN, False)])
def test_a_hybrid_model_needs_kernels(model: str, refused: bool) -> None:
    partial = RECIPES["quantize_fp8"].build()
    partial.engine, partial.script.runtime, partial.args.hf_model_id = "bridge", "cpu", model
    found = examine([Stage(name="q", partial=partial)], "local", Options(online=False)).errors
    told = [(one.key, one.value) for one in found if one.name == "needs_kernels"]
    assert told == ([("args.hf_model_id", HYBRID)] if refused else [])
