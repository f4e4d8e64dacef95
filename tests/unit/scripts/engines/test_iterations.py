"""What a training prints of its iterations becomes figures, wherever the pieces of its output end."""

import sys
import time
from pathlib import Path

import pytest

from scripts.engines.child import Output, run_child
from scripts.engines.iterations import MOST_ROWS, Iterations
from scripts.run.record import Follower

LINE = (
    " [2026-11-27 10:00:00.1] iteration        5/      20 | consumed samples:           40 |"
    " elapsed time per iteration (ms): 123.4 | learning rate: 1.000000E-04 | global batch size:     8 |"
    " lm loss: 1.071E+01 | loss scale: 1.0 | grad norm: 2.3 | number of skipped iterations:   0 |"
    " number of nan iterations:   0 |\n"
)
FIGURES = {
    **{"consumed samples": 40.0, "elapsed time per iteration (ms)": 123.4, "learning rate": 1e-4},
    **{"global batch size": 8.0, "lm loss": 10.71, "loss scale": 1.0, "grad norm": 2.3},
    **{"number of skipped iterations": 0.0, "number of nan iterations": 0.0},
}


@pytest.mark.parametrize("size", [1, 7, 100, 10_000])
def test_an_iteration_is_found_once_wherever_pieces_end(size: int) -> None:
    text = f"loading\n{LINE}iteration of what it prints else | no: figure\n{LINE.replace('  5/', '  6/')}".encode()
    iterations = Iterations()
    found = [one for at in range(0, len(text), size) for one in iterations.feed(text[at : at + size])]
    assert found == [(5, FIGURES), (6, FIGURES)]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("[default7]: iteration 1/2 | lm loss: nan | throughput per GPU (TFLOP/s/GPU): 301.5 |", {"lm loss": "nan"}),
        (
            "validation loss at iteration 20 on test set | lm loss value: 2.0 | lm loss PPL: 7.4 |",
            {"lm loss PPL": 7.4},
        ),
        ("Iteration 5 of the loop: fine | a: 1", {}),
        ("iteration 5/20 without a bar: 3", {}),
        ("iteration 99999999999999999999/1 | a: 1 |", {}),
        ("iteration 5/20 | a: one | b: 1.2.3 | : 4 | c:", {}),
    ],
)
def test_lines_that_are_iterations_and_lines_that_are_none(line: str, found: dict[str, object]) -> None:
    figures = dict(one for _, of in Iterations().feed(f"{line}\n".encode()) for one in of.items())
    assert figures.keys() >= found.keys() and bool(figures) is bool(found)
    assert all(str(figures[name]) == str(value) for name, value in found.items())


def test_a_long_training_has_fewer_of_its_iterations_and_its_last() -> None:
    iterations, steps, rows = Iterations(), [], 0
    for step in range(1, 50_001):
        for found, figures in iterations.feed(f" iteration {step}/ 50000 | lm loss: 1.0 | grad norm: 2 |\n".encode()):
            steps.append(found)
            rows += len(figures)
    assert rows <= MOST_ROWS and len(steps) > MOST_ROWS // 3
    assert (steps[0], steps[-1]) == (1, 50_000)
    assert sum(1 for _ in iterations.feed(b"iteration 3 | a: 1\n" * MOST_ROWS * 2)) <= MOST_ROWS


def test_what_never_ends_a_line_or_prints_like_mad_is_no_burden() -> None:
    iterations, began = Iterations(), time.monotonic()
    for _ in range(500):
        assert not list(iterations.feed(b"iteration 1/2 | a: " + b"1" * 65_000))
        assert not list(iterations.feed(b"iteration 1" * 5000 + b"|\n"))
    assert time.monotonic() - began < 20


def test_they_stand_in_metrics_of_the_run_whichever_rank_prints_them(tmp_path: Path) -> None:
    record = Follower(tmp_path, {"rank": 7})  # the last of the pipeline, as a rule
    program = f"for i in range(1, 4): print({LINE!r}.replace('5/', f'{{i}}/'), end='')"
    run_child(
        [sys.executable, "-c", program],
        env={},
        output=Output(tmp_path / "tail"),
        silence=0,
        progress=lambda done, of: None,
        measured=record.measured,
    )
    text = (record.dir / "metrics.jsonl").read_text()
    assert text.count('"name": "lm loss", "value": 10.71, "step": ') == 3 and text.count("\n") == 3 * len(FIGURES)
