"""TAB, in real shells on a terminal: what is typed is completed, whether `=` ends a word there or not."""

import fcntl
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.runs import recorded

pytestmark = pytest.mark.integration

BIN = str(Path(sys.executable).parent)
#: How each is started without anybody's settings, and takes in what `mor` prints for it.
SHELLS = {
    "bash": (["bash", "--noprofile", "--norc", "-i"], 'eval "$(_MOR_COMPLETE=source_bash mor)"'),
    "zsh": (["zsh", "-f", "-i"], 'autoload -Uz compinit && compinit -u; eval "$(_MOR_COMPLETE=source_zsh mor)"'),
    "fish": (["fish", "--no-config", "--interactive"], "_MOR_COMPLETE=source_fish mor | source"),
}
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[()=>][0-9A-B]?|[@-Z\\^_])")


class Terminal:
    """A shell whose terminal is ours."""

    def __init__(self, words: list[str], home: Path, work: Path) -> None:
        env = {"PATH": f"{BIN}:{os.environ['PATH']}", "HOME": str(work), "NEMORUN_HOME": str(home), "TERM": "xterm"}
        env |= {"PS1": "ready$ ", "fish_greeting": "", "LC_ALL": "C.UTF-8", "COLUMNS": "200"}
        ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            words,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            cwd=work,
            env=env,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # it is the shell's own terminal
        )
        os.close(theirs)
        self._terminal = ours

    def typed(self, text: str, until: str, seconds: float = 60) -> str:
        """Type, and return what was shown once `until` is there."""
        os.write(self._terminal, text.encode())
        shown, deadline = "", time.monotonic() + seconds
        while until not in shown:
            assert time.monotonic() < deadline, f"{text!r} did not show {until!r}: {shown[-2000:]!r}"
            if select.select([self._terminal], [], [], 0.2)[0]:
                raw = os.read(self._terminal, 1 << 16)
                if b"\x1b[c" in raw:  # fish asks what terminal it is
                    os.write(self._terminal, b"\x1b[?62c")
                shown = _ESCAPES.sub("", shown + raw.decode(errors="replace"))
        return shown

    def clear(self) -> None:
        """Forget what is typed."""
        os.write(self._terminal, b"\x15")

    def close(self) -> None:
        os.close(self._terminal)
        self.process.kill()
        self.process.wait()


@pytest.fixture(params=SHELLS)
def terminal(request: pytest.FixtureRequest, home: Path, work: Path) -> Iterator[Terminal]:
    words, load = SHELLS[request.param]
    if shutil.which(words[0]) is None:
        assert not os.environ.get("REQUIRE_TESTBED"), f"{words[0]} is missing"
        pytest.skip(f"{words[0]} is not installed")
    shell = Terminal(words, home, work)
    shell.typed(f"{load}; echo load''ed\r", "loaded")
    yield shell
    shell.close()


def test_words_are_completed(terminal: Terminal, home: Path) -> None:
    recorded(home, "probe_1126-0805-47f9a1")
    for begun, ended in (
        ("mor pru\t", "mor prune"),
        ("mor recipes quantize_int8\t", "quantize_int8_sq"),
        ("mor status probe_11\t", "probe_1126-0805-47f9a1"),
        ("mor run quantize_fp8 args.calib_si\t", "args.calib_size="),
        ("mor run quantize_fp8 args.export_quant_cfg=w4a8_a\t", "args.export_quant_cfg=w4a8_awq"),
        ("mor run quantize_fp8 executor=slu\t", "executor=slurm"),
        ("mor run quantize_fp8 executor=slurm executor.accou\t", "executor.account="),
        ("mor explain world_size_not_d\t", "world_size_not_divisible"),
    ):
        terminal.typed(begun, ended)
        terminal.clear()
