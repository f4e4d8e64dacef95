"""The values of single questions: kept without their words, and compared in pairs."""

import json
import math
import random
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from scripts.evaluation.questions import QUESTIONS, interval_of_change, keep_questions, read_questions

CHANCE = random.Random(5)
#: Of forty questions: whether each was answered before, and three that were answered then alone.
BEFORE = [float(CHANCE.random() < 0.6) for _ in range(40)]
AFTER = [0.0 if number in {BEFORE.index(1.0), 20, 30} else value for number, value in enumerate(BEFORE)]
KEY = ("t", "acc", "none")


def logged(folder: Path, values: list[Any], *, task: str = "t", metric: str = "acc", **more: Any) -> None:
    folder.mkdir(exist_ok=True)
    rows = [
        {"doc_id": number, "doc_hash": f"{number:x}", "doc": "PRIVATE", "filter": "none", "metrics": [metric]}
        | {metric: value, **more}
        for number, value in enumerate(values)
    ]
    CHANCE.shuffle(rows)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / f"samples_{task}_2026-11-28T06-23-06.6.jsonl").write_text(text)


def kept(folder: Path, values: list[Any], **more: Any) -> dict[str, Any]:
    logged(folder, values, **more)
    keep_questions(folder, {})
    return read_questions(folder)


def test_pairs_say_more_than_two_scores_with_their_errors(tmp_path: Path) -> None:
    now, before = kept(tmp_path / "now", AFTER), kept(tmp_path / "before", BEFORE)
    change = mean(AFTER) - mean(BEFORE)
    found = interval_of_change(KEY, (now, mean(AFTER)), (before, mean(BEFORE)))
    assert found is not None and found[0] <= change <= found[1] <= 0
    unpaired = 1.96 * math.hypot(*(math.sqrt(mean(one) * (1 - mean(one)) / 39) for one in (AFTER, BEFORE)))
    assert found[1] - found[0] < unpaired, "less than half as wide"
    assert found == interval_of_change(KEY, (now, mean(AFTER)), (before, mean(BEFORE))), "twice the same"
    assert "PRIVATE" not in (tmp_path / "now" / QUESTIONS).read_text()


@pytest.mark.parametrize("metric", ["word_perplexity", "bits_per_byte"])
def test_a_perplexity_is_made_of_sums(tmp_path: Path, metric: str) -> None:
    pairs = [[-3.0 * length, length] for length in range(20, 40)]
    worse = [[likelihood * 1.01, length] for likelihood, length in pairs]
    of = {"word_perplexity": math.exp, "bits_per_byte": lambda bits: bits / math.log(2)}[metric]
    ends = [
        (kept(tmp_path / name, one, metric=metric), of(rate))
        for name, one, rate in (("n", worse, 3.03), ("b", pairs, 3.0))
    ]
    low, high = interval_of_change(("t", metric, "none"), *ends) or (0, 0)
    assert low == pytest.approx(of(3.03) - of(3.0)) == high, "each text lost the same share"


@pytest.mark.parametrize("what", ["other questions", "other score", "few", "text", "gone", "damaged"])
def test_what_cannot_be_paired_is_not(tmp_path: Path, what: str) -> None:
    values = {"few": AFTER[:5], "text": ["a"] * 40}.get(what, AFTER)
    now = kept(tmp_path / "now", values, **({"doc_hash": "x"} if what == "other questions" else {}))
    before = kept(tmp_path / "before", BEFORE[: len(values)])
    if what == "gone":
        now = read_questions(tmp_path)
    if what == "damaged":
        (tmp_path / "now" / QUESTIONS).write_text('{"schema": 1, "tasks": {"t": {"none": {"asked": 1, "values": []}}}}')
        now = read_questions(tmp_path / "now")
    score = 0.1 if what == "other score" else mean(AFTER[: len(values)])
    assert interval_of_change(KEY, (now, score), (before, mean(BEFORE[: len(values)]))) is None


def test_a_group_has_the_questions_of_its_members(tmp_path: Path) -> None:
    for name, (first, second) in {"now": (AFTER, BEFORE[:10]), "before": (BEFORE, AFTER[:10])}.items():
        logged(tmp_path / name, first, task="one")
        logged(tmp_path / name, second, task="two")
        keep_questions(tmp_path / name, {"all": ["one", "inner"], "inner": ["two"]})
    now, before = (read_questions(tmp_path / name) for name in ("now", "before"))
    scores = mean([*AFTER, *BEFORE[:10]]), mean([*BEFORE, *AFTER[:10]])
    found = interval_of_change(("all", "acc", "none"), (now, scores[0]), (before, scores[1]))
    assert found is not None and found[0] < scores[0] - scores[1] < found[1]
