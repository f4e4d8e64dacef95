"""The three servers: the ModelOpt formats that each can load, its command line, and its process.

Sources: vLLM 0.29 (vllm/model_executor/layers/quantization/modelopt.py), TensorRT-LLM 1.2
(tensorrt_llm/commands/serve.py, _torch/modules/linear.py), SGLang 0.5.17 (python/sglang/srt/server_args.py,
layers/quantization/modelopt_quant.py).
"""

import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import util
from typing import IO, Any

import yaml

from configs import CONFIGS
from scripts.args.serve import ServeArgs, ServerName
from scripts.engines import supervise
from scripts.engines.child import Output
from scripts.formats import FORMATS
from scripts.run.files import expanded, is_file
from scripts.run.problems import JobError

#: They answer nobody but this machine.
HOST = "127.0.0.1"
_CHUNK = 1 << 16
#: The supervisor gives the server time to end by itself, then kills; after this long it is killed.
_STOP_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class Server:
    """How one server is started."""

    title: str
    program: str  # an executable on PATH, or "-m package.module" for the job's own Python
    command: tuple[str, ...] = ()  # before the model
    model: str | None = None  # the flag of the model; None: it has none
    tensor_parallel: str
    longest: str
    trust: str
    quantization: str | None  # None: it reads the checkpoint and takes no word for it
    fixed: tuple[str, ...] = ()
    formats: Mapping[str, str]  # quant_algo of an export -> what `quantization` is given

    @property
    def module(self) -> str | None:
        """What the job's Python runs; None: the program is an executable."""
        return self.program.removeprefix("-m ") if self.program.startswith("-m ") else None

    @property
    def is_here(self) -> bool:
        """Whether this machine has it, for this Python."""
        if self.module:
            return util.find_spec(self.module.partition(".")[0]) is not None
        return shutil.which(self.program) is not None

    def expected_program(self, path: str | None) -> list[str]:
        """The words that start it on a machine that has it, where nobody has looked yet."""
        if self.module:
            return ["python", *([path] if path else ["-m", self.module]), *self.command]
        return [path or self.program, *self.command]


def _server(name: ServerName, facts: dict[str, Any]) -> Server:
    """What configs/servers.yaml says of it, and the formats that configs/formats.yaml says it loads."""
    named = {algo: word for each in FORMATS.values() for algo, word in each.servers.get(name, {}).items()}
    values: dict[str, Any] = {key: tuple(of) if isinstance(of, list) else of for key, of in facts.items()}
    return Server(**values | {"formats": named | facts["formats"]})


SERVERS: Mapping[ServerName, Server] = {
    name: _server(name, facts) for name, facts in yaml.safe_load((CONFIGS / "servers.yaml").read_text("utf-8")).items()
}


def able(algorithm: str) -> list[str]:
    """The servers that can load an export of that `quant_algo`."""
    return [name for name, server in SERVERS.items() if algorithm in server.formats]


def find_program(server: Server, path: str | None) -> list[str]:
    """The words that start the server's program; `path` is a file to take instead of the installed one.

    Raises JobError `server_not_installed`.
    """
    module = server.module
    if path is not None:
        file = expanded(path).absolute()
        found = ([sys.executable, str(file)] if module else [str(file)]) if is_file(file) else None
    elif module:
        found = [sys.executable, "-m", module] if server.is_here else None
    else:
        program = shutil.which(server.program)
        found = [program] if program else None
    if found is None:
        where = path or ("this Python" if module else "PATH")
        cause = f"{server.program.removeprefix('-m ')} is not in {where}." if path is None else f"{path} is not a file."
        raise JobError("server_not_installed", cause, f"Use a container that has {server.title}, or set script.path.")
    return [*found, *server.command]


def command_line(
    server: Server, program: Sequence[str], args: ServeArgs, *, model: str, method: str | None, port: int | str
) -> list[str]:
    """The words that serve `model`, an absolute path or a hub name; `method` is what it is told of the format."""
    words = [*program, *([server.model] if server.model else []), model]
    words += ["--host", HOST, "--port", str(port), server.tensor_parallel, str(args.tensor_parallel_size)]
    words += server.fixed
    if method and server.quantization:
        words += [server.quantization, method]
    if args.max_length is not None:
        words += [server.longest, str(args.max_length)]
    return [*words, *([server.trust] if args.trust_remote_code else [])]


@contextmanager
def started(words: Sequence[str], *, env: Mapping[str, str], output: Output) -> Iterator["subprocess.Popen[bytes]"]:
    """Run `words` while the block lasts; what they print goes to `output`. Everything they start ends with the job."""
    process = subprocess.Popen(
        [sys.executable, "-P", supervise.__file__, *words],
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
        yield process
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
