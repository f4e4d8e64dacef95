"""What a person sees of each command on a terminal of 80 columns, against the files in screens/.

Each command runs in a process of its own, on a real terminal. Pages of help are compared by their words: how they
are framed and wrapped is the library's, and differs between its releases.
"""

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import tempfile
import termios
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from tests.runs import recorded

FOLDER = Path(__file__).parent / "screens"
COLUMNS = 80
MOR = str(Path(sys.executable).with_name("mor"))
RUN = "probe_1126-0805-47f9a1"
COMMANDS = (
    *("run", "plan", "rehearse", "recipes", "inspect", "explain", "ps", "status", "logs", "cancel", "resume", "open"),
    *("du", "rm", "prune", "executors", "executors init", "executors check", "mcp"),
    *(
        "artifacts",
        "artifacts show",
        "artifacts verify",
        "artifacts lineage",
        "artifacts export",
        "artifacts tag",
        "artifacts untag",
    ),
    *("compare", "verdict", "track", "bundle", "rerun"),
)
_SLURM = ["executor=slurm", "executor.output_root=/lustre/runs", "executor.gpu=h100-80gb"]
#: What is shown, by the name of its file.
SHOWN = {
    "ps": ["ps", "--all"],
    "status": ["status", "latest"],
    "du": ["du"],
    "rm": ["rm", "47f9a1", "--dryrun"],
    "prune": ["prune", "--older-than", "30d", "--keep-artifacts", "--dryrun"],
    "open": ["open", "47f9a1"],
    "cancel": ["cancel", "47f9a1"],
    "unknown_run": ["status", "nothing"],
    "recipe": ["recipes", "probe"],
    "explain": ["explain", "world_size_not_divisible"],
    "executors_init": ["executors", "init", "slurm", "--here"],
    "plan": ["plan", "quantize_fp8", *_SLURM, "args.hf_model_id=Qwen/Qwen3-8B", "executor.nodes=2"],
    "refused": ["plan", "quantize_fp8", *_SLURM, "args.calib_sze=64", "args.export_quant_cfg=fp9"],
    "dry_run": ["run", "probe", "args.message=hello", "--dryrun"],
    "usage": ["run", "probe", "--dtach"],
}
_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_FRAME = re.compile(r"[─-╿]")
#: What differs from one time to the next, and what stands for it.
_DRAWN = (
    (re.compile(r"(probe|quantize_fp8)_\d{4}-\d{4}-(?!47f9a1)[0-9a-f]{6}"), r"\1_ID"),
    (re.compile(r"\.partial-[0-9a-f]{8}"), ".partial-ID"),
    (re.compile(r"\b\d\d\d B\b"), "NNN B"),  # of records, which name this machine and its processes
)


def screens() -> Iterator[tuple[str, str]]:
    """Every file's name, and what it should hold today."""
    cases = {f"help_{name.replace(' ', '_')}.txt": [*name.split(), "--help"] for name in ("", *COMMANDS)}
    cases = {name.replace("help_.txt", "help.txt"): words for name, words in cases.items()}
    cases |= {f"{name}.txt": words for name, words in SHOWN.items()}
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        made = pool.map(lambda case: shown(case[1], Path(folder).resolve() / Path(case[0]).stem), cases.items())
        yield from zip(cases, made, strict=True)


def shown(words: list[str], own: Path) -> str:
    """The command, what it prints, and its exit status; in a folder and a home of its own, with one ended run."""
    (own / "work").mkdir(parents=True)
    _record(own / "home")
    env = {"PATH": os.environ["PATH"], "HOME": str(own), "NEMORUN_HOME": str(own / "home"), "TERM": "xterm"}
    env |= {"NO_COLOR": "1", "LC_ALL": "C.UTF-8", "TZ": "UTC", "HF_HUB_OFFLINE": "1"}
    status, text = _on_a_terminal([MOR, *words], env, own / "work")
    text = text.replace(str(own / "home"), "~/.nemo_run").replace(str(own), "~")
    text = "\n".join(line.rstrip() for line in text.splitlines())
    for what, stands in _DRAWN:
        text = what.sub(stands, text)
    return f"$ mor {' '.join(words)}\n{text.strip(chr(10))}\nexit status {status}\n"


def comparable(name: str, text: str) -> str:
    """What of a screen is ours to say."""
    return " ".join(_FRAME.sub(" ", text).split()) if name.startswith(("help", "usage")) else text


def differences() -> list[str]:
    """What is missing, stale or produced by nothing, a line each."""
    made = dict(screens())
    found = [f"{path.name} is produced by nothing" for path in sorted(FOLDER.iterdir()) if path.name not in made]
    for name, text in made.items():
        path = FOLDER / name
        if not path.is_file():
            found.append(f"{name} is missing")
        elif comparable(name, path.read_text(encoding="utf-8")) != comparable(name, text):
            found.append(f"{name} is stale; today:\n{text}")
        if name.startswith(("help", "ps", "du", "usage")) and (
            long := [one for one in text.splitlines() if len(one) > 80]
        ):
            found.append(f"{name} is wider than a terminal: {long[0]}")
    return found


def _record(home: Path) -> None:
    folder = recorded(home, RUN)
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    record |= {"submitted_at": "2025-11-26T08:05:00.000Z", "started_at": "2025-11-26T08:05:02.000Z"}
    record |= {"finished_at": "2025-11-26T08:06:40.000Z", "peak_memory": None}
    (folder / "run.json").write_text(json.dumps(record), encoding="utf-8")
    (folder / "partial.zlib").write_text("as large everywhere")  # what else is in it depends on the folder's name
    (folder / "job.json").unlink()


def _on_a_terminal(argv: list[str], env: dict[str, str], cwd: Path) -> tuple[int, str]:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
    process = subprocess.Popen(argv, env=env, cwd=cwd, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs)
    os.close(theirs)
    said = b""
    with suppress(OSError):  # how a terminal ends whose last process has ended
        while piece := os.read(ours, 1 << 16):
            said += piece
    os.close(ours)
    return process.wait(timeout=60), _ESCAPE.sub("", said.decode().replace("\r\n", "\n"))
