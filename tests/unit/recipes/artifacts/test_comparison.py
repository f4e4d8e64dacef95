"""Runs side by side: which are on the front, which wins, and what cannot be held against each other."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from recipes.artifacts.comparison import compare
from recipes.catalogue import config_of, find, layers, merge_files
from scripts.run.problems import ProblemsError
from scripts.run.record import Record
from tests.answers import data_of
from tests.runs import FIGURES, Shell, quantized


@pytest.fixture
def sizes(home: Path) -> dict[str, str]:
    return {fmt: quantized(home, fmt) for fmt in FIGURES}


def test_the_front_is_what_nothing_beats_and_the_winner_is_the_smallest_that_is_good(sizes: dict[str, str]) -> None:
    found = compare(["sizes"], 0.01)
    assert set(found.front) == {sizes["fp8"], sizes["int4_awq"], sizes["w4a8_awq"]}
    assert (found.winner, found.notes) == (sizes["int4_awq"], ())
    assert compare(["sizes"], 0.025).winner == sizes["w4a8_awq"]
    assert compare(["sizes"], 0.0015).winner == sizes["fp8"]
    none = compare(["sizes"], 0.0)
    assert none.winner is None and "none keeps its perplexity within 0.00%" in none.notes[0]


def test_only_what_differs_is_shown(sizes: dict[str, str]) -> None:
    found = compare(list(sizes.values()), 0.01)
    assert found.keys == ["args.export_quant_cfg"]
    (row,) = (found.cells(one) for one in found.rows if one.run.id == sizes["fp8"])
    assert row[1:] == (
        sizes["fp8"],
        "fp8",
        "50.0 MB",
        "2.00x",
        "10.010",
        "+0.10%",
        "0.00100",
        "97.00%",
        "1m02s",
        "front",
    )


def test_a_format_that_no_value_says_is_told_as_the_report_has_it(home: Path, sizes: dict[str, str]) -> None:
    folder = home / "runs" / sizes["nvfp4"]
    record, report = (json.loads((folder / name).read_text()) for name in ("run.json", "report/report.json"))
    del record["values"]["args"]["export_quant_cfg"]
    (folder / "run.json").write_text(json.dumps(record))
    for name in sizes:
        file = home / "runs" / sizes[name] / "report" / "report.json"
        told = "nvfp4+fp8 at 6 bits" if name == "nvfp4" else name
        file.write_text(json.dumps((report if name == "nvfp4" else json.loads(file.read_text())) | {"format": told}))
    found = compare(["sizes"], 0.01)
    assert found.columns[:4] == ("#", "run", "format", "size")
    assert {found.cells(row)[2] for row in found.rows} == {*sizes, "nvfp4+fp8 at 6 bits"} - {"nvfp4"}
    shown = Shell()("compare", "sizes").stdout
    assert "nvfp4+fp8 at 6 bits" in shown
    assert "front      no other is both smaller and better; the winner is the smallest whose perplexity is" in shown


@pytest.mark.parametrize(
    "report",
    [
        {"model": "Qwen/Qwen3-8B"},
        {"evaluation": {"source": "held", "samples": 8, "tokens": 9, "perplexity_base": 10.0, "kl_divergence": 0.0}},
    ],
)
def test_what_was_scored_otherwise_is_not_held_against_the_others(home: Path, report: dict[str, Any]) -> None:
    quantized(home, "fp8")
    quantized(home, "nvfp4", report)
    found = compare(["sizes"], 1.0)
    assert (found.front, found.winner) == ((), None) and "other text or against other models" in found.notes[0]


@pytest.mark.parametrize(
    "report",
    [
        {},
        {"evaluation": None},
        {"evaluation": [], "size": 7, "scores": {"a": 1}, "model": ["x"]},
        {"evaluation": {"perplexity_base": "ten", "perplexity_quantized": math.nan, "kl_divergence": math.inf}},
        {
            "model": {"a": 1},
            "evaluation": {"source": [], "tokens": {}, "perplexity_base": 10.0, "kl_divergence": 1.7e308},
        },
        {"size": {"base_bytes": -1, "export_bytes": True}, "scores": [{"score": 3}, 4]},
    ],
)
def test_odd_reports_are_rows_without_figures(home: Path, sizes: dict[str, str], report: dict[str, Any]) -> None:
    file = home / "runs" / sizes["nvfp4"] / "report" / "report.json"
    file.write_text(json.dumps(report))
    found = compare(["sizes"], 0.01)
    assert sizes["nvfp4"] not in found.front and found.winner == sizes["int4_awq"]
    assert Shell()("compare", "sizes").exit_code == 0


def test_one_run_is_nothing_to_compare(sizes: dict[str, str]) -> None:
    with pytest.raises(ProblemsError) as caught:
        compare([sizes["fp8"], sizes["fp8"]], 0.01)
    assert caught.value.problems[0].name == "nothing_to_compare"


def test_the_winner_s_file_gives_its_values_again(sizes: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "best.yaml"
    done = Shell()("compare", "sizes", "--write", str(file), "--html", str(tmp_path / "page.html"))
    assert done.exit_code == 0 and "winner" in done.stdout
    assert yaml.safe_load(file.read_text())["args"] == {
        "hf_model_id": "tiny:qwen3",
        "export_quant_cfg": "int4_awq",
        "calib_size": 16,
    }
    partial = find("quantize").outline()
    family = find("quantize").family
    assert merge_files(partial, layers(family, config_of(family, str(file)))) == []
    assert partial.args.export_quant_cfg == "int4_awq"
    page = (tmp_path / "page.html").read_text()
    assert "<svg" in page and sizes["w4a8_awq"] in page
    again = Shell()("compare", "sizes", "--write", str(file))
    assert again.exit_code == 2 and "output_exists" in again.stderr


def test_without_a_winner_there_is_nothing_to_write(sizes: dict[str, str], tmp_path: Path) -> None:
    done = Shell()("compare", "sizes", "--within", "0", "--write", str(tmp_path / "best.yaml"))
    assert done.exit_code == 2 and "no_winner" in done.stderr and not (tmp_path / "best.yaml").exists()


@pytest.mark.parametrize("share", ["a", "-1%", "200%", "nan", ""])
def test_a_share_that_is_none_is_refused(share: str, sizes: dict[str, str]) -> None:
    done = Shell()("compare", "sizes", "--within", share)
    assert done.exit_code == 2 and "--within" in done.stderr


def test_the_answer_has_figures(sizes: dict[str, str]) -> None:
    data = data_of(Shell()("compare", "sizes", "--json").stdout)
    assert data["winner"] == sizes["int4_awq"] and len(data["runs"]) == 5
    assert data["runs"][0]["values"] == {"args.export_quant_cfg": "fp8"}


def test_a_failed_run_is_neither_on_the_front_nor_the_winner(sizes: dict[str, str], home: Path) -> None:
    file = home / "runs" / sizes["int4_awq"] / "run.json"
    error = {"name": "out_of_memory", "message": "m", "remedy": "r"}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"state": "failed", "error": error}))
    found = compare(["sizes"], 0.01)
    assert sizes["int4_awq"] not in found.front and found.winner == sizes["fp8"]


def test_both_files_are_written_or_none(sizes: dict[str, str], tmp_path: Path) -> None:
    page, file = tmp_path / "page.html", tmp_path / "best.yaml"
    page.write_text("mine")
    assert Shell()("compare", "sizes", "--write", str(file), "--html", str(page)).exit_code == 2
    assert page.read_text() == "mine" and not file.exists()
    assert Shell()("compare", "sizes", "--write", str(file), "--html", str(file)).exit_code == 2
    assert not file.exists()


def test_runs_are_named_by_any_part_of_their_ids(sizes: dict[str, str]) -> None:
    assert len(compare(["_0101-0000"], 0.01).rows) == 5


def evaluated(home: Path, run_id: str, algorithm: str, takes: dict[str, str], score: float | None) -> str:
    """A run of another stage, which took what others left: types by run."""
    folder = home / "runs" / run_id
    values = {"args": {"checkpoint": run_id, "batch": len(run_id)}}
    record = Record.submit(folder, id=run_id, recipe=algorithm, algorithm=algorithm, values=values)
    record.update(inputs=[{"type": kind, "name": "args.x", "run": run} for run, kind in takes.items()])
    record.finish("succeeded")
    if score is not None:
        row = {"score": {"task": "piqa", "headline": True, "value": score}}
        (folder / "report").mkdir()
        (folder / "report" / "report.json").write_text(json.dumps({"scores": [row]}))
    return run_id


def test_an_evaluation_is_a_part_of_what_it_scored(sizes: dict[str, str], home: Path) -> None:
    baseline = evaluated(home, "sizes-baseline_1", "evaluate", {}, 0.5)
    direct = {sizes["fp8"]: "checkpoint_hf", baseline: "eval_results"}
    evaluated(home, "sizes-evaluate-fp8_1", "evaluate", direct, 0.48)
    exported = evaluated(home, "sizes-export_1", "export", {sizes["nvfp4"]: "checkpoint_megatron"}, None)
    evaluated(home, "sizes-evaluate-nvfp4_1", "evaluate", {exported: "checkpoint_hf"}, 0.4)
    found = compare(["sizes"], 0.01)
    assert {row.run.id for row in found.rows} == {*sizes.values(), baseline}
    tasks = {row.run.id: dict(row.tasks) for row in found.rows if row.tasks}
    assert tasks == {baseline: {"piqa": 0.5}, sizes["fp8"]: {"piqa": 0.48}, sizes["nvfp4"]: {"piqa": 0.4}}
    assert found.keys == ["args.export_quant_cfg"] and found.winner == sizes["int4_awq"]
