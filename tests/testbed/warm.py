"""`nemo` for tests that call it often: each call is a process of its own, but not each one imports torch anew.

A server imports the packages that NeMo-Run needs, and nothing of NeMo-Run or of ours. For every command it
forks; the child gets its environment, folder and files, and only then imports NeMo-Run, which reads some of that
while it is imported, and runs what the `nemo` script runs, to the same end: exit handlers, threads, status.
"""

import atexit
import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

#: Imported by each command.
_FRESH = ("nemo_run", "recipes", "executors", "scripts", "configs")
#: Imported anew by a command that has other variables of that beginning: they are read at import.
_READERS = {"leptonai": "LEPTON_", "loguru": "LEPTON_", "huggingface_hub": "HF_"}  # one's log levels are the other's


class Command:
    """A command that was begun, with as much of a Popen as tests ask for."""

    def __init__(self, words: Sequence[str], line: socket.socket, out: IO[str], err: IO[str]) -> None:
        self.args = ["nemo", *words]
        self.stdout, self.stderr = out, err
        self.returncode: int | None = None
        self._line = line
        self._told = line.makefile("r")
        self.pid = int(self._told.readline())

    def poll(self) -> int | None:
        """The exit status, or None while it runs."""
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit status once it has ended; negative after a signal."""
        if self.returncode is None:
            if not select.select([self._line], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            self.returncode = int(self._told.readline())
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it printed, all of it, once it has ended."""
        texts = {}

        def read(stream: IO[str]) -> None:
            texts[stream] = stream.read()

        readers = [threading.Thread(target=read, args=[stream], daemon=True) for stream in (self.stdout, self.stderr)]
        for reader in readers:
            reader.start()
        self.wait(timeout)
        for reader in readers:
            reader.join(timeout)
        return texts[self.stdout], texts[self.stderr]

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.wait()
        for stream in (self.stdout, self.stderr, self._told, self._line):
            stream.close()


class Warm:
    """Starts commands, any number at a time."""

    def __init__(self, address: str) -> None:
        self._address = address

    def begin(self, words: Sequence[str], env: Mapping[str, str], cwd: Path) -> Command:
        """Start `nemo WORDS...`, with no standard input, in a session of its own."""
        line = socket.socket(socket.AF_UNIX)
        line.connect(self._address)
        request = json.dumps({"words": [*words], "env": dict(env), "cwd": str(cwd)}).encode() + b"\n"
        (out, out_end), (err, err_end) = os.pipe(), os.pipe()
        socket.send_fds(line, [request], [out_end, err_end])
        os.close(out_end)
        os.close(err_end)
        return Command(words, line, os.fdopen(out, encoding="utf-8"), os.fdopen(err, encoding="utf-8"))

    def run(
        self, words: Sequence[str], env: Mapping[str, str], cwd: Path, timeout: float = 300
    ) -> tuple[int, str, str]:
        """Exit status, standard output and standard error of `nemo WORDS...`."""
        with self.begin(words, env, cwd) as command:
            try:
                out, err = command.communicate(timeout)  # first: a pipe that nobody reads would stop it
                return command.wait(timeout), out, err
            finally:
                command.kill()


@contextmanager
def warm_nemo() -> Iterator[Warm]:
    """A server that ends with the block."""
    with tempfile.TemporaryDirectory(prefix="warm-", dir="/tmp") as folder:  # a socket's path must be short
        argv = [sys.executable, "-P", __file__, f"{folder}/socket"]  # beside this file lies a `docker.py`
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=_plain()) as server:
            assert server.stdout
            assert server.stdout.readline() == "ready\n"
            try:
                yield Warm(f"{folder}/socket")
            finally:
                server.kill()


def _plain() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    return {**kept, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "NEMORUN_HOME": "/nonexistent"}


def _serve(address: str) -> None:
    _preload()
    gc.freeze()  # a collection in a child would touch, and so copy, all of it
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody here asks how a child ended: it says so itself
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(address)
        door.listen(64)
        print("ready", flush=True)
        while sys.stdin not in select.select([door, sys.stdin], [], [])[0]:  # it says something when the tests end
            line, _ = door.accept()
            if not os.fork():
                door.close()
                _mind(line)
            line.close()


def _preload() -> None:
    """Import what NeMo-Run and the SDKs import, as a process that ends again found out."""
    find = "import importlib, pkgutil, sys, docker, leptonai.api.v2.client, nemo_run.__main__, recipes.cli as cli; "
    find += "[importlib.import_module(f'recipes.cli.{m.name}') for m in pkgutil.iter_modules(cli.__path__)]; "
    find += f"print(*(n for n in sys.modules if n.partition('.')[0] not in {_FRESH!r}))"
    found = subprocess.run([sys.executable, "-P", "-c", find], capture_output=True, text=True, check=True, env=_plain())
    import importlib

    for name in found.stdout.splitlines()[-1].split():
        if not name.startswith("__"):
            try:
                importlib.import_module(name)
            except ImportError:
                continue  # made by its package, not by a file
    with suppress(ImportError):
        importlib.import_module("coverage")  # not begun: a command begins to measure itself
    assert not set(_FRESH) & set(sys.modules), set(_FRESH) & set(sys.modules)


def _mind(line: socket.socket) -> None:
    """In a child: start the command, say its process id, and once it has ended its status. Never returns."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    text, files, _, _ = socket.recv_fds(line, 1 << 20, 2)
    while not text.endswith(b"\n"):
        text += line.recv(1 << 20)
    child = os.fork()
    if not child:
        line.close()
        _run(json.loads(text), files)
    for file in files:
        os.close(file)
    with suppress(OSError):  # whoever asked has gone
        line.sendall(f"{child}\n".encode())
        _, status = os.waitpid(child, 0)
        line.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


def _run(request: dict[str, Any], files: Sequence[int]) -> None:
    """In a child of its own: become the command. Never returns."""
    os.setsid()
    for number, file in enumerate([os.open(os.devnull, os.O_RDONLY), *files]):
        os.dup2(file, number)
        os.close(file)
    for package, beginning in _READERS.items():
        if _with(beginning, os.environ) != _with(beginning, request["env"]):
            for name in [name for name in sys.modules if name.partition(".")[0] == package]:
                del sys.modules[name]
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:] = [*paths, *(path for path in sys.path if path not in paths)]
    sys.argv = ["nemo", *request["words"]]
    if os.environ.get("COVERAGE_PROCESS_CONFIG"):
        import coverage

        coverage.process_startup(slug="pth")
    status = _status_of_nemo()
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    if status < 0:
        signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


def _with(beginning: str, variables: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in variables.items() if name.startswith(beginning)}


def _status_of_nemo() -> int:
    """What the script `nemo` would exit with; negative for the signal that it would end by."""
    try:
        from nemo_run.__main__ import app

        code: object = app()
    except SystemExit as end:
        code = end.code
    except KeyboardInterrupt:
        return -signal.SIGINT
    except BaseException:
        import traceback

        traceback.print_exc()
        return 1
    if isinstance(code, str):
        print(code, file=sys.stderr)
        return 1
    return code & 0xFF if isinstance(code, int) else 0


if __name__ == "__main__":
    _serve(sys.argv[1])
