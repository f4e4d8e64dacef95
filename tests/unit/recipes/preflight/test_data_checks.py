"""Teacher and student have the same tokens; what says nothing of quality is said not to; values do not contradict."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from recipes.experiment.job import Job
from recipes.models import ModelFacts
from recipes.planner.gpus import Gpu
from recipes.preflight import contradictions, inputs, walltime
from recipes.preflight.walltime import limit_hours
from scripts.run.problems import Problem
from scripts.run.registry import REGISTRY, carry_out, checks_of
from tests.jobs import found, job_of

FakeModel = Callable[..., Path]
MISMATCH = "teacher_student_or_tokenizer_mismatch"


pytestmark = pytest.mark.usefixtures("away")


@pytest.fixture
def pair(fake_model: FakeModel) -> tuple[Path, Path]:
    return fake_model("teacher"), fake_model("student")


def tokenizer(words: dict[str, int] | list[Any], added: dict[str, int] | None = None) -> str:
    extra = [{"id": number, "content": word} for word, number in (added or {}).items()]
    return json.dumps({"model": {"vocab": words}, "added_tokens": extra})


def distilled(pair: tuple[Path, Path], **facts: int) -> Job:
    spec = job_of("distill_mock", args__teacher_hf_path=str(pair[0]), args__student_hf_path=str(pair[1]))
    sizes = {"teacher_hf_path": facts.get("teacher"), "student_hf_path": facts.get("student")}
    return replace(spec, models={name: ModelFacts(source="test", vocab_size=size) for name, size in sizes.items()})


def mismatches(spec: Job) -> list[Problem]:
    return found(checks_of(inputs), spec, MISMATCH)


def test_one_tokenizer_in_two_folders_is_no_mismatch(pair: tuple[Path, Path]) -> None:
    for folder in pair:
        (folder / "tokenizer.json").write_text(tokenizer({"a": 0, "b": 1}))
    assert mismatches(distilled(pair, teacher=2, student=2)) == []
    (pair[1] / "tokenizer.json").write_text(tokenizer({"b": 1, "a": 0}) + "\n")
    assert mismatches(distilled(pair, teacher=2, student=2)) == [], "written another way, it is the same"


@pytest.mark.parametrize(
    ("student", "said"),
    [
        (tokenizer({"a": 0, "c": 1}), "'b' is 1 to the teacher and no token to the student"),
        (tokenizer({"a": 1, "b": 0}), "'a' is 0 to the teacher and 1 to the student"),
        (tokenizer({"a": 0, "b": 1}, {"<end>": 2}), "'<end>' is no token to the teacher and 2 to the student"),
        (tokenizer([["a", 0.0], ["c", -1.0]]), "differ in 2 tokens"),
    ],
)
def test_the_first_token_that_differs_is_named(pair: tuple[Path, Path], student: str, said: str) -> None:
    for folder, text in zip(pair, (tokenizer({"a": 0, "b": 1}), student), strict=True):
        (folder / "tokenizer.json").write_text(text)
    (problem,) = mismatches(distilled(pair, teacher=2, student=2))
    assert said in problem.cause
    assert (problem.key, problem.can_force) == ("args.student_hf_path", True)


def test_a_vocabulary_without_a_tokenizer_file_is_read_too(pair: tuple[Path, Path]) -> None:
    for number, folder in enumerate(pair):
        (folder / "tokenizer.json").unlink()
        (folder / "vocab.json").write_text(json.dumps({"a": number}))
    (problem,) = mismatches(distilled(pair, teacher=2, student=2))
    assert "'a' is 0 to the teacher and 1 to the student" in problem.cause


@pytest.mark.parametrize("text", ["", "[", "[1]", '{"model": {"vocab": 3}}', '{"a": "b"}', "[" * 100_000])
def test_a_damaged_tokenizer_is_not_compared(pair: tuple[Path, Path], text: str) -> None:
    (pair[0] / "tokenizer.json").write_text(tokenizer({"a": 0}))
    (pair[1] / "tokenizer.json").write_text(text)
    assert mismatches(distilled(pair, teacher=2, student=2)) == []


def test_logits_of_different_width_cannot_be_compared(pair: tuple[Path, Path]) -> None:
    """Qwen2.5 and its larger sisters have one tokenizer, and embeddings padded to 151936 and to 152064."""
    (problem,) = mismatches(distilled(pair, teacher=152064, student=151936))
    assert "152064 tokens, the student's 151936" in problem.cause
    assert not problem.can_force
    for folder in pair:
        (folder / "tokenizer.json").write_text(tokenizer({"a": 0}))
    (problem,) = mismatches(distilled(pair, teacher=152064, student=151936))
    assert "the rest is padding" in problem.cause
    assert "resize_token_embeddings(152064)" in problem.remedy


def test_widths_that_are_not_known_are_said_to_be_unchecked(pair: tuple[Path, Path]) -> None:
    (skipped,) = carry_out([REGISTRY["vocabulary_widths"]], distilled(pair, student=100)).skipped
    assert (skipped.name, skipped.missing) == (MISMATCH, ("teacher.vocab_size",))


def test_a_cached_snapshot_is_read_where_no_folder_is_named(pair: tuple[Path, Path], tmp_path: Path) -> None:
    for folder, token in zip(pair, "ab", strict=True):
        (folder / "tokenizer.json").write_text(tokenizer({token: 0}))
    snapshots = tmp_path / "hf-home" / "hub" / "models--org--student" / "snapshots"
    snapshots.mkdir(parents=True)
    pair[1].rename(snapshots / "abc")
    spec = job_of("distill_mock", args__teacher_hf_path=str(pair[0]), args__student_hf_path="org/student")
    assert len(found(checks_of(inputs), spec, MISMATCH)) == 1


MOCK = "mock_data_used_as_quality_signal"
TINY = "tiny_calibration_used_as_quality_signal"
LIMITED = "limited_run_used_as_quality_signal"


@pytest.mark.parametrize(
    ("recipe", "given", "name", "key"),
    [
        ("distill_mock", {}, MOCK, "args.use_mock_data"),
        ("qat", {}, MOCK, "args.config"),
        ("distill_llama", {}, MOCK, "args.config"),
        ("quantize_modelopt", {"args__calib_num_samples": 4}, TINY, "args.calib_num_samples"),
        ("quantize_fp8", {"args__hf_model_id": "Qwen/Qwen3-8B", "args__calib_size": 4}, TINY, "args.calib_size"),
        ("prune", {"args__calib_num_samples": 4}, TINY, "args.calib_num_samples"),
        ("quantize_vlm", {"args__use_random_calib": True}, TINY, "args.use_random_calib"),
        ("evaluate", {"args__limit": 5.0}, LIMITED, "args.limit"),
        ("mlm_mmlu", {"args__fraction": 0.05}, LIMITED, "args.fraction"),
    ],
)
def test_what_says_nothing_of_quality_is_a_warning(recipe: str, given: dict[str, Any], name: str, key: str) -> None:
    (problem,) = found([REGISTRY["quality"]], job_of(recipe, **given), name)
    assert (problem.key, problem.severity) == (key, "warning")


@pytest.mark.parametrize(
    ("recipe", "given"),
    [
        ("distill", {}),
        ("qat", {"extra_args": ["dataset.blend=[[/data/text],null]"]}),
        ("qat", {"args__config": {"dataset": {"blend": [["/data/text"], None]}}}),
        ("quantize_fp8", {"args__hf_model_id": "tiny:qwen3", "args__calib_size": 4}),
        ("quantize_fp8", {}),
        ("mlm_generate", {"args__fraction": 0.05}),
    ],
)
def test_what_is_real_or_claims_nothing_is_not_warned_of(recipe: str, given: dict[str, Any]) -> None:
    assert carry_out([REGISTRY["quality"]], job_of(recipe, **given)).problems == ()


@pytest.mark.parametrize(
    ("recipe", "given", "key", "severity"),
    [
        ("distill", {"args__min_lr": 1e-3}, "args.min_lr", "error"),
        ("distill", {"args__train_iters": 50, "args__eval_interval": 10}, "args.lr_warmup_iters", "error"),
        ("distill", {"args__train_iters": 90, "args__eval_interval": 91}, "args.eval_interval", "warning"),
        ("distill", {"args__train_iters": 200, "args__save_interval": 201}, "args.save_interval", "warning"),
        ("qat", {"args__config": {"optimizer": {"lr": 1e-6, "min_lr": 1e-5}}}, "args.config.optimizer.min_lr", "error"),
        (
            "qat",
            {"args__config": {"train": {"train_iters": 9}, "scheduler": {"lr_warmup_iters": 9}}},
            "args.config.scheduler.lr_warmup_iters",
            "error",
        ),
        ("mlm_finetune", {"args__train_samples": 64}, "args.train_samples", "error"),
        ("distill", {"args__recompute_method": "uniform"}, "args.recompute_method", "error"),
        ("distill", {"args__recompute_modules": ["mlp"]}, "args.recompute_modules", "error"),
        ("distill", {"args__recompute_granularity": "full"}, "args.recompute_granularity", "error"),
        (
            "distill",
            {"args__recompute_granularity": "full", "args__recompute_method": "block"},
            "args.recompute_granularity",
            "error",
        ),
        (
            "distill",
            {
                "args__recompute_granularity": "full",
                "args__recompute_method": "block",
                "args__recompute_num_layers": 1,
                "args__recompute_modules": ["mlp"],
            },
            "args.recompute_modules",
            "error",
        ),
        (
            "distill",
            {"args__recompute_granularity": "selective", "args__recompute_num_layers": 1},
            "args.recompute_num_layers",
            "error",
        ),
        ("distill", {"args__hf_export_path": "/out", "script__release": "0.44"}, "args.hf_export_path", "error"),
        ("prune", {"args__calib_num_samples": 4, "args__calib_batch_size": 8}, "args.calib_batch_size", "warning"),
    ],
)
def test_values_that_contradict_each_other(recipe: str, given: dict[str, Any], key: str, severity: str) -> None:
    (problem,) = found(checks_of(contradictions), job_of(recipe, **given), "contradiction")
    assert (problem.key, problem.severity) == (key, severity)
    assert problem.remedy


@pytest.mark.parametrize(
    ("recipe", "given"),
    [
        ("distill", {"args__hf_export_path": "/out", "script__release": "0.46"}),
        ("distill", {"args__hf_export_path": "/out", "args__student_hf_model": "Q/m", "script__release": "0.44"}),
        ("distill", {"args__recompute_granularity": "selective"}),
        ("distill_tiny", {}),
        ("qad", {}),
        ("qat", {}),
        ("qat_tiny", {}),
        ("mlm_finetune", {}),
        ("mlm_convert", {}),
        ("prune", {}),
        ("quantize_modelopt_tiny", {}),
    ],
)
def test_values_that_agree(recipe: str, given: dict[str, Any]) -> None:
    assert found(checks_of(contradictions), job_of(recipe, **given), "contradiction") == []


@pytest.mark.parametrize(
    ("text", "hours"),
    [
        ("90", 1.5),
        ("90:30", 1.5 + 30 / 3600),
        ("4:00:00", 4),
        ("2-12", 60),
        ("1-00:30", 24.5),
        ("1-01:00:36", 25.01),
        ("UNLIMITED", None),
        ("INFINITE", None),
    ],
)
def test_time_limits_are_read_as_sbatch_reads_them(text: str, hours: float | None) -> None:
    assert limit_hours(text) == (None if hours is None else pytest.approx(hours))


H100 = Gpu(name="h100-80gb", memory=80 << 30, sm=90, bf16_tflops=989, bandwidth=3.35, known_by="test", certain=True)


@pytest.mark.parametrize(
    ("recipe", "time", "severity"),
    [
        ("distill", "0:30:00", "warning"),  # a training goes on in the next job
        ("distill", "400-0", None),
        ("distill", None, None),
        ("quantize_modelopt", "0:00:05", "error"),
        ("quantize_modelopt", "8:00:00", None),
    ],
)
def test_a_time_limit_below_the_estimate(tmp_path: Path, recipe: str, time: str | None, severity: str | None) -> None:
    profiles = tmp_path / "executors.yaml"
    profiles.write_text(f"slurm: {{account: a, time: {json.dumps(time)}}}")
    problems = found(checks_of(walltime), replace(job_of(recipe, "slurm", profiles), gpu=H100), "time_limit_too_short")
    assert [(one.key, one.severity) for one in problems] == ([("executor.time", severity)] if severity else [])


def test_a_training_that_is_to_stop_in_time_may_have_any_limit(tmp_path: Path) -> None:
    (tmp_path / "executors.yaml").write_text("slurm: {account: a, time: '4:00:00'}")
    spec = job_of("distill", "slurm", tmp_path / "executors.yaml", args__exit_duration_in_mins=230)
    assert found(checks_of(walltime), replace(spec, gpu=H100), "time_limit_too_short") == []
