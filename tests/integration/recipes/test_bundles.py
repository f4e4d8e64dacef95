"""Bundles of real runs, run again where nothing is of what the first machine had: a fresh home, another folder."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Done

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

Nemo = Callable[..., Done]
PROGRAM = """
import pathlib, shutil, sys
source, target, word = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3]
target.mkdir(parents=True)
for file in sorted(source.iterdir()):
    shutil.copy(file, target / file.name)
with (target / "made.txt").open("a") as out:
    out.write(word + "\\n")
"""


@pytest.fixture
def pipeline(work: Path, fake_model: Callable[..., Path]) -> Path:
    """`first` and after it `last`: each adds its word to what it copies."""
    (work / "add.py").write_text(PROGRAM)
    shutil.copytree(fake_model(), work / "model")

    def stage(word: str, **args: Any) -> dict[str, Any]:
        command = [sys.executable, str(work / "add.py"), "{checkpoint}", "{output_hf}", word]
        return {"recipe": "program", "args": {"command": command, "files": ["add.py"], **args}}

    stages = {"first": stage("one", checkpoint="${args.model}"), "last": stage("two")}
    file = work / "copies.yaml"
    file.write_text(json.dumps({"args": {"model": str(work / "model")}, "stages": stages}))
    return file


def digests(done: Done) -> dict[str, str]:
    assert done.code == 0, done.err
    rows = {run["id"].rpartition("_")[0].rpartition("-")[2]: run for run in done.json["runs"]}
    return {name: run["outputs"][0]["digest"] for name, run in rows.items()}


def elsewhere(tmp_path: Path) -> dict[str, Any]:
    """Words of `nemo` for a machine that has nothing of the first one's."""
    place = tmp_path / "elsewhere"
    (place / "work").mkdir(parents=True)
    fresh = {"HOME": str(place / "home"), "NEMORUN_HOME": str(place / "nemo")}
    return {"env": fresh, "cwd": place / "work"}


def test_a_pipeline_is_the_same_again_elsewhere(nemo: Nemo, home: Path, pipeline: Path, tmp_path: Path) -> None:
    first = nemo("run", str(pipeline), "--json", "--yes")
    before = digests(first)
    file, named = tmp_path / "whole.tar.gz", tmp_path / "named.tar.gz"
    assert nemo("bundle", first.json["pipeline"], "-o", str(file), "--with-inputs").code == 0
    assert nemo("bundle", first.json["pipeline"], "-o", str(named), "--json").answer["outcome"] == "done"
    again = tmp_path / "again.tar.gz"
    nemo("bundle", first.json["pipeline"], "-o", str(again), "--with-inputs")
    assert again.read_bytes() == file.read_bytes()

    model = tmp_path / "moved"
    pipeline.parent.rename(tmp_path / "gone")
    shutil.copytree(tmp_path / "gone" / "model", model)
    there = elsewhere(tmp_path)
    dry = nemo("run", "--bundle", str(file), "--dryrun", **there)
    assert dry.code == 0 and not os.path.lexists(there["env"]["NEMORUN_HOME"]), dry.err
    done = nemo("run", "--bundle", str(file), "--json", "--yes", **there)
    assert digests(done) == before
    words = ["last.args.command=[python, -c, '', x]", "--dryrun", "--json"]
    other = nemo("run", "--bundle", str(file), *words, **there)
    assert [(row["stage"], row["reused"]) for row in other.json["stages"]] == [("first", True), ("last", False)]

    # Without the inputs, each is known by its digest, wherever it lies.
    lacking = nemo("run", "--bundle", str(named), "--json", **there)
    said = [one for one in lacking.answer["problems"] if "sha256:" in one["cause"]]
    assert lacking.code == 2 and [(one["name"], one["key"]) for one in said] == [
        ("missing_input", "first.args.checkpoint")
    ]
    assert "first.args.checkpoint=PATH" in said[0]["remedy"] and said[0]["value"].endswith("/model")
    found = nemo("run", "--bundle", str(named), f"first.args.checkpoint={model}", "--fresh", "--json", **there)
    assert digests(found) == before
    (model / "config.json").write_text((model / "config.json").read_text() + " ")
    changed = nemo("run", "--bundle", str(named), f"first.args.checkpoint={model}", "--dryrun", "--json", **there)
    assert [one["name"] for one in changed.answer["problems"]] == ["input_differs"]
    forced = [f"first.args.checkpoint={model}", "--dryrun", "--force", "input_differs"]
    assert nemo("run", "--bundle", str(named), *forced, **there).code == 0


def test_a_run_and_a_pipeline_are_run_again(nemo: Nemo, home: Path, pipeline: Path) -> None:
    first = nemo("run", str(pipeline), "--json", "--yes")
    again = nemo("rerun", first.json["pipeline"], "--json", "--yes")
    assert digests(again) == digests(first) and again.json["pipeline"] != first.json["pipeline"]
    one = nemo("run", "probe", "args.message=good day", "--name", "mine", "--json")
    repeated = nemo("rerun", one.json["id"], "args.exit_code=3", "--json")
    (run,) = repeated.json["runs"]
    assert repeated.code == 1 and run["id"].startswith("mine_")
    assert (run["values"]["args"]["message"], run["values"]["args"]["exit_code"]) == ("good day", 3)
    # An input that is another than the run read is no input of that run.
    (pipeline.parent / "add.py").write_text("pass")
    refused = nemo("bundle", first.json["pipeline"], "-o", str(pipeline.parent / "x.tar.gz"), "--json")
    assert {one["name"] for one in refused.answer["problems"]} == {"input_differs"}
    assert not (pipeline.parent / "x.tar.gz").exists()
