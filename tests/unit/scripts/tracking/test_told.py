"""What trackers are told of a run, read from its folder, which others may have written."""

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest

from scripts.run.files import write_json
from scripts.run.record import DamagedRecordError, Record, as_record, now, read_record
from scripts.tracking import follow
from scripts.tracking.known import tracked_lines
from scripts.tracking.told import Point, Points, Told, Tracker, Where, told_of


@pytest.fixture
def record(tmp_path: Path) -> Record:
    values = {"engine": "hf", "args": {"size": 3, "list": [1, "a"], "none": None, "deep": {"on": True}}}
    run = Record.submit(tmp_path / "run", id="run", recipe="r", algorithm="a", values=values, versions={"torch": "2"})
    run.update(state="running", started_at=now())
    return run


def test_values_are_flat_and_secrets_are_not_among_them(record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SITE_TOKEN", "s3cr3t-of-the-site")
    record.update(values={**record.values["values"], "extra_args": ["--key", "s3cr3t-of-the-site"]})
    told = told_of(record.dir, record.values)
    assert told.values == {
        **{"engine": "hf", "args.size": 3, "args.list": '[1, "a"]', "args.deep.on": True},
        "extra_args": '["--key", "<SITE_TOKEN>"]',
    }
    assert told.facts.items() >= {"run_id": "run", "recipe": "r", "version.torch": "2", "attempt": "1"}.items()


def test_figures_are_the_numbers_of_the_report_and_files_are_small_and_no_links(record: Record) -> None:
    report = record.dir / "report"
    write_json(report / "report.json", {"a": {"b": 1, "c": float("nan"), "t": "x", "f": True}, "rows": [{"d": 1}]})
    (report / "large").write_bytes(bytes(9 << 20))
    (report / "link").symlink_to("/etc/passwd")
    told = told_of(record.dir, record.values)
    assert told.figures == {"a.b": 1.0}
    assert [path.name for path in told.report] == ["report.json"]


def test_rows_are_read_once_as_they_come(tmp_path: Path) -> None:
    file, points = tmp_path / "metrics.jsonl", Points(tmp_path / "metrics.jsonl")
    assert list(points.new()) == []
    row = {"time": "2026-11-27T10:00:00.000Z", "name": "loss", "value": 1.5, "step": 7}
    file.write_text(json.dumps(row) + "\n" + json.dumps(row)[:20])
    (one,) = points.new()
    assert one == Point(name="loss", value=1.5, time=1795773600.0, step=7)
    assert list(points.new()) == []
    with file.open("a") as handle:
        handle.write(json.dumps(row)[20:] + "\n")
        handle.write(json.dumps({**row, "layer": "l1", "step": None}) + "\n" + json.dumps({**row, "step": None}) + "\n")
        handle.write('[]\n{}\n"x"\nnull\n{"time": 1, "name": 2}\n' + "[" * 3000 + "\n" + "x" * 9000 + "\n")
        handle.write(json.dumps({**row, "value": "much"}) + "\n" + json.dumps({**row, "name": 3}) + "\n")
    assert [(one.name, one.step) for one in points.new()] == [("loss", 7), ("loss/l1", 0), ("loss", 8)]


class Flaky(Tracker):
    """One that fails as often as it is told to."""

    fails = 0
    seen: ClassVar[list[Any]] = []

    def begin(self, told: Told) -> Where:
        self._fail()
        return Where(id="theirs", url="http://server/theirs")

    def measure(self, points: Any) -> None:
        self._fail()
        self.seen.extend(point.step for point in points)

    def end(self, told: Told) -> None:
        self._fail()
        self.seen.append(told.state)

    def _fail(self) -> None:
        type(self).fails -= 1
        if self.fails >= 0:
            raise SystemExit("no answer, s3cr3t-of-the-site")


def _state(record: Record) -> dict[str, Any]:
    state: dict[str, Any] = json.loads((record.dir / "tracking" / "mlflow.json").read_text())
    return state


def test_what_could_not_be_sent_is_sent_later_and_once(record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "TRACKERS", {"mlflow": Flaky})
    monkeypatch.setattr(Flaky, "seen", [])
    monkeypatch.setenv("SITE_TOKEN", "s3cr3t-of-the-site")
    monkeypatch.setattr(Flaky, "fails", 1)
    sending = follow.Sending(record.dir, "mlflow")
    record.measured(1, {"loss": 1.0})
    assert not sending.go_on(record.values)
    assert _state(record) == {"state": "following", "error": "SystemExit: no answer, <SITE_TOKEN>"}
    assert sending.go_on(record.values)
    monkeypatch.setattr(Flaky, "fails", 1)
    record.measured(2, {"loss": 1.0})
    assert not sending.go_on(record.values)
    record.measured(3, {"loss": 1.0})
    record.finish("succeeded")
    assert sending.finish(record.values)
    assert Flaky.seen == [1, 2, 3, "succeeded"]
    assert _state(record) == {"state": "sent", "id": "theirs", "url": "http://server/theirs"}
    monkeypatch.setattr(Flaky, "fails", 9)
    assert not sending.finish(record.values) and _state(record)["state"] == "failed"


def test_a_run_that_starts_over_is_followed_by_another(record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "TRACKERS", {"mlflow": Flaky})
    monkeypatch.setattr(Flaky, "seen", [])
    looks = iter([True, True])

    def sleep(_: float) -> None:
        if not next(looks, None):
            record.update(started_at=now())

    monkeypatch.setattr(follow.time, "sleep", sleep)
    assert not follow.follow(record.dir, "mlflow")
    assert Flaky.seen == []


def test_a_further_attempt_begins_anew(record: Record) -> None:
    write_json(record.dir / "tracking" / "mlflow.json", {"state": "sent"})
    record.update(tracked={"mlflow": {"state": "sent", "id": "1"}})
    record.finish("failed", {"name": "n", "message": "m", "remedy": ""})
    again = Record.reopen(record.dir)
    assert "tracked" not in again.values and not (record.dir / "tracking").exists()
    assert again.values["attempts"][0]["tracked"]["mlflow"]["id"] == "1"
    assert told_of(record.dir, again.values).facts["attempt"] == "2"


@pytest.mark.parametrize(
    ("tracked", "lines"),
    [
        ({}, []),
        ({"mlflow": {"state": "sent", "url": "http://x/1"}}, ["mlflow       http://x/1"]),
        ({"wandb": {"state": "kept", "folder": "/a b"}}, ["wandb        wandb sync '/a b'"]),
        ({"tensorboard": {"state": "kept", "folder": "/a"}}, ["tensorboard  tensorboard --logdir /a"]),
        ({"mlflow": {"state": "failed", "error": "e"}}, ["mlflow       (not sent: e)"]),
        ({"mlflow": {"state": "failed", "url": "u", "error": "e"}}, ["mlflow       u  (not sent: e)"]),
        ({"mlflow": {"state": "following"}}, ["mlflow       following"]),
        ({"other": {"state": "sent"}}, []),
    ],
)
def test_a_line_for_each(tracked: dict[str, Any], lines: list[str]) -> None:
    assert tracked_lines({"tracked": tracked}) == lines


@pytest.mark.parametrize(
    "tracked", [[], {"mlflow": 1}, {"wandb": {"state": "x"}}, {"wandb": {"state": "sent", "url": 1}}]
)
def test_a_record_that_says_something_else_is_damaged(record: Record, tracked: Any) -> None:
    content = json.dumps({**read_record(record.dir), "tracked": tracked}).encode()
    with pytest.raises(DamagedRecordError, match="tracked"):
        as_record(content, "run.json")
