"""Each check from the user's side: a recipe in, its Problem out, nothing written."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recipes import ProblemsError, find, prepare
from recipes.models.weights import linear_shapes
from recipes.preflight import environment as preflight_module
from scripts.args.quantize import QuantizeArgs
from scripts.engines.hf.sharded import troubles
from scripts.run.problems import Problem
from tests.conftest import write_safetensors
from tests.jobs import write_sparse_weights

FakeModel = Callable[..., Path]


@pytest.fixture(autouse=True)
def _home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf-home"))
    monkeypatch.chdir(tmp_path)


def problems(
    recipe: str = "quantize_fp8", executor: str = "local", profile: dict[str, str] | None = None, **values: Any
) -> list[Problem]:
    partial = find(recipe).build()
    values = {"hf_model_id": "tiny:qwen3", **values}
    for name, value in values.items():
        setattr(partial.args, name, value)
    try:
        prepare(partial, executor, profile)
    except ProblemsError as error:
        return list(error.problems)
    return []


def names(*args: Any, **values: Any) -> list[tuple[str, str]]:
    return [(problem.name, problem.key) for problem in problems(*args, **values)]


@pytest.mark.parametrize("model", ["tiny:qwen3", "tiny:llama"])
@pytest.mark.parametrize("format_", ["fp8", "nvfp4", "int8_sq", "fp8_blockwise", "int4_awq", "w4a8_awq"])
def test_a_good_job_has_no_problem(model: str, format_: str) -> None:
    assert names(hf_model_id=model, export_quant_cfg=format_) == []


def test_a_good_local_model_has_no_problem(fake_model: FakeModel, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a\nb\nc")
    assert names(hf_model_id=str(fake_model()), calib_dataset="p.txt") == []


@pytest.mark.parametrize(
    ("field", "value"),
    [("calib_size", 0), ("calib_size", -5), ("calib_seq_length", 4), ("calib_batch_size", 0), ("eval_size", -1)],
)
def test_numbers(field: str, value: int) -> None:
    assert names(**{field: value}) == [("out_of_range", f"args.{field}")]


@pytest.mark.parametrize("field", ["tp", "pp", "ep", "etp"])
def test_parallelism_needs_another_engine(field: str) -> None:
    assert names(**{field: 2}) == [("engine_has_no_parallelism", f"args.{field}")]


def test_nodes() -> None:
    assert names(profile={"nodes": "2"}) == [("too_many_nodes", "executor.nodes")]


def test_an_environment_without_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight_module, "HF_PACKAGES", ("torch", "no_such_package"))
    (problem,) = problems()
    assert (problem.name, problem.key) == ("engine_not_installed", "engine")
    assert "lacks no_such_package" in problem.cause


def test_executor() -> None:
    (problem,) = problems(executor="locale")
    assert problem.name == "unknown_executor"
    assert "Did you mean local?" in problem.remedy
    assert names(profile={"node": "1"}) == [("unknown_key", "executor.node")]
    assert names(profile={"nodes": "two"}) == [("wrong_value", "executor.nodes")]
    assert names(profile={"nodes": "0"}) == [("wrong_value", "executor.nodes")]
    assert names(executor="docker", profile={"nodes": "0"}).count(("wrong_value", "executor.nodes")) == 1


def test_arguments_for_a_script_that_is_not_run() -> None:
    partial = find("quantize_fp8").build()
    partial.args.hf_model_id = "tiny:qwen3"
    partial.extra_args = ["--new"]
    partial.script.path = "/opt/quantize.py"
    partial.engine = "hf"
    with pytest.raises(ProblemsError) as caught:
        prepare(partial)
    assert [problem.name for problem in caught.value.problems] == ["script_unused", "extra_args_unused"]


@pytest.mark.parametrize("format_", ["fp9", "", "FP8_DEFAULT_CF", "general/ptq/nope", "./nope.yaml", "$(id)", "fp8 "])
def test_unknown_formats(format_: str) -> None:
    assert names(export_quant_cfg=format_) == [("unsupported_quant_recipe", "args.export_quant_cfg")]


def test_formats_that_have_cuda_kernels_alone() -> None:
    key = "args.export_quant_cfg"
    assert names(export_quant_cfg="huggingface/vit/ptq/fp8", device="cpu") == [("format_needs_cuda", key)]
    assert names(export_quant_cfg="FP8_DEFAULT_CFG", device="cpu") == []
    assert names(export_quant_cfg="mxint8", device="cpu") == [("format_not_exportable", key)]
    assert names(export_quant_cfg="MXFP6_DEFAULT_CFG", device="cpu") == [("format_not_exportable", key)]
    assert names(export_quant_cfg="mxint8", device="cpu", export_dir=None) == []
    assert names(export_quant_cfg="w4a8_nvfp4_fp8", weight_only=True) == [
        ("weight_only_meaningless", "args.weight_only")
    ]
    assert names(export_quant_cfg="nvfp4_mse", compress=True) == [("compress_unsupported", "args.compress")]


@pytest.mark.parametrize("cache", ["fp8_cast", "nvfp4_cast"])
def test_a_cache_that_is_cast_needs_no_text(cache: str) -> None:
    assert names(export_quant_cfg="mxfp8", from_files=True, export_kv_cache_quant=cache) == []
    other = names(export_quant_cfg="mxfp8", from_files=True, export_kv_cache_quant=cache.removesuffix("_cast"))
    assert other == [("needs_calibration", "args.export_kv_cache_quant")]


@pytest.mark.parametrize(
    ("format_", "width", "fits"),
    [
        ("fp8", 200, True),
        ("int8_sq", 200, True),
        ("nvfp4", 200, False),
        ("nvfp4", 208, True),
        ("int4_awq", 192, False),
        ("w4a8_awq", 192, False),
        ("fp8_blockwise", 192, False),
        ("fp8_blockwise", 256, True),
    ],
)
def test_blocks(fake_model: FakeModel, tmp_path: Path, format_: str, width: int, fits: bool) -> None:
    (tmp_path / "p.txt").write_text("a\nb\nc")
    found = problems(hf_model_id=str(fake_model(width=width)), export_quant_cfg=format_, calib_dataset="p.txt")
    assert [problem.name for problem in found] == ([] if fits else ["format_does_not_fit"])
    if not fits:
        assert str(width) in found[0].cause


def test_embeddings_are_not_blocks(fake_model: FakeModel) -> None:
    assert set(linear_shapes(fake_model())) == {f"model.layers.0.self_attn.{p}_proj" for p in "qkvo"}


def _damage(folder: Path, how: str) -> None:
    weights = folder / "model.safetensors"
    if how == "no config":
        (folder / "config.json").unlink()
    elif how == "bad config":
        (folder / "config.json").write_text("[")
    elif how == "pickled":
        weights.rename(folder / "pytorch_model.bin")
    elif how == "no weights":
        weights.unlink()
    elif how == "short":
        weights.write_bytes(weights.read_bytes()[:-10])
    elif how == "garbage":
        weights.write_bytes(b"\xff" * 100)
    elif how == "no tokenizer":
        (folder / "tokenizer.json").unlink()
    elif how == "adapter":
        (folder / "adapter_config.json").write_text("{}")


@pytest.mark.parametrize(
    ("how", "name"),
    [
        ("no config", "missing_model"),
        ("bad config", "missing_model"),
        ("pickled", "unsafe_weights"),
        ("no weights", "missing_model"),
        ("short", "damaged_weights"),
        ("garbage", "damaged_weights"),
        ("no tokenizer", "missing_tokenizer"),
        ("adapter", "unmerged_adapter"),
    ],
)
def test_damaged_models(fake_model: FakeModel, tmp_path: Path, how: str, name: str) -> None:
    (tmp_path / "p.txt").write_text("a\nb\nc")
    folder = fake_model()
    _damage(folder, how)
    assert (name, "args.hf_model_id") in names(hf_model_id=str(folder), calib_dataset="p.txt")


def test_missing_models_name_the_nearest(fake_model: FakeModel, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a\nb\nc")
    folder = fake_model("my-model")
    (problem,) = problems(hf_model_id=str(folder.with_name("my-modl")), calib_dataset="p.txt")
    assert problem.name == "missing_model"
    assert str(folder) in problem.remedy
    (problem,) = problems(hf_model_id="tiny:qwen4")
    assert (problem.name, "tiny:qwen3" in problem.remedy) == ("unknown_model", True)


def test_hub_models_that_cannot_be_had() -> None:
    assert ("missing_model", "args.hf_model_id") in names(hf_model_id="org/name", calib_dataset="org/data")
    assert ("missing_data", "args.calib_dataset") in names(hf_model_id="org/name", calib_dataset="org/data")


def test_hub_models_in_the_cache(fake_model: FakeModel, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a\nb\nc")
    snapshot = tmp_path / "hf-home" / "hub" / "models--org--name" / "snapshots" / "abc"
    snapshot.parent.mkdir(parents=True)
    shutil.move(fake_model(width=200), snapshot)
    assert names(hf_model_id="org/name", calib_dataset="p.txt") == []
    assert names(hf_model_id="org/name", calib_dataset="p.txt", export_quant_cfg="nvfp4") == [
        ("format_does_not_fit", "args.export_quant_cfg")
    ]


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ("", "too_little_text"),
        ('{"text": "one"}', "too_little_text"),
        ('{"x": 1}\n{"x": 2}', "no_text"),
        ("{", "unreadable_data"),
    ],
)
def test_data(tmp_path: Path, content: str, name: str) -> None:
    (tmp_path / "p.jsonl").write_text(content)
    assert names(calib_dataset="p.jsonl") == [(name, "args.calib_dataset")]


def test_missing_data() -> None:
    assert names(calib_dataset="./none.jsonl", eval_dataset="./none.txt") == [
        ("missing_data", "args.calib_dataset"),
        ("missing_data", "args.eval_dataset"),
    ]


def test_from_files_no_text_is_asked_for(fake_model: FakeModel) -> None:
    """The data set that null stands for cannot be had here."""
    asked = {"hf_model_id": str(fake_model()), "weight_only": True}
    assert names(**asked) == [("missing_data", "args.calib_dataset")]
    assert names(**asked, from_files=True) == []


def test_processes_are_of_files_alone_and_of_no_gpu(fake_model: FakeModel) -> None:
    asked = {"hf_model_id": str(fake_model()), "weight_only": True, "calib_dataset": None}
    assert names(**asked, from_files=True, processes=4) == names(**asked, from_files=True, processes=1) == []
    assert ("contradiction", "args.processes") in names(**asked, processes=4)
    assert names(**asked, from_files=True, processes=4, device="cuda") == [("world_size_not_one", "args.processes")]
    assert names(**asked, from_files=True, processes=0) == [("out_of_range", "args.processes")]


def test_from_files_nothing_is_unpacked(fake_model: FakeModel) -> None:
    asked = {"hf_model_id": str(folder := fake_model()), "weight_only": True, "from_files": True}
    name = "model.layers.0.mlp.up_proj.weight"
    write_safetensors(folder / "model.safetensors", {name: [256, 256]}, {name: "F8_E4M3"})
    (problem,) = problems(**asked)
    assert (problem.name, problem.key) == ("already_quantized", "args.hf_model_id")
    assert f"{name} holds float8_e4m3fn" in problem.cause
    config = {"model_type": "llama", "hidden_size": 256, "quantization_config": {"quant_method": "fp8"}}
    (folder / "config.json").write_text(json.dumps(config))
    (problem,) = problems(**asked)
    assert (problem.name, problem.severity) == ("already_quantized", "error")
    assert "args.from_files cannot undo" in problem.cause


def test_of_sharded_layers_what_cannot_be_had_is_told_at_once() -> None:
    assert names(fsdp=True) == [("fsdp_unsupported", "args.fsdp")], "one process"
    told = [(one.name, one.key) for one in troubles(QuantizeArgs(export_dir="/x"), 2)]
    assert told == []
    asked: dict[str, Any] = {"export_quant_cfg": "int4_awq", "memory": "auto", "compress": True, "from_files": True}
    cache = {"export_kv_cache_quant": "fp8", "layer_formats": {"none": ["*"]}}
    told = [(one.name, one.key) for one in troubles(QuantizeArgs(**asked, **cache), 2)]
    keys = ("memory", "from_files", "export_quant_cfg", "export_kv_cache_quant", "layer_formats", "compress")
    assert told == [*(("fsdp_unsupported", f"args.{key}") for key in keys), ("no_output", "args.export_dir")]


def test_layer_by_layer_what_cannot_be_had_is_told_at_once(fake_model: FakeModel) -> None:
    assert names(memory="16GiB") == names(memory="auto") == names(memory="auto", export_quant_cfg="nvfp4") == []
    assert names(memory="auto", export_quant_cfg="int4_awq") == names(memory="auto", export_quant_cfg="int8_sq") == []
    asked = {"from_files": True, "export_quant_cfg": "mxfp6", "export_kv_cache_quant": "fp8", "export_dir": None}
    assert names(memory="much", **asked) == [
        ("wrong_value", "args.memory"),
        ("layerwise_unsupported", "args.from_files"),
        ("layerwise_unsupported", "args.export_quant_cfg"),
        ("layerwise_unsupported", "args.export_kv_cache_quant"),
        ("no_output", "args.export_dir"),
    ]
    assert names(memory="auto", compress=True) == [("layerwise_unsupported", "args.compress")]
    folder = fake_model()
    (folder / "config.json").write_text(json.dumps({"model_type": "cohere", "hidden_size": 256}))
    found = [one for one in problems(memory="auto", hf_model_id=str(folder)) if one.name == "layerwise_unsupported"]
    assert [one.key for one in found] == ["args.hf_model_id"] and "cohere was not tried" in found[0].cause


def test_experts_that_share_a_tensor_go_layer_by_layer_and_over_no_ranks(fake_model: FakeModel) -> None:
    folder = fake_model()
    config = json.loads((folder / "config.json").read_text())
    experts = {"model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 128}
    (folder / "config.json").write_text(json.dumps(config | experts))
    told = [
        [(one.name, one.key) for one in problems(hf_model_id=str(folder), **asked) if "experts" in one.cause]
        for asked in (
            {"memory": "auto"},
            {"memory": "auto", "export_quant_cfg": "nvfp4_local_hessian"},
            {"fsdp": True},
        )
    ]
    assert told == [[], [("layerwise_unsupported", "args.export_quant_cfg")], [("fsdp_unsupported", "args.fsdp")]]


def test_layer_by_layer_the_memory_that_is_given_must_do() -> None:
    (problem,) = problems(memory="100MiB")
    assert (problem.name, problem.key, problem.value) == ("does_not_fit", "args.memory", "100MiB")


def test_outputs_never_overwrite(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert names(export_dir=str(tmp_path / "out")) == []
    (tmp_path / "out" / "precious").write_text("x")
    assert names(export_dir=str(tmp_path / "out")) == [("output_exists", "args.export_dir")]
    assert names(export_dir=str(tmp_path / "out" / "precious" / "below")) == [
        ("output_not_writable", "args.export_dir")
    ]


def test_outputs_overlap_nothing(fake_model: FakeModel, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a\nb\nc")
    folder = fake_model()
    given = {"hf_model_id": str(folder), "calib_dataset": "p.txt"}
    overwritten = ("source_checkpoint_overwritten", "args.export_dir")
    assert names(**given, export_dir=str(folder / "out")) == [overwritten]
    assert overwritten in names(**given, export_dir=str(folder))
    assert overwritten in names(**given, export_dir=str(tmp_path))
    both = names(**given, export_dir="same", modelopt_save_path="./same/below")
    assert both == [("output_overlaps_input", "args.modelopt_save_path")]
    (tmp_path / "link").symlink_to(folder)
    assert names(**given, export_dir="link/out") == [overwritten]


def test_an_output_in_a_place_that_cannot_be_written() -> None:
    assert ("output_not_writable", "args.export_dir") in names(export_dir="/proc/nowhere/out")
    assert names(export_dir="a\0b") == [("wrong_value", "args.export_dir")]


def test_disk(fake_model: FakeModel, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a\nb\nc")
    folder = fake_model()
    write_sparse_weights(folder / "model-2.safetensors", 1 << 42)  # 8.8 TB, on no disk
    assert ("not_enough_disk", "args.modelopt_save_path") in names(hf_model_id=str(folder), calib_dataset="p.txt")


def test_late_values_that_do_not_resolve() -> None:
    assert names(export_dir="${oc.env:NO_SUCH_VARIABLE}/x") == [("unresolved_value", "args.export_dir")]


def test_everything_at_once() -> None:
    values = {"hf_model_id": "./no-model", "calib_dataset": "./no-data.jsonl", "export_quant_cfg": "fp9"}
    found = names("quantize_fp8", "local", **values, calib_size=0, tp=3)
    assert len(found) == 5
    assert len({key for _, key in found}) == 5
    alone = names("quantize_fp8", "nowhere", **values, calib_size=0, tp=3)
    told = [("unknown_executor", "executor"), ("out_of_range", "args.calib_size")]
    assert alone == told, "of a place that is not there nothing else can be said but what is wrong anywhere"


def test_tasks_are_looked_at_whatever_the_place() -> None:
    partial = find("evaluate_tiny").build()
    partial.args.tasks, partial.args.limit = ["a,b"], -1
    with pytest.raises(ProblemsError) as caught:
        prepare(partial, "lokal")
    found = [(one.name, one.key) for one in caught.value.problems if one.name != "unknown_task"]
    assert found == [("unknown_executor", "executor"), ("out_of_range", "args.limit"), ("wrong_value", "args.tasks")]


@pytest.mark.parametrize(
    ("format_", "values", "key"),
    [
        ("w4a8_awq", {"weight_only": True}, "args.weight_only"),
        ("w4a8_awq", {"compress": True}, "args.compress"),
        ("int4_awq", {"compress": True}, "args.compress"),
        ("int4_awq", {"compress": True, "export_dir": None}, None),
        ("fp8", {"compress": True, "weight_only": True}, None),
    ],
)
def test_combinations_that_modelopt_cannot_do(format_: str, values: dict[str, Any], key: str | None) -> None:
    assert [problem.key for problem in problems(export_quant_cfg=format_, **values)] == ([key] if key else [])


@pytest.mark.parametrize("path", ["", ".", "/", "/data/.."])
def test_an_output_must_have_a_name(path: str) -> None:
    assert names(export_dir=path) == [("wrong_value", "args.export_dir")]


def test_no_value_in_a_list_holds_a_nul() -> None:
    partial = find("distill").build()
    partial.args.data_paths = ["1.0", "/data/a\0b"]
    with pytest.raises(ProblemsError) as caught:
        prepare(partial, "slurm", online=False)
    assert [(problem.name, problem.key) for problem in caught.value.problems] == [("wrong_value", "args.data_paths")]


@pytest.mark.parametrize("value", [{"node_rank": 1}, {"master_addr": "n1"}, {"master_port": 29500}])
def test_a_rank_or_a_meeting_point_is_not_given_by_hand(value: dict[str, Any]) -> None:
    """They were accepted, recorded, and read nowhere."""
    recipe = find("quantize_tiny").build()
    for name, given in value.items():
        setattr(recipe.torchrun, name, given)
    with pytest.raises(ProblemsError) as refused:
        prepare(recipe, "local", online=False)
    (problem,) = refused.value.problems
    assert (problem.name, problem.key) == ("set_by_the_launcher", f"torchrun.{next(iter(value))}")


def test_a_value_of_another_type_is_told_with_everything_else() -> None:
    partial = find("quantize_fp8").build()
    partial.args.hf_model_id, partial.args.calib_size, partial.args.export_quant_cfg = "/no/such", "many", "fp9"
    with pytest.raises(ProblemsError) as caught:
        prepare(partial, online=False)
    told = {problem.key: problem.name for problem in caught.value.problems}
    assert told["args.calib_size"] == "wrong_value"
    assert told["args.export_quant_cfg"] == "unsupported_quant_recipe"
    assert told["args.hf_model_id"] == "missing_model"
    assert partial.args.calib_size == "many", "what was given is left as it is"
    partial.args.calib_size, partial.args.prompts = 8, ["a"]
    with pytest.raises(ProblemsError) as caught:
        prepare(partial, online=False)
    (wrong,) = (problem for problem in caught.value.problems if problem.key == "args.prompts")
    assert wrong.name == "wrong_value" and wrong.remedy.startswith("It is: ")
