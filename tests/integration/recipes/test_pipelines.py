"""Pipelines of real processes on this machine: what stands is not run again, and what was killed is taken up.

Their stages are programs that copy a checkpoint and change a tensor of it, so that a whole pipeline takes seconds.
MOMENTS=100 kills as often as that, at moments that SEED chooses.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import pytest

from recipes.experiment.store import RunFolder, run_folders
from scripts.run.identity import started_with
from scripts.tiny.model import default_cache_root, ensure_tiny_model
from tests.conftest import NEMO, Done
from tests.testbed.disk import small_disk
from tests.testbed.waiting import SECONDS, until

pytestmark = pytest.mark.integration

Nemo = Callable[..., Done]
MOMENTS = int(os.environ.get("MOMENTS", "2"))
SEED = int(os.environ.get("SEED", str(random.SystemRandom().randrange(10**6))))
PROGRAM = """
import pathlib, shutil, sys, time
source, target, word, seconds = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), *sys.argv[3:]
time.sleep(float(seconds))
target.mkdir(parents=True)
for file in sorted(source.iterdir()):
    shutil.copy(file, target / file.name)
(target / "made.txt").write_text((source / "made.txt").read_text() if (source / "made.txt").exists() else "")
with (target / "made.txt").open("a") as out:
    out.write(word + "\\n")
if word == "fail":
    sys.exit("it was told to fail")
"""


@pytest.fixture
def pipeline(work: Path, fake_model: Callable[..., Path]) -> Path:
    """`first`, after it `left` and `right`, and `last` after both; each adds its word."""
    (work / "add.py").write_text(PROGRAM)
    command = [sys.executable, str(work / "add.py"), "{checkpoint}", "{output_hf}"]

    def stage(word: str, **more: Any) -> dict[str, Any]:
        args = {"command": [*command, word, "${args.seconds}"], "files": [str(work / "add.py")]}
        return {"recipe": "program", "args": args | more.pop("args", {}), **more}

    stages = {
        "first": stage("one", args={"checkpoint": "${args.model}"}),
        "left": stage("two", after="first"),
        "right": stage("three", after="first"),
        "last": stage("four", after=["left"], args={"data": None}),
    }
    document = {"summary": "copies", "args": {"model": str(fake_model()), "seconds": "0"}, "stages": stages}
    file = work / "copies.yaml"
    file.write_text(json.dumps(document))
    return file


def stages_of(done: Done) -> dict[str, tuple[str, bool]]:
    return {row["stage"]: (row["run"], row["reused"]) for row in done.json["stages"]}


def made(home: Path, run_id: str) -> list[str]:
    record = json.loads((home / "runs" / run_id / "run.json").read_text())
    (output,) = record["outputs"]
    return Path(output["path"], "made.txt").read_text().split()


def digests(home: Path, runs: dict[str, str]) -> dict[str, str]:
    records = {name: json.loads((home / "runs" / run / "run.json").read_text()) for name, run in runs.items()}
    assert {record["state"] for record in records.values()} == {"succeeded"}, records
    return {name: record["outputs"][0]["digest"] for name, record in records.items()}


@pytest.mark.timeout(900)
def test_what_stands_is_not_run_again_and_what_changed_is_said(nemo: Nemo, home: Path, pipeline: Path) -> None:
    first = nemo("run", str(pipeline), "--json", "--yes")
    assert first.code == 0, first.err
    before = stages_of(first)
    assert made(home, before["last"][0]) == ["one", "two", "four"]
    assert made(home, before["right"][0]) == ["one", "three"]
    assert len({run.rpartition("_")[2] for run, _ in before.values()}) == 1

    again = nemo("run", str(pipeline), "--json")
    assert again.code == 0 and stages_of(again) == {name: (run, True) for name, (run, _) in before.items()}

    other = nemo("run", str(pipeline), "left.args.data=./add.py", "--dryrun", "--json")
    rows = {row["stage"]: row for row in other.json["stages"]}
    assert {name for name, row in rows.items() if not row["reused"]} == {"left", "last"}
    assert rows["left"]["why"] == ["args.data null -> gone"] or "args.data" in rows["left"]["why"][0]
    assert rows["last"]["why"] == ["left is run"]

    # One bit of what stands: that is made anew, and what is made of it.
    (output,) = json.loads((home / "runs" / before["left"][0] / "run.json").read_text())["outputs"]
    with Path(output["path"], "made.txt").open("a") as file:
        file.write("x")
    damaged = nemo("run", str(pipeline), "--dryrun", "--json")
    assert {name for name, (_, reused) in stages_of(damaged).items() if not reused} == {"left", "last"}
    fresh = nemo("run", str(pipeline), "--dryrun", "--fresh", "--json")
    assert not any(reused for _, reused in stages_of(fresh).values())
    (pipeline.parent / "add.py").write_text(PROGRAM + "\n")
    assert not any(reused for _, reused in stages_of(nemo("run", str(pipeline), "--dryrun", "--json")).values())


_FROM_PYTHON = """
import sys
from recipes import pipeline, submit_all

if __name__ == "__main__":
    for run in submit_all(pipeline(sys.argv[1]), detach=len(sys.argv) > 2):
        print("run", run.id, run.state)
"""


@pytest.mark.timeout(900)
def test_from_python_runs_are_those_that_stand_too(home: Path, pipeline: Path, work: Path) -> None:
    (work / "mine.py").write_text(_FROM_PYTHON)
    told = []
    for more in ([], ["detach"]):
        done = subprocess.run(
            [sys.executable, "mine.py", str(pipeline), *more],
            **{"cwd": work, "env": {**os.environ, "NEMORUN_HOME": str(home)}},
            **{"capture_output": True, "text": True, "timeout": 600},
        )
        assert done.returncode == 0, done.stderr
        told.append(sorted(line for line in done.stdout.splitlines() if line.startswith("run ")))
    assert told[0] == told[1] and len(told[0]) == 4 and all(line.endswith(" succeeded") for line in told[0])


@pytest.mark.timeout(900)
def test_a_stage_that_fails_stops_what_is_made_of_it_alone(nemo: Nemo, home: Path, pipeline: Path) -> None:
    text = pipeline.read_text().replace('"two"', '"fail"')
    pipeline.write_text(text)
    done = nemo("run", str(pipeline), "--json", "--yes")
    assert done.code == 1
    states = {run["id"].rpartition("_")[0].rpartition("-")[2]: run for run in done.json["runs"]}
    assert {name: run["state"] for name, run in states.items()} == {
        **{"first": "succeeded", "left": "failed"},
        **{"right": "succeeded", "last": "cancelled"},
    }
    assert states["left"]["error"]["name"] == "script_failed"
    assert states["last"]["error"]["name"] == "dependency_failed"
    pipeline_id = done.json["pipeline"]
    shown = nemo("status", pipeline_id)
    assert shown.code == 0 and shown.out.count("copies-") >= 4

    # Set right, it goes on from what it has.
    (pipeline.parent / "add.py").write_text(PROGRAM.replace('word == "fail"', "False"))
    resumed = nemo("resume", pipeline_id, "--json")
    assert resumed.code == 0, resumed.err
    assert {row["id"].rpartition("_")[0].rpartition("-")[2] for row in resumed.json["runs"]} == {"left", "last"}
    wait(nemo, pipeline_id)
    assert made(home, states["last"]["id"]) == ["one", "fail", "four"]
    nothing = nemo("resume", pipeline_id)
    assert nothing.code == 2 and "cannot_resume" in nothing.err


def wait(nemo: Nemo, pipeline: str, seconds: float = SECONDS) -> dict[str, str]:
    """The states of a pipeline's runs, when none goes on."""
    deadline = time.monotonic() + seconds
    while True:
        states = {run["id"]: run["state"] for run in nemo("status", pipeline, "--json").json["runs"]}
        if not set(states.values()) & {"submitted", "running"}:
            return states
        assert time.monotonic() < deadline, states
        time.sleep(0.5)


@pytest.mark.timeout(900)
def test_two_who_submit_at_once_share(nemo: Nemo, home: Path, pipeline: Path, work: Path) -> None:
    env = {**os.environ, "NEMORUN_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    words = [NEMO, "experiment", "run", str(pipeline), "args.seconds=2", "--detach", "--json"]
    both = [
        subprocess.Popen(words, env=env, cwd=work, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    answers = [json.loads(one.communicate(timeout=300)[0]) for one in both]
    rows = [{row["stage"]: row for row in answer["data"]["stages"]} for answer in answers]
    for name in ("first", "left", "right", "last"):
        assert len({row[name]["run"] for row in rows}) == 1, rows
        assert sorted(row[name]["reused"] for row in rows) == [False, True]
    states = wait(nemo, next(answer["data"]["pipeline"] for answer in answers if "_" in answer["data"]["pipeline"]))
    assert list(states.values()) == ["succeeded"] * 4


@pytest.mark.timeout(600 + 90 * MOMENTS)
def test_whatever_is_killed_the_end_is_the_same(nemo: Nemo, home: Path, pipeline: Path) -> None:
    """The node's process, who looks after it, or who submits it, at any moment."""
    chance = random.Random(SEED)
    print(f"SEED={SEED} MOMENTS={MOMENTS}")
    undisturbed = nemo("run", str(pipeline), "args.seconds=0.3", "--json", "--yes", "--fresh")
    assert undisturbed.code == 0, undisturbed.err
    expected = digests(home, {name: run for name, (run, _) in stages_of(undisturbed).items()})
    for _ in range(MOMENTS):
        whom, delay = chance.choice(("job", "supervisor", "submitter")), chance.uniform(0.0, 12.0)
        if whom == "submitter":
            attached, recording = chance.choice((True, False)), chance.choice((True, False))
            delay = delay if not recording else delay if attached else delay / 12
            recorded = submit_and_kill(home, pipeline, delay, attached=attached, recording=recording)
            print(f"submitter {attached=} {recording=} {delay:.2f}: {len(recorded)} recorded")
            if not recorded:
                continue
            jobs = [json.loads((home / "runs" / run / "job.json").read_text())["job"] for run in recorded]
            runs = dict(zip((run.rpartition("_")[0].rpartition("-")[2] for run in recorded), recorded, strict=True))
            (pipeline_id,) = {job["pipeline"] for job in jobs}
            assert runs.keys() == expected.keys(), (SEED, whom, delay, attached)
            finish(nemo, pipeline_id, (SEED, whom, delay, attached))
            assert digests(home, runs) == expected, (SEED, whom, delay, attached)
            assert not list((home / "runs").rglob(".*partial-*")), (SEED, whom, delay, attached)
            continue
        begun = nemo("run", str(pipeline), "args.seconds=0.3", "--json", "--fresh", "--detach")
        assert begun.code == 0, begun.err
        pipeline_id, runs = begun.json["pipeline"], {name: run for name, (run, _) in stages_of(begun).items()}
        time.sleep(delay)
        kill(home, runs, whom)
        finish(nemo, pipeline_id, (SEED, whom, delay))
        assert digests(home, runs) == expected, (SEED, whom, delay)
        assert not list((home / "runs").rglob(".*partial-*")), (SEED, whom, delay)


def finish(nemo: Nemo, pipeline: str, moment: tuple[object, ...]) -> None:
    """Take it up as often as it takes."""
    for _ in range(6):
        if set(wait(nemo, pipeline, 4 * SECONDS).values()) == {"succeeded"}:
            print(*moment)
            return
        resumed = nemo("resume", pipeline)
        assert resumed.code == 0, (*moment, resumed.err)


def submit_and_kill(home: Path, pipeline: Path, delay: float, *, attached: bool, recording: bool) -> list[str]:
    """The runs recorded when the command is killed after `delay` seconds, or so long after it began to record."""
    before, known = {folder.id for folder in folders(home)}, {path.name for path in (home / "runs").iterdir()}
    words = [NEMO, "experiment", "run", str(pipeline), "args.seconds=0.3", "--fresh", "--quiet"]
    env = {**os.environ, "NEMORUN_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(
        words if attached else [*words, "--detach"], env=env, cwd=pipeline.parent, stdin=subprocess.DEVNULL
    ) as command:
        if recording:
            until(lambda: {path.name for path in (home / "runs").iterdir()} - known, 120)
        time.sleep(delay)
        command.kill()
    return sorted({folder.id for folder in folders(home)} - before)


def folders(home: Path) -> list[RunFolder]:
    with mock.patch("nemo_run.config._NEMORUN_HOME", str(home)):
        return run_folders()


def kill(home: Path, runs: dict[str, str], whom: str) -> None:
    """With SIGKILL, as memory that runs out does."""
    if whom == "supervisor":
        jobs = [json.loads((home / "runs" / run / "job.json").read_text()) for run in runs.values()]
        pids = {job["supervisor"]["pid"] for job in jobs if job["supervisor"]}
    else:
        living = started_with("NEMO_RUN_DIR")
        pids = {pid for run in runs.values() for pid in living.get(str(home / "runs" / run), ())}
    for pid in pids:
        try:
            psutil.Process(pid).send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue


@pytest.mark.skipif(os.geteuid() != 0, reason="a mount needs root")
@pytest.mark.timeout(900)
@pytest.mark.parametrize("recipe, share", [("program", 0.5), ("quantize_fp8", 0.1), ("quantize_fp8", 0.7)])
def test_a_disk_that_fills_leaves_no_half(
    nemo: Nemo, home: Path, pipeline: Path, work: Path, recipe: str, share: float
) -> None:
    """A real one, of which a share of what a stage writes is free when it begins to write."""
    model = ensure_tiny_model("tiny:qwen3", default_cache_root())
    write = {"program": [f"args.command={json.dumps([sys.executable, 'slow.py', str(model), '{output_hf}'])}"]}
    (work / "slow.py").write_text(
        "import pathlib, shutil, sys, time\ntime.sleep(6)\nshutil.copytree(sys.argv[1], sys.argv[2])"
    )
    small = ["args.calib_size=16", "args.calib_seq_length=128", "args.eval_size=8"]
    words = write.get(recipe, ["args.hf_model_id=tiny:qwen3", *small])
    disk, size = work / "disk", sum(file.stat().st_size for file in model.iterdir())
    with small_disk(disk, 4 * size // 1024) as leave:
        begun = nemo("run", recipe, *words, f"executor.output_root={disk}", "--detach", "--json", "--yes")
        assert begun.code == 0, begun.err
        run_id = begun.json["id"]
        until(lambda: nemo("status", run_id, "--json").json["state"] == "running")
        leave(int(share * size) // 1024)
        until(lambda: nemo("status", run_id, "--json").json["state"] != "running")
        found = nemo("status", run_id, "--json").json
        assert (found["state"], found["error"]["name"]) == ("failed", "disk_full")
        appeared = [path for path in disk.rglob("model*.safetensors") if not path.parent.name.startswith(".")]
        assert not appeared and not found.get("outputs")
        (disk / "filling").unlink()
        assert nemo("resume", run_id, "--json").code == 0
        until(lambda: nemo("status", run_id, "--json").json["state"] not in ("submitted", "running"))
        whole = nemo("status", run_id, "--json").json
        assert whole["state"] == "succeeded", whole
        assert nemo("artifacts", "verify", run_id).code == 0


def spans(home: Path, runs: dict[str, str]) -> dict[str, tuple[str, str]]:
    records = {name: json.loads((home / "runs" / run / "run.json").read_text()) for name, run in runs.items()}
    return {name: (record["started_at"], record["finished_at"]) for name, record in records.items()}


@pytest.mark.timeout(900)
def test_stages_that_do_not_depend_on_each_other_go_on_together(nemo: Nemo, home: Path, pipeline: Path) -> None:
    done = nemo("run", str(pipeline), "args.seconds=3", "executor.parallel=2", "--json", "--yes")
    assert done.code == 0, done.err
    at = spans(home, {name: run for name, (run, _) in stages_of(done).items()})
    assert at["left"][0] < at["right"][1] and at["right"][0] < at["left"][1], at
    assert at["first"][1] < min(at["left"][0], at["right"][0]) and at["left"][1] < at["last"][0], at
    # Of programs nobody can tell what they take, and so they go on one by one where nobody says otherwise.
    alone = nemo("run", str(pipeline), "args.seconds=0.5", "--json", "--yes")
    at = spans(home, {name: run for name, (run, _) in stages_of(alone).items()})
    ordered = sorted(at.values())
    assert all(before[1] < after[0] for before, after in pairwise(ordered)), at


@pytest.mark.timeout(900)
def test_of_stages_that_go_on_together_one_is_cancelled_and_then_all(nemo: Nemo, home: Path, pipeline: Path) -> None:
    text = pipeline.read_text().replace('"one", "${args.seconds}"', '"one", "0"')
    pipeline.write_text(text)
    begun = nemo("run", str(pipeline), "args.seconds=60", "executor.parallel=2", "--json", "--detach")
    runs = {name: run for name, (run, _) in stages_of(begun).items()}

    def states() -> dict[str, str]:
        told = {run["id"]: run["state"] for run in nemo("status", begun.json["pipeline"], "--json").json["runs"]}
        return {name: told[run] for name, run in runs.items()}

    until(lambda: states()["left"] == states()["right"] == "running", 120)
    assert nemo("cancel", runs["left"]).code == 0
    until(lambda: states()["last"] == "cancelled", 30)
    assert states() == {"first": "succeeded", "left": "cancelled", "right": "running", "last": "cancelled"}
    assert nemo("cancel", begun.json["pipeline"]).code == 0
    assert states()["right"] == "cancelled"
    until(lambda: not any(str(home) in run_dir for run_dir in started_with("NEMO_RUN_DIR")), 30)
