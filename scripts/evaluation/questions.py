"""What each question of a harness came to, kept beside the report, so that two runs are compared question by question.

Two models that are asked the same questions fail at the same hard ones: the change has a far smaller error than the
two scores. Source: lm_eval 0.4.9 and 0.4.13, `--log_samples`: a line of JSON for each question, with `doc_id`,
`doc_hash`, `filter`, and one value for each of its `metrics`: a number, or of a perplexity [log likelihood, length].
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.run.files import is_file, write_json
from scripts.run.schema import mapping

if TYPE_CHECKING:
    import numpy

SCHEMA = 1
QUESTIONS = "questions.json"
#: Drawings of the bootstrap, the percentiles that hold 95% of them, and the fewest questions that say anything.
_DRAWN, _PERCENTILES, _LEAST = 2000, (2.5, 97.5), 8
#: How a score may be made of its questions' values, [questions, columns]: a mean, the perplexity of likelihoods, and a
#: perplexity and bits by length. The one that gives the score is the one.
_STATISTICS: "tuple[tuple[int, Callable[[numpy.ndarray], float]], ...]" = (
    (1, lambda values: float(values[:, 0].mean())),
    (1, lambda values: math.exp(-values[:, 0].mean())),
    (2, lambda values: math.exp(-values[:, 0].sum() / values[:, 1].sum())),
    (2, lambda values: float(-values[:, 0].sum() / values[:, 1].sum() / math.log(2))),
)


def keep_questions(folder: Path, groups: Mapping[str, Any]) -> dict[str, Any]:
    """Write what the harness logged in `folder` as questions.json beside it: numbers and digests, no text.

    A group has the questions of its members.
    """
    tasks: dict[str, Any] = {}
    for file in sorted(folder.glob("samples_*.jsonl")):
        tasks[file.stem.removeprefix("samples_").rpartition("_")[0]] = _of_file(file)
    for group in groups:
        if members := [tasks[name] for name in _members(group, groups) if name in tasks]:
            tasks.setdefault(group, _joined(members))
    found = {"schema": SCHEMA, "tasks": tasks}
    write_json(folder / QUESTIONS, found)
    return found


def read_questions(report: Path) -> dict[str, Any]:
    """Those that were kept in a report's folder; none where there are none, or the file is another's."""
    file = report / QUESTIONS
    try:
        found = mapping(json.loads(file.read_text(encoding="utf-8"))) if is_file(file) else {}
    except (OSError, ValueError):
        return {}
    return dict(found) if found.get("schema") == SCHEMA else {}


def interval_of_change(
    key: tuple[str, str, str], now: tuple[Mapping[str, Any], float], before: tuple[Mapping[str, Any], float]
) -> tuple[float, float] | None:
    """What 95% of other questions would have given for the change of a score: a paired bootstrap over the questions.

    `key` is the score's task, metric and filter; `now` and `before` are the questions of a run and its score. None
    where not the same questions were asked, fewer than 8, or the score is not made of them in a known way.
    """
    import numpy

    (asked, values), (asked_before, earlier) = (_values(found, key) for found, _ in (now, before))
    if not asked or asked != asked_before or values.shape != earlier.shape or len(values) < _LEAST:
        return None
    for columns, statistic in _STATISTICS:
        ends = (values, now[1]), (earlier, before[1])
        if columns == values.shape[1] and all(_gives(statistic, of, score) for of, score in ends):
            chance = numpy.random.default_rng(0)
            drawn = (chance.integers(len(values), size=len(values)) for _ in range(_DRAWN))
            changes = [statistic(values[rows]) - statistic(earlier[rows]) for rows in drawn]
            low, high = numpy.percentile(changes, _PERCENTILES)
            return float(low), float(high)
    return None


def _gives(statistic: "Callable[[numpy.ndarray], float]", values: "numpy.ndarray", score: float) -> bool:
    try:
        return math.isclose(statistic(values), score, rel_tol=1e-6, abs_tol=1e-9)
    except (OverflowError, ZeroDivisionError):
        return False


def _values(found: Mapping[str, Any], key: tuple[str, str, str]) -> "tuple[str, numpy.ndarray]":
    """The digest of the questions, and the values of a metric, [questions, 1 or 2]; "" and none where it has none."""
    import numpy

    task, metric, name = key
    kept = mapping(mapping(mapping(found.get("tasks")).get(task)).get(name))
    try:
        values = numpy.asarray(mapping(kept.get("values")).get(metric) or [], dtype=numpy.float64)
    except (TypeError, ValueError):
        return "", numpy.empty((0, 1))
    values = values[:, None] if values.ndim == 1 else values
    usable = values.ndim == 2 and values.shape[1] in (1, 2) and bool(numpy.isfinite(values).all())
    return (str(kept.get("asked", "")), values) if usable else ("", numpy.empty((0, 1)))


def _of_file(file: Path) -> dict[str, Any]:
    """By filter: a digest of what was asked, and each metric's values, in the questions' order."""
    rows: dict[str, list[tuple[Any, Any, dict[str, Any]]]] = {}
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            row = mapping(json.loads(line))
            values = {name: row.get(name) for name in row.get("metrics") or ()}
            rows.setdefault(str(row.get("filter")), []).append((row.get("doc_id"), row.get("doc_hash"), values))
    return {name: _kept(sorted(of, key=lambda one: str(one[0]))) for name, of in rows.items()}


def _kept(rows: list[tuple[Any, Any, dict[str, Any]]]) -> dict[str, Any]:
    metrics = dict.fromkeys(name for _, _, values in rows for name in values)
    columns = {name: [values.get(name) for _, _, values in rows] for name in metrics}
    usable = {name: column for name, column in columns.items() if all(_is_value(one) for one in column)}
    return {"asked": _digest(f"{number} {asked}" for number, asked, _ in rows), "values": usable}


def _is_value(value: Any) -> bool:
    parts = value if isinstance(value, list) and len(value) == 2 else [value]
    return all(isinstance(part, (int, float)) and math.isfinite(part) for part in parts)


def _joined(members: list[Mapping[str, Any]]) -> dict[str, Any]:
    """Of the filters and metrics that all members have."""
    joined = {}
    for name in set.intersection(*(set(member) for member in members)):
        parts = [member[name] for member in members]
        metrics = set.intersection(*(set(part["values"]) for part in parts))
        values = {metric: [value for part in parts for value in part["values"][metric]] for metric in metrics}
        joined[name] = {"asked": _digest(part["asked"] for part in parts), "values": values}
    return joined


def _members(group: str, groups: Mapping[str, Any]) -> list[str]:
    """The tasks of a group, those of the groups within it too."""
    inner = groups.get(group) or ()
    return [task for name in inner for task in (_members(name, groups) if name in groups and name != group else [name])]


def _digest(texts: Iterable[str]) -> str:
    return sha256("\n".join(texts).encode()).hexdigest()
