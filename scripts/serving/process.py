"""A server as a process of the job: started, watched, and gone with the block it was started for."""

import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from scripts.engines.script.child import Output

_SUPERVISE = Path(__file__).with_name("supervise.py")
_CHUNK = 1 << 16
#: The supervisor gives the server time to end by itself, then kills; after this long it is killed.
_STOP_SECONDS = 60.0


class Running:
    """A server that was started."""

    def __init__(self, process: "subprocess.Popen[bytes]", output: Output) -> None:
        self._process = process
        self._output = output

    def status_within(self, seconds: float) -> int | None:
        """Its exit status; None where it still runs after `seconds`."""
        with suppress(subprocess.TimeoutExpired):
            return self._process.wait(seconds)
        return None

    @property
    def tail(self) -> str:
        """The end of what it printed."""
        return self._output.tail


@contextmanager
def started(words: Sequence[str], *, env: Mapping[str, str], output: Output) -> Iterator[Running]:
    """Run `words` while the block lasts; what they print goes to `output`. Everything they start ends with the job."""
    process = subprocess.Popen(
        [sys.executable, "-P", str(_SUPERVISE), *words],
        env=dict(env),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # Ctrl-C is for the job, which ends it in order
    )
    assert process.stdin is not None and process.stdout is not None
    reader = threading.Thread(target=_copy, args=(process.stdout, output), name="server output", daemon=True)
    reader.start()
    try:
        yield Running(process, output)
    finally:
        process.stdin.close()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        reader.join(timeout=5)
        output.close()


def _copy(pipe: IO[bytes], output: Output) -> None:
    while data := pipe.read1(_CHUNK):  # type: ignore[attr-defined]  # a buffered reader, by Popen's default
        output.write(data)
