"""What every stand-in does once its arguments are parsed. Its text is part of each of them: standard library only."""

import argparse
import base64
import io
import itertools
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

_SHOWN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "PYTHONPATH", "PYTHONSAFEPATH")


def play(
    args: argparse.Namespace,
    rest: Sequence[str],
    *,
    script: str,
    release: str,
    outputs: Mapping[str, str],
    templates: Mapping[str, str],
) -> None:
    """Write down what arrived, misbehave as the environment says, and leave the outputs that `args` names."""
    rank = int(os.environ.get("RANK", "0"))
    what, _, which = os.environ.get("STANDIN", "").partition(":")
    what = what if which in ("", str(rank)) else ""
    folder = Path(os.environ["NEMO_RUN_DIR"], "received")
    places = _places({**vars(args), **_pairs(rest)}, outputs)
    found = {path: sorted(one.name for one in Path(path).glob("*")) for path in places}
    _write_down(folder, rank, {"args": vars(args), "rest": list(rest), "release": release, "found": found})
    print(f"stand-in of {script} {release}, rank {rank}")
    _before(what, rank, folder)
    for step in range(3):
        print(f"calibrating: {step + 1}/3 [00:01<00:00]", file=sys.stderr)
    if what == "trains" and rank == int(os.environ.get("WORLD_SIZE", "1")) - 1:  # as Megatron has its last rank do
        for step in range(1, 4):
            loss = f"lm loss: {10 / step:E} | grad norm: 1.500 | number of nan iterations:   0 |"
            print(
                f" [2026-11-27 10:00:00] iteration {step:8}/{3:8} | consumed samples: {step * 8:12} | {loss}",
                flush=True,
            )
    for path, template in places.items() if rank == 0 and what != "empty" else ():
        _leave(path, templates["hf" if what == "other" and not template.startswith("hf") else template])
        if what == "half":
            _cut(path)
    if what == "late":
        raise RuntimeError(f"rank {rank} was told to die when all was written")
    print("done")


def _pairs(rest: Sequence[str]) -> dict[str, str]:
    """Options that this parser does not declare, as those of Megatron-LM's own argument list."""
    words = itertools.pairwise(rest)
    return {name.lstrip("-").replace("-", "_"): value for name, value in words if name.startswith("--")}


def _places(given: Mapping[str, str], outputs: Mapping[str, str]) -> dict[str, str]:
    """Where outputs go: path -> template."""
    values = dict(given)
    if given.get("config_file"):
        import yaml

        config = yaml.safe_load(Path(given["config_file"]).read_text(encoding="utf-8"))
        values["checkpoint.save"] = config.get("checkpoint", {}).get("save")
    if given.get("command") == "export":
        del values["megatron_path"]  # what it reads
    return {values[flag]: template for flag, template in outputs.items() if values.get(flag) is not None}


def _write_down(folder: Path, rank: int, facts: Mapping[str, object]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    env = {name: os.environ.get(name) for name in _SHOWN}
    said = {"argv": sys.argv[1:], "env": env, "sys_path": sys.path, "pid": os.getpid(), **facts}
    (folder / f"{rank}.json").write_text(json.dumps(said), encoding="utf-8")


def _before(what: str, rank: int, folder: Path) -> None:
    if what == "die":
        raise RuntimeError(f"rank {rank} was told to die")
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "stay":
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)", folder])
    if what in ("hang", "stay"):
        print("staying", flush=True)
        time.sleep(3600)
    if what == "flood":
        block = ("x" * 99 + "\n") * 10_000
        for _ in range(int(os.environ.get("STANDIN_MEGABYTES", "1000"))):
            sys.stdout.write(block)
        print("the end of the flood")


def _leave(path: str, template: str) -> None:
    with tarfile.open(fileobj=io.BytesIO(base64.b64decode(template))) as archive:
        archive.extractall(path, filter="data")


def _cut(path: str) -> None:
    for file in Path(path).rglob("*"):
        if file.suffix in (".distcp", ".safetensors"):
            os.truncate(file, 9)
