"""Evaluations without the harness: its command line, its results as rows, and what two runs say together."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scripts.args import constraints
from scripts.args.evaluate import EvaluateArgs
from scripts.args.meaning import ScriptSpec
from scripts.engines.script.command import compose
from scripts.engines.script.flags.interface import Interface
from scripts.evaluation import checks
from scripts.evaluation import run as evaluation
from scripts.evaluation.harness import HarnessArgs, closing_words, harness_args, write_tasks
from scripts.evaluation.report import as_text, verdict, write_report
from scripts.evaluation.scores import (
    SCHEMA,
    Baseline,
    Compared,
    Score,
    as_rows,
    compare,
    read_baseline,
    read_results,
    scores_of,
)
from scripts.run.problems import JobError, Problem
from scripts.run.registry import OnNode, carry_out, checks_of


def told(args: EvaluateArgs) -> list[Problem]:
    """What the checks say of its values, whatever this Python lacks."""
    other = (
        "harness_not_installed",
        "backend_not_installed",
        "server_not_installed",
        "megatron_core_missing",
        "missing_value",
    )
    found = carry_out(checks_of(constraints, checks), OnNode(resolved=args)).problems
    return [one for one in found if one.name not in other]


HOSTILE = '/models/it\'s a, ="b"; pretrained=x'
RESULTS: dict[str, Any] = {
    "results": {
        "group": {"alias": "group", "acc,none": 0.5, "acc_stderr,none": 0.01},
        "one": {"alias": " - one", "acc,none": 0.4, "acc_stderr,none": 0.02, "sample_len": 10},
        "two": {"alias": " - two", "acc,none": 0.6, "acc_stderr,none": 0.02},
        "gsm": {"exact_match,strict-match": 0.1, "exact_match_stderr,strict-match": "N/A", "exact_match,flexible": 0.2},
    },
    "group_subtasks": {"group": ["one", "two"]},
    "versions": {"group": 2, "one": 1.0, "two": 1.0, "gsm": 3.0},
    "n-shot": {"one": 5, "two": 5, "gsm": 0},
    "n-samples": {"one": {"original": 99, "effective": 10}, "gsm": {"original": 5, "effective": 5}},
    "higher_is_better": {"group": {"acc": True}, "one": {"acc": True}, "gsm": {"exact_match": True}},
}


def words_of(args: EvaluateArgs, backend: Any = "hf") -> list[str]:
    harness = harness_args(
        args, model=HOSTILE, backend=backend, include=Path("/own"), results=Path("/run/results.json")
    )
    made = compose(harness, Interface(flags=(), closed=False), style="underscore", extra_args=closing_words(args))
    assert not made.problems
    return list(made.words)


def model_args(words: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(words[words.index("--model_args") + 1])
    return found


def test_a_path_reaches_the_harness_as_it_is() -> None:
    words = words_of(EvaluateArgs(tasks=["mmlu", "gsm8k"], num_fewshot=0, limit=8, batch_size="auto"))
    assert model_args(words) == {"pretrained": HOSTILE, "dtype": "auto"}
    assert words[words.index("--tasks") + 1] == "mmlu,gsm8k"
    assert words[words.index("--num_fewshot") + 1] == "0"
    assert float(words[words.index("--limit") + 1]) == 8
    assert words[words.index("--output_path") + 1] == "/run/results.json"


@pytest.mark.parametrize(
    ("backend", "values", "expected"),
    [
        ("hf", {"parallelize": True, "max_length": 512}, {"parallelize": True, "max_length": 512}),
        ("hf", {"trust_remote_code": True}, {"trust_remote_code": True}),
        ("vllm", {}, {"tensor_parallel_size": 1}),
        ("vllm", {"tensor_parallel_size": 4, "max_length": 512}, {"tensor_parallel_size": 4, "max_model_len": 512}),
        ("vllm", {"model_args": {"tensor_parallel_size": 2, "x": [1]}}, {"tensor_parallel_size": 2, "x": [1]}),
    ],
)
def test_each_library_gets_its_own_arguments(backend: str, values: dict[str, Any], expected: dict[str, Any]) -> None:
    found = model_args(words_of(EvaluateArgs(**values), backend))
    assert found == {"pretrained": HOSTILE, "dtype": "auto"} | expected


def test_the_flag_that_may_take_a_word_is_the_last_one() -> None:
    args = EvaluateArgs(apply_chat_template=True, fewshot_as_multiturn=True, system_instruction="-be brief")
    words = words_of(args)
    assert words[-1] == "--apply_chat_template"
    assert "--system_instruction=-be brief" in words
    assert "--trust_remote_code" not in words_of(EvaluateArgs(trust_remote_code=True))


def test_what_is_scored_is_recorded_and_is_no_flag() -> None:
    assert "--checkpoint" not in words_of(EvaluateArgs())
    assert HarnessArgs.SCRIPTS == ("-m lm_eval",)


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"tasks": []}, "args.tasks"),
        ({"tasks": ["a,b"]}, "args.tasks"),
        ({"backend": "vllm", "parallelize": True}, "args.parallelize"),
        ({"backend": "hf", "tensor_parallel_size": 2}, "args.tensor_parallel_size"),
        ({"fewshot_as_multiturn": True}, "args.fewshot_as_multiturn"),
    ],
)
def test_values_that_do_not_go_together_are_named(values: dict[str, Any], key: str) -> None:
    assert [problem.key for problem in told(EvaluateArgs(**values))] == [key]


def test_values_that_go_together_have_no_problem() -> None:
    for values in ({}, {"backend": "hf", "parallelize": True}, {"backend": "vllm", "tensor_parallel_size": 8}):
        assert not told(EvaluateArgs(**values))


@pytest.fixture
def harness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A lm_eval that can be imported, with tasks, groups and tags as the harness writes them."""
    files = {
        "hellaswag/hellaswag.yaml": "tag:\n  - multiple_choice\ntask: hellaswag\n",
        "arc/arc_easy.yaml": 'task: arc_easy\ntag: [ai2_arc, "reasoning"]\n',
        "mmlu/default/_mmlu.yaml": "group: mmlu\ntask:\n  - mmlu_stem\n  - group: mmlu_other\n    task:\n    - law",
        "broken/x.yaml": "task: [",
    }
    for name, text in files.items():
        (file := tmp_path / "lm_eval" / "tasks" / name).parent.mkdir(parents=True)
        file.write_text(text)
    (tmp_path / "lm_eval" / "__init__.py").write_text("raise ImportError('slow')")
    (tmp_path / "lm_eval" / "tasks" / "no.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.mark.usefixtures("harness")
def test_tasks_that_the_harness_has_not_are_told_with_the_nearest() -> None:
    has = ["hellaswag", "arc_easy", "ai2_arc", "reasoning", "multiple_choice", "mmlu", "mmlu_stem", "mmlu_other"]
    for right in (has, ["tiny_text", "law"], ["mmlu_*", "/own/x.yaml", "x.yml", "mmlu@gen"]):
        assert not told(EvaluateArgs(tasks=right))
    wrong = told(EvaluateArgs(tasks=["mmlu", "helaswag", "arc-easy"]))
    assert [(one.name, one.value, one.remedy.partition("?")[0]) for one in wrong] == [
        ("unknown_task", "arc-easy", "Did you mean arc_easy"),
        ("unknown_task", "helaswag", "Did you mean hellaswag"),
    ]
    assert not any(one.can_force for one in wrong), "it is this harness that will run"


def test_own_tasks_take_the_place_of_those_that_ship(harness: Path) -> None:
    (harness / "own").mkdir()
    (harness / "own" / "mine.yaml").write_text("task: mine\n")
    (harness / "own" / "json.yaml").write_text('{"output_type": "x", "task": "as_json", "tag": ["all_mine"]}')
    args = EvaluateArgs(
        tasks=["mine", "as_json", "all_mine", "mmlu", "tiny_text", "mine_"], include_path=str(harness / "own")
    )
    assert [(one.value, "Did you mean mine?" in one.remedy) for one in told(args)] == [
        ("mine_", True),
        ("tiny_text", False),
    ]


def test_tasks_are_not_checked_without_the_harness(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks.util, "find_spec", lambda name: None)
    found = carry_out(checks_of(checks), OnNode(resolved=EvaluateArgs(tasks=["helaswag"]))).skipped
    assert [str(one) for one in found] == [
        "not checked: unknown_task (not known: the tasks of the lm-evaluation-harness)"
    ]
    assert not carry_out(checks_of(checks), OnNode(resolved=EvaluateArgs())).skipped


@pytest.mark.parametrize(
    ("here", "gpus", "shown"),
    [
        (True, [], "<float32 where the processor multiplies bfloat16 slowly, else auto>"),
        (True, [90], "auto"),
        (False, [], "auto"),
    ],
)
def test_a_dry_run_shows_the_precision_that_the_job_will_use(
    here: bool, gpus: list[int], shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "compute_capabilities", lambda: gpus)
    command = evaluation.expected_command(EvaluateArgs(checkpoint="a/b"), ScriptSpec(), [], Path("/run"), here=here)
    assert model_args(command)["dtype"] == shown


def test_results_become_rows() -> None:
    scores = {(score.task, score.filter): score for score in scores_of(RESULTS)}
    assert {key for key, score in scores.items() if score.headline} == {
        ("group", "none"),
        ("gsm", "strict-match"),
        ("gsm", "flexible"),
    }
    one = scores["one", "none"]
    assert (one.value, one.stderr, one.samples, one.fewshot, one.version) == (0.4, 0.02, 10, 5, "1.0")
    assert scores["gsm", "strict-match"].stderr is None
    assert len(scores) == 5


@pytest.mark.parametrize(
    "row", [{"acc,none": float("nan")}, {"acc,none": float("inf")}, {"acc,none": "N/A"}, {"alias": "x"}]
)
def test_a_task_without_a_number_is_a_failure(row: dict[str, Any]) -> None:
    results = RESULTS | {"results": RESULTS["results"] | {"bad": row}}
    with pytest.raises(JobError, match="no_scores: the harness has no score for bad"):
        scores_of(results)


def test_no_task_at_all_is_a_failure() -> None:
    with pytest.raises(JobError, match=r"no_scores: .* any task"):
        scores_of({"results": {}})


@pytest.mark.parametrize("content", [None, "{", "[]", '{"results": []}'])
def test_results_that_are_not_there_are_a_failure(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "results_2026.json").write_text(content)
    with pytest.raises(JobError, match="eval_results_missing"):
        read_results(tmp_path)


def score(value: float, **values: Any) -> Score:
    facts: dict[str, Any] = {"task": "t", "metric": "acc", "filter": "none", "stderr": 0.03, "samples": 100}
    facts |= {"fewshot": 5, "version": "1", "higher_is_better": True, "headline": True}
    return Score(value=value, **facts | values)


def baseline(*scores: Score) -> Baseline:
    return Baseline(path=Path("before"), report={}, scores=scores)


def test_a_change_is_measured_against_both_errors() -> None:
    rows, sentences = compare([score(0.5)], baseline(score(0.45, stderr=0.04)))
    assert rows[0].change == pytest.approx(0.05)
    assert rows[0].sigmas == pytest.approx(1.0)
    assert (verdict(rows[0]), sentences) == ("within noise", [])


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        (score(0.7), score(0.3), "worse"),
        (score(0.3), score(0.7), "better"),
        (score(9.0, stderr=None, higher_is_better=False), score(9.1, stderr=None, higher_is_better=False), "worse"),
        (score(0.5), score(0.5), "same"),
        (score(0.5, higher_is_better=None), score(0.9, higher_is_better=None), ""),
    ],
)
def test_a_change_has_a_word(before: Score, now: Score, said: str) -> None:
    assert verdict(compare([now], baseline(before))[0][0]) == said


@pytest.mark.parametrize("values", [{"samples": 50}, {"fewshot": 0}, {"version": "2"}])
def test_values_of_other_questions_are_not_compared(values: dict[str, Any]) -> None:
    rows, sentences = compare([score(0.5)], baseline(score(0.4, **values)))
    assert rows == [Compared(score=score(0.5))]
    assert len(sentences) == 1
    assert sentences[0].startswith("baseline_not_comparable: t was asked otherwise")


def test_a_baseline_of_other_tasks_is_told() -> None:
    _, sentences = compare([score(0.5)], baseline(score(0.5, task="other")))
    assert sentences == ["baseline_not_comparable: the baseline has none of these tasks."]


def test_a_report_is_a_baseline(tmp_path: Path) -> None:
    rows, _ = compare(scores_of(RESULTS), None)
    report = {"schema": SCHEMA, "checkpoint": "m", "backend": "hf", "scores": as_rows(rows), "warnings": []}
    write_report(tmp_path / "report", report, rows, {})
    for place in (tmp_path, tmp_path / "report", tmp_path / "report" / "report.json"):
        found = read_baseline(place)
        assert found.scores == tuple(scores_of(RESULTS))
        assert found.report["checkpoint"] == "m"


@pytest.mark.parametrize(
    "content", [None, "{", "[]", "{}", '{"schema": 1, "scores": []}', '{"schema": 1, "layers": []}']
)
def test_what_is_no_report_is_no_baseline(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "report.json").write_text(content)
    with pytest.raises(JobError, match="unreadable_baseline"):
        read_baseline(tmp_path)


def test_the_report_of_a_quantization_is_no_baseline(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(json.dumps({"schema": SCHEMA, "layers": [], "evaluation": {}}))
    with pytest.raises(JobError, match="unreadable_baseline"):
        read_baseline(tmp_path)


def test_the_table_shows_groups_and_leaves_out_their_parts() -> None:
    rows, _ = compare(scores_of(RESULTS), baseline(score(0.4, task="group", fewshot=None, samples=None, version="2")))
    text = as_text(rows, title="[m] by hf", warnings=["limit=2"])
    assert "[m] by hf" in text
    assert "group" in text and "exact_match (strict-match)" in text and "+0.1000" in text
    assert " one " not in text
    assert text.endswith("warning: limit=2")


def test_the_shipped_tasks_name_their_rows_wherever_they_are_written(tmp_path: Path) -> None:
    import yaml

    folder = write_tasks(tmp_path / "it's, a")
    for file in folder.glob("*.yaml"):
        task = yaml.safe_load(file.read_text())
        assert task["task"] == file.stem
        rows = [
            json.loads(line) for line in Path(task["dataset_kwargs"]["data_files"]["test"]).read_text().splitlines()
        ]
        assert len(rows) > 20
    choices = [json.loads(line) for line in (folder / "tiny_choice.jsonl").read_text().splitlines()]
    assert all(len(set(row["choices"])) == 4 and row["answer"] in range(4) for row in choices)
    assert {row["answer"] for row in choices} == set(range(4))


def test_an_export_that_is_here_needs_what_loads_it(fake_model: Callable[..., Path]) -> None:
    folder = fake_model()

    def unloadable(**values: Any) -> list[Problem]:
        job = OnNode(resolved=EvaluateArgs(checkpoint=str(folder), **values))
        return [one for one in carry_out(checks_of(checks), job).problems if one.name.startswith("backend_")]

    assert unloadable() == []
    (folder / "hf_quant_config.json").write_text(json.dumps({"quantization": {"quant_algo": "FP8"}}))
    (found,) = unloadable()
    assert (found.name, found.key) == ("backend_not_installed", "args.checkpoint")
    assert "ModelOpt-restorable" in found.remedy
    assert [one.name for one in unloadable(backend="hf")] == ["backend_cannot_load"]
