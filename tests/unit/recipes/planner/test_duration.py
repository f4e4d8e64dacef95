"""How long a job takes: a range whose terms follow from work, model and GPU."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from recipes.experiment.job import Job
from recipes.models import facts_of
from recipes.planner.duration import Estimate, hours_of
from tests.jobs import script_specs

PROFILES = """
slurm: {account: a, image: "nvcr.io/nvidia/nemo:26.06", job_dir: /lustre/me, gpu: h100-80gb}
two: {extends: slurm, nodes: 2}
b200: {extends: slurm, gpu: b200}
"""


@pytest.fixture
def job(tmp_path: Path) -> Any:
    return script_specs(tmp_path, PROFILES)


def estimate(spec: Job) -> Estimate:
    found = hours_of(spec)
    assert found is not None
    return found


def computing(spec: Job) -> float:
    return estimate(spec).terms["computing"][0]


def test_a_range_is_the_sum_of_its_terms(job: Any) -> None:
    for recipe in ("quantize_fp8", "distill", "prune", "generate", "export", "mlm_finetune", "qat", "mlm_mmlu"):
        found = estimate(job(recipe))
        assert set(found.terms) == {"start", "loading", "computing", "saving"}
        assert 0 < found.low < found.high
        assert found.low == pytest.approx(sum(low for low, _ in found.terms.values()))
        assert found.high == pytest.approx(sum(high for _, high in found.terms.values()))


def test_training_is_6_operations_a_parameter_and_token_and_2_of_the_teacher(job: Any) -> None:
    student, teacher = (facts_of(name).architecture.parameters for name in ("Qwen/Qwen3-4B", "Qwen/Qwen3-8B"))  # type: ignore[arg-type]
    assert student is not None and teacher is not None
    tokens = 8192 * 768 * 15000
    at_peak = (6 * student.active + 2 * teacher.active) * tokens / (8 * 989e12) / 3600
    low, high = estimate(job("distill")).terms["computing"]
    assert low == pytest.approx(at_peak / 0.5) and high == pytest.approx(at_peak / 0.15)
    recomputed = computing(job("distill", args__recompute_granularity="full"))
    assert recomputed / low == pytest.approx(
        (8 * student.active + 2 * teacher.active) / (6 * student.active + 2 * teacher.active)
    )


def test_training_gets_faster_with_gpus_and_longer_with_iterations(job: Any) -> None:
    base = computing(job("distill"))
    assert computing(job("distill", "two")) == pytest.approx(base / 2)
    assert computing(job("distill", "b200")) == pytest.approx(base * 989 / 2250)
    assert computing(job("distill", args__train_iters=30000)) == pytest.approx(2 * base)


def test_calibration_follows_samples_lengths_and_search(job: Any) -> None:
    base = computing(job("quantize_modelopt"))
    assert computing(job("quantize_modelopt", args__calib_num_samples=1024)) == pytest.approx(2 * base)
    assert computing(job("quantize_modelopt", args__seq_length=8192)) == pytest.approx(2 * base)
    assert computing(job("quantize_modelopt", args__quant_cfg="int4_awq")) == pytest.approx(12 * base)


def test_copies_of_a_model_share_the_samples_at_best_and_do_the_same_at_worst(job: Any) -> None:
    one, two = (estimate(job("quantize_modelopt", executor)).terms["computing"] for executor in ("slurm", "two"))
    assert list(two) == pytest.approx([one[0] / 2, one[1]])


def test_short_passes_take_the_time_to_start_kernels(job: Any) -> None:
    """36 layers of a small model: on one token nothing else counts."""
    short = computing(job("quantize_modelopt", args__seq_length=1))
    assert short == pytest.approx(512 * 36 * 2e-4 / 3600)


def test_a_token_reads_every_weight(job: Any) -> None:
    """On a GPU with little bandwidth they take longer than starting the kernels does."""
    spec = job("generate", args__osl=1000, args__prompts="a", args__tp=1, torchrun__nproc_per_node=1)
    assert spec.gpu is not None
    slow = replace(spec, gpu=replace(spec.gpu, bandwidth=0.1))
    total = facts_of("Qwen/Qwen3-8B").architecture.parameters.total  # type: ignore[arg-type, union-attr]
    assert computing(slow) == pytest.approx(1001 * 2 * total / 1e11 / 3600)


def test_a_search_asks_every_candidate(job: Any) -> None:
    assert computing(job("prune")) > computing(job("prune_fixed"))
    assert computing(job("prune", args__top_k=20)) > computing(job("prune"))


def test_every_expert_costs_every_expert(job: Any) -> None:
    model = {"args__hf_model_id": "Qwen/Qwen3-30B-A3B", "args__calib_seq_length": 8192}
    few, all_of_them = job("quantize_fp8", **model), job("quantize_fp8", args__force_all_expert_routing=True, **model)
    assert computing(all_of_them) > 4 * computing(few)


def test_a_training_writes_its_optimizer_and_a_transfer_computes_nothing(job: Any) -> None:
    trained, exported = estimate(job("qad")), estimate(job("export"))
    assert trained.terms["saving"][0] == pytest.approx(7 * exported.terms["saving"][0])
    assert exported.terms["computing"] == (0.0, 0.0)
    assert estimate(job("generate")).terms["saving"] == (0.0, 0.0)


def test_the_teacher_is_loaded_too(job: Any) -> None:
    student, teacher = (facts_of(name).architecture.parameters for name in ("Qwen/Qwen3-4B", "Qwen/Qwen3-8B"))  # type: ignore[arg-type]
    assert student is not None and teacher is not None
    assert estimate(job("distill")).terms["loading"][0] == pytest.approx(
        2 * (student.total + teacher.total) / 5e9 / 3600
    )


def test_nothing_is_said_of_what_is_not_known(job: Any) -> None:
    spec = job("quantize_fp8")
    assert hours_of(replace(spec, gpu=None)) is None
    assert hours_of(job("quantize_fp8", args__hf_model_id="nobody/knows")) is None
    assert hours_of(job("prepare_data")) is None


def test_a_person_reads_minutes_then_hours(job: Any) -> None:
    assert str(Estimate(low=0.1, high=0.5, terms={"start": (0.02, 0.1), "saving": (0.0, 0.001)})) == (
        "6 to 30 minutes (start 1 to 6 minutes)"
    )
    assert (
        str(Estimate(low=1, high=3.04, terms={"computing": (1, 3)})) == "1.0 to 3.0 hours (computing 1.0 to 3.0 hours)"
    )
