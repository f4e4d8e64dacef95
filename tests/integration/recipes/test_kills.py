"""Processes of local runs are killed at moments that chance chooses: no record is false, and each can be taken up.

KILLS=20 MANY_KILLS=1000 python -m pytest tests/integration/recipes/test_kills.py -s  # as many as asked

Real processes on this machine; SEED=N repeats what chance chose, as far as the machine does. KILLS are of everything as
a user has it, some in a minute; MANY_KILLS, twenty times as many in that time, are of jobs that import nothing slow:
records, supervisors, cancelling and resuming are the product's own, what NeMo-Run would start is started here, and
commands are called in this process.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nemo_run.config
import psutil
import pytest

from executors.base import SchedulerJob, own_variables
from executors.local import LocalPlace, LocalProfile
from recipes import find
from recipes.experiment import submit, supervisor
from recipes.experiment.intervene import cancel_run
from recipes.experiment.prepare import prepare
from recipes.experiment.runs import Run, look
from scripts.run.identity import identity, started_with
from scripts.run.record import read_record
from tests.conftest import Done
from tests.testbed.waiting import until
from tests.testbed.warm import Warm

pytestmark = pytest.mark.integration

KILLS = int(os.environ.get("KILLS", "4"))
MANY_KILLS = int(os.environ.get("MANY_KILLS", "12"))
AT_A_TIME = 6
SEED = int(os.environ.get("SEED", str(random.SystemRandom().randrange(10**6))))
#: From the moment on at which a run is recorded to its job's end, on a slow machine.
LIFE_SECONDS = 12.0
FINAL = ("succeeded", "failed", "cancelled", "lost")
#: What does not change by itself; who is lost may yet be found, where its launcher was killed while it began.
LASTING = ("succeeded", "failed", "cancelled")
Nemo = Callable[..., Done]
#: How long a job of the many stays, and what it is: what `probe` does, without the entrypoint's imports.
STAY_SECONDS = 0.5
JOB = f"""
from scripts.args.probe import ProbeArgs
from scripts.probe import report
from scripts.run.session import run_job
args = ProbeArgs(seconds={STAY_SECONDS})
run_job(name="probe", algorithm="probe", values={{"args": vars(args)}}, job=lambda record: report(args, [], record))
"""


def job_of(folder: Path) -> list[int]:
    """The processes of a run's job."""
    return started_with("NEMO_RUN_DIR").get(str(folder), [])


def supervisor_of(folder: Path) -> list[int]:
    with suppress(OSError, ValueError, psutil.Error):
        pid = (json.loads((folder / "job.json").read_text())["supervisor"] or {}).get("pid")
        return [pid] if pid and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE else []
    return []


def status(nemo: Nemo, folder: Path) -> str:
    return str(nemo("status", folder.name, "--json").json["state"])


def killed(groups: Mapping[str, list[int]], draw: random.Random) -> str:
    """SIGKILL to one of those who have to do with a run; what it was."""
    who, pids = draw.choice([(who, pids) for who, pids in groups.items() if pids] or [("nobody", [])])
    for pid in [draw.choice(pids)] if pids else []:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return who


def told_truly(state: Callable[[], str], folder: Path) -> str:
    """The state as somebody is told it: of no run that it has ended while a process of it lives, but for a moment."""
    found = state()
    if found in FINAL:
        until(lambda: not job_of(folder) or state() not in FINAL, 30)
    return found


def tried(warm: Warm, nemo: Nemo, home: Path, work: Path, draw: random.Random) -> dict[str, Any]:
    """One run, one kill, and everything that somebody would do then."""
    detach = draw.choice(([], ["--detach"]))
    before = set(home.glob("runs/[!.]*"))
    env = {**os.environ, "NEMORUN_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    command = warm.begin(["experiment", "run", "probe", "args.seconds=2", "--yes", *detach], env, work)
    until(lambda: set(home.glob("runs/[!.]*/run.json")) and set(home.glob("runs/[!.]*")) - before)
    (folder,) = set(home.glob("runs/[!.]*")) - before
    after = draw.uniform(0, LIFE_SECONDS)
    time.sleep(after)
    facts: dict[str, Any] = {"id": folder.name, "detach": bool(detach), "after": round(after, 2)}
    groups = {"command": [] if command.poll() is not None else [command.pid]}
    facts["killed"] = killed(groups | {"supervisor": supervisor_of(folder), "job": job_of(folder)}, draw)
    facts["then"] = told_truly(lambda: status(nemo, folder), folder)
    if facts["then"] not in FINAL and draw.random() < 0.5:
        done = nemo("cancel", folder.name)
        facts["cancel"] = done.code
        if done.code == 0:  # a process whose run has ended by itself may be about to end
            until(lambda: not job_of(folder), 20)
    until(lambda: told_truly(lambda: status(nemo, folder), folder) in FINAL)
    facts["end"] = status(nemo, folder)
    until(lambda: not job_of(folder), 20)
    if facts["end"] != "succeeded":
        assert nemo("resume", folder.name).code == 0, facts
        until(lambda: told_truly(lambda: status(nemo, folder), folder) in FINAL)
        assert status(nemo, folder) == "succeeded", (facts, (folder / "run.json").read_text())
    ranks = json.loads((folder / "report" / "probe.json").read_text())["ranks"]
    assert [row["rank"] for row in ranks] == [0]
    with suppress(Exception):
        command.communicate(timeout=60)
    return facts


def test_whoever_is_killed_no_record_is_false(warm: Warm, nemo: Nemo, home: Path, work: Path) -> None:
    draw = random.Random(SEED)
    seen: dict[str, int] = {}
    for number in range(KILLS):
        facts = tried(warm, nemo, home, work, draw)
        print(number, f"SEED={SEED}", facts, flush=True)
        seen[facts["killed"]] = seen.get(facts["killed"], 0) + 1
    assert sum(seen.values()) == KILLS


class Started:
    """What NeMo-Run says of a job that it started, and does to it."""

    def __init__(self, job: Any) -> None:
        silent: Any = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        env = {**os.environ, **own_variables(job, LocalProfile())}
        self.process = subprocess.Popen([sys.executable, "-c", JOB], env=env, start_new_session=True, **silent)
        self.jobs, self.id, self._runner = [self], "it", None

    def status(self, _: Any) -> Any:
        code = self.process.poll()
        return SimpleNamespace(name="RUNNING" if code is None else "FAILED" if code else "SUCCEEDED")

    def cancel(self, _: Any) -> None:
        self.process.terminate()


def start(place: LocalPlace, _: Any, job: Any) -> SchedulerJob:
    handle = f"local_persistent://cheap/{job.id}"
    place._experiments[handle] = Started(job)
    return SchedulerJob.of(job, handle, str(job.run_dir))


def spawn(runs: Sequence[Run]) -> None:
    """As the product does it, but forked, with everything imported."""
    named, naming = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.setsid()
            os.close(naming)
            os.read(named, 1)
            supervisor.carry_out([Run.read(run.folder) for run in runs])
        finally:
            os._exit(0)
    for run in runs:
        run.update(supervisor=identity(child))
    os.close(named)
    os.close(naming)


@contextmanager
def no_experiment(*_: Any, **__: Any) -> Iterator[None]:
    yield None


def looked(run: Run) -> str:
    """What `status` would say."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:  # supervisors are this process's children here
            pass
    return look([run.folder])[0].state


def one_of_many(draw: random.Random) -> dict[str, Any]:
    """One run, one kill, perhaps a cancel, and as many resumes as it takes, of which the first may be killed too."""
    (run,) = submit.start([prepare(find("probe").build())], detach=True)
    life = STAY_SECONDS + draw.choice((0.3, 1.0, 3.0))  # a machine with other work starts slowly

    def state() -> str:
        return told_truly(lambda: looked(run), run.dir)

    def kill() -> str:
        time.sleep(draw.uniform(0, life))
        return killed({"supervisor": supervisor_of(run.dir), "job": job_of(run.dir)}, draw)

    facts: dict[str, Any] = {"id": run.id, "killed": kill(), "then": state(), "resumes": 0}
    if facts["then"] not in FINAL and draw.random() < 0.4:
        facts["cancel"] = cancel_run(run.folder).state
        until(lambda: not job_of(run.dir), 30)
    until(lambda: state() in FINAL)
    facts["end"] = looked(run)
    assert facts["then"] not in LASTING or facts["then"] == facts["end"], facts
    while looked(run) != "succeeded":
        assert facts["resumes"] < 3, facts
        submit.take_up([run.folder])
        facts["resumes"] += 1
        if facts["resumes"] == 1 and draw.random() < 0.3:
            facts["killed again"] = kill()
        until(lambda: state() in FINAL)
    until(lambda: not job_of(run.dir) and not supervisor_of(run.dir), 30)
    record = read_record(run.dir)
    assert (record["state"], len(record.get("attempts", []))) == ("succeeded", facts["resumes"]), record
    assert [one["type"] for one in record["outputs"]] == ["probe_report"]
    ranks = json.loads((run.dir / "report" / "probe.json").read_text())["ranks"]
    return facts | {"left": [{key: row[key] for key in row if key not in ("pid", "variables")} for row in ranks]}


def worker(number: int, count: int, out: Path) -> None:
    """In a process of its own: some tries, one after another, a line each."""
    draw = random.Random(f"{SEED} {number}")
    with out.open("w") as lines:
        for _ in range(count):
            try:
                facts = one_of_many(draw)
            except BaseException:
                facts = {"failed": traceback.format_exc()}
            print(json.dumps(facts), file=lines, flush=True)


def test_many_kills_leave_no_false_record(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEMORUN_HOME", str(home))
    monkeypatch.setattr(nemo_run.config, "_NEMORUN_HOME", str(home))
    monkeypatch.setattr(LocalPlace, "submit", start)
    monkeypatch.setattr(supervisor, "opened_experiment", no_experiment)
    monkeypatch.setattr(submit, "spawn", spawn)
    find("probe").build()  # imported before the forks
    workers = []
    for number in range(AT_A_TIME):
        count = MANY_KILLS // AT_A_TIME + (number < MANY_KILLS % AT_A_TIME)
        child = os.fork()
        if not child:
            try:
                worker(number, count, tmp_path / f"{number}.jsonl")
            finally:
                os._exit(0)
        workers.append(child)
    for child in workers:
        os.waitpid(child, 0)
    lines = [line for file in sorted(tmp_path.glob("*.jsonl")) for line in file.read_text().splitlines()]
    found: list[dict[str, Any]] = [json.loads(line) for line in lines]
    failed = [one["failed"] for one in found if "failed" in one]
    seen = Counter(f"{key}={one.get(key)}" for one in found for key in ("killed", "then", "cancel", "end", "resumes"))
    print(f"SEED={SEED}", len(found), "kills:", dict(seen), f"{len(failed)} failed", flush=True)
    assert not failed, f"SEED={SEED}\n" + "\n".join(failed[:3])
    assert len(found) == MANY_KILLS
    assert all(one["left"] == found[0]["left"] for one in found), "whatever was killed, the same is left"
    assert not [pid for where, pids in started_with("NEMO_RUN_DIR").items() if str(home) in where for pid in pids]
