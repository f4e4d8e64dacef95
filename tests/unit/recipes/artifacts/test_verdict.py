"""Verdicts: each of the four, with its reasons and its exit status."""

import json
from pathlib import Path
from typing import Any

import pytest

from recipes.cli.show import _next_steps
from recipes.experiment.runs import look
from recipes.experiment.store import RunFolder
from scripts.run.content import content_of
from scripts.run.record import Record, read_record
from tests.answers import answer_of
from tests.runs import Shell, quantized

#: Of the run below: perplexity 10.01 for 10, divergence 0.001, agreement 97%, half the size.
INTERVALS = {
    "perplexity_increase": [-0.0005, 0.0025],
    "kl_divergence": [0.0008, 0.0012],
    "top1_agreement": [0.96, 0.98],
}


def judged(home: Path, *options: str, **evaluation: Any) -> tuple[int, dict[str, Any]]:
    run_id = quantized(home, "fp8")
    file = home / "runs" / run_id / "report" / "report.json"
    report = json.loads(file.read_text())
    report["evaluation"] |= {"intervals": INTERVALS, **evaluation}
    file.write_text(json.dumps(report))
    done = Shell()("verdict", run_id, *options, "--json")
    return done.exit_code, answer_of(done.stdout)["data"]


def test_what_keeps_every_limit_is_accepted(home: Path) -> None:
    status, found = judged(home, "--max-kl", "0.005", "--min-agreement", "95%", "--max-size", "0.6")
    assert (status, found["verdict"], found["doubts"]) == (0, "accept", [])
    assert found["reasons"][0] == "perplexity increase 0.001 (-0.0005 to 0.0025), at most 0.01 is allowed"
    assert len(found["reasons"]) == 4


def test_what_was_changed_since_is_not_what_was_measured(home: Path) -> None:
    assert judged(home)[0] == 0
    (run,) = look([RunFolder.of(folder.name) for folder in (home / "runs").iterdir()])
    (left := home / "export").mkdir()
    (left / "model.safetensors").write_bytes(b"abc")
    content = content_of(left)
    output = {"type": "checkpoint_hf", "path": str(left), **content.facts}
    Record(run.dir, read_record(run.dir)).update(outputs=[output])
    assert Shell()("verdict", run.id).exit_code == 0
    (left / "model.safetensors").write_bytes(b"abd")
    done = Shell()("verdict", run.id)
    assert done.exit_code == 1 and "infeasible" in done.stdout and f"artifacts verify {run.id}" in done.stdout


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--max-increase", "0.05%"], "perplexity increase 0.001"),
        (["--max-kl", "0.0005"], "kl divergence 0.001"),
        (["--min-agreement", "99%"], "top1 agreement 0.97 (0.96 to 0.98), at least 0.99"),
        (["--max-size", "45%"], "size 0.5, at most 0.45"),
    ],
)
def test_a_limit_that_is_broken_is_a_regression(options: list[str], says: str, home: Path) -> None:
    status, found = judged(home, *options)
    assert (status, found["verdict"], len(found["reasons"])) == (1, "regression", 1)
    assert found["reasons"][0].startswith(says)


def test_a_limit_within_the_noise_is_a_doubt(home: Path) -> None:
    status, found = judged(home, "--max-increase", "0.2%")
    assert (status, found["verdict"]) == (0, "accept")
    assert found["doubts"] == ["perplexity increase: other samples might have said the opposite"]


@pytest.mark.parametrize(
    ("evaluation", "says"),
    [
        ({"perplexity_quantized": float("nan")}, "perplexity_quantized is nan"),
        ({"kl_divergence": 0.0, "top1_agreement": 1.0}, "nothing was quantized"),
        ({"kl_divergence": -0.1}, "none is below zero"),
        ({"perplexity_quantized": 9.0}, "better than what it was made of"),
        (
            {"perplexity_quantized": 9.9, "intervals": {"perplexity_increase": [-0.02, -0.001]}},
            "better than what it was made of",
        ),
        ({"perplexity_base": "ten"}, "perplexity_base: no number"),
        ({"perplexity_quantized": 10.0}, "every output is the model's own"),
        ({"perplexity_base": 0.5, "perplexity_quantized": 0.5001}, "perplexity_base is 0.5, and none is below one"),
        ({"top1_agreement": 1.2}, "the agreement is 1.2, and it is a share"),
    ],
)
def test_figures_that_cannot_be_are_not_believed(evaluation: dict[str, Any], says: str, home: Path) -> None:
    status, found = judged(home, **evaluation)
    assert (status, found["verdict"]) == (1, "anomalous") and says in found["reasons"][0]


def test_what_was_not_measured_is_not_judged(home: Path) -> None:
    run_id = quantized(home, "fp8", {"evaluation": None})
    done = Shell()("verdict", run_id)
    assert done.exit_code == 1 and done.stdout.startswith("infeasible") and "nothing was scored" in done.stdout
    file = home / "runs" / run_id / "report" / "report.json"
    scored = {"perplexity_base": 10.0, "perplexity_quantized": 10.01}
    file.write_text(json.dumps({"evaluation": scored, "size": {"export_bytes": None}}))
    assert Shell()("verdict", run_id).exit_code == 0
    lacks = Shell()("verdict", run_id, "--max-size", "0.5", "--max-kl", "1")
    assert lacks.exit_code == 1 and "there is nothing to hold against max_kl" in lacks.stdout
    record = home / "runs" / run_id / "run.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"state": "cancelled"}))
    assert "it is cancelled" in Shell()("verdict", run_id).stdout


def test_a_broken_text_is_said(home: Path) -> None:
    said = {"prompt": "Hello", "before": "a sentence", "after": "!" * 40}
    run_id = quantized(home, "fp8", {"generations": [said, said | {"before": "!" * 40}, 7]})
    done = Shell()("verdict", run_id, "--json")
    found = answer_of(done.stdout)["data"]
    assert found["verdict"] == "accept"
    assert found["doubts"] == ["what it says after 'Hello' is one piece of text, repeated, and was not before"]


@pytest.mark.parametrize("ended", ["server_answer_degenerate", None])
def test_a_server_that_says_no_text_is_anomalous(ended: str | None, home: Path) -> None:
    run_id = quantized(home, "fp8")
    folder = home / "runs" / run_id
    (folder / "report" / "report.json").unlink()
    answers = [{"prompt": "a", "flaw": "empty"}, {"prompt": "b", "flaw": None}]
    (folder / "report" / "serve.json").write_text(json.dumps({"answers": answers}))
    if ended:
        failed = {"state": "failed", "error": {"name": ended, "message": "m", "remedy": "r"}}
        (folder / "run.json").write_text(json.dumps(json.loads((folder / "run.json").read_text()) | failed))
    done = Shell()("verdict", run_id)
    assert done.exit_code == 1 and done.stdout.startswith("anomalous") and "the answer to 'a' is empty" in done.stdout


@pytest.mark.parametrize("evaluation", [{"intervals": "x"}, {"intervals": {"kl_divergence": [1]}}, {"intervals": None}])
def test_odd_intervals_are_none(evaluation: dict[str, Any], home: Path) -> None:
    assert judged(home, **evaluation)[1]["verdict"] == "accept"


def test_a_limit_that_is_no_share_is_refused(home: Path) -> None:
    done = Shell()("verdict", quantized(home, "fp8"), "--max-increase", "x", "--min-agreement", "2")
    assert done.exit_code == 2 and "--max-increase=x" in done.stderr


def test_who_broke_a_gate_is_judged_by_it_and_not_sent_to_try_again(home: Path) -> None:
    run_id = quantized(home, "nvfp4")
    record = home / "runs" / run_id / "run.json"
    gate = {"verdict": {"limits": {"max_increase": 0.01, "max_kl": None}}}
    failed = {"state": "failed", "error": {"name": "gate_failed", "message": "m", "remedy": "r"}}
    record.write_text(json.dumps(json.loads(record.read_text()) | failed | gate))
    (run,) = look([RunFolder.of(run_id)])
    assert list(_next_steps(run)) == [f"verdict {run_id}"]
    done = Shell()("verdict", run_id)
    assert done.exit_code == 1 and "perplexity increase 0.03" in done.stdout and "kl" not in done.stdout
    assert Shell()("verdict", run_id, "--max-increase", "5%").exit_code == 0
