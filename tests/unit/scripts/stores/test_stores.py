"""Publishing and fetching, with a folder for a store."""

from pathlib import Path

import pytest

from scripts.args.program import ProgramArgs
from scripts.engines.inputs import inputs_of
from scripts.run.problems import JobError
from scripts.run.record import Record
from scripts.stores import objects
from scripts.stores.fetch import fetched
from scripts.stores.publish import KEEP, NOTE, STORE, address, publish, taken_up


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Record:
    """A run that made a folder, a file and a report, and has a store."""
    monkeypatch.setenv(STORE, f"file://{tmp_path}/store")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return made(Record.submit(tmp_path / "runs" / "one_1-2-abcdef", id="one_1-2-abcdef", values={}))


def made(record: Record) -> Record:
    for name, text in {
        "hf/config.json": "{}",
        "hf/a/b c.txt": "1",
        "hf/a-b": "2",
        "x.bin": "3",
        "report/r": "4",
    }.items():
        (record.dir / name).parent.mkdir(parents=True, exist_ok=True)
        (record.dir / name).write_text(text)
    record.artifact("checkpoint_hf", record.dir / "hf")
    record.artifact("binidx", record.dir / "x.bin")
    record.artifact("eval_results", record.dir / "report")
    return record


def test_outputs_go_up_whole_and_come_back_the_same(record: Record, tmp_path: Path) -> None:
    before = record.values["outputs"]
    publish(record)
    folder, file, report = record.values["outputs"]
    assert [one["digest"] for one in before] == [one["digest"] for one in record.values["outputs"]]
    assert folder["path"] == f"file://{tmp_path}/store/one_1-2-abcdef/hf"
    assert {path.name for path in record.dir.iterdir()} - {"progress.json"} == {"manifests", "report", "run.json"}
    for one in (folder, file, report):
        content = objects.content_of(one["path"])
        assert content is not None and (content.digest, content.bytes) == (one["digest"], one["bytes"])
        assert objects.is_whole(one["path"], one["digest"])
    args = ProgramArgs(command=["true"], checkpoint=folder["path"], data=file["path"], files=[f"{folder['path']}/a-b"])
    here = fetched(args, record)
    assert here.checkpoint and Path(here.checkpoint, "a", "b c.txt").read_text() == "1"
    assert here.data and Path(here.data).read_text() == "3" and here.files and Path(here.files[0]).read_text() == "2"
    (row, *_) = inputs_of(here)
    assert (row["name"], row["run"], row["digest"]) == (folder["path"], "one_1-2-abcdef", folder["digest"])


def test_a_copy_stays_where_the_profile_says_so(record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEEP, "1")
    publish(record)
    assert (record.dir / "hf" / "config.json").is_file() and record.values["outputs"][0]["path"].startswith("file://")


def test_an_attempt_takes_up_what_the_one_before_was_publishing(record: Record, tmp_path: Path) -> None:
    (tmp_path / "store").write_text("in the way")
    with pytest.raises(JobError, match="upload_failed"):
        publish(record)
    assert (record.dir / NOTE).is_file() and (record.dir / "hf").is_dir()
    record.finish("failed")
    (tmp_path / "store").unlink()
    again = Record.reopen(record.dir)
    assert not (again.dir / "hf").exists() and taken_up(again)
    publish(again)
    assert objects.is_whole(again.values["outputs"][0]["path"], again.values["outputs"][0]["digest"])
    again.finish("cancelled")
    assert not taken_up(Record.reopen(record.dir)), "it was published"


@pytest.mark.parametrize("change", [b"", b"{}", b'{"schema": 1}'])
def test_a_manifest_that_was_changed_is_none(record: Record, tmp_path: Path, change: bytes) -> None:
    publish(record)
    url = record.values["outputs"][0]["path"]
    file = Path(url.removeprefix("file://") + objects.SUFFIX)
    file.write_bytes(change or file.read_bytes().replace(b"a-b", b"../"))
    with pytest.raises(JobError, match="artifact_damaged"):
        fetched(ProgramArgs(checkpoint=url), record)


def test_attempts_of_a_run_publish_to_one_place() -> None:
    url = address("s3://b/p/", "/runs/one_1-2-abcdef-r3", "/runs/one_1-2-abcdef-r3/x/hf")
    assert url == "s3://b/p/one_1-2-abcdef/x/hf"
    assert address("s3://b", "/runs/one", "/elsewhere/hf") is None
