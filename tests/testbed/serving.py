"""Stand-ins for vLLM, TensorRT-LLM and SGLang, which need GPUs: they take the same words and speak the same API.

Each parses the flags that its original declares, those that `serve` may use, refuses any other as that does, and
starts a worker process in a session of its own. What else it does is told by a variable:

SERVER_STANDIN=WHAT   works (the default), dies, silent (never ready), empty, repeats, collapses (while it answers),
                      refuses (status 400), wordless (no count of tokens), stubborn (deaf to SIGTERM)
SERVER_STANDIN_LOG    a file that it appends a line of JSON to: the words it got, and its processes
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

READY_SECONDS = 0.6


def install(folder: Path) -> dict[str, str]:
    """Put all three into `folder`; the variables under which a job finds them there."""
    (folder / "bin").mkdir(parents=True)
    for name in ("vllm", "trtllm-serve"):
        program = folder / "bin" / name
        program.write_text(f"#!{sys.executable}\n{_BODY.format(name=name)}")
        program.chmod(0o755)
    package = folder / "python" / "sglang"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "launch_server.py").write_text(_BODY.format(name="sglang"))
    paths = [str(folder / "python"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": os.pathsep.join(paths)}


_BODY = f"""import runpy
runpy.run_path({str(Path(__file__))!r}, init_globals={{{{"NAME": "{{name}}"}}}}, run_name="__main__")
"""


def _parser(name: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=name, allow_abbrev=False)
    parser.add_argument("--host", default="0.0.0.0")
    parser.add_argument("--port", type=int, default=8000)
    if name == "vllm":
        parser.add_argument("command", choices=["serve"])
        parser.add_argument("model")
        parser.add_argument("--tensor-parallel-size", type=int, default=1)
        parser.add_argument("--max-model-len", type=int)
        parser.add_argument("--quantization", choices=["modelopt", "modelopt_fp4", "modelopt_mxfp8", "modelopt_mixed"])
        parser.add_argument("--trust-remote-code", action="store_true")
        parser.add_argument("--enforce-eager", action="store_true")
    elif name == "trtllm-serve":
        parser.add_argument("model")
        parser.add_argument("--tensor_parallel_size", "--tp_size", type=int, default=1)
        parser.add_argument("--max_seq_len", type=int)
        parser.add_argument("--backend", choices=["pytorch", "tensorrt", "_autodeploy"], default="pytorch")
        parser.add_argument("--trust_remote_code", action="store_true")
    else:
        parser.add_argument("--model-path", dest="model", required=True)
        parser.add_argument("--tensor-parallel-size", "--tp-size", type=int, default=1)
        parser.add_argument("--context-length", type=int)
        parser.add_argument("--quantization", choices=["modelopt", "modelopt_fp8", "modelopt_fp4", "modelopt_mixed"])
        parser.add_argument("--trust-remote-code", action="store_true")
    return parser


class _Api(BaseHTTPRequestHandler):
    what: str
    model: str
    ready_at: float

    def do_GET(self) -> None:
        if self.path == "/health":
            ready = time.monotonic() >= self.ready_at and self.what != "silent"
            self._say(200 if ready else 503, {})
        elif self.path == "/v1/models":
            self._say(200, {"data": [{"id": self.model}]})
        else:
            self._say(404, {})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path != "/v1/completions" or asked["model"] != self.model or self.what == "refuses":
            self._say(400, {"message": "the request is not understood"})
            return
        if self.what == "collapses":
            print("torch.OutOfMemoryError: CUDA out of memory", flush=True)
            os._exit(9)
        text = {"empty": "", "repeats": "!" * asked["max_tokens"]}.get(self.what, f" and so on after {asked['prompt']}")
        said: dict[str, Any] = {"choices": [{"text": text}]}
        if self.what != "wordless":
            said["usage"] = {"completion_tokens": asked["max_tokens"]}
        self._say(200, said)

    def _say(self, status: int, body: Any) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None: ...


def _serve(name: str) -> None:
    what = os.environ.get("SERVER_STANDIN", "works")
    if what == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    args = _parser(name).parse_args()
    worker = subprocess.Popen(["sleep", "600"], start_new_session=True)
    if log := os.environ.get("SERVER_STANDIN_LOG"):
        with Path(log).open("a", encoding="utf-8") as handle:
            handle.write(json.dumps({"argv": sys.argv, "pids": [os.getpid(), worker.pid]}) + "\n")
    print(f"loading {args.model}", flush=True)
    if what == "dies":
        print("(EngineCore pid=7) ValueError: ModelOpt currently only supports: ['FP8'] quantizations", flush=True)
        raise SystemExit(1)
    _Api.what, _Api.model, _Api.ready_at = what, args.model, time.monotonic() + READY_SECONDS
    ThreadingHTTPServer((args.host, args.port), _Api).serve_forever()


if __name__ == "__main__":
    _serve(NAME)  # type: ignore[name-defined]  # noqa: F821 - set by what runs this file
