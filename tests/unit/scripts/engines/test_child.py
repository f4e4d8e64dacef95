"""Processes of scripts and servers."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from scripts.engines.child import Output
from scripts.engines.supervise import end_group

STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("here", flush=True)
time.sleep(60)
"""
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {STUBBORN!r}])"


@pytest.mark.parametrize("words", [STUBBORN, PARENT], ids=["itself", "its child"])
def test_what_does_not_listen_ends_with_its_group(words: str) -> None:
    command = [sys.executable, "-c", words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout is not None and process.stdout.readline() == b"here\n"
        began = time.monotonic()
        end_group(process, 0.3)
        assert process.stdout.read() == b"", "nobody of its group holds the pipe"
        assert time.monotonic() - began < 30
        assert process.returncode is not None


def test_no_secret_of_ours_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", "plain-looking")
    output = Output(tmp_path / "tail", limit=20)
    for piece in (b"bad token plain-", b"looking\n", b"x" * 20, b"plain-looking", b" plai"):
        output.write(piece)
    output.close()
    kept = (tmp_path / "tail").read_text()
    assert capsys.readouterr().out.startswith("bad token <HF_TOKEN>")
    assert kept.endswith("x<HF_TOKEN> plai") and output.tail.count("<HF_TOKEN>") == 2
