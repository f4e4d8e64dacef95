"""`nemo` for tests that call it often: each call is a process of its own, but not each one imports torch anew.

A server imports the packages that NeMo-Run needs, and nothing of NeMo-Run or of ours. For every
command it forks; the child gets its environment, folder and files, and only then imports NeMo-Run,
which reads some of that while it is imported, and runs what the `nemo` script runs.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

_OWN = ("nemo_run", "recipes", "executors", "scripts", "configs")


class Warm:
    """Runs commands, one at a time."""

    def __init__(self, server: "subprocess.Popen[str]") -> None:
        self._server = server

    def run(self, words: Sequence[str], env: Mapping[str, str], cwd: Path) -> tuple[int, str, str]:
        """Exit status, standard output and standard error of `nemo WORDS...`."""
        assert self._server.stdin and self._server.stdout
        with TemporaryDirectory() as folder:
            out, err = f"{folder}/out", f"{folder}/err"
            request = {"words": [*words], "env": dict(env), "cwd": str(cwd), "out": out, "err": err}
            self._server.stdin.write(json.dumps(request) + "\n")
            self._server.stdin.flush()
            code = int(self._server.stdout.readline())
            return code, Path(out).read_text(encoding="utf-8"), Path(err).read_text(encoding="utf-8")


@contextmanager
def warm_nemo() -> Iterator[Warm]:
    """A server that ends with the block."""
    argv = [sys.executable, "-P", __file__]  # beside this file lies a `docker.py`
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=_plain()) as server:
        try:
            yield Warm(server)
        finally:
            server.kill()


def _plain() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "NEMORUN_HOME": "/nonexistent"}


def _serve() -> None:
    _preload()
    for line in sys.stdin:
        child = os.fork()
        if not child:
            _run(json.loads(line))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _preload() -> None:
    """Import what NeMo-Run and the SDKs import, as a process that ends again found out."""
    find = "import sys, nemo_run.__main__, recipes.cli.commands, recipes.experiment.sweep, docker; "
    find += "import leptonai.api.v2.client; "
    find += f"print(*(n for n in sys.modules if n.partition('.')[0] not in {_OWN!r}))"
    found = subprocess.run([sys.executable, "-P", "-c", find], capture_output=True, text=True, check=True, env=_plain())
    import importlib

    for name in found.stdout.splitlines()[-1].split():
        if not name.startswith("__"):
            try:
                importlib.import_module(name)
            except ImportError:
                continue  # made by its package, not by a file


def _run(request: dict[str, object]) -> None:
    """In the child: become the command. Never returns."""
    os.setsid()
    for number, (path, flags) in enumerate(
        (
            (os.devnull, os.O_RDONLY),
            (request["out"], os.O_WRONLY | os.O_CREAT),
            (request["err"], os.O_WRONLY | os.O_CREAT),
        )
    ):
        handle = os.open(str(path), flags, 0o600)
        os.dup2(handle, number)
        os.close(handle)
    os.environ.clear()
    os.environ.update(request["env"])  # type: ignore[arg-type]
    os.chdir(str(request["cwd"]))
    sys.argv = ["nemo", *request["words"]]  # type: ignore[misc]
    code: object = 70
    try:
        from nemo_run.__main__ import app

        code = app()
    except SystemExit as end:
        code = end.code
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 0 if code is None else 1)


if __name__ == "__main__":
    _serve()
