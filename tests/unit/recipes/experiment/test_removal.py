"""`rm`, `prune`, `du` and `open`: what goes, what must stay, and nothing but a run's own folders."""

import json
import os
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import nemo_run.config
import pytest

from executors.local import LocalProfile
from recipes.experiment.removal import REMOVED
from recipes.experiment.runs import all_runs
from recipes.experiment.store import RunFolder, run_folders
from scripts.run.record import Record
from tests.answers import data_of
from tests.jobs import submitted
from tests.runs import Shell, recorded


def succeeded(home: Path, run_id: str, *, days: int = 0, run_dir: Path | None = None) -> Path:
    """A run that left a checkpoint of 1000 bytes in its run directory, and logs of 50 in its own."""
    folder = RunFolder(dir=home / "runs" / run_id)
    where = run_dir or folder.dir
    facts = {"id": run_id, "recipe": "quantize_fp8", "values": {"args": {"hf_model_id": "tiny:qwen3"}}}
    records = [Record.submit(one, run_dir=str(where), **facts) for one in dict.fromkeys((folder.dir, where))]
    (where / "out").mkdir()
    (where / "out" / "model.safetensors").write_bytes(b"x" * 1000)
    (where / "report").mkdir()
    (where / "report" / "index.html").write_text("<p>a page")
    (folder.dir / "logs").mkdir()
    (folder.dir / "logs" / "rank0.log").write_bytes(b"y" * 50)
    outputs = [{"type": "checkpoint_hf", "path": str(where / "out"), "bytes": 1000, "files": 1}]
    ended = (datetime.now(UTC) - timedelta(days=days)).isoformat()
    for record in records:
        record.update(state="succeeded", outputs=outputs, finished_at=ended)
    submitted(folder, LocalProfile(), run_dir=where, settled=True)
    notes = home / "experiments" / run_id.rpartition("_")[0] / run_id
    notes.mkdir(parents=True)
    (notes / "_DONE").touch()
    return folder.dir


@pytest.fixture
def shell() -> Shell:
    return Shell()


def test_a_run_goes_with_all_that_is_its_own(home: Path, tmp_path: Path, shell: Shell) -> None:
    elsewhere = tmp_path / "runs" / "q_1126-0805-47f9a1"
    folder = succeeded(home, "q_1126-0805-47f9a1", run_dir=elsewhere)
    kept = succeeded(home, "q_1126-0805-47f9a2")
    exported = tmp_path / "models" / "mine"
    exported.mkdir(parents=True)
    before = sorted(home.rglob("*"))
    done = shell("rm", "47f9a1", "--dryrun")
    assert (done.exit_code, sorted(home.rglob("*"))) == (0, before), done.output
    assert all(str(path) in done.stdout for path in (folder, elsewhere))
    done = shell("rm", "47f9a1", "--json")
    (row,) = data_of(done.stdout)["removed"]
    assert (done.exit_code, row["id"], row["stays"]) == (0, "q_1126-0805-47f9a1", None)
    assert not folder.exists() and not elsewhere.exists() and elsewhere.parent.is_dir() and exported.is_dir()
    assert [one.id for one in run_folders()] == [kept.name]
    assert not (home / "experiments" / "q" / folder.name).exists()
    assert not list(home.rglob(f"{REMOVED}*"))


def test_what_another_run_may_still_read_stays(home: Path, shell: Shell) -> None:
    folder = succeeded(home, "q_1126-0805-47f9a1")
    reader = recorded(home, "serve_1126-0900-000001")  # it failed, and can be taken up again
    record = json.loads((reader / "run.json").read_text())
    (reader / "run.json").write_text(json.dumps(record | {"values": {"args": {"model": str(folder / "out")}}}))
    done = shell("rm", "47f9a1", "--yes")
    assert done.exit_code == 2 and folder.is_dir()
    assert "in_use" in done.stderr and "serve_1126-0900-000001, which is failed, reads" in done.stderr
    done = shell("prune", "--older-than", "0h", "--dryrun")
    assert done.exit_code == 0, "both would go together"
    assert "2 runs" in done.stdout
    done = shell("rm", "47f9a1", "serve", "--yes")
    assert (done.exit_code, run_folders()) == (0, [])


def test_a_run_that_goes_on_stays(home: Path, shell: Shell) -> None:
    folder = RunFolder(dir=home / "runs" / "probe_1126-0805-000001")
    Record.submit(folder.dir, id=folder.id, recipe="probe", algorithm="probe", values={"args": {}})
    submitted(folder, LocalProfile())
    state = next(run.state for run in all_runs())
    assert state in ("submitted", "running")
    done = shell("rm", "000001", "--yes")
    assert (done.exit_code, folder.dir.is_dir()) == (2, True)
    assert f"it is {state}" in done.stderr
    assert shell("prune", "--older-than", "0h", "--yes").exit_code == 0 and folder.dir.is_dir()


def test_pruning_takes_what_is_old_and_can_leave_artifacts(home: Path, shell: Shell) -> None:
    old, new = succeeded(home, "q_0901-0805-47f9a1", days=40), succeeded(home, "q_1126-0805-47f9a2", days=3)
    done = shell("prune", "--older-than", "30d", "--keep-artifacts", "--yes")
    assert done.exit_code == 0 and f"  {old / 'logs'}\n" in done.stdout and f"  {old}\n" not in done.stdout, done.output
    done = shell("prune", "--older-than", "30d", "--keep-artifacts", "--yes")
    assert "There is nothing to remove." in done.stdout
    assert (old / "out" / "model.safetensors").stat().st_size == 1000
    assert (old / "report" / "index.html").is_file() and not (old / "logs").exists() and (new / "logs").is_dir()
    assert {run.id: run.state for run in all_runs()} == {old.name: "succeeded", new.name: "succeeded"}
    assert shell("prune", "--older-than", "30d", "--yes").exit_code == 0
    assert [one.id for one in run_folders()] == [new.name]
    done = shell("prune", "--older-than", "soon")
    assert done.exit_code == 2 and "as in 30d" in done.stderr


@pytest.mark.parametrize("make", ["another run's", "no record", "link", "other name"])
def test_a_run_directory_that_is_not_its_own_stays(home: Path, tmp_path: Path, shell: Shell, make: str) -> None:
    """A record says a path, and anybody may have written it."""
    run_id = "q_1126-0805-000001"
    where = tmp_path / "runs" / ("results" if make == "other name" else run_id)
    folder = succeeded(home, run_id, run_dir=where)
    if make == "another run's":
        (where / "run.json").write_text(json.dumps({"schema": 1, "id": "another", "state": "succeeded"}))
    elif make == "no record":
        (where / "run.json").unlink()
    elif make == "link":
        where.rename(tmp_path / "real")
        where.symlink_to(tmp_path / "real")
    for words in (["prune", "--older-than", "0h", "--keep-artifacts"], ["rm", run_id]):
        shell(*words, "--yes")
        assert (where / "out" / "model.safetensors").is_file()
    assert folder.exists() is (make == "other name"), "job.json that names another folder cannot be read"


def test_every_attempt_s_directory_goes(home: Path, tmp_path: Path, shell: Shell) -> None:
    run_id = "q_1126-0805-000001"
    folder = succeeded(home, run_id, run_dir=tmp_path / "runs" / run_id)
    shutil.copytree(tmp_path / "runs" / run_id, tmp_path / "runs" / f"{run_id}-r2")
    (tmp_path / "runs" / f"{run_id}-r2x").mkdir()
    (home / "experiments" / "q" / f"{run_id}-r2").mkdir()
    assert shell("rm", run_id, "--yes").exit_code == 0
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [f"{run_id}-r2x"] and not folder.exists()
    assert list((home / "experiments" / "q").iterdir()) == []


@pytest.mark.parametrize("how", ["moved", "alias", "through a link", "odd path", "the folder itself", "lost"])
def test_artifacts_are_kept_wherever_they_lie(
    home: Path, tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = succeeded(home, "q_1126-0805-000001")
    record = json.loads((folder / "run.json").read_text())
    if how == "moved":
        record |= {"run_dir": f"/old/{folder.name}"}
        record["outputs"][0]["path"] = f"/old/{folder.name}/out"
    elif how == "alias":
        (tmp_path / "alias").symlink_to(home)
        monkeypatch.setattr(nemo_run.config, "_NEMORUN_HOME", str(tmp_path / "alias"))
    elif how == "through a link":
        folder.rename(tmp_path / folder.name)
        folder.symlink_to(tmp_path / folder.name)
    elif how == "lost":
        record["outputs"][0]["path"] = "/elsewhere/out"
    else:
        record["outputs"][0]["path"] = str(folder / "x" / ".." / "out") if how == "odd path" else str(folder)
    (folder / "run.json").write_text(json.dumps(record))
    done = Shell()("prune", "--older-than", "0h", "--keep-artifacts", "--yes")
    assert done.exit_code == 0, done.output
    assert (folder / "out" / "model.safetensors").is_file()
    assert (folder / "logs").exists() is (how in ("through a link", "the folder itself", "lost"))
    assert Shell()("rm", "000001", "--yes").exit_code == (2 if how == "through a link" else 0)
    assert folder.exists() is (how == "through a link")


def test_notes_of_other_runs_stay(home: Path, shell: Shell) -> None:
    kept = succeeded(home, "probe_1126-0805-000001")
    shutil.copytree(kept, home / "runs" / "probe")
    (home / "runs" / "probe" / "job.json").unlink()
    shell("rm", "probe", "--yes")
    assert (home / "experiments" / "probe" / kept.name / "_DONE").exists()


def test_what_is_read_by_a_run_that_stays_must_stay(home: Path, shell: Shell) -> None:
    """The newest reads the middle one, which failed and reads the oldest."""
    oldest = succeeded(home, "a_0901-0805-000001", days=40)
    middle = recorded(home, "b_0901-0900-000002")
    newest = recorded(home, "c_1126-0900-000003")
    for folder, reads, days in ((middle, oldest, 40), (newest, middle, 0)):
        record = json.loads((folder / "run.json").read_text())
        ended = (datetime.now(UTC) - timedelta(days=days)).isoformat()
        record |= {"values": {"args": {"model": str(reads)}}, "finished_at": ended}
        (folder / "run.json").write_text(json.dumps(record))
    done = shell("prune", "--older-than", "30d", "--yes")
    assert done.exit_code == 0 and len(run_folders()) == 3, done.output


@pytest.mark.parametrize("written", ["~/{}", "{}/../{}", "${{oc.env:CKPT}}/out", "../runs/{}"])
def test_a_path_is_known_however_it_is_written(home: Path, written: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = succeeded(home, "q_1126-0805-000001")
    monkeypatch.setenv("CKPT", str(folder))
    monkeypatch.setenv("HOME", str(home / "runs"))
    reader = recorded(home, "serve_1126-0900-000002")
    record = json.loads((reader / "run.json").read_text())
    name = folder.name if written[0] in "~." else str(folder)
    text = written.format(name, folder.name)
    record |= {"values": {"args": {"model": text}}, "cwd": str(home / "runs")}
    (reader / "run.json").write_text(json.dumps(record))
    done = Shell()("rm", "000001", "--yes")
    assert (done.exit_code, folder.is_dir()) == (2, True), done.output


def test_a_run_whose_record_cannot_be_read_stays(home: Path, shell: Shell) -> None:
    folder = succeeded(home, "q_1126-0805-000001")
    (folder / "job.json").write_text("{")
    done = shell("rm", "000001", "--yes")
    assert done.exit_code == 2 and folder.is_dir() and "cannot be read" in done.stderr
    assert shell("prune", "--older-than", "0h", "--yes").exit_code == 0 and folder.is_dir()


def test_links_in_a_run_are_not_followed(home: Path, tmp_path: Path, shell: Shell) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "weights").write_bytes(b"z" * 7000)
    folder = succeeded(home, "q_1126-0805-47f9a1")
    (folder / "linked").symlink_to(tmp_path / "theirs")
    (row,) = data_of(shell("du", "--json").stdout)
    assert 1000 <= row["artifact_bytes"] < row["bytes"] < 7000
    assert shell("prune", "--older-than", "0h", "--keep-artifacts", "--yes").exit_code == 0
    assert not os.path.lexists(folder / "linked") and (tmp_path / "theirs" / "weights").is_file()


def test_an_interrupted_removal_leaves_no_run_behind(home: Path, shell: Shell) -> None:
    folder = succeeded(home, "q_1126-0805-47f9a1")
    folder.rename(folder.with_name(f"{REMOVED}{folder.name}-abc"))
    assert run_folders() == []
    succeeded(home, "q_1126-0805-47f9a3")
    assert shell("rm", "47f9a3", "--yes").exit_code == 0
    assert list((home / "runs").iterdir()) == []


def test_a_report_is_opened_by_its_address(home: Path, shell: Shell) -> None:
    folder = succeeded(home, "q_1126-0805-47f9a1")
    assert shell("open", "latest").stdout.strip() == (folder / "report" / "index.html").as_uri()
    recorded(home, "probe_1126-0900-000001")
    done = shell("open", "000001")
    assert done.exit_code == 2 and "no_report" in done.stderr and "its state is failed" in done.stderr
