"""Jobs that would run and mean nothing: nothing to begin with, no teacher, nothing left, swapped or blind models."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recipes import ProblemsError, Stage, chain, find
from recipes.catalogue import FAMILIES
from recipes.experiment.examine import examine
from recipes.experiment.stage import Options
from recipes.planner.workload import workload_of
from recipes.preflight import inputs
from recipes.values import set_value
from scripts import processor
from scripts.args.meaning import Meaning
from scripts.evaluation import checks as evaluation
from scripts.run.problems import Problem
from tests.jobs import job_of

FakeModel = Callable[..., Path]
SITE = """
site: {extends: slurm, account: a, host: login, job_dir: /lustre/me, output_root: /lustre/runs, gpus: 8, gpu: h100-80gb,
       image: 'nvcr.io/nvidia/nemo:26.06', mounts: ['/lustre:/lustre'], secrets: []}
"""
BEGIN = [f"mlm_{name}" for name in ("quantize", "mmlu", "generate", "validate", "prune", "finetune", "distill")]
TRAINED = ("args.train_iters=100", "args.use_mock_data=true", "script.release=0.46")


@pytest.fixture(autouse=True)
def _site(away: None, tmp_path: Path) -> None:
    (tmp_path / "executors.yaml").write_text(SITE)


def said(recipe: str, *words: str, executor: str = "site", extra: tuple[str, ...] = (), force: str = "") -> Any:
    """Problems by name, of the errors and warnings that words give."""
    partial = find(recipe).build()
    partial.extra_args = list(extra)
    profile = dict(word.removeprefix("executor.").split("=", 1) for word in words if word.startswith("executor."))
    problems: list[Problem] = []
    for word in words:
        key, _, value = word.partition("=")
        problems += [] if key.startswith("executor.") else set_value(partial, key, value)
    options = Options(
        profiles=Path("executors.yaml"), online=False, overrides=profile, force=frozenset(filter(None, [force]))
    )
    problems += examine([Stage(name="one", partial=partial)], executor, options).problems
    return {problem.name: problem for problem in problems}


@pytest.mark.parametrize("recipe", BEGIN)
def test_megatron_lm_begins_with_something(recipe: str) -> None:
    problem = said(recipe)["missing_input"]
    assert problem.severity == "error" and problem.can_force
    assert "args.load" in problem.remedy or "export_kd_teacher_load" in problem.key
    begins = {one.key for one in said(recipe, "args.load=/lustre/c").values() if one.name == "missing_input"}
    assert begins <= {"args.export_kd_teacher_load"}
    by_flag = said(recipe, extra=("--pretrained-checkpoint=/lustre/c",))
    assert by_flag.get("missing_input") is None or by_flag["missing_input"].key == "args.export_kd_teacher_load"


def test_a_distillation_has_a_teacher() -> None:
    assert said("mlm_distill", "args.load=/lustre/c")["missing_input"].key == "args.export_kd_teacher_load"
    assert "missing_input" not in said("mlm_finetune", "args.load=/lustre/c")
    assert "missing_input" not in said("mlm_distill", "args.load=/lustre/c", "args.export_kd_teacher_load=/lustre/t")


def test_a_job_leaves_something() -> None:
    problem = said("quantize_fp8", "args.tp=8", "args.megatron_save_path=null")["no_output"]
    assert (problem.key, problem.severity, problem.can_force) == ("args.megatron_save_path", "error", True)
    assert "no_output" not in said("quantize_fp8", "args.tp=8")
    assert "no_output" not in said("generate", "args.megatron_load_path=/lustre/c"), "it only speaks"
    assert "no_output" not in said("quantize_fp8", "engine=hf", "args.export_dir=null", "args.modelopt_save_path=null")


@pytest.mark.parametrize("recipe", ["quantize_modelopt", "mlm_quantize"])
def test_a_recipe_of_another_kind_is_refused_by_name(recipe: str) -> None:
    words = ("args.load=/lustre/c",) if recipe == "mlm_quantize" else ("script.release=0.46",)
    wrong = said(recipe, *words, "args.recipe=general/auto_quantize/nvfp4_fp8_at_5p4bits")
    assert "auto_quantize" in wrong["unsupported_quant_recipe"].cause
    missed = said(recipe, *words, "args.recipe=general/ptq/fp8_defalt-kv_fp8")["unsupported_quant_recipe"]
    assert "general/ptq/fp8_default-kv_fp8" in missed.remedy and missed.can_force
    assert "unsupported_quant_recipe" not in said(recipe, *words, "args.recipe=general/ptq/fp8_default-kv_fp8")


@pytest.mark.parametrize(
    ("key", "value", "right"),
    [
        ("args.quant_cfg", "nvfp5", "nvfp4"),
        ("args.kv_cache_quant", "fp9", "fp8"),
        ("args.quant_cfg", "nvfp4", ""),
        ("args.quant_cfg", "NVFP4_DEFAULT_CFG", ""),
        ("args.kv_cache_quant", "nvfp4", ""),
        ("args.kv_cache_quant", "none", ""),
    ],
)
def test_a_format_is_known_to_a_script_that_says_nothing(key: str, value: str, right: str) -> None:
    found = said("quantize_modelopt", "script.path=/lustre/Model-Optimizer", f"{key}={value}")
    problem = found.get("unsupported_quant_recipe")
    assert (problem is not None) == bool(right)
    assert problem is None or (problem.key == key and right in problem.remedy)


def test_the_small_model_is_the_student() -> None:
    models = ("args.teacher_hf_path=Qwen/Qwen3-4B", "args.student_hf_path=Qwen/Qwen3-8B")
    problem = said("distill", *TRAINED, *models)["student_larger_than_teacher"]
    assert problem.severity == "warning" and "swapped" in problem.remedy
    assert "student_larger_than_teacher" not in said("distill", *TRAINED)


@pytest.mark.parametrize(("target", "wrong"), [("12", True), ("120000", True), ("10000", False)])
def test_a_target_of_memory_is_one_of_that_model(target: str, wrong: bool) -> None:
    words = (f"args.prune_target_memory_mb={target}", "args.output_hf_path=/lustre/o", "script.release=0.46")
    assert ("target_out_of_reach" in said("prune", *words)) is wrong


def test_a_card_and_weights_are_of_one_model(fake_model: FakeModel) -> None:
    card, key = "args.model_card=Qwen/Qwen3-8B", "args.pretrained_model_path"
    problem = said("mlm_quantize", card, f"{key}=meta-llama/Llama-3.2-1B-Instruct")["wrong_base_model"]
    assert (problem.severity, problem.key) == ("warning", key)
    assert "wrong_base_model" not in said("mlm_quantize", card, f"{key}=Qwen/Qwen3-8B")
    assert "wrong_base_model" not in said("mlm_quantize", card, f"{key}=/lustre/copies/something")


@pytest.mark.parametrize(("recipe", "other"), [("quantize_vlm", "quantize_fp8"), ("generate_vlm", "generate")])
def test_images_are_shown_to_a_model_that_sees(recipe: str, other: str) -> None:
    words = ("args.megatron_load_path=/lustre/c",) if recipe == "generate_vlm" else ()
    problem = said(recipe, *words, "args.hf_model_id=Qwen/Qwen3-8B")["no_vision_tower"]
    assert other in problem.remedy
    assert "no_vision_tower" not in said(recipe, *words)


@pytest.mark.parametrize(
    ("blend", "cause"),
    [
        ("[1.0,/data/a,2.0]", "no prefix"),
        ("[1.0,/data/a.bin]", "/data/a"),
        ("[/data/a.idx]", "/data/a"),
        ("[0,/data/a]", "above 0"),
        ("[-1.0,/data/a]", "above 0"),
        ("['1e999',/data/a]", "above 0"),
        ("[/data/a,1.0]", "take turns"),
        ("[1.0,2.0]", "take turns"),
        ("[1.0,/data/a,/data/b]", "take turns"),
        ("[/data/a,/data/b]", ""),
        ("[/data/a]", ""),
        ("['0.3',/data/a,0.7,/data/b]", ""),
    ],
)
def test_a_blend_is_weights_and_prefixes_or_prefixes(blend: str, cause: str) -> None:
    problem = said("distill", "args.train_iters=100", "script.release=0.46", f"args.data_paths={blend}").get(
        "wrong_blend"
    )
    assert (problem is not None) == bool(cause)
    assert problem is None or cause in problem.cause


@pytest.mark.parametrize(
    ("recipe", "word"),
    [
        ("distill", "args.lr=1e4"),
        ("distill", "args.lr=0"),
        ("distill", "args.lr=-1e-4"),
        ("distill", "args.kd_loss_scale=-1"),
        ("distill", "args.eval_iters=-1"),
        ("distill", "args.log_interval=0"),
        ("distill", "script.silence_minutes=-5"),
        ("prune", "args.top_k=0"),
        ("generate_vllm", "args.gpu_memory_utilization=1.5"),
        ("mlm_validate", "args.steps=0"),
        ("serve", "args.start_minutes=0"),
        ("evaluate", "args.limit=0"),
    ],
)
def test_a_number_that_cannot_be_is_named_itself(recipe: str, word: str) -> None:
    found = said(recipe, *(TRAINED if recipe == "distill" else ()), word)
    assert found["out_of_range"].key == word.partition("=")[0]
    assert "contradiction" not in found, "nothing else is blamed"


@pytest.mark.parametrize(
    ("size", "wrong"), [("0", True), ("-1", True), ("many", True), ("8", False), ("auto:4", False)]
)
def test_questions_at_a_time_are_a_number_or_auto(size: str, wrong: bool) -> None:
    assert ("wrong_value" in said("evaluate", f"args.batch_size={size}")) is wrong


def test_what_no_bound_is_declared_for_is_not_negative() -> None:
    free = Meaning(doc="x")
    assert [bool(free.violation(value)) for value in (-1, -0.5, 0, 1, 1e9, True, "x", None, float("nan"))] == [
        *(True, True, False, False, False, False, False, False, True)
    ]


@pytest.mark.parametrize("tag", [":24.12", ":26.10", ":26.6", ""])
@pytest.mark.parametrize("words", [(), ("args.tp=8",)])
def test_a_container_that_nobody_knows_is_said(tag: str, words: tuple[str, ...]) -> None:
    problem = said("quantize_fp8", *words, f"executor.image=nvcr.io/nvidia/nemo{tag}")["unknown_container"]
    assert problem.severity == "warning" and "26.06" in problem.remedy
    assert "unknown_container" not in said("quantize_fp8", *words)
    assert "unknown_container" not in said("quantize_fp8", "executor.image=mine:24.12")


@pytest.mark.parametrize("recipe", ["prune", "distill", "quantize_modelopt", "qad"])
def test_a_release_that_is_not_known_is_no_old_one(recipe: str) -> None:
    assert "no_such_script" not in said(recipe, "executor.image=nvcr.io/nvidia/nemo:26.08")


@pytest.mark.parametrize(("mem", "warned"), [("200", True), ("200G", False), ("0", False), ("200000", False)])
def test_memory_without_a_unit_is_mb(mem: str, warned: bool) -> None:
    problem = said("probe", f"executor.mem={mem}").get("wrong_value")
    assert (problem is not None) is warned
    assert problem is None or (problem.severity == "warning" and "200G" in problem.remedy)


@pytest.mark.parametrize("recipe", sorted({name for name, one in FAMILIES.items() if one.args.SCRIPTS} - {"quantize"}))
def test_an_engine_that_cannot_is_a_problem_alone(recipe: str) -> None:
    assert [*said(recipe, "engine=hf", executor="local")] == ["engine_cannot"]


def test_a_quantized_model_is_no_student_of_full_precision() -> None:
    student = find("distill").build()
    student.args.train_iters, student.args.use_mock_data = 10, True
    quantizer = find("quantize_fp8").build()
    quantizer.engine, quantizer.args.hf_model_id = "hf", "tiny:qwen3"
    with pytest.raises(ProblemsError, match="distill_after_quantize") as refused:
        chain(quantizer, student)
    assert "qad" in refused.value.problems[0].remedy
    student.args.student_hf_path = "${artifact:quantize.checkpoint_hf}"  # by hand
    stages = [Stage(name="quantize", partial=quantizer), Stage(name="distill", partial=student)]
    problems = examine(stages, "local", Options(online=False)).problems
    (problem,) = (one for one in problems if one.name == "already_quantized")
    assert problem.key == "args.student_hf_path" and "student_megatron_path" in problem.remedy


def test_code_that_a_repository_brings_is_refused_before_it_is_submitted(fake_model: FakeModel) -> None:
    folder = fake_model()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "own", "auto_map": {"AutoModel": "own.My"}}))
    for recipe, key in (("quantize_fp8", "hf_model_id"), ("hf_to_megatron", "hf_model"), ("evaluate", "checkpoint")):
        words = (f"args.{key}={folder}",)
        found = said(recipe, *words, executor="local")["remote_code_not_trusted"]
        assert found.key == f"args.{key}" and "args.trust_remote_code=true" in found.remedy
        assert "remote_code_not_trusted" not in said(recipe, *words, "args.trust_remote_code=true", executor="local")


@pytest.mark.parametrize("recipe", ["quantize_fp8", "hf_to_megatron", "evaluate"])
def test_code_of_a_model_that_is_not_here_is_asked_for_where_it_is_known(
    recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = {"hf_to_megatron": "hf_model", "evaluate": "checkpoint"}.get(recipe, "hf_model_id")
    kimi, nemotron = (
        f"args.{key}={name}" for name in ("moonshotai/Kimi-K2-Instruct", "nvidia/NVIDIA-Nemotron-Nano-9B-v2")
    )
    assert said(recipe, kimi)["remote_code_not_trusted"].can_force
    assert "remote_code_not_trusted" not in said(recipe, kimi, "args.trust_remote_code=true")
    assert "remote_code_not_trusted" not in said(recipe, nemotron), "this Transformers has it"
    monkeypatch.setattr(inputs, "built_types", lambda: (frozenset(), frozenset()))
    assert "remote_code_not_trusted" not in said(recipe, kimi), "nobody can tell"


# --- refused though right --------------------------------------------------------------------------------------------


def test_a_conversion_by_one_process_is_in_the_memory_of_the_machine() -> None:
    words = ("args.hf_model=meta-llama/Llama-3.3-70B-Instruct", "torchrun.nproc_per_node=1")
    assert "does_not_fit" not in said("hf_to_megatron", *words, "script.release=0.2")
    assert "does_not_fit" in said("hf_to_megatron", *words, "script.release=0.4"), "that one uses GPUs"


def test_recomputation_is_counted_however_it_is_said() -> None:
    words = ("args.load=/lustre/c", "args.model_card=Qwen/Qwen3-8B", "args.seq_length=32768", "args.train_iters=10")
    full = ("--recompute-granularity", "full", "--recompute-method=uniform", "--recompute-num-layers=1")
    assert "does_not_fit" in said("mlm_finetune", *words, "args.tp=8")
    one = job_of("mlm_finetune", args__load="/c", extra_args=list(full), engine="script", script__release="0.18")
    work = workload_of(one)
    assert work is not None and work.recompute == 1


def test_lists_of_one_need_no_brackets() -> None:
    partial = find("prune").build()
    assert set_value(partial, "args.hparams_to_skip", "num_attention_heads", strict=True) == []
    assert partial.args.hparams_to_skip == ["num_attention_heads"]
    exporter = find("export_distilled").build()
    for value in ("all", "[1,2]", "3"):
        assert set_value(exporter, "args.export_iterations", value) == []
    assert exporter.args.export_iterations == [3]
    assert set_value(exporter, "args.export_iterations", "some")


@pytest.mark.parametrize(
    ("recipe", "key"),
    [
        ("quantize_fp8 engine=hf", "calib_dataset"),
        ("quantize_fp8 engine=hf", "eval_dataset"),
        ("quantize_fp8 engine=script", "calib_dataset"),
        ("mlm_quantize", "calib_dataset"),
        ("mlm_finetune", "finetune_hf_dataset"),
        ("prepare_data", "input_dir"),
    ],
)
def test_a_folder_that_is_no_data_is_told(recipe: str, key: str, fake_model: FakeModel, tmp_path: Path) -> None:
    (tmp_path / "run" / "logs").mkdir(parents=True)
    (tmp_path / "run" / "run.json").touch()
    (tmp_path / "empty").mkdir()
    name, *words = recipe.split()
    for folder, problem, cause in (
        (tmp_path / "run", "unknown_data", "is a run directory"),
        (fake_model(), "unknown_data", "is a model's folder"),
        (tmp_path / "empty", "missing_data", "is empty"),
    ):
        found = said(name, *words, f"args.{key}={folder}", executor="local")[problem]
        assert found.key == f"args.{key}" and cause in found.cause and '{"text": "..."}' in found.remedy
    (tmp_path / "empty" / "a.jsonl").write_text('{"text": "a"}\n' * 9)
    rest = said(name, *words, f"args.{key}={tmp_path / 'empty'}", executor="local")
    assert not rest.keys() & {"unknown_data", "missing_data"}


@pytest.mark.parametrize("recipe", ["quantize_fp8 engine=hf", "evaluate", "hf_to_megatron"])
def test_a_name_below_a_folder_of_this_machine_offers_what_is_there(
    recipe: str, fake_model: FakeModel, tmp_path: Path
) -> None:
    (tmp_path / "m").mkdir()
    fake_model("m/qwen-small")
    name, *words = recipe.split()
    key = {"hf_to_megatron": "hf_model", "evaluate": "checkpoint"}.get(name, "hf_model_id")
    found = said(name, *words, f"args.{key}=m/qwen-smal", executor="local")["missing_model"]
    assert (found.key, found.severity, found.remedy) == (f"args.{key}", "warning", "Did you mean m/qwen-small?")
    other = said(name, *words, f"args.{key}=m/nothere", executor="local")["missing_model"]
    assert "m is a folder here" in other.cause and other.remedy == "In it are the models qwen-small."
    for right in ("m/qwen-small", "Qwen/Qwen3-8B"):
        assert "missing_model" not in said(name, *words, f"args.{key}={right}", executor="local")
    (tmp_path / "Qwen").mkdir()
    assert "missing_model" not in said(name, *words, f"args.{key}=Qwen/Qwen3-8B", executor="local"), "the hub's"


def test_an_unknown_container_says_how_to_state_its_release() -> None:
    words = ("executor.image=nvcr.io/nvidia/nemo:99.99",)
    problem = said("quantize_fp8", *words)["unknown_container"]
    assert "engine hf is used, which needs none" in problem.cause
    release = problem.remedy.partition("such as ")[2].partition(",")[0]
    assert release.startswith("script.release=")
    assert "unknown_container" not in said("quantize_fp8", *words, release, "args.tp=8")
    assert not {"unknown_release", "release_unknown"} & said("quantize_fp8", *words, release, "args.tp=8").keys()


@pytest.mark.parametrize(
    "image", ["nemo:99.99", "mirror.local/nvidia/nemo:99.99", "docker://nvcr.io#nvidia/nemo:99.99"]
)
def test_an_unknown_container_is_told_under_any_name_and_beside_all_else(image: str) -> None:
    words = (f"executor.image={image}", "executor.mem=lots", "args.tp=3", "args.calib_size=0")
    assert said("quantize_fp8", *words).keys() >= {
        *("wrong_value", "out_of_range", "unknown_container", "world_size_not_divisible"),
    }
    assert "unknown_container" not in said("quantize_fp8", "executor.image=mirror.local/nemo-rl:99.99")


def test_a_layout_is_told_beside_a_count_that_is_none() -> None:
    words = ("args.tp=3", "args.export_quant_cfg=FP8", "args.calib_size=-1")
    assert said("quantize_fp8", *words).keys() >= {
        *("out_of_range", "world_size_not_divisible", "unsupported_quant_recipe"),
    }
    zero = said("distill", "args.train_iters=100", "args.gbs=0", "args.tp_size=3", "args.use_mock_data=true")
    assert zero.keys() >= {"out_of_range", "world_size_not_divisible"}
    assert "world_size_not_divisible" not in said("quantize_fp8", "args.tp=0"), "no size, no layout"


def test_a_slip_in_a_task_is_told_without_the_harness(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation.util, "find_spec", lambda name: None)
    words = ("args.checkpoint=/lustre/c", "args.tasks=[helaswag,mmlu,my_own_task,arc_easy]")
    problem = said("evaluate", *words)["unknown_task"]
    assert (problem.value, problem.severity) == ("helaswag", "warning") and "hellaswag" in problem.remedy
    assert "unknown_task" not in said("evaluate", "args.checkpoint=/lustre/c", "args.tasks=[mmlu_pro,mmlu_stem,arc_de]")


def test_the_engine_that_is_installed_is_offered() -> None:
    problem = said("quantize_fp8", "engine=bridge", executor="local")["engine_not_installed"]
    assert "engine=hf" in problem.remedy
    assert "engine=hf" not in said("export", "engine=bridge", executor="local")["engine_not_installed"].remedy


def test_qad_is_not_exported_in_full_precision() -> None:
    problem = said("qad", "args.hf_export_path=/data/hf", "args.use_mock_data=true")["contradiction"]
    assert problem.key == "args.hf_export_path" and "export_modelopt" in problem.remedy
    whose = "args.student_hf_model=Qwen/Qwen3-4B"
    assert "contradiction" not in said("distill", "args.hf_export_path=/data/hf", "args.use_mock_data=true", whose)


def test_the_bridge_engine_knows_two_scores() -> None:
    def told(score: str) -> bool:
        return "wrong_value" in said("prune", "engine=bridge", f"args.prune_score_func={score}", executor="local")

    assert [told(one) for one in ("loss", "mmlu_5pct", "mmlu_100pct")] == [False] * 3
    assert [told(one) for one in ("perplexity", "mmlu_0pct", "mmlu_101pct", "mmlu_pct")] == [True] * 4


def test_a_folder_without_tokenized_data_is_told(tmp_path: Path) -> None:
    found = said("distill", f"args.data_paths=[{tmp_path}]", "args.train_iters=9", executor="local")["missing_data"]
    assert found.key == "args.data_paths" and "prepare_data" in found.remedy
    (tmp_path / "a_text_document.idx").touch()
    rest = said("distill", f"args.data_paths=[{tmp_path}]", "args.train_iters=9", executor="local")
    assert "missing_data" not in rest


def test_a_flag_that_nobody_knows_of_yet_can_be_forced() -> None:
    extra = ("--my_new_flag", "value")
    assert said("quantize_fp8", "args.tp=8", extra=extra)["unknown_flag"].severity == "error"
    assert said("quantize_fp8", "args.tp=8", extra=extra, force="unknown_flag")["unknown_flag"].severity == "forced"
    assert said("quantize_fp8", "args.calib_dataset=a/b", force="unknown_flag")["unknown_flag"].severity == "error"


def test_text_is_no_data_for_a_script(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("One.\n\nTwo.")
    for recipe, key in (("quantize_fp8", "calib_dataset"), ("mlm_quantize", "calib_dataset")):
        found = said(recipe, "engine=script", f"args.{key}=./prompts.txt", executor="local")["unknown_data"]
        assert found.key == f"args.{key}" and "JSONL" in found.cause
    assert "unknown_data" not in said("prepare_data", "args.jsonl_paths=[./prompts.txt]", executor="local")
    assert "unknown_data" not in said("quantize_fp8", "engine=hf", "args.calib_dataset=./prompts.txt", executor="local")


@pytest.mark.parametrize(("devices", "warned"), [(0, True), (4, True), (8, False)])
def test_processes_here_have_a_gpu_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, devices: int, warned: bool
) -> None:
    monkeypatch.setattr(processor, "_DEVICES", tmp_path)
    for name in ("nvidiactl", "nvidia-uvm", *(f"nvidia{number}" for number in range(devices))):
        (tmp_path / name).touch()
    words = ("engine=script", "torchrun.nproc_per_node=8", "args.tp=8")
    problem = said("quantize_fp8", *words, executor="local").get("more_processes_than_gpus")
    assert (problem is not None) is warned
    assert problem is None or problem.severity == "warning"
    assert "more_processes_than_gpus" not in said("hf_to_megatron", "args.device=cpu", executor="local")
