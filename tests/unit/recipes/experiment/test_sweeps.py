"""Sweeps over pipelines: which stages are copied, what they are called, and what is made once."""

import pytest

from recipes import ProblemsError, Stage, pipeline
from recipes.experiment.chain import wired
from recipes.experiment.run_ids import MOST_OF_COPY, new_ids, pipeline_of
from recipes.experiment.sweep import varied

FORMATS = {"quantize.args.export_quant_cfg": ["fp8", "nvfp4"]}


def parents(stages: list[Stage]) -> dict[str, list[str]]:
    return {stage.name: list(stage.after) for stage in stages}


def test_what_no_swept_value_changes_is_there_once() -> None:
    stages = wired(pipeline("quantize_and_evaluate", {"args.hf_model_id": "tiny:qwen3"}, sweep=FORMATS))
    assert parents(stages) == {
        **{"baseline": [], "quantize-fp8": [], "quantize-nvfp4": []},
        **{"evaluate-fp8": ["quantize-fp8", "baseline"], "evaluate-nvfp4": ["quantize-nvfp4", "baseline"]},
    }
    held = {stage.name: stage.partial.args for stage in stages}
    assert held["quantize-nvfp4"].export_quant_cfg == "nvfp4"
    assert held["evaluate-nvfp4"].checkpoint == "${artifact:quantize-nvfp4.checkpoint_hf}"
    assert held["evaluate-nvfp4"].baseline == "${artifact:baseline.eval_results}"


def test_a_value_of_several_stages_and_one_of_one_are_combined() -> None:
    grid = {"args.limit": ["10", "20"], "quantize.recipe": ["quantize_fp8", "quantize_int8_sq"]}
    names = set(parents(pipeline("quantize_and_evaluate", {"args.hf_model_id": "tiny:qwen3"}, sweep=grid)))
    assert {name for name in names if name.startswith(("base", "quant"))} == {
        *("baseline-10", "baseline-20", "quantize-quantize_fp8"),
        varied("quantize", "quantize_int8_sq"),
    }
    assert len(names) == 2 + 2 + 4


def test_conversions_are_copied_with_what_they_convert() -> None:
    given = {"args.data_paths": "[1.0, /x]", "engine": "script"}
    grid = {"quantize.args.export_quant_cfg": ["fp8", "fp8_blockwise"], "distill.args.lr": ["1e-4", "5e-5"]}
    stages = wired(pipeline("prune_distill_quantize", given, sweep=grid))
    after = parents(stages)
    assert after["distill-5e-5"] == ["prune"] and after["megatron_to_hf-5e-5"] == ["distill-5e-5"]
    assert after["evaluate-fp8-5e-5"] == ["export-fp8-5e-5", "baseline"]
    assert len(stages) == 2 + 2 + 2 + 4 + 4 + 4
    ids = new_ids(stages)
    assert len(set(ids.values())) == len(stages) and len({pipeline_of(ids[name], name) for name in ids}) == 1


def test_the_name_of_a_copy_has_room_in_an_id() -> None:
    assert varied("quantize", "fp8") == "quantize-fp8" and varied("baseline", "") == "baseline"
    assert varied("data", "org/model.v2") == "data-org-model-v2"
    long = [varied("export_distilled", f"int8_smoothquant_{n}") for n in range(3)]
    assert len(set(long)) == 3 and max(map(len, long)) <= MOST_OF_COPY


def test_what_is_wrong_with_a_value_is_said_once() -> None:
    with pytest.raises(ProblemsError) as error:
        pipeline("quantize_and_evaluate", sweep={"quantize.args.calib_size": ["64", "many"], "quantize.args.x": ["1"]})
    assert [(one.name, one.key) for one in error.value.problems] == [
        ("unknown_key", "quantize.args.x"),
        ("wrong_value", "quantize.args.calib_size"),
    ]
