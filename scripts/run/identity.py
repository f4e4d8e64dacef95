"""Who is running a job, in a form that another process can check later."""

import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

HEARTBEAT_SECONDS = 10.0
#: A heartbeat this old means that its process is gone (three missed beats, and some for slow file systems).
STALE_SECONDS = 60.0


def identity(pid: int | None = None) -> dict[str, Any]:
    """This process (or `pid`): host, boot, PID namespace, PID and when it started."""
    import psutil

    process = psutil.Process(pid)
    return {
        "host": socket.gethostname(),
        "boot": _told(lambda: Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()),
        "pid_namespace": _told(lambda: str(Path("/proc/self/ns/pid").readlink())),
        "pid": process.pid,
        "started": round(process.create_time(), 2),
    }


def is_alive(owner: dict[str, Any], heartbeat: Path) -> bool:
    """Whether the process that `owner` describes still runs.

    On its own machine and PID namespace the kernel is asked; from elsewhere the age of its
    heartbeat file decides, and no heartbeat at all counts as alive (it may not have begun).
    """
    import psutil

    here = identity()
    if all(owner.get(key) == here[key] for key in ("host", "boot", "pid_namespace")):
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied, KeyError, TypeError, ValueError):
            process = psutil.Process(owner["pid"])
            same = abs(process.create_time() - owner["started"]) < 1.0
            return same and process.status() != psutil.STATUS_ZOMBIE
        return False
    if owner.get("host") == here["host"] and owner.get("boot") != here["boot"]:
        return False  # the machine was restarted since
    try:
        return time.time() - heartbeat.stat().st_mtime < STALE_SECONDS
    except FileNotFoundError:
        return True


def _told(ask: Callable[[], str]) -> str | None:
    """What Linux says, and other systems do not."""
    with suppress(OSError):
        return ask()
    return None
