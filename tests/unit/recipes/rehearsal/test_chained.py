"""From a pipeline to the stages of its rehearsal. What they come to is run in tests/integration and tests/bridge."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from recipes.cli.asked import Line, asked_for, looked_at
from recipes.experiment.stage import Options, Stage
from recipes.rehearsal import scale
from recipes.rehearsal.chained import SmallPipeline, made_small
from scripts.engines import installed
from scripts.run.problems import ProblemsError


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small models of all tests."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _cached(cache: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where Megatron-Bridge and the harness are installed, and no vLLM: nothing here imports them."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setattr(installed, "is_installed", lambda name: True)
    monkeypatch.setattr(scale.os, "sched_getaffinity", lambda _: {0})


def _small(pipeline: str, *words: str) -> SmallPipeline:
    asked = asked_for(pipeline, Line(words=["executor=slurm", *words]), Options(online=False, fresh=True)).at(
        None, None
    )
    return made_small(asked.stages, looked_at(asked)[1].jobs)


def _args(stages: list[Stage], name: str) -> Any:
    return next(stage.partial.args for stage in stages if stage.name == name)


def test_each_stage_is_small_and_takes_what_the_small_one_before_it_leaves() -> None:
    small = _small("quantize_and_evaluate", "engine=script")
    stages = small.chained()
    assert [stage.name for stage in stages] == ["baseline", "quantize", "export", "read_back", "evaluate"]
    assert _args(stages, "quantize").calib_size == 8
    assert _args(stages, "export").megatron_load_path == "${artifact:quantize.checkpoint_megatron}"
    assert _args(stages, "export").hf_model_id == _args(stages, "quantize").hf_model_id != "Qwen/Qwen3-8B"
    assert _args(stages, "evaluate").checkpoint == "${artifact:read_back.checkpoint_hf}"
    assert _args(stages, "evaluate").baseline == "${artifact:baseline.eval_results}"
    assert all(stage.executor == "local" for stage in stages if stage.name != "export")


def test_a_gate_is_not_judged_on_random_weights() -> None:
    small = _small("quantize_and_evaluate")
    assert _args(small.chained(), "evaluate").gate is None
    assert "args.gate" in {change.key for change in small.scaled["evaluate"].changes}


def test_what_nobody_named_is_made_by_a_stage_before_and_once() -> None:
    """Data stand in for `data_paths: null`; the chain itself is as it was: the pruned model is the student."""
    stages = _small("prune_distill_evaluate").chained()
    assert [stage.name for stage in stages] == [
        *("prepare_data", "baseline", "prune", "distill", "megatron_to_hf", "evaluate")
    ]
    distill = _args(stages, "distill")
    assert distill.student_hf_path == "${artifact:prune.checkpoint_hf}"
    assert distill.data_paths == ["${artifact:prepare_data.binidx}"]
    assert distill.train_iters == 2


def test_data_that_the_pipeline_makes_itself_are_those_that_are_taken() -> None:
    stages = _small("prepare_distill_evaluate").chained()
    assert "prepare_data" not in [stage.name for stage in stages]
    assert _args(stages, "distill").data_paths == ["${artifact:data.binidx}"]


def test_a_reference_of_the_file_is_kept_and_nothing_stands_in_for_it() -> None:
    stages = _small("quantize_qad_evaluate").chained()
    assert _args(stages, "qad").student_megatron_path == "${artifact:quantize.checkpoint_megatron}"
    assert [stage.name for stage in stages if stage.partial.recipe.startswith("quantize")] == ["quantize"]


def test_names_of_what_stands_in_are_free(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    stage = {"recipe": "distill", "after": []}
    file.write_text(yaml.safe_dump({"stages": {"prepare_data": stage, "other": stage}}, sort_keys=False))
    stages = _small(str(file)).chained()
    assert stages[0].name == "prepare_data_again" and len(stages) == 3
    assert {str(_args(stages, name).data_paths) for name in ("prepare_data", "other")} == {
        "['${artifact:prepare_data_again.binidx}']"
    }


def test_every_stage_that_cannot_be_rehearsed_is_named_and_which_can(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    stages = {
        "quantize": {"recipe": "quantize_fp8", "args": {"hf_model_id": "Qwen/Qwen3-8B"}},
        "talk": {"recipe": "generate_vllm", "after": ["quantize"]},
        "score": {"recipe": "evaluate", "after": ["quantize"], "args": {"backend": "vllm"}},
    }
    file.write_text(yaml.safe_dump({"stages": stages}, sort_keys=False))
    with pytest.raises(ProblemsError) as caught:
        _small(str(file))
    problems = caught.value.problems
    assert {problem.name for problem in problems} == {"cannot_rehearse"}
    assert {problem.key for problem in problems} == {"talk.engine", "score.args.backend"}
    assert any("--only quantize" in problem.remedy for problem in problems)
