"""`nemo experiment rehearse`: a job for a cluster, run here on a small model, by the hf engine."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import typer
import yaml
from nemo_run.config import get_nemorun_home, set_nemorun_home
from typer.testing import CliRunner

from recipes import catalogue
from recipes.cli import commands
from tests.conftest import Done

pytestmark = pytest.mark.integration

Nemo = Callable[..., Done]
JOB = ("rehearse", "quantize_fp8", "executor=slurm", "args.hf_model_id=Qwen/Qwen3-8B", "executor.nodes=2", "args.tp=8")


def test_a_job_for_a_cluster_is_run_here(nemo: Nemo, home: Path, tmp_path: Path) -> None:
    done = nemo(*JOB, "--json", env={"XDG_CACHE_HOME": str(tmp_path / "cache")})
    assert done.code == 0, done.err
    told = done.json
    assert (told["state"], told["engine"], told["processes"], told["executor"]) == ("succeeded", "hf", 1, "slurm")
    changed = {one["key"]: one["here"] for one in told["changes"]}
    assert changed["args.calib_size"] == 8 and changed["args.tp"] == 1
    (run,) = told["runs"]
    assert Path(run["dir"]).parent == home / "runs"
    assert {output["type"] for output in run["outputs"]} >= {"checkpoint_hf"}
    assert any("packaging for slurm" in line for line in told["exercised"])
    assert any("its queue" in line for line in told["not_exercised"])
    assert any("quantize.py" in line for line in told["not_exercised"])


def test_what_a_submission_would_refuse_is_refused(nemo: Nemo, home: Path) -> None:
    done = nemo(*JOB, "args.calib_sise=3")
    assert done.code == 2 and "calib_size" in done.err and not (home / "runs").exists()
    done = nemo("rehearse", "mlm_quantize", "executor=slurm")
    assert done.code == 2 and "cannot_rehearse" in done.err and "script.path" in done.err


def test_all_of_them_are_a_table(home: Path, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a catalogue of three: one without an engine, one of the hf engine, one that cannot be rehearsed here."""
    some = ("probe", "quantize_tiny", "mlm_quantize")

    class Some(catalogue.Catalogue):
        def __iter__(self) -> Iterator[str]:
            return iter(some)

    monkeypatch.setattr(catalogue, "RECIPES", Some())
    monkeypatch.chdir(work)
    app = typer.Typer()
    commands.register(app)
    before = get_nemorun_home()
    set_nemorun_home(str(home))  # it was read when nemo_run was imported
    try:
        done = CliRunner().invoke(app, ["rehearse", "--all"])
    finally:
        set_nemorun_home(before)
    assert done.exit_code == 0, done.output
    lines = {line.split()[0]: line for line in done.stdout.splitlines() if line.split()[:1] and line.split()[0] in some}
    assert lines.keys() == set(some), done.output
    assert lines["probe"].split()[1] == lines["quantize_tiny"].split()[1] == "succeeded"
    assert lines["mlm_quantize"].split()[1] == "cannot" and "only NVIDIA's own script" in lines["mlm_quantize"]
    assert "2 of 3 recipes were rehearsed; 0 failed." in done.stdout


def test_a_pipeline_is_run_stage_after_stage(nemo: Nemo, home: Path, work: Path, tmp_path: Path) -> None:
    """By the hf engine: what one small stage leaves is what the next takes, of the type that it has here."""
    model = {"hf_model_id": "Qwen/Qwen3-8B"}
    command = ["cp", "-r", "{checkpoint}", "{output_hf}"]
    stages = {
        "quantize": {"recipe": "quantize_fp8", "args": model},
        "copy": {"recipe": "program", "args": {"command": command}},
    }
    file = work / "mine.yaml"
    file.write_text(yaml.safe_dump({"stages": stages}, sort_keys=False))
    done = nemo("rehearse", str(file), "executor=slurm", "--json", env={"XDG_CACHE_HOME": str(tmp_path / "cache")})
    assert done.code == 0, done.err + done.out
    told = done.json
    rows = {row["stage"]: row for row in told["stages"]}
    assert {name: row["state"] for name, row in rows.items()} == {"quantize": "succeeded", "copy": "succeeded"}
    assert rows["copy"]["outputs"] == ["checkpoint_hf"]
    assert "args.calib_size" in {change["key"] for change in rows["quantize"]["changes"]}
    taken = next(run for run in told["runs"] if "-copy_" in run["id"])["inputs"]
    assert any("rehearsal-mine-quantize" in str(row.get("run")) for row in taken)


def test_the_first_stage_that_fails_is_named(nemo: Nemo, home: Path, work: Path) -> None:
    tune = {"recipe": "program", "args": {"command": ["false"], "output_hf": None}}
    stages = {"check": {"recipe": "probe"}, "tune": tune, "again": {"recipe": "probe"}}
    file = work / "mine.yaml"
    file.write_text(yaml.safe_dump({"stages": stages}, sort_keys=False))
    done = nemo("rehearse", str(file))
    assert done.code == 1, done.err
    assert "failed     tune  script_failed" in done.out and "nemo experiment logs rehearsal-mine-tune" in done.out
    done = nemo("rehearse", str(file), "--only", "check", "--json")
    assert done.code == 0 and [row["stage"] for row in done.json["stages"]] == ["check"]
