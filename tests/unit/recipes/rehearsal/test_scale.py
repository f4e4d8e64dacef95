"""From jobs as they are asked for to the stages of a rehearsal. What they come to is run in tests/integration."""

from pathlib import Path
from typing import Any

import pytest

from recipes.experiment.job import Job
from recipes.rehearsal import scale
from recipes.rehearsal.scale import Scaled, scaled
from scripts.engines import installed
from scripts.run.problems import ProblemsError
from tests.jobs import job_of


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small models of all tests."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _cached(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where Megatron-Bridge is not installed."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setattr(installed, "is_installed", lambda name: False)


@pytest.fixture
def with_bridge(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where Megatron-Bridge is installed: nothing here imports it."""
    monkeypatch.setattr(installed, "is_installed", lambda name: True)
    monkeypatch.setattr(scale.os, "sched_getaffinity", lambda _: {0, 1})


def _args(found: Scaled) -> Any:
    return found.stages[-1].partial.args


def _job(recipe: str, **values: Any) -> Job:
    return job_of(recipe, "slurm", **{f"args__{name}": value for name, value in values.items()})


def test_a_quantization_is_made_small_and_says_so() -> None:
    found = scaled(_job("quantize_fp8", hf_model_id="Qwen/Qwen3-8B", tp=8))
    assert found.engine == "hf" and found.processes == 1 and len(found.stages) == 1
    said = {change.key: (change.asked, change.here) for change in found.changes}
    assert said["args.calib_size"] == (512, 8) and said["args.tp"] == (8, 1) and said["engine"] == ("script", "hf")
    assert Path(_args(found).hf_model_id, "model.safetensors").is_file()
    assert Path(_args(found).calib_dataset).read_text(encoding="utf-8").count("\n") == 64
    assert _args(found).export_quant_cfg == "fp8"


@pytest.mark.usefixtures("with_bridge")
def test_a_layout_keeps_its_shape_as_far_as_there_are_processors() -> None:
    found = scaled(_job("quantize_fp8", hf_model_id="Qwen/Qwen3-8B", tp=8))
    assert (found.engine, found.processes, _args(found).tp) == ("bridge", 2, 2)
    found = scaled(_job("quantize_fp8", hf_model_id="Qwen/Qwen3-8B", tp=4, pp=2))
    assert (found.processes, _args(found).tp, _args(found).pp) == (2, 1, 2)


@pytest.mark.usefixtures("with_bridge")
def test_what_a_pruning_keeps_is_the_same_part_of_the_small_model() -> None:
    found = scaled(_job("prune", prune_target_params=6e9))
    assert 2e6 < _args(found).prune_target_params < 3.4e6
    fixed = _args(scaled(_job("prune_fixed"))).prune_export_config
    assert 0 < fixed["hidden_size"] <= 256 and fixed["hidden_size"] % 64 == 0


@pytest.mark.usefixtures("with_bridge")
def test_what_a_checkpoint_would_be_comes_from_a_stage_before(tmp_path: Path) -> None:
    found = scaled(_job("export", megatron_load_path="/lustre/quantized"))
    assert [stage.name for stage in found.stages] == ["quantize", "export"]
    assert _args(found).megatron_load_path == "${artifact:quantize.checkpoint_megatron}"
    assert found.stages[-1].after == ["quantize"]
    found = scaled(_job("megatron_to_hf", megatron_path="/lustre/plain"))
    assert [stage.name for stage in found.stages] == ["hf_to_megatron", "megatron_to_hf"]
    found = scaled(_job("distill", data_paths=["/lustre/data_text_document"]))
    assert [stage.name for stage in found.stages] == ["prepare_data", "distill"]
    assert _args(found).train_iters == 2


@pytest.mark.usefixtures("with_bridge")
def test_a_configuration_is_made_small_by_its_keys() -> None:
    config = _args(scaled(_job("qat", pretrained_checkpoint="/lustre/quantized"))).config
    assert config["train"]["train_iters"] == 2 and config["model"]["tensor_model_parallel_size"] == 2
    assert config["optimizer"]["lr"] == 1e-5 and config["scheduler"]["lr_warmup_iters"] == 1


def test_data_that_is_here_is_taken(tmp_path: Path) -> None:
    mine = tmp_path / "mine.jsonl"
    mine.write_text('{"text": "a"}\n')
    found = scaled(job_of("quantize_fp8", args__hf_model_id="Qwen/Qwen3-8B", args__calib_dataset=str(mine)))
    assert _args(found).calib_dataset == str(mine)
    away = scaled(_job("quantize_fp8", hf_model_id="Qwen/Qwen3-8B", calib_dataset="/lustre/mine.jsonl"))
    assert _args(away).calib_dataset.endswith("text.jsonl") and "data: the built-in text" in away.stand_ins


@pytest.mark.parametrize(
    ("recipe", "values", "said"),
    [
        ("prune", {}, "make bridge"),
        ("mlm_quantize", {}, "script.path"),
        ("quantize_fp8", {"hf_model_id": "somebody/unheard-of"}, "not among the models that are known"),
        ("quantize_fp8", {"hf_model_id": "Qwen/Qwen3-VL-8B-Instruct"}, "images"),
        ("merge_lora", {"lora_checkpoint": "/lustre/adapter"}, "make bridge"),
    ],
)
def test_what_cannot_be_rehearsed_says_why(recipe: str, values: dict[str, Any], said: str) -> None:
    with pytest.raises(ProblemsError) as caught:
        scaled(_job(recipe, **values))
    assert caught.value.problems[0].name == "cannot_rehearse" and said in str(caught.value.problems[0])


@pytest.mark.usefixtures("with_bridge")
def test_a_hybrid_model_is_rehearsed_by_megatron() -> None:
    """Its scan is computed in plain torch where there is no GPU."""
    model = "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-Base-BF16"
    for recipe, name in (("quantize_fp8", "hf_model_id"), ("prune", "hf_model_name_or_path")):
        assert scaled(_job(recipe, **{name: model})).engine == "bridge"


@pytest.mark.usefixtures("with_bridge")
def test_qad_begins_with_a_quantized_student() -> None:
    found = scaled(_job("qad", data_paths=[1.0, "/lustre/data"]))
    assert [stage.name for stage in found.stages] == ["quantize", "prepare_data", "qad"]


@pytest.mark.usefixtures("with_bridge")
def test_of_two_stages_one_says_what_is_left_for_the_other() -> None:
    args = _args(scaled(_job("prune_uneven", hf_model_name_or_path="Qwen/Qwen3-8B")))
    assert (args.pp_size, args.num_layers_in_first_pipeline_stage, args.num_layers_in_last_pipeline_stage) == (
        2,
        1,
        None,
    )
