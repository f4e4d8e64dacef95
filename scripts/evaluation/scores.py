"""The harness's results as rows, and how they compare with those of an earlier run."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from scripts.evaluation.questions import interval_of_change, read_questions
from scripts.run.files import expanded, is_file
from scripts.run.problems import JobError
from scripts.run.schema import mapping

SCHEMA = 1
REPORT = "report.json"


@dataclass(frozen=True, kw_only=True)
class Score:
    """One metric of one task."""

    task: str
    metric: str
    filter: str  # how the answer was cut out of what the model said; `none` for most
    value: float
    stderr: float | None
    higher_is_better: bool | None
    samples: int | None
    fewshot: int | None
    version: str | None
    headline: bool  # not part of a group that is listed too

    @property
    def key(self) -> tuple[str, str, str]:
        """What makes it the same score in another run."""
        return self.task, self.metric, self.filter

    @property
    def asked(self) -> tuple[Any, ...]:
        """What must be equal for two values of it to be comparable."""
        return self.samples, self.fewshot, self.version


@dataclass(frozen=True, kw_only=True)
class Compared:
    """A score beside that of an earlier run."""

    score: Score
    before: float | None = None  # None: the earlier run has none that is comparable
    sigmas: float | None = None  # the change in standard errors of the difference, as if the questions were others
    interval: tuple[float, float] | None = None  # 95% of the change, question by question

    @property
    def change(self) -> float | None:
        return None if self.before is None else self.score.value - self.before


def read_results(folder: Path) -> dict[str, Any]:
    """What the harness wrote in `folder`. Raises JobError `eval_results_missing`."""
    files = sorted(folder.glob("results_*.json"))
    remedy = "The harness ends well even where it could not write them; look for a warning in logs/rank0.log."
    if len(files) != 1:
        raise JobError("eval_results_missing", f"{folder} holds {len(files)} files of results, not one.", remedy)
    try:
        results = json.loads(files[0].read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise JobError("eval_results_missing", f"{files[0]}: {error}.", remedy) from error
    if not isinstance(results, dict) or not isinstance(results.get("results"), dict):
        raise JobError("eval_results_missing", f"{files[0]} holds no results.", remedy)
    return results


def scores_of(results: Mapping[str, Any]) -> list[Score]:
    """Every score. Raises JobError `no_scores` where a task has none, or one that is no finite number."""
    tasks = {**results["results"], **_section(results, "groups")}
    inner = {task for members in _section(results, "group_subtasks").values() for task in members}
    scores = [score for task, row in tasks.items() for score in _of_task(task, row, results, task not in inner)]
    broken = {score.task for score in scores if not math.isfinite(score.value)}
    empty = {*tasks} - {score.task for score in scores} - {*_section(results, "group_subtasks")}
    if broken or empty or not scores:
        cause = f"the harness has no score for {', '.join(sorted(broken | empty)) or 'any task'}."
        remedy = "A value that is not a number comes of a broken model or task; see logs/rank0.log."
        raise JobError("no_scores", cause, remedy)
    return scores


def _section(results: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    return mapping(results.get(name))


def _of_task(task: str, row: Mapping[str, Any], results: Mapping[str, Any], headline: bool) -> list[Score]:
    scores = []
    for key, value in row.items():
        metric, comma, name = key.partition(",")
        if not comma or metric.endswith("_stderr") or not _is_number(value):
            continue
        error = row.get(f"{metric}_stderr,{name}")
        better = _section(_section(results, "higher_is_better"), task).get(metric)
        samples = _section(_section(results, "n-samples"), task).get("effective")
        version = _section(results, "versions").get(task)
        scores.append(
            Score(
                task=task,
                metric=metric,
                filter=name,
                value=float(value),
                stderr=float(error) if error is not None and _is_number(error) and math.isfinite(error) else None,
                higher_is_better=better if isinstance(better, bool) else None,
                samples=samples if isinstance(samples, int) else None,
                fewshot=_section(results, "n-shot").get(task),
                version=None if version is None else str(version),
                headline=headline,
            )
        )
    return scores


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """An earlier evaluation."""

    path: Path
    report: Mapping[str, Any]
    scores: tuple[Score, ...]
    questions: Mapping[str, Any] = field(default_factory=dict)


def read_baseline(path: Path) -> Baseline:
    """The report of an earlier run: report.json, or the report or run folder. Raises JobError `unreadable_baseline`."""
    path = expanded(path)
    places = (path, path / REPORT, path / "report" / REPORT)
    file = next((place for place in places if is_file(place)), None)
    remedy = "Name the report folder of an evaluate run."
    if file is None:
        raise JobError("unreadable_baseline", f"there is no {REPORT} in {path}.", remedy)
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
        scores = tuple(Score(**row["score"]) for row in report["scores"])
        if report["schema"] != SCHEMA or not scores:
            raise ValueError("it is not a report of this form")
    except (OSError, ValueError, KeyError, TypeError) as error:
        cause = f"{file} is not the report of an evaluate run: {type(error).__name__}: {error}."
        raise JobError("unreadable_baseline", cause, remedy) from error
    return Baseline(path=file, report=report, scores=scores, questions=read_questions(file.parent))


def compare(
    scores: Sequence[Score], baseline: Baseline | None, questions: Mapping[str, Any] | None = None
) -> tuple[list[Compared], list[str]]:
    """Each score beside its earlier value, and a sentence for each task whose two values mean different things.

    `questions` are what the scores are made of.
    """
    earlier = {score.key: score for score in baseline.scores} if baseline else {}
    rows, different = [], {}
    for score in scores:
        before = earlier.get(score.key)
        if before is None:
            rows.append(Compared(score=score))
        elif before.asked != score.asked:
            different[score.task] = f"{_asked(before)} then, {_asked(score)} now"
            rows.append(Compared(score=score))
        else:
            error = math.hypot(score.stderr or 0.0, before.stderr or 0.0)
            known = error and score.stderr is not None and before.stderr is not None
            sigmas = (score.value - before.value) / error if known else None
            ends = (questions or {}, score.value), (baseline.questions if baseline else {}, before.value)
            between = interval_of_change(score.key, *ends)
            rows.append(Compared(score=score, before=before.value, sigmas=sigmas, interval=between))
    sentences = [f"baseline_not_comparable: {task} was asked otherwise: {how}." for task, how in different.items()]
    if baseline and not any(row.before is not None for row in rows) and not sentences:
        sentences.append("baseline_not_comparable: the baseline has none of these tasks.")
    return rows, sentences


def _asked(score: Score) -> str:
    return f"{score.samples} questions with {score.fewshot} examples, version {score.version}"


def as_rows(compared: Sequence[Compared]) -> list[dict[str, Any]]:
    """For report.json."""
    return [
        {"score": asdict(row.score), "change": row.change}
        | {name: getattr(row, name) for name in ("before", "sigmas", "interval")}
        for row in compared
    ]
