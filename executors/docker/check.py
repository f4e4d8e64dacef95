"""Runs inside the container of `executors check`, as a job would; prints one JSON object.

Beside the standard library there is only what it imports of ours.
"""

import importlib
import json
import os
import sys
from pathlib import Path

from scripts.processor import gpus_here


def check(packages: list[str]) -> dict[str, object]:
    """What this container can do: import `packages`, write where a run records itself, see GPUs."""
    missing = {}
    for name in packages:
        try:
            importlib.import_module(name)
        except Exception as error:
            missing[name] = f"{type(error).__name__}: {error}"
    unwritable = ""
    run_dir = Path(os.environ["NEMO_RUN_DIR"])
    try:
        (run_dir / "written").write_text((run_dir / "token").read_text())
    except OSError as error:
        unwritable = f"{type(error).__name__}: {error}"
    user = f"{os.getuid()}:{os.getgid()}"
    found = {"missing": missing, "unwritable": unwritable, "gpus": gpus_here()}
    return {"python": sys.version.split()[0], "user": user, **found}


if __name__ == "__main__":
    print(json.dumps(check(sys.argv[1:])), flush=True)
