"""Gates: what a job holds itself to, judged where it ran; and verdicts on scores of a harness."""

import json
from pathlib import Path
from typing import Any

import pytest

from scripts.evaluation.gate import keep_gate
from scripts.evaluation.verdict import Limits, judge
from scripts.run.problems import JobError
from scripts.run.record import Record, read_record


def row(
    change: float | None, *, sigmas: float | None = None, better: bool = True, value: float = 0.5
) -> dict[str, Any]:
    before = None if change is None else value - change
    score = {"task": "t", "metric": "acc", "value": value, "stderr": 0.02, "higher_is_better": better, "headline": True}
    return {"score": score, "before": before, "change": change, "sigmas": sigmas}


@pytest.mark.parametrize(
    ("rows", "limits", "answer", "says"),
    [
        ([row(-0.01, sigmas=-0.5)], {"max_drop": 0.02}, "accept", "t acc worse than the baseline by 0.01"),
        ([row(-0.05, sigmas=-2.5)], {"max_drop": 0.02}, "regression", "0.05"),
        ([row(0.2, sigmas=9.0)], {"max_drop": 0.02}, "anomalous", "9.0 standard errors better"),
        ([row(6.0, better=False, value=606.0)], {"max_drop": 0.02}, "accept", "0.01"),  # of a perplexity, its share
        ([row(30.0, better=False, value=630.0)], {"max_drop": "2%"}, "regression", "0.05"),
        ([row(None)], {"min_score": 0.4}, "accept", "at least 0.4"),
        ([row(None)], {"min_score": 0.6}, "regression", "0.5 (0.461 to 0.539)"),
        ([row(None)], {"max_drop": 0.1}, "infeasible", "max_drop"),
        ([row(None)], {"max_kl": 0.1}, "infeasible", "max_kl"),
        ([row(None), row(None, value=float("nan"))], {"min_score": 0.4}, "anomalous", "t acc is nan: no number"),
        ([row(-0.01), row(None)], {"max_drop": 0.02}, "infeasible", "the baseline has no t acc"),
        ([], {"min_score": 0.1}, "infeasible", "nothing was scored"),
    ],
)
def test_scores_are_judged(rows: list[dict[str, Any]], limits: dict[str, Any], answer: str, says: str) -> None:
    found = judge("succeeded", {"scores": rows}, Limits.of(limits))
    assert found.answer == answer and says in " ".join(found.reasons)


def test_without_a_limit_there_is_nothing_to_judge_by() -> None:
    found = judge("succeeded", {"scores": [row(None)]}, Limits())
    assert found.answer == "infeasible" and "min_score" in found.reasons[0]


def test_a_limit_near_which_the_figure_is_is_a_doubt() -> None:
    assert judge("succeeded", {"scores": [row(-0.01, sigmas=-0.5)]}, Limits(max_drop=0.02)).doubts


@pytest.mark.parametrize(
    "given", [{}, {"max_kul": 1}, {"max_kl": "x"}, {"max_kl": -1}, {"min_agreement": 2}, {"max_kl": True}]
)
def test_limits_that_are_none_are_refused(given: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"limit|expected"):
        Limits.of(given)
    record = Record.submit(tmp_path / "run", id="r")
    with pytest.raises(JobError, match="bad_gate"):
        keep_gate(given, record)


def test_what_breaks_its_gate_fails_and_keeps_what_it_made(tmp_path: Path) -> None:
    record = Record.submit(tmp_path / "run", id="r")
    record.update(outputs=[{"type": "checkpoint_hf", "path": "/x", "bytes": 1}])
    (record.dir / "report").mkdir()
    report = {"evaluation": {"perplexity_base": 10.0, "perplexity_quantized": 11.0, "kl_divergence": 0.5}}
    (record.dir / "report" / "report.json").write_text(json.dumps(report))
    keep_gate(None, record)
    keep_gate({"max_increase": "20%"}, record)
    assert read_record(record.dir)["verdict"]["verdict"] == "accept"
    with pytest.raises(JobError, match=r"gate_failed: regression: kl divergence 0\.5, at most 0\.1"):
        keep_gate({"max_increase": "20%", "max_kl": 0.1}, record)
    assert read_record(record.dir)["verdict"]["verdict"] == "regression" and read_record(record.dir)["outputs"]
