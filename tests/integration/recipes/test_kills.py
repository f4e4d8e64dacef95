"""Processes of local runs are killed at moments that chance chooses: no record is false, and each can be taken up.

KILLS=1000 python -m pytest tests/integration/recipes/test_kills.py -s  # as many as asked, printed one by one

Real processes on this machine; SEED=N repeats what chance chose, as far as the machine does.
"""

import json
import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from scripts.run.identity import started_with
from tests.conftest import Done
from tests.testbed.waiting import until
from tests.testbed.warm import Command, Warm

pytestmark = pytest.mark.integration

KILLS = int(os.environ.get("KILLS", "4"))
SEED = int(os.environ.get("SEED", str(random.SystemRandom().randrange(10**6))))
#: From the moment on at which a run is recorded to its job's end, on a slow machine.
LIFE_SECONDS = 12.0
FINAL = ("succeeded", "failed", "cancelled", "lost")
Nemo = Callable[..., Done]


def job_of(folder: Path) -> list[int]:
    """The processes of a run's job."""
    return started_with("NEMO_RUN_DIR").get(str(folder), [])


def supervisor_of(folder: Path) -> list[int]:
    with suppress(OSError, ValueError):
        pid = (json.loads((folder / "job.json").read_text())["supervisor"] or {}).get("pid")
        return [pid] if pid and psutil.pid_exists(pid) else []
    return []


def status(nemo: Nemo, folder: Path) -> str:
    return str(nemo("status", folder.name, "--json").json["state"])


def killed(command: Command, folder: Path, draw: random.Random) -> str:
    """SIGKILL to one of those who have to do with a run; what it was."""
    groups = {"command": [command.pid], "supervisor": supervisor_of(folder), "job": job_of(folder)}
    if command.poll() is not None:
        groups["command"] = []
    who, pids = draw.choice([(who, pids) for who, pids in groups.items() if pids] or [("nobody", [])])
    for pid in [draw.choice(pids)] if pids else []:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return who


def told_truly(nemo: Nemo, folder: Path) -> str:
    """The state as `status` has it, which says of no run that it has ended while a process of it lives."""
    found = status(nemo, folder)
    if found in FINAL:
        until(lambda: not job_of(folder) or status(nemo, folder) not in FINAL, 20)
    return found


def tried(warm: Warm, nemo: Nemo, home: Path, work: Path, draw: random.Random) -> dict[str, Any]:
    """One run, one kill, and everything that somebody would do then."""
    detach = draw.choice(([], ["--detach"]))
    before = set(home.glob("runs/*"))
    env = {**os.environ, "NEMORUN_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    command = warm.begin(["experiment", "run", "probe", "args.seconds=2", "--yes", *detach], env, work)
    until(lambda: set(home.glob("runs/*/run.json")) and set(home.glob("runs/*")) - before)
    (folder,) = set(home.glob("runs/*")) - before
    after = draw.uniform(0, LIFE_SECONDS)
    time.sleep(after)
    facts: dict[str, Any] = {"id": folder.name, "detach": bool(detach), "after": round(after, 2)}
    facts["killed"] = killed(command, folder, draw)
    facts["then"] = told_truly(nemo, folder)
    if facts["then"] not in FINAL and draw.random() < 0.5:
        done = nemo("cancel", folder.name)
        facts["cancel"] = done.code
        if done.code == 0:  # a process whose run has ended by itself may be about to end
            until(lambda: not job_of(folder), 20)
    until(lambda: told_truly(nemo, folder) in FINAL)
    facts["end"] = status(nemo, folder)
    until(lambda: not job_of(folder), 20)
    if facts["end"] != "succeeded":
        assert nemo("resume", folder.name).code == 0, facts
        until(lambda: told_truly(nemo, folder) in FINAL)
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
