"""What is refused before a job of the script engine is submitted, each by its name, with what would be right."""

import json
from pathlib import Path
from typing import Any

import pytest

from recipes import ProblemsError, Stage, find, prepare
from recipes.experiment.examine import examine
from recipes.experiment.stage import Options
from recipes.planner.layout import has_experts
from recipes.preflight.subjects import notes
from recipes.values import set_value
from scripts.run.problems import Problem
from tests.testbed.standin import write_standin

PROFILES = """
slurm: {account: a, image: "nvcr.io/nvidia/nemo:26.06", job_dir: /lustre/me}
old: {extends: slurm, image: "nvcr.io/nvidia/nemo:25.11"}
two: {extends: slurm, nodes: 2}
other: {extends: slurm, image: "registry/mine:1"}
bare: {extends: slurm, image: null}
closed: {extends: slurm, secrets: []}
"""
BRIDGE = "Megatron-Bridge/examples/quantization/quantize.py"


@pytest.fixture
def profiles(tmp_path: Path) -> Path:
    (tmp_path / "executors.yaml").write_text(PROFILES)
    return tmp_path / "executors.yaml"


def problems(
    profiles: Path, recipe: str, executor: str = "slurm", profile: dict[str, str] | None = None, **values: Any
) -> list[Problem]:
    try:
        prepare(built(recipe, **values), executor, profile, profiles=profiles)
    except ProblemsError as error:
        return list(error.problems)
    return []


def built(recipe: str, **values: Any) -> Any:
    partial = find(recipe).build()
    for key, value in values.items():
        section, _, name = key.partition("__")
        setattr(getattr(partial, section) if name else partial, name or section, value)
    return partial


def told(profiles: Path, recipe: str, executor: str = "slurm", **values: Any) -> list[tuple[str, str]]:
    return [(problem.name, problem.key) for problem in problems(profiles, recipe, executor, **values)]


@pytest.mark.parametrize(
    ("recipe", "values", "name", "key"),
    [
        ("quantize_fp8", {"args__export_quant_cfg": "nvfp5"}, "unsupported_quant_recipe", "args.export_quant_cfg"),
        ("quantize_fp8", {"args__export_kv_cache_quant": "nvfp4"}, "unsupported_choice", "args.export_kv_cache_quant"),
        ("quantize_fp8", {"args__tp": 3}, "world_size_not_divisible", "args.tp"),
        ("quantize_fp8", {"args__ep": 3}, "world_size_not_divisible", "args.ep"),
        ("quantize_fp8", {"args__tp": 0}, "out_of_range", "args.tp"),
        ("quantize_fp8", {"args__calib_seq_length": 77}, "unknown_flag", "args.calib_seq_length"),
        ("quantize_fp8", {"args__eval_size": 7}, "not_of_this_engine", "args.eval_size"),
        ("quantize_fp8", {"extra_args": ["--calib-szie", "3"]}, "unknown_flag", "extra_args"),
        ("quantize_fp8", {"extra_args": ["--calib-size=3"]}, "flag_twice", "extra_args"),
        ("quantize_fp8", {"script__release": "0.9"}, "unknown_release", "script.release"),
        ("quantize_fp8", {"engine": "script", "args__hf_model_id": "tiny:qwen3"}, "unknown_model", "args.hf_model_id"),
        (
            "quantize_fp8",
            {"args__hf_model_id": "/m", "args__megatron_save_path": "/m/o"},
            "source_checkpoint_overwritten",
            "args.megatron_save_path",
        ),
        ("export", {}, "missing_input", "args.megatron_load_path"),
        ("export", {"args__megatron_load_path": "/c", "args__tp": 2}, "export_needs_tp1", "args.tp"),
        (
            "export",
            {"args__megatron_load_path": "/c", "torchrun__nproc_per_node": 4},
            "world_size_not_divisible",
            "torchrun.nproc_per_node",
        ),
        ("mlm_export", {"args__load": "/c", "args__tp": 2}, "export_needs_tp1", "args.tp"),
        (
            "prune",
            {"args__prune_export_config": {"num_layers": 3}},
            "target_and_export_config_both_set",
            "args.prune_export_config",
        ),
        ("prune", {"args__prune_target_params": None}, "no_target", "args.prune_target_params"),
        ("prune", {"args__pp_size": 3}, "invalid_parallel_divisibility", "args.pp_size"),
        ("prune", {"args__output_megatron_path": "/x"}, "not_one_output", "args.output_megatron_path"),
        (
            "prune",
            {"args__hf_model_name_or_path": "/m", "args__output_hf_path": "/m"},
            "output_path_overlaps_input",
            "args.output_hf_path",
        ),
        ("distill", {}, "no_data", "args.data_paths"),
        ("distill_mock", {"args__data_paths": [1.0, "/d"]}, "two_kinds_of_data", "args.use_mock_data"),
        ("distill", {"args__data_paths": ["/d", 1.0]}, "wrong_blend", "args.data_paths"),
        (
            "distill_mock",
            {"args__student_hf_path": "/s", "args__output_dir": "/s/out"},
            "output_dir_overlaps_checkpoint_roots",
            "args.output_dir",
        ),
        ("distill_mock", {"args__train_iters": None}, "missing_value", "args.train_iters"),
        ("distill_mock", {"extra_args": ["--manual-gc"]}, "kd_incompatible", "extra_args"),
        ("mlm_distill", {"args__load": "/s", "extra_args": ["--tp-comm-overlap"]}, "kd_incompatible", "extra_args"),
        (
            "mlm_quantize",
            {"args__load": "/s", "args__model_card": "Qwen/Qwen3-9B"},
            "unknown_model_card",
            "args.model_card",
        ),
        (
            "mlm_quantize",
            {"args__load": "/s", "args__model_card": "moonshotai/Kimi-K2-Instruct"},
            "remote_code_not_trusted",
            "args.model_card",
        ),
        (
            "mlm_quantize",
            {"args__load": "/s", "extra_args": ["--num-layers-per-virtual-pipeline-stage=2"]},
            "pipeline_not_interleaved",
            "extra_args",
        ),
        (
            "qad",
            {"args__use_mock_data": True, "script__release": "0.46"},
            "missing_input",
            "args.student_megatron_path",
        ),
        ("qat", {}, "missing_input", "args.pretrained_checkpoint"),
        ("quantize_modelopt", {}, "no_such_script", "executor.image"),
    ],
)
def test_it_is_refused_by_name(profiles: Path, recipe: str, values: dict[str, Any], name: str, key: str) -> None:
    found = problems(profiles, recipe, **values)
    assert (name, key) in [(problem.name, problem.key) for problem in found]
    assert all(problem.cause for problem in found)


@pytest.mark.parametrize("recipe", ["quantize_fp8", "quantize_nvfp4", "prune", "distill_mock", "hf_to_megatron"])
def test_what_ships_passes(profiles: Path, recipe: str) -> None:
    assert told(profiles, recipe) == []


def test_an_old_release_is_written_for_as_it_was(profiles: Path) -> None:
    """Nano's formats came with v0.4; the container of 25.11 holds v0.2."""
    assert told(profiles, "quantize_mamba_moe_fp8_aggressive") == []
    assert told(profiles, "quantize_mamba_moe_fp8_aggressive", "old") == [
        ("unsupported_quant_recipe", "args.export_quant_cfg")
    ]
    assert told(profiles, "quantize_fp8", "old") == []
    assert told(profiles, "quantize_fp8", "old", args__trust_remote_code=True) == [
        ("unknown_flag", "args.trust_remote_code")
    ]


def test_two_machines_by_the_site_s_default_are_for_those_who_can_use_them(profiles: Path) -> None:
    quantize = prepare(built("quantize_fp8"), "two", profiles=profiles)
    assert (quantize.nodes, quantize.processes, quantize.ranked) == (2, 8, True)
    assert prepare(built("prune"), "two", profiles=profiles).nodes == 1
    with pytest.raises(ProblemsError, match="invalid_parallel_divisibility"):
        prepare(built("prune"), "two", {"nodes": "2"}, profiles=profiles)


def test_the_engine_is_chosen_where_the_container_is_known(profiles: Path) -> None:
    whatever_room = frozenset({"not_enough_disk"})  # without a container, the disk of this machine is looked at
    chosen = {
        ("quantize_fp8", "slurm"): "script",
        ("quantize_fp8", "other"): "hf",
        ("quantize_fp8", "bare"): "hf",
        ("quantize_tiny", "slurm"): "script",
        ("quantize_tiny", "bare"): "hf",
        ("prune", "bare"): "script",
        ("probe", "slurm"): None,
    }
    for (recipe, executor), engine in chosen.items():
        submission = prepare(built(recipe), executor, profiles=profiles, online=False, force=whatever_room)
        assert submission.engine == engine, (recipe, executor)
        assert submission.partial.engine == (engine or "auto"), "the node is told"
    asked = prepare(built("quantize_fp8", script__release="0.4"), "bare", profiles=profiles, online=False)
    assert asked.engine == "script"


def test_an_image_that_nobody_knows_is_checked_against_every_release(profiles: Path) -> None:
    assert told(profiles, "quantize_fp8", "other", engine="script", args__calib_seq_length=77) == []
    assert told(profiles, "quantize_fp8", "other", engine="script", args__export_quant_cfg="nvfp5") == [
        ("unsupported_quant_recipe", "args.export_quant_cfg")
    ]
    assert told(profiles, "quantize_fp8", "other", engine="script", extra_args=["--newer-than-we-know"]) == []
    spec = prepare(built("quantize_fp8", engine="script"), "other", profiles=profiles)
    assert any("script.release names it" in note for note in notes(spec))
    spec = prepare(built("distill_mock", args__etp_size=1), "other", profiles=profiles)
    said = "args.etp_size is left out: Model-Optimizer/examples/megatron_bridge/distill.py has no such flag"
    assert said in notes(spec)


def test_a_flag_newer_than_the_tables_can_be_insisted_on(profiles: Path) -> None:
    partial = built("quantize_fp8", extra_args=["--my_new_flag", "value"])
    with pytest.raises(ProblemsError, match="unknown_flag"):
        prepare(partial, "slurm", profiles=profiles)
    job = prepare(partial, "slurm", profiles=profiles, force=frozenset({"unknown_flag"}))
    assert job.words is not None and job.words[-2:] == ("--my_new_flag", "value")
    with pytest.raises(ProblemsError, match="cannot be forced"):  # a value without a flag would be lost
        old = built("quantize_fp8", args__trust_remote_code=True)
        prepare(old, "old", profiles=profiles, force=frozenset({"unknown_flag"}))


def test_a_flag_of_a_newer_release_names_that_release(profiles: Path) -> None:
    with pytest.raises(ProblemsError) as refused:
        prepare(built("prune_active"), "slurm", {"image": "nvcr.io/nvidia/nemo:26.04"}, profiles=profiles)
    problems = [one for one in refused.value.problems if one.key == "args.prune_target_active_params"]
    assert [one.name for one in problems] == ["unknown_flag"]
    assert problems[0].remedy.startswith("It came with 0.") and "Did you mean" not in problems[0].remedy


@pytest.mark.parametrize(
    ("key", "extra", "said"),
    [
        ("trian.train_iters", [], ("args.config.trian.train_iters", "Did you mean train?")),
        ("train.train_iter", [], ("args.config.train.train_iter", "Did you mean train.train_iters?")),
        ("train.eval_interval", ["model.seq_lenght=4096"], ("model.seq_lenght", "Did you mean model.seq_length?")),
        ("optimizer.weight_decy", [], ("args.config.optimizer.weight_decy", "Did you mean optimizer.weight_decay?")),
        ("trian", [], ("args.config.trian", "Did you mean train?")),
        ("model.num_layers", ["train.eval_iters=3", "+dist.x=1"], None),
    ],
)
def test_a_slip_in_a_training_s_configuration(
    profiles: Path, key: str, extra: list[str], said: tuple[str, str] | None
) -> None:
    partial = built("qat", args__pretrained_checkpoint="/lustre/me/c", extra_args=extra)
    assert set_value(partial, f"args.config.{key}", "5") == []
    problems = examine([Stage(name="q", partial=partial)], "slurm", Options(profiles=profiles, online=False)).problems
    slips = [(one.key, one.remedy) for one in problems if one.name == "unknown_key"]
    assert slips == ([said] if said else [])


@pytest.mark.parametrize(
    ("config", "extra", "said"),
    [
        ({"train": 5}, [], ("args.config.train", "a section with keys below it is expected")),
        ({"train": {"train_iters": "1k"}}, [], ("args.config.train.train_iters", "a whole number is expected")),
        ({"train": {"train_iters": 1.5}}, [], ("args.config.train.train_iters", "a whole number is expected")),
        ({"optimizer": {"lr": "small"}}, [], ("args.config.optimizer.lr", "a number is expected")),
        ({"model": {"sequence_parallel": 1}}, [], ("args.config.model.sequence_parallel", "true or false is expected")),
        ({}, ["train.train_iters=abc"], ("train.train_iters", "a whole number is expected")),
        ({}, ["optimizer.lr=1e-5x"], ("optimizer.lr", "a number is expected")),
        ({"train": {"train_iters": 5}, "optimizer": {"lr": 1}, "model": None}, ["optimizer.min_lr=1e-6"], None),
        ({"model": {"recompute_granularity": None}}, ["train.train_iters=${oc.env:N}", "rng.seed=3"], None),
    ],
)
def test_a_value_of_another_type_in_a_training_s_configuration(
    profiles: Path, config: dict[str, Any], extra: list[str], said: tuple[str, str] | None
) -> None:
    partial = built("qat", args__pretrained_checkpoint="/lustre/me/c", args__config=config, extra_args=extra)
    problems = examine([Stage(name="q", partial=partial)], "slurm", Options(profiles=profiles, online=False)).problems
    wrong = [(one.key, one.cause) for one in problems if one.name == "wrong_value"]
    assert wrong == ([said] if said else [])


def test_secrets_that_a_script_needs_are_passed_on(profiles: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    assert told(profiles, "distill_mock", args__wandb_project="p") == [("wandb_not_inherited", "args.wandb_project")]
    monkeypatch.setenv("WANDB_API_KEY", "k")
    assert told(profiles, "distill_mock", args__wandb_project="p") == []
    assert told(profiles, "distill_mock", "closed", args__wandb_project="p") == [
        ("wandb_not_inherited", "args.wandb_project")
    ]


def warned(profiles: Path, recipe: str, **values: Any) -> list[tuple[str, str]]:
    submission = prepare(built(recipe, **values), "slurm", profiles=profiles)
    return [(problem.name, problem.key) for problem in submission.warnings]


def test_what_says_nothing_about_quality_is_a_warning(profiles: Path) -> None:
    assert warned(profiles, "distill_mock") == [("mock_data_used_as_quality_signal", "args.use_mock_data")]
    assert warned(profiles, "quantize_fp8", args__calib_size=4) == [
        ("tiny_calibration_used_as_quality_signal", "args.calib_size")
    ]
    assert warned(profiles, "evaluate", args__limit=5.0) == [("limited_run_used_as_quality_signal", "args.limit")]
    assert warned(profiles, "quantize_fp8") == []


def test_on_this_machine_the_script_itself_is_asked(profiles: Path, tmp_path: Path, fake_model: Any) -> None:
    write_standin(tmp_path / "bridge", BRIDGE, "main-2026-08-22")
    here = {"args__hf_model_id": str(fake_model()), "script__path": str(tmp_path / "bridge"), "args__ep": 1}
    assert told(profiles, "quantize_fp8", "local", **here, args__calib_seq_length=77) == []
    assert told(profiles, "quantize_fp8", "local", **here, args__force_all_expert_routing=True) == [
        ("unknown_flag", "args.force_all_expert_routing")
    ]
    (missing,) = problems(profiles, "quantize_fp8", "local", **{**here, "script__path": str(tmp_path / "nowhere.py")})
    assert (missing.name, missing.key) == ("script_not_found", "script.path")


def test_on_this_machine_inputs_are_looked_at(profiles: Path, tmp_path: Path, fake_model: Any) -> None:
    script = write_standin(tmp_path / "bridge", "Megatron-Bridge/examples/quantization/export.py", "v0.4.0")
    (wrong,) = problems(
        profiles, "export", "local", script__path=str(script), args__megatron_load_path=str(fake_model())
    )
    assert (wrong.name, wrong.key) == ("wrong_checkpoint_kind", "args.megatron_load_path")
    assert "hf_to_megatron" in wrong.remedy


def test_teacher_and_student_speak_of_the_same_tokens(profiles: Path, tmp_path: Path, fake_model: Any) -> None:
    script = write_standin(tmp_path / "mo", "Model-Optimizer/examples/megatron_bridge/distill.py", "0.46.0")
    sizes = (128, 256)
    folders = [fake_model(name, vocabulary=size) for name, size in zip(("teacher", "student"), sizes, strict=True)]
    for folder, size in zip(folders, sizes, strict=True):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "vocab_size": size}))
    values = {"script__path": str(script), "torchrun__nproc_per_node": 8}
    names = told(
        profiles, "distill_mock", "local",
        args__teacher_hf_path=str(folders[0]), args__student_hf_path=str(folders[1]), **values,
    )  # fmt: skip
    assert names == [("teacher_student_or_tokenizer_mismatch", "args.student_hf_path")]


@pytest.mark.parametrize(
    ("recipe", "name"),
    [
        ("evaluate_tiny", "harness_not_installed"),
        ("prepare_data_tiny", "megatron_core_missing"),
        ("serve_tiny", "server_not_installed"),
    ],
)
def test_a_tool_that_is_not_here_is_missed_before_anything_is_written(profiles: Path, recipe: str, name: str) -> None:
    """The development environment has none of the three."""
    assert told(profiles, recipe, "local") == [(name, "executor")]
    assert told(profiles, recipe, "other") == [], "the node says so"


def test_what_is_wrong_with_a_tool_s_values_is_told_here(profiles: Path) -> None:
    assert told(profiles, "evaluate", args__tasks=[]) == [("no_tasks", "args.tasks")]
    assert told(profiles, "prepare_data") == [("one_data_source", "args.jsonl_paths")]
    assert told(profiles, "serve") == [("missing_input", "args.checkpoint")]


@pytest.mark.parametrize(
    ("model", "processes", "ep"),
    [
        ("nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-Base-BF16", 8, 8),
        ("nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-BF16", 8, 8),
        ("Qwen/Qwen3-30B-A3B", 4, 4),
        ("Qwen/Qwen3-8B", 8, 1),
        ("meta-llama/Llama-3.2-1B", 8, 1),
        ("nvidia/Nemotron-H-8B-Base-8K", 8, 1),
    ],
)
def test_experts_are_spread_where_a_model_has_some(
    profiles: Path, monkeypatch: pytest.MonkeyPatch, model: str, processes: int, ep: int
) -> None:
    """Megatron refuses expert parallelism for a model without experts, after it was queued."""
    monkeypatch.setenv("HF_TOKEN", "of somebody who accepted every licence")
    values = {"args__hf_model_id": model, "torchrun__nproc_per_node": processes}
    submission = prepare(built("quantize_fp8", **values), "slurm", profiles=profiles)
    assert submission.args.ep == ep
    assert submission.partial.args.ep == ep, "the node is told"
    assert submission.command.words[-4:] == ("--ep", str(ep), "--etp", "1")
    chosen = 2 if ep > 1 else 1
    assert prepare(built("quantize_fp8", args__ep=chosen, **values), "slurm", profiles=profiles).args.ep == chosen


def test_a_local_model_says_itself_whether_it_has_experts(fake_model: Any) -> None:
    folder = fake_model("Renamed-30B-A3B")
    assert not has_experts(str(folder)), "whatever it is called"
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_local_experts": 8}))
    assert has_experts(str(folder))
    (folder / "config.json").write_text(json.dumps({**config, "text_config": {"num_experts": 64}}))
    assert has_experts(str(folder))
