"""Who is running a job, in a form that another process can check later."""

import os
import signal
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from scripts.run.problems import JobError

HEARTBEAT_SECONDS = 10.0
#: A heartbeat this old means that its process is gone (three missed beats, and some for slow file systems).
STALE_SECONDS = 60.0
_STATE, _STARTTIME = 0, 19  # of /proc/PID/stat, counted after the name: proc_pid_stat(5) has them as 3 and 22


def identity(pid: int | None = None) -> dict[str, Any]:
    """This process (or `pid`): host, boot, PID namespace, PID and when it started.

    That is `ticks` of the clock since the boot, which nobody can set; other systems than Linux have only `started`,
    seconds since the epoch.
    """
    import psutil

    process = psutil.Process(pid)
    stat = _stat(process.pid)
    return {
        "host": socket.gethostname(),
        "boot": _told(lambda: Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()),
        "pid_namespace": _told(lambda: str(Path("/proc/self/ns/pid").readlink())),
        "pid": process.pid,
        "started": round(process.create_time(), 2),
        "ticks": int(stat[_STARTTIME]) if stat else None,
    }


def is_alive(owner: Mapping[str, Any], heartbeat: Path) -> bool:
    """Whether the process that `owner` describes still runs.

    On its own machine and PID namespace the kernel is asked; from elsewhere the age of its
    heartbeat file decides, and no heartbeat at all counts as alive (it may not have begun).
    """
    here = identity()
    if _is_here(owner, here):
        return _runs(owner)
    if owner.get("host") == here["host"] and owner.get("boot") != here["boot"]:
        return False  # the machine was restarted since
    return beats(heartbeat)


def beats(heartbeat: Path, *, absent: bool = True) -> bool:
    """Whether that file was touched lately; `absent` where there is none: it may not have begun to beat."""
    try:
        return time.time() - heartbeat.lstat().st_mtime < STALE_SECONDS
    except OSError:
        return absent


def terminate(owner: Mapping[str, Any]) -> None:
    """SIGTERM to a process of this machine, if it is still the one that `owner` describes.

    Raises JobError `runs_elsewhere` for one of another machine.
    """
    if not _is_here(owner, identity()):
        cause = f"process {owner.get('pid')} on {owner.get('host')} looks after it, which cannot be told from here."
        raise JobError("runs_elsewhere", cause, f"Cancel it on {owner.get('host')}.")
    if _runs(owner) and owner["pid"] > 1:  # 0 and below are many processes, and 1 is the machine
        with suppress(ProcessLookupError):  # it ended this moment
            os.kill(owner["pid"], signal.SIGTERM)


def started_with(variable: str) -> dict[str, list[int]]:
    """By the value of a variable that they were started with: the processes of this machine that this user may ask.

    What was launched is found by it from the moment on at which it is there, whoever launched it and wrote down what.
    """
    import psutil

    found: dict[str, list[int]] = {}
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            value = process.environ().get(variable)
            if value and process.pid not in (1, os.getpid()) and process.status() != psutil.STATUS_ZOMBIE:
                found.setdefault(value, []).append(process.pid)
    return found


def terminate_started_with(variable: str, value: str) -> None:
    """SIGTERM to those of them that none of the others has started: launchers end their ranks themselves."""
    import psutil

    pids = started_with(variable).get(value, [])
    for pid in pids:
        with suppress(psutil.Error, ProcessLookupError):
            if psutil.Process(pid).ppid() not in pids:
                os.kill(pid, signal.SIGTERM)


def _is_here(owner: Mapping[str, Any], here: Mapping[str, Any]) -> bool:
    return all(owner.get(key) == here[key] for key in ("host", "boot", "pid_namespace"))


def _runs(owner: Mapping[str, Any]) -> bool:
    """Whether the process with that id, of this machine, is the one that started then, and no zombie."""
    import psutil

    with suppress(psutil.NoSuchProcess, psutil.AccessDenied, KeyError, TypeError, ValueError, OverflowError):
        if owner.get("ticks") is not None:
            stat = _stat(owner["pid"])
            return stat is not None and int(stat[_STARTTIME]) == owner["ticks"] and stat[_STATE] not in "ZX"
        process = psutil.Process(owner["pid"])
        return abs(process.create_time() - owner["started"]) < 1.0 and process.status() != psutil.STATUS_ZOMBIE
    return False


def _stat(pid: int) -> list[str] | None:
    """What Linux says of a process; None where there is none, or another system."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    return None


def _told(ask: Callable[[], str]) -> str | None:
    """What Linux says, and other systems do not."""
    with suppress(OSError):
        return ask()
    return None
