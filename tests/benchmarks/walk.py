"""How much of our code a command goes through: `python tests/benchmarks/walk.py [--list] [WORD...]`.

Runs `nemo experiment run quantize_fp8 executor=slurm args.calib_size=64 ... --detach` in this process, with an `sbatch`
that takes every job and starts none, and looks at each call (sys.setprofile, in every thread) from the moment that
`run` of recipes/cli begins until the moment that `sbatch` is started (Python's audit event `subprocess.Popen`).
Counted are functions of recipes, executors, scripts and configs that really ran: each once, by module and qualified
name, with methods and properties; not module bodies, class bodies, comprehensions, lambdas, nor what `dataclass` makes.
A change of module is a call of ours that is in another module than the call of ours before it.
"""

import argparse
import importlib
import os
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
OURS = ("recipes", "executors", "scripts", "configs")
WORDS = (
    *("run", "quantize_fp8", "executor=slurm", "executor.account=me", "executor.partition=batch", "--detach", "--yes"),
    *("executor.image=nvcr.io/nvidia/nemo:26.06", f"executor.output_root={tempfile.gettempdir()}/walk/runs"),
    "args.calib_size=64",
)
#: A cluster that takes whatever it is given: what NeMo-Run and we ask of it, answered.
STUBS = {"sbatch": "echo 4711", "sacct": "true", "squeue": "true", "scontrol": "true", "pgrep": "false"}


class Walk:
    """What ran of ours, in the order in which it first did."""

    def __init__(self) -> None:
        self.calls: Counter[tuple[str, str]] = Counter()
        self.changes = 0
        self._before = ""
        self._files: dict[str, bool] = {}
        self._state = "before"

    def __enter__(self) -> "Walk":
        sys.addaudithook(self._audit)
        threading.setprofile(self._profile)
        sys.setprofile(self._profile)
        return self

    def __exit__(self, *_: object) -> None:
        self._state = "over"
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]

    def _audit(self, event: str, args: tuple[Any, ...]) -> None:
        if event == "subprocess.Popen" and any("sbatch " in str(word) for word in args[1]):
            self._state = "over"

    def _profile(self, frame: FrameType, event: str, _: object) -> None:
        if event != "call" or self._state == "over":
            return
        code, module = frame.f_code, frame.f_globals.get("__name__", "")
        if module.partition(".")[0] not in OURS or code.co_filename == "<string>" or "<" in code.co_name:
            return
        if not code.co_flags & 0x2:  # a class body: it has no locals of its own
            return
        if self._state == "before" and not (module.startswith("recipes.cli") and code.co_name == "run"):
            return
        self._state = "walking"
        self.calls[module, code.co_qualname] += 1
        self.changes += bool(self._before) and module != self._before
        self._before = module

    @property
    def modules(self) -> Counter[str]:
        """How many functions of each module."""
        return Counter(module for module, _ in self.calls)


def walk(words: tuple[str, ...], folder: Path) -> Walk:
    """Count the command's walk; what it writes goes to `folder`."""
    stubs = folder / "bin"
    stubs.mkdir()
    for name, body in STUBS.items():
        (stubs / name).write_text(f"#!/bin/sh\n{body}\n")
        (stubs / name).chmod(0o755)
    os.environ |= {"PATH": f"{stubs}{os.pathsep}{os.environ['PATH']}", "NEMORUN_HOME": str(folder / "home")}
    os.environ |= {"XDG_CONFIG_HOME": str(folder / "config"), "HF_HUB_OFFLINE": "1"}
    (folder / "work").mkdir()
    os.chdir(folder / "work")
    importlib.import_module("recipes.cli.hook")  # before NeMo-Run builds its commands: it adds ours
    app = importlib.import_module("nemo_run.__main__").app

    counted = Walk()
    with counted:
        app(["experiment", *words], standalone_mode=False)
    return counted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--list", action="store_true", help="every function, and how often it was called")
    parser.add_argument("words", nargs="*", help="after `nemo experiment`, in place of the default")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        counted = walk(tuple(options.words) or WORDS, Path(folder))
        os.chdir(ROOT)
    if options.list:
        for (module, name), times in counted.calls.items():
            print(f"{times:6}  {module}.{name}")
    for module, count in counted.modules.most_common():
        print(f"{count:4}  {module}")
    print(f"{len(counted.calls)} functions, {len(counted.modules)} modules, {counted.changes} changes of module")


if __name__ == "__main__":
    main()
