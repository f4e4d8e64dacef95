"""Outputs in an object store: a real S3 server, real jobs; the server dies, jobs are killed, objects are changed.

Stages are programs that copy a checkpoint and add a word, so that a pipeline takes seconds.
"""

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Done
from tests.testbed.objects import KEYS, Store, object_store

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

ROOT = "s3://runs/out"
PROGRAM = """
import pathlib, shutil, sys
source, target, word = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3]
shutil.copytree(source, target)
(target / "below").mkdir(exist_ok=True)
with (target / "below" / "words.txt").open("a") as out:
    out.write(word + "\\n")
with open("RAN", "a") as ran:
    ran.write(word)
"""


@pytest.fixture
def store() -> Iterator[Store]:
    with object_store() as started:
        yield started


@pytest.fixture
def run(
    nemo: Callable[..., Done], work: Path, tmp_path: Path, store: Store, fake_model: Callable[..., Path]
) -> Callable[..., Done]:
    """`nemo experiment WORDS`, where `two` stands for a pipeline of two stages; in a cache of its own."""
    program = work / "add.py"
    program.write_text(PROGRAM.replace("RAN", str(work / "ran")))

    def stage(word: str, **args: Any) -> dict[str, Any]:
        command = [sys.executable, str(program), "{checkpoint}", "{output_hf}", word]
        return {"recipe": "program", "args": {"command": command, "files": [str(program)], **args}}

    (work / "two.yaml").write_text(
        json.dumps({"stages": {"one": stage("one", checkpoint=str(fake_model())), "two": stage("two")}})
    )
    env = {**store.env, "XDG_CACHE_HOME": str(tmp_path / "cache")}

    def words(*given: str) -> Done:
        return nemo(*("./two.yaml" if word == "two" else word for word in given), env=env)

    return words


def runs_of(done: Done) -> dict[str, str]:
    return {row["stage"]: row["run"] for row in done.json["stages"]}


def record_of(home: Path, run_id: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((home / "runs" / run_id / "run.json").read_text())
    return found


def test_a_pipeline_through_a_store_leaves_what_one_without_it_leaves(
    run: Callable[..., Done], store: Store, home: Path, work: Path
) -> None:
    plain = run("run", "two", "--json", "--yes")
    assert plain.code == 0, plain.err
    done = run("run", "two", f"executor.output_root={ROOT}", "--fresh", "--json", "--yes")
    assert done.code == 0, done.err
    records = {name: record_of(home, run_id) for name, run_id in runs_of(done).items()}
    left = {name: record["outputs"][0] for name, record in records.items()}
    for name, run_id in runs_of(plain).items():
        (output,) = record_of(home, run_id)["outputs"]
        assert {key: output[key] for key in ("digest", "bytes", "files")} == {
            key: left[name][key] for key in ("digest", "bytes", "files")
        }
    one, two = (runs_of(done)[name] for name in ("one", "two"))
    url = f"{ROOT}/{one}/program/hf"
    assert left["one"]["path"] == url and f"{url}.manifest.json".removeprefix("s3://runs/") in store.keys(url)
    assert not (home / "runs" / one / "program" / "hf").exists(), "it was read back, and removed here"
    (read,) = records["two"]["inputs"]
    assert (read["name"], read["run"], read["digest"]) == (url, one, left["one"]["digest"])
    text = "".join(file.read_text(errors="replace") for file in (home / "runs").rglob("*") if file.is_file())
    assert KEYS["AWS_SECRET_ACCESS_KEY"] not in text

    again = run("run", "two", f"executor.output_root={ROOT}", "--json")
    assert again.code == 0 and all(row["reused"] for row in again.json["stages"])
    assert run("artifacts", "verify", one).code == 0
    (tree,) = run("artifacts", "lineage", two, "--json").json["artifacts"]
    assert tree["path"] == left["two"]["path"] and tree["parents"][0]["reference"] == f"{one}.checkpoint_hf"
    assert f"stays, in its store: {left['two']['path']}" in run("rm", two, "--dryrun").out


def test_what_was_changed_in_a_store_is_found(run: Callable[..., Done], store: Store, home: Path) -> None:
    done = run("run", "two", f"executor.output_root={ROOT}", "--json", "--yes")
    assert done.code == 0, done.err
    one, two = (runs_of(done)[name] for name in ("one", "two"))
    key = f"out/{one}/program/hf/model.safetensors"
    whole = store.get(key)
    store.put(key, whole[:-1])
    verified = run("artifacts", "verify", one, "--json")
    assert verified.code == 1 and verified.json["artifacts"][0]["changed"] == ["model.safetensors"]
    assert not any(row["reused"] for row in run("run", "two", "--dryrun", "--json").json["stages"])
    copy = ("run", "program", "args.command=[cp,-r,'{checkpoint}','{output_hf}']", "--yes")
    # It is in the cache of this machine, whole; elsewhere it is not.
    assert run(*copy, f"args.checkpoint=${{artifact:{one}}}").code == 0
    for folder in (home.parent / "cache" / "modelopt-recipes" / "fetched").iterdir():
        folder.rename(folder.with_name(f"gone-{folder.name}"))
    short = run(*copy, f"args.checkpoint=${{artifact:{one}}}")
    assert short.code == 1 and "artifact_damaged" in short.out and "model.safetensors has" in short.out

    store.put(key, whole[:-1] + b"x")  # as long as it was
    assert "artifact_damaged" in run(*copy, f"args.checkpoint=s3://runs/{key.rpartition('/')[0]}").out
    manifest = f"out/{two}/program/hf.manifest.json"
    store.put(manifest, store.get(manifest).replace(b'"bytes": ', b'"bytes": 1', 1).replace(b"a", b"b"))
    verified = run("artifacts", "verify", two, "--json")
    assert verified.code == 1 and verified.json["artifacts"][0]["changed"] == ["hf.manifest.json"]
    refused = run(*copy, f"args.checkpoint=${{artifact:{two}}}")
    assert refused.code == 2 and "Problem artifact_damaged" in refused.err
    absent = run(*copy, "args.checkpoint=s3://runs/nobody/hf")
    assert absent.code == 2 and "Problem missing_input" in absent.err
    nowhere = run(*copy, f"args.checkpoint=${{artifact:{one}}}", "executor.output_root=s3://nobucket/out")
    assert nowhere.code == 2 and "there is no such bucket" in nowhere.err
    store.die()
    dead = run("artifacts", "verify", two)
    assert dead.code == 1 and "store_unreachable" in dead.err
    assert "Problem store_unreachable" in run(*copy, f"args.checkpoint=${{artifact:{two}}}").err


def test_a_store_that_dies_costs_no_work(run: Callable[..., Done], store: Store, home: Path, work: Path) -> None:
    def dies(count: int) -> None:
        if count == 2:
            store.die()

    store.before_put = dies
    done = run("run", "two", f"executor.output_root={ROOT}", "--json", "--yes")
    assert done.code == 1, done.out
    one = next(row["id"] for row in done.json["runs"] if "-one" in row["id"])
    record = record_of(home, one)
    assert record["error"]["name"] == "upload_failed" and "resume" in record["error"]["remedy"]
    assert (home / "runs" / one / "program" / "hf" / "model.safetensors").is_file()
    store.before_put = lambda count: None
    store.rise()
    assert not any(key.endswith("manifest.json") for key in store.keys(ROOT)) and store.keys(ROOT)
    assert resumed(run, home, one)["outputs"][0]["path"].startswith(ROOT)
    assert (work / "ran").read_text() == "onetwo", "the program of the first stage ran once"
    assert run("artifacts", "verify", one).code == 0


def test_a_job_that_is_killed_while_it_publishes_goes_on_from_there(
    run: Callable[..., Done], store: Store, home: Path, work: Path
) -> None:
    def kills(count: int) -> None:
        if count == 2:
            (folder,) = (home / "runs").glob("*-one_*")
            os.kill(json.loads((folder / "run.json").read_text())["process"]["pid"], signal.SIGKILL)

    store.before_put = kills
    done = run("run", "two", f"executor.output_root={ROOT}", "--json", "--yes")
    assert done.code == 1, done.out
    one = next(row["id"] for row in done.json["runs"] if "-one" in row["id"])
    assert resumed(run, home, one)["attempts"][0]["state"] in ("lost", "failed")
    assert (work / "ran").read_text() == "onetwo"
    assert run("artifacts", "verify", one).code == 0


def resumed(run: Callable[..., Done], home: Path, run_id: str) -> dict[str, Any]:
    assert run("resume", run_id).code == 0
    followed = run("logs", "-f", run_id)
    record = record_of(home, run_id)
    assert record["state"] == "succeeded", followed.out
    two = run_id.replace("-one_", "-two_")
    run("logs", "-f", two)
    assert record_of(home, two)["state"] == "succeeded"
    return record
