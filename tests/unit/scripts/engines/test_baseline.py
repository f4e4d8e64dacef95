"""What was measured of a model is kept for other runs: once, whole, of the same circumstances, and not too much."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from scripts import processor
from scripts.engines.hf import baseline
from scripts.engines.hf.baseline import Entry, Measured, depends_on, keep_losses, obtain
from scripts.run.record import Record
from tests.testbed.waiting import until

SHAPES = [(5, 16), (3, 16)]
MODEL = SimpleNamespace(config=SimpleNamespace(_attn_implementation="sdpa"))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(baseline, "DISK_SHARE", 1.0)
    return tmp_path / "cache" / "modelopt-recipes" / "baselines"


@pytest.fixture
def new(tmp_path: Path) -> Callable[[str], Record]:
    return lambda name: Record.submit(tmp_path / "runs" / name, id=name)


class Model:
    """One that counts how often it is measured."""

    def __init__(self, shapes: list[tuple[int, int]] = SHAPES) -> None:
        self.asked: list[list[str] | None] = []
        self.shapes = shapes

    def __call__(self, texts: list[str] | None) -> Measured:
        self.asked.append(texts)
        states = [torch.full(shape, 0.1 * shape[0], dtype=torch.bfloat16) for shape in self.shapes]
        return Measured(texts=["so it goes \u00e4"] if texts is None else texts, states=states)


def entry(**facts: str) -> Entry:
    return depends_on(MODEL, [(1, 2)], ["Hello"], torch.device("cpu"), **{"model": "sha256:1", **facts})


def same(one: Measured, other: Measured) -> bool:
    pairs = zip(one.states or [], other.states or [], strict=True)
    return one.texts == other.texts and all(torch.equal(a, b) and a.dtype == b.dtype for a, b in pairs)


def test_what_was_measured_is_used_again_to_the_last_bit(new: Callable[[str], Record], cache: Path) -> None:
    model, first, second = Model(), new("first"), new("second")
    before = obtain(first, entry(), SHAPES, model)
    again = obtain(second, entry(), SHAPES, model)
    assert same(before, again) and len(model.asked) == 1
    digest = first.values["baseline"]["digest"]
    assert first.values["baseline"] == {"how": "measured", "run": "first", "digest": digest}
    assert second.values["baseline"] == {"how": "reused", "run": "first", "digest": digest}
    obtain(new("third"), entry(), [], Model([]))  # nothing is scored: what lies there is of other samples
    assert sorted(path.suffix for path in cache.glob("[0-9a-f]*/*")) == [".json", ".safetensors"]


def test_any_other_circumstance_is_another_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {entry().folder, entry(model="sha256:2").folder, entry(dtype="float16").folder}
    cpu, facts = torch.device("cpu"), {"model": "sha256:1"}
    found |= {depends_on(MODEL, [(1, 3)], ["Hello"], cpu, **facts).folder}
    found |= {depends_on(MODEL, [(1, 2)], ["Hello", ""], cpu, **facts).folder}
    eager = SimpleNamespace(config=SimpleNamespace(_attn_implementation="eager"))
    found |= {depends_on(eager, [(1, 2)], ["Hello"], cpu, **facts).folder}
    with monkeypatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: 77)
        found |= {entry().folder}
    with monkeypatch.context() as patch:
        patch.setattr(baseline, "packages", lambda: ["torch==3"])
        found |= {entry().folder}
    with monkeypatch.context() as patch:
        patch.setattr(processor, "__file__", __file__)
        found |= {entry().folder}
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "transformers_modules.mine", SimpleNamespace(__file__=__file__))
        found |= {entry().folder}
    assert len(found) == 10 and entry().folder == entry().folder


def changed(name: str, change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        facts = json.loads((folder / name).read_text())
        change(facts)
        (folder / name).write_text(json.dumps(facts))

    return apply


def other_samples(folder: Path) -> None:
    """Whole, and of samples of another length."""
    import hashlib

    from safetensors.torch import save_file

    save_file({"000000": torch.zeros(2, 16), "000001": torch.zeros(3, 16)}, folder / "states.safetensors")
    states = f"sha256:{hashlib.sha256((folder / 'states.safetensors').read_bytes()).hexdigest()}"

    def told(facts: dict[str, Any]) -> None:
        facts |= {"states": states, "digest": baseline._digest(facts["texts"], states)}

    changed("baseline.json", told)(folder)


DAMAGE: dict[str, Callable[[Path], None]] = {
    "half": lambda folder: os.truncate(folder / "states.safetensors", 60),
    "one bit": lambda folder: (folder / "states.safetensors").write_bytes(
        (folder / "states.safetensors").read_bytes()[:-1] + b"\0"
    ),
    "no states": lambda folder: (folder / "states.safetensors").unlink(),
    "no facts": lambda folder: (folder / "baseline.json").unlink(),
    "no json": lambda folder: (folder / "baseline.json").write_text("{"),
    "a text": changed("baseline.json", lambda facts: facts.update(texts=["another"])),
    "a type": changed("baseline.json", lambda facts: facts.update(texts=[1])),
    "of another": changed("baseline.json", lambda facts: facts["of"].update(model="sha256:9")),
    "other samples": other_samples,
}


@pytest.mark.parametrize("how", DAMAGE)
def test_what_is_damaged_is_measured_anew(how: str, new: Callable[[str], Record], capsys: Any) -> None:
    model = Model()
    before = obtain(new("first"), entry(), SHAPES, model)
    DAMAGE[how](entry().folder)
    second = new("second")
    assert same(obtain(second, entry(), SHAPES, model), before)
    assert second.values["baseline"]["how"] == "measured" and capsys.readouterr().out.count("is damaged") == 1
    obtain(third := new("third"), entry(), SHAPES, model)
    assert third.values["baseline"]["run"] == "second" and len(model.asked) == 2


def test_states_that_are_too_large_are_measured_again(
    new: Callable[[str], Record], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(baseline, "STATES_BYTES", 100)
    model, second = Model(), new("second")
    before = obtain(new("first"), entry(), SHAPES, model)
    assert "which are too large" in capsys.readouterr().out
    assert same(obtain(second, entry(), SHAPES, model), before)
    assert model.asked == [None, before.texts], "the continuations were there"
    assert second.values["baseline"]["how"] == "partly" and second.values["baseline"]["run"] == "first"


def test_what_was_not_used_for_longest_makes_room(
    new: Callable[[str], Record], monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    kept = [entry(number=str(number)) for number in range(4)]
    for number, one in enumerate(kept[:3]):
        obtain(new(f"run{number}"), one, SHAPES, Model())
        os.utime(one.folder, (number, number))
    obtain(new("uses"), kept[0], SHAPES, Model())
    size = sum(file.stat().st_size for file in kept[0].folder.iterdir())
    monkeypatch.setattr(baseline, "STORE_BYTES", 3 * size)
    obtain(new("last"), kept[3], SHAPES, Model())
    assert [one.folder.is_dir() for one in kept] == [True, False, True, True]
    assert len(list(cache.glob(".*.lock"))) == 3


def test_of_two_at_once_one_measures(new: Callable[[str], Record]) -> None:
    begun, go, found = threading.Event(), threading.Event(), dict[str, Measured]()
    model = Model()

    def slow(texts: list[str] | None) -> Measured:
        begun.set()
        assert go.wait(60)
        return model(texts)

    records = {name: new(name) for name in ("first", "second")}

    def ask(name: str) -> None:
        found[name] = obtain(records[name], entry(), SHAPES, slow)

    threads = [threading.Thread(target=ask, args=(name,)) for name in records]
    threads[0].start()
    assert begun.wait(60)
    threads[1].start()
    until(lambda: records["second"].values.get("phase") == "wait for the baseline")
    go.set()
    for thread in threads:
        thread.join(60)
    assert same(found["first"], found["second"]) and len(model.asked) == 1
    assert records["second"].values["baseline"]["how"] == "reused"


def test_who_was_killed_holds_nobody_up(new: Callable[[str], Record], cache: Path) -> None:
    cache.mkdir(parents=True)
    lock = cache / f".{entry().folder.name}.lock"
    holds = f"""
from pathlib import Path
from scripts.run.files import locked
with locked(Path({str(lock)!r})):
    print(1, flush=True)
    input()
"""
    with subprocess.Popen([sys.executable, "-c", holds], stdin=-1, stdout=-1) as child:
        assert child.stdout and child.stdout.readline()
        child.kill()
        obtain(record := new("next"), entry(), SHAPES, Model())
    assert record.values["baseline"]["digest"]


def test_who_cannot_share_measures_for_itself(
    new: Callable[[str], Record], monkeypatch: pytest.MonkeyPatch, cache: Path, capsys: Any
) -> None:
    model = Model()
    monkeypatch.setattr(baseline, "WAIT_SECONDS", 0.0)
    cache.mkdir(parents=True)
    with baseline.locked(cache / f".{entry().folder.name}.lock"):
        obtain(record := new("late"), entry(), SHAPES, model)
    assert record.values["baseline"] == {"how": "measured", "run": "late", "digest": None}
    assert "not shared with other runs" in capsys.readouterr().out and not entry().folder.exists()
    cache.rename(cache.with_name("moved"))
    cache.write_text("no folder")
    obtain(new("no cache"), entry(), SHAPES, model)
    assert "not shared with other runs" in capsys.readouterr().out and len(model.asked) == 2


def test_a_full_disk_ends_nothing(new: Callable[[str], Record], monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(baseline, "write_json", full)
    obtain(record := new("full"), entry(), SHAPES, Model())
    assert record.values["baseline"]["digest"] is None and "not kept" in capsys.readouterr().out
    assert not entry().folder.exists()


def test_losses_that_differ_from_those_that_were_kept_end_an_entry(new: Callable[[str], Record], capsys: Any) -> None:
    record, sums = new("first"), torch.tensor([[4.0, 8.5, 9, 0, 3], [2.0, 1 / 3, 9, 0, 2]], dtype=torch.float64)
    keep_losses(record, entry(), sums)
    assert not entry().folder.exists(), "nothing was kept that they could be of"
    obtain(record, entry(), SHAPES, Model())
    for _ in range(2):
        keep_losses(record, entry(), sums)
        assert json.loads((entry().folder / "losses.json").read_text())["losses"] == [8.5, 1 / 3]
    keep_losses(record, entry(), sums * 1.000001)
    assert not entry().folder.exists() and "gives other losses" in capsys.readouterr().out
