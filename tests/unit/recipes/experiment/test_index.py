"""The index: what it says of runs and files, and that it is made anew where it cannot be believed."""

import json
import os
import sqlite3
from pathlib import Path

import pytest

from recipes.experiment.index import refreshed
from scripts.run.record import Record


def run(home: Path, run_id: str, fingerprint: str | None = None, outputs: int = 1) -> Path:
    folder = home / "runs" / run_id
    record = Record.submit(folder, id=run_id, recipe="quantize_fp8", algorithm="quantize", values={})
    made = [
        {"type": "checkpoint_hf", "path": f"/x/{n}", "bytes": 1, "files": 1, "digest": f"sha256:{n}"}
        for n in range(outputs)
    ]
    record.update(outputs=made)
    record.finish("succeeded")
    (folder / "job.json").write_text(json.dumps({"job": {"fingerprint": fingerprint and {"digest": fingerprint}}}))
    return folder


_ROOT = "select rootpage from sqlite_master where name = 'contents'"


def test_it_follows_the_folders(home: Path) -> None:
    run(home, "a_0101-0000-000001", "f1")
    run(home, "b_0101-0000-000002", "f2", outputs=2)
    with refreshed() as index:
        assert index.with_fingerprint("f1") == ["a_0101-0000-000001"]
        assert index.of_recipe("quantize_fp8") == ["b_0101-0000-000002", "a_0101-0000-000001"]
        assert index.runs_with_outputs(digest="sha256:1") == ["b_0101-0000-000002"]
        assert index.runs_with_outputs(kind="binidx") == []
    run(home, "c_0101-0000-000003", "f1")
    (home / "runs" / "a_0101-0000-000001" / "run.json").unlink()
    for file in (home / "runs" / "a_0101-0000-000001").rglob("*"):
        if file.is_file():
            file.unlink()
    with refreshed() as index:
        assert index.with_fingerprint("f1") == ["c_0101-0000-000003"]


@pytest.mark.parametrize("damage", ["no database", "another version", "a folder"])
def test_one_that_cannot_be_believed_is_made_anew(damage: str, home: Path) -> None:
    run(home, "a_0101-0000-000001", "f1")
    file = home / "index.sqlite"
    if damage == "a folder":
        file.mkdir()
    elif damage == "no database":
        file.write_bytes(b"x" * 5000)
    else:
        with sqlite3.connect(file) as connection:
            connection.execute("pragma user_version = 99")
            connection.execute("create table runs (id text)")
    for _ in range(2):
        with refreshed() as index:
            assert index.with_fingerprint("f1") == ["a_0101-0000-000001"]
    assert damage == "a folder" or sqlite3.connect(file).execute("select count(*) from runs").fetchone() == (1,)


def test_one_that_is_damaged_further_in_is_made_anew_when_it_is_asked(home: Path, tmp_path: Path) -> None:
    run(home, "a_0101-0000-000001", "f1")
    (tmp_path / "file").write_text("x")
    with refreshed() as index:
        digest = index.content(tmp_path / "file")
    with sqlite3.connect(home / "index.sqlite") as connection:
        ((page,), (size,)) = (connection.execute(asked).fetchone() for asked in (_ROOT, "pragma page_size"))
    with (home / "index.sqlite").open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"x" * size)
    for _ in range(2):
        with refreshed() as index:
            assert index.content(tmp_path / "file") == digest
            assert index.with_fingerprint("f1") == ["a_0101-0000-000001"]
    with sqlite3.connect(home / "index.sqlite") as connection:
        assert connection.execute("select count(*) from contents").fetchone() == (1,)


def test_links_that_lead_back_end(home: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).symlink_to(".")
    (tmp_path / "file").write_text("x")
    with refreshed() as index:
        assert index.content(tmp_path)


def test_damaged_records_are_no_runs_of_anything(home: Path) -> None:
    folder = run(home, "a_0101-0000-000001", "f1")
    (folder / "run.json").write_text('{"outputs": [[], {"type": {"x": 1}}]}')
    (folder / "job.json").write_text("[]")
    with refreshed() as index:
        assert index.with_fingerprint("f1") == [] == index.runs_with_outputs()


def test_content_is_read_again_when_a_file_is_another(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "a").write_text("one")
    with refreshed() as index:
        first = index.content(folder)
        reads: list[Path] = []
        monkeypatch.setattr("recipes.experiment.index.content_of", lambda path: reads.append(path))
        assert index.content(folder) == first and not reads
    monkeypatch.undo()
    monkeypatch.setattr("nemo_run.config._NEMORUN_HOME", str(home))
    (folder / "a").write_text("two")
    os.utime(folder / "a", ns=(1, 1))
    with refreshed() as index:
        second = index.content(folder)
        assert second not in (None, first)
        (folder / "b").write_text("")
        assert index.content(folder) not in (None, first, second)
        assert index.content(tmp_path / "absent") is None
