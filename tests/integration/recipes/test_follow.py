"""What somebody at a terminal sees of several stages while they run."""

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import termios
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conftest import NEMO

pytestmark = pytest.mark.integration


def on_a_terminal(words: list[str], work: Path, home: Path, lines: int = 24) -> tuple[int, str]:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, 100, 0, 0))
    env = {**os.environ, "NEMORUN_HOME": str(home), "TERM": "xterm", "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(words, env=env, cwd=work, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs)
    os.close(theirs)
    said = b""
    with suppress(OSError):  # how a terminal ends whose last process has ended
        while piece := os.read(ours, 1 << 16):
            said += piece
    os.close(ours)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", said.decode(errors="replace"))
    return process.wait(timeout=60), text.replace("\r", "\n")


@pytest.mark.timeout(300)
def test_all_stages_are_lines_of_one_table(work: Path, home: Path) -> None:
    stages = {name: {"recipe": "probe", "after": [], "args": {"seconds": 3}} for name in ("first", "second")}
    stages["third"] = {"recipe": "probe", "after": ["first"]}
    (work / "slow.yaml").write_text(json.dumps({"stages": stages}))
    words = [NEMO, "experiment", "run", "slow.yaml", "executor=local", "executor.parallel=2", "--yes"]
    code, text = on_a_terminal(words, work, home)
    assert code == 0, text
    rows = [line.split()[:2] for line in text.splitlines()]
    assert ["first", "running"] in rows and ["third", "submitted"] in rows and ["third", "succeeded"] in rows
    assert "2 running, 1 submitted" in text and "3 succeeded" in text
    assert "hello" not in text  # logs are no part of a table
