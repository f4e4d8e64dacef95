"""`ps` as a table: within 80 columns on a terminal, whole words in a pipe."""

import dataclasses
import json
import os
import time
from pathlib import Path

import pytest

from executors.local import LocalProfile
from recipes.cli.show import _next_steps
from recipes.experiment.runs import Run
from recipes.experiment.store import RunFolder
from scripts.run.drawing import size_text, took_text
from scripts.run.record import Record
from tests.answers import data_of
from tests.jobs import submitted
from tests.runs import Shell, recorded

LONG = "quantize_nvfp4-64-a-long-name-of-a-sweep_1126-0805-47f9a1"


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch) -> Shell:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("FORCE_COLOR", "1")  # a terminal, as rich sees it
    return Shell()


def ended(folder: Path, report: dict[str, object]) -> Run:
    values = {"args": {"hf_model_id": "nvidia/Nemotron-3-Nano-30B-A3B-BF16"}}
    record = Record.submit(folder, id=folder.name, recipe="quantize_nvfp4", values=values)
    (folder / "report").mkdir()
    (folder / "report" / "report.json").write_text(json.dumps(report))
    outputs = [{"type": "checkpoint_hf", "path": str(folder / "hf"), "bytes": 17_300_000_000, "files": 4}]
    times = {"started_at": "2026-11-26T08:05:00.000Z", "finished_at": "2026-11-26T09:17:30.000Z"}
    record.update(state="succeeded", outputs=outputs, **times)
    submitted(RunFolder(dir=folder), LocalProfile(), settled=True)
    return Run.read(RunFolder(dir=folder))


def test_a_table_fits_a_terminal(home: Path, shell: Shell) -> None:
    ended(home / "runs" / LONG, {"evaluation": {"perplexity_base": 8.0, "perplexity_quantized": 8.1}})
    recorded(home, "probe_1126-0805-000001")
    done = shell("ps", "--all")
    table = done.stdout.splitlines()[:3]
    assert all(len(line) <= 80 for line in table)
    assert table[0].split() == ["ID", "RECIPE", "MODEL", "WHERE", "STATE", "SINCE", "TOOK", "SIZE", "FIGURE"]
    (row,) = (line for line in table if line.startswith("47f9a1"))
    for said in ("quantize_", "Nemotron", "succeeded", "Nov 26", "1h12m", "17.3 GB", "ppl +1.25%"):
        assert said in row
    assert "000001  told_to_fail: m" in done.stdout
    done = shell("ps")
    assert "2 more ended: nemo experiment ps --all." in done.stdout and "No run goes on." in done.stdout


def test_a_pipe_gets_whole_words(home: Path) -> None:
    ended(home / "runs" / LONG, {})
    shown = Shell()("ps", "--all").stdout
    assert LONG in shown and "Nemotron-3-Nano-30B-A3B-BF16" in shown


def test_ids_that_end_alike_are_shown_whole(home: Path, shell: Shell) -> None:
    for run_id in ("a_1126-0805-000001", "b_1126-0805-000001", "c_1126-0805-000002"):
        recorded(home, run_id)
    shown = shell("ps", "--all").stdout
    assert "a_1126-0805-000001 " in shown and "b_1126-0805-000001 " in shown and "\n000002 " in shown


@pytest.mark.parametrize(
    ("report", "figure"),
    [
        ({"evaluation": {"perplexity_base": 8.0, "perplexity_quantized": 7.9}, "size": {}}, "ppl -1.25%"),
        ({"evaluation": None, "size": {"base_bytes": 100, "export_bytes": 59}}, "-41% size"),
        ({"scores": [{"score": {"task": "mmlu", "metric": "acc", "value": 0.6543}}]}, "mmlu 0.654"),
        ({"scores": 3, "evaluation": [], "size": None}, ""),
        ({}, ""),
    ],
)
def test_the_figure_that_says_most(home: Path, report: dict[str, object], figure: str) -> None:
    assert ended(home / "runs" / "q_1126-0805-000001", report).figure == figure


def test_runs_of_other_folders(home: Path, tmp_path: Path, shell: Shell) -> None:
    ended(tmp_path / "output" / "mine" / "quantize_1-a", {})
    assert data_of(shell("ps", "--all", "--json").stdout) == []
    (row,) = data_of(shell("ps", "--all", "--in", str(tmp_path / "output"), "--json").stdout)
    assert row["id"] == "quantize_1-a"


def test_watching_ends_with_ctrl_c(home: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded(home, "probe_1126-0805-000001")
    left = [None, None]

    def sleep(_: float) -> None:
        if not left:
            raise KeyboardInterrupt
        left.pop()

    monkeypatch.setattr(time, "sleep", sleep)
    done = shell("ps", "--all", "--watch")
    assert done.exit_code == 0 and done.stdout.count("RECIPE") == 3
    assert shell("ps", "--watch", "--json").exit_code == 2


def test_sizes_and_times_are_short() -> None:
    assert [size_text(size) for size in (0, 999, 1000, 99_949, 99_950, 999_499, 999_500, 5.9e9, 2e15)] == [
        *("0 B", "999 B", "1.0 kB", "99.9 kB", "100 kB", "999 kB", "1.0 MB", "5.9 GB", "2000 TB"),
    ]
    assert [took_text(seconds) for seconds in (-1, 0.4, 59.4, 59.6, 192, 3600, 7505, 97_300)] == [
        *("0s", "0s", "59s", "1m00s", "3m12s", "1h00m", "2h05m", "1d03h"),
    ]


def test_a_run_with_a_name_of_its_own_shows_its_recipe_too(home: Path) -> None:
    recorded(home, "mine_1126-0805-000001")
    assert " probe mine " in Shell()("ps", "--all").stdout


@pytest.mark.parametrize(
    "odd",
    [
        {"started_at": "2026-11-26T08:05:00"},
        {"values": {"args": [1]}, "recipe": "quantize_fp8"},
        {"finished_at": "9999-12-31T23:59:59.999Z"},
        {"values": {"args": {"hf_model_id": "/m/llama:fire:v1"}}},
    ],
)
def test_one_damaged_record_does_not_take_the_table_away(home: Path, shell: Shell, odd: dict[str, object]) -> None:
    recorded(home, "probe_1126-0805-000001")
    folder = home / "runs" / "quantize_1126-0805-000002"
    ended(folder, {"evaluation": {"perplexity_base": "x", "perplexity_quantized": [1]}})
    (folder / "run.json").write_text(json.dumps(json.loads((folder / "run.json").read_text()) | odd))
    done = shell("ps", "--all")
    assert done.exit_code == 0 and "000001" in done.stdout and "000002" in done.stdout and "🔥" not in done.stdout


@pytest.mark.parametrize("columns", ["0", "1", "20"])
def test_a_narrow_terminal_shows_ids_whole(
    home: Path, shell: Shell, columns: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    recorded(home, "probe_1126-0805-47f9a1")
    assert "\n47f9a1 " in shell("ps", "--all").stdout


@pytest.mark.parametrize(
    ("kinds", "steps"),
    [
        (["checkpoint_modelopt", "checkpoint_hf"], ["run evaluate args.checkpoint=", "run serve args.checkpoint="]),
        (["checkpoint_megatron"], ["run export args.megatron_load_path="]),
        ([], []),
    ],
)
def test_what_mostly_follows_a_run(home: Path, kinds: list[str], steps: list[str]) -> None:
    run = ended(home / "runs" / "q_1126-0805-000001", {})
    outputs = [{"type": kind, "path": f"/m/{kind}"} for kind in (*kinds, "eval_results")]
    run = dataclasses.replace(run, record=run.record | {"outputs": outputs})
    found = list(_next_steps(run))
    assert found[0] == f"open {run.id}" and [line.partition("'")[0] for line in found[1:]] == steps


def test_folders_that_a_setting_names_are_listed_beside_our_own(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell = Shell()
    recorded(home, "probe_1126-0805-00000a")
    recorded(tmp_path / "output", "probe_1126-0805-00000b")
    monkeypatch.setenv("MODELOPT_RECIPES_RUNS", f"{tmp_path / 'output'}{os.pathsep}{tmp_path / 'gone'}")
    done = shell("ps", "--all")
    assert done.exit_code == 0 and f"MODELOPT_RECIPES_RUNS={tmp_path / 'gone'}" in done.stderr
    monkeypatch.setenv("MODELOPT_RECIPES_RUNS", f"{tmp_path / 'output'}{os.pathsep}{home / 'runs'}")
    listed = shell("ps", "--all", "--quiet").stdout.split()
    assert sorted(listed) == ["probe_1126-0805-00000a", "probe_1126-0805-00000b"]
    (alone,) = data_of(shell("ps", "--all", "--in", str(tmp_path / "output"), "--json").stdout)
    assert alone["id"] == "probe_1126-0805-00000b"
