"""A stand-in for the API of a DGX Cloud Lepton workspace, on loopback, for tests only.

What is stood in for: the service itself. It was written from the types and the calls of the leptonai
SDK 0.27.3 and from the public documentation of the variables that a job gets; it was never compared
with the real service. What is real: the SDK that talks to it, and the jobs. A worker is a process in
name spaces of its own: the machine's root as its image, under an overlay that is thrown away; the
job's mounts; a host name; and a network in which there is nothing but the workers of the same job, so
that a job which downloads anything fails. `wget` and `curl` of the image refuse, and say so in the log.

Emulated of Kubernetes, as its documentation has it: `$(NAME)` and `$$` are replaced in commands and in
values of variables; a stop is SIGTERM to the first process, and SIGKILL a while later.

Needs root, `unshare` and `nsenter` (util-linux). `fail` makes it answer wrongly:

    with LeptonWorkspace(tmp_path) as workspace:
        workspace.fail("create", 500)              # the next create is answered with 500, and not done
        workspace.fail("create", "hang", done=True)  # done, but the answer never comes
        workspace.fail("job", 500, times=99)
"""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, urlparse

NODE_GROUP, NODE_GROUP_ID, TOKEN = "testbed-nodes", "ng-testbed", "testbed-token"
_GRACE_SECONDS = 5.0
_ROUTES = (
    ("groups", "GET", r"/dedicated-node-groups"),
    ("nodes", "GET", r"/dedicated-node-groups/([^/]+)/nodes"),
    ("secrets", "GET", r"/usersecrets"),
    ("create", "POST", r"/jobs"),
    ("list", "GET", r"/jobs"),
    ("job", "GET", r"/jobs/([^/]+)"),
    ("stop", "PATCH", r"/jobs/([^/]+)"),
    ("delete", "DELETE", r"/jobs/([^/]+)"),
    ("replicas", "GET", r"/jobs/([^/]+)/replicas"),
    ("log", "GET", r"/jobs/([^/]+)/replicas/([^/]+)/log"),
    ("history", "GET", r"/logs"),
)
_NO_DOWNLOADS = '#!/bin/sh\necho "DOWNLOAD ATTEMPTED: $0 $*"\nexit 97\n'
# Loopback of a new network name space is down; there may be no `ip` command.
_NETWORK = """
import fcntl, socket, struct, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    fcntl.ioctl(sock, 0x8914, struct.pack("16sh14x", b"lo", 0x1 | 0x40))  # SIOCSIFFLAGS: up, running
print("up", flush=True)
sys.stdin.read()
"""


@dataclass
class _Fault:
    kind: str
    answer: int | str  # a status, or "hang"
    done: bool  # whether what was asked happens all the same
    times: int


@dataclass
class _Job:
    body: dict[str, Any]
    began: float
    network: "subprocess.Popen[str] | None" = None
    workers: "list[subprocess.Popen[bytes]]" = field(default_factory=list)
    logs: list[Path] = field(default_factory=list)
    stopped: bool = False
    pods_gone: bool = False
    started: threading.Event = field(default_factory=threading.Event)


class LeptonWorkspace:
    """The service, while the `with` block lasts; afterwards none of its jobs is left."""

    def __init__(self, folder: Path, *, secrets: dict[str, str] | None = None, start_seconds: float = 0.2) -> None:
        self.folder = folder
        self.secrets = secrets or {}
        self.start_seconds = start_seconds
        self.requests: list[dict[str, Any]] = []
        self.jobs: dict[str, _Job] = {}
        self._faults: list[_Fault] = []
        self._lock = threading.RLock()
        self._closing = threading.Event()

    def __enter__(self) -> Self:
        (self.folder / "storage").mkdir(parents=True, exist_ok=True)
        workspace = self

        class Handler(_Handler):
            service = workspace

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        return self

    def __exit__(self, *exception: object) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)
        for job in self.jobs.values():
            self._end(job, signal.SIGKILL)
            if job.network:
                job.network.kill()
                job.network.communicate()

    @property
    def environment(self) -> dict[str, str]:
        """What the SDK reads its login from."""
        return {
            "LEPTON_WORKSPACE_ID": "testbed",
            "LEPTON_WORKSPACE_URL": self.url,
            "LEPTON_WORKSPACE_TOKEN": TOKEN,
            "LEPTON_CACHE_DIR": str(self.folder / "sdk"),
            "NO_PROXY": "127.0.0.1",
        }

    def fail(self, kind: str, answer: int | str, *, done: bool = False, times: int = 1) -> None:
        """Answer the next `times` requests of a kind (the first words in _ROUTES) with a status, or "hang"."""
        assert kind in {route[0] for route in _ROUTES}, kind
        self._faults.append(_Fault(kind, answer, done, times))

    def calm(self) -> None:
        """Answer rightly again."""
        self._faults.clear()

    def forget_pods(self, name: str) -> None:
        """Remove an ended job's pods, as its time to live does: its log is history then."""
        self.jobs[name].pods_gone = True

    def storage(self, path: str) -> Path:
        """A folder of the mounted storage, from outside."""
        return self.folder / "storage" / path.lstrip("/")

    def handle(self, method: str, target: str, body: Any, token: str | None) -> Any:
        """(status, value) for an answer in JSON, a Path-and-worker pair for a log, or None to hang."""
        url = urlparse(target)
        found = [(kind, r) for kind, m, pattern in _ROUTES if m == method and (r := re.fullmatch(pattern, url.path))]
        kind, match = found[0] if found else ("unknown", None)
        self.requests.append({"kind": kind, "method": method, "path": target, "body": body})
        if token != f"Bearer {TOKEN}":
            return 401, {"message": "unauthorized"}
        fault = self._fault(kind)
        if fault and not fault.done:
            return None if fault.answer == "hang" else (fault.answer, {"message": "made to fail"})
        if match is None:
            return 404, {"message": url.path}
        with self._lock:
            query = {key: values[0] for key, values in parse_qs(url.query).items()}
            answer = getattr(self, f"_{kind}")(*match.groups(), body=body, query=query)
        if fault:
            return None if fault.answer == "hang" else (fault.answer, {"message": "made to fail"})
        return answer

    def wait_closed(self) -> None:
        self._closing.wait(60)

    def _fault(self, kind: str) -> _Fault | None:
        for fault in self._faults:
            if fault.kind == kind and fault.times:
                fault.times -= 1
                return fault
        return None

    def _groups(self, **_: Any) -> Any:
        group = {"metadata": {"id": NODE_GROUP_ID, "name": NODE_GROUP}, "spec": {}, "status": {"ready_nodes": 2}}
        return 200, [group]

    def _nodes(self, group: str, **_: Any) -> Any:
        spec, ready = {"unschedulable": False}, {"status": ["Ready"]}
        nodes = [{"metadata": {"id": f"node-{n}"}, "spec": spec, "status": ready} for n in (1, 2)]
        nodes.append({"metadata": {"id": "node-3"}, "spec": {"unschedulable": True}, "status": ready})
        return (200, nodes) if group == NODE_GROUP_ID else (404, {"message": "no such group"})

    def _secrets(self, **_: Any) -> Any:
        return 200, [{"name": name} for name in self.secrets]

    def _create(self, body: Any, **_: Any) -> Any:
        name = body["metadata"]["id"]
        if not re.fullmatch(r"[a-z]([a-z0-9-]{0,34}[a-z0-9])?", name):
            return 400, {"message": f"bad name {name}"}
        if name in self.jobs:
            return 409, {"message": f"job {name} already exists"}
        job = _Job(body, time.time())
        self.jobs[name] = job
        threading.Thread(target=self._start, args=(name, job), daemon=True).start()
        return 201, self._view(job)

    def _list(self, query: dict[str, str], **_: Any) -> Any:
        return 200, {"jobs": [self._view(job) for job in self.jobs.values()] if query.get("page", "1") == "1" else []}

    def _job(self, name: str, **_: Any) -> Any:
        return (200, self._view(self.jobs[name])) if name in self.jobs else (404, {"message": f"no job {name}"})

    def _stop(self, name: str, body: Any, **_: Any) -> Any:
        if name not in self.jobs:
            return 404, {"message": f"no job {name}"}
        job = self.jobs[name]
        if (body.get("spec") or {}).get("stopped"):
            job.stopped = True
            threading.Thread(target=self._end, args=(job, signal.SIGTERM), daemon=True).start()
        return 200, self._view(job)

    def _delete(self, name: str, **_: Any) -> Any:
        if name not in self.jobs:
            return 404, {"message": f"no job {name}"}
        self._end(self.jobs.pop(name), signal.SIGKILL)
        return 200, {}

    def _replicas(self, name: str, **_: Any) -> Any:
        if name not in self.jobs:
            return 404, {"message": f"no job {name}"}
        job = self.jobs[name]
        ids = [f"{name}-{n}-abcde" for n in range(len(job.workers))] if job.started.is_set() else []
        return 200, [{"id": replica, "metadata": {"id": replica}} for replica in ids]

    def _log(self, name: str, replica: str, **_: Any) -> Any:
        if name not in self.jobs or self.jobs[name].pods_gone or not self.jobs[name].started.is_set():
            return 404, {"message": "no such replica"}
        job, index = self.jobs[name], int(replica.removeprefix(f"{name}-").partition("-")[0])
        return job.logs[index], job.workers[index]

    def _history(self, query: dict[str, str], **_: Any) -> Any:
        job, index = self.jobs[query["job"]], int(query["replica"].removeprefix(f"{query['job']}-").partition("-")[0])
        lines = job.logs[index].read_text(errors="replace").splitlines()[-int(query["limit"]) :]
        values = [[str(int(job.began * 1e9) + n), line] for n, line in enumerate(lines)]
        return 200, {"data": {"result": [{"values": values[::-1]}]}}

    def _view(self, job: _Job) -> dict[str, Any]:
        codes = [worker.poll() for worker in job.workers]
        running, failed = codes.count(None), sum(code not in (None, 0) for code in codes)
        if not job.started.is_set() or time.time() - job.began < self.start_seconds:
            state = "Starting"
        elif job.stopped:
            state = "Stopping" if running else "Stopped"
        else:
            state = "Running" if running else "Failed" if failed else "Completed"
        succeeded = len(codes) - running - failed
        counts = {"ready": running, "active": running, "failed": failed, "succeeded": succeeded}
        status = {"job_name": job.body["metadata"]["id"], "state": state, "creation_time": int(job.began * 1000)}
        return job.body | {"status": status | counts}

    def _end(self, job: _Job, by: signal.Signals) -> None:
        job.started.wait(30)
        for worker in job.workers:
            if worker.poll() is None:
                worker.send_signal(by)
        deadline = time.monotonic() + _GRACE_SECONDS
        for worker in job.workers:
            with suppress(subprocess.TimeoutExpired):
                worker.wait(max(0.0, deadline - time.monotonic()))
            with suppress(ProcessLookupError):
                os.killpg(worker.pid, signal.SIGKILL)  # what it started ends with its pod
            worker.wait()

    def _start(self, name: str, job: _Job) -> None:
        spec = job.body["spec"]
        job.network = subprocess.Popen(
            ["unshare", "-n", sys.executable, "-c", _NETWORK],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert job.network.stdout and job.network.stdout.readline() == "up\n"
        count = spec.get("parallelism") or 1
        for index in range(count):
            job.logs.append(self.folder / f"{name}-{index}.log")
            env = self._environment_of(name, index, count, spec)
            command = [_expand(word, env) for word in spec["container"]["command"]]
            with job.logs[index].open("ab") as log:
                enter = ["nsenter", f"--net=/proc/{job.network.pid}/ns/net", "unshare", "-m", "-u", "/bin/sh", "-e"]
                worker = subprocess.Popen(
                    [*enter, "-c", self._image(name, index, count, spec, env["PATH"]), "worker", *command],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env={**env, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
                    start_new_session=True,
                )
            job.workers.append(worker)
        job.started.set()

    def _environment_of(self, name: str, index: int, count: int, spec: dict[str, Any]) -> dict[str, str]:
        env = {
            "PATH": f"/usr/local/bin:{Path(sys.executable).parent}:/usr/bin:/bin",
            "HOME": "/root",
            "LEPTON_WORKSPACE_ID": "testbed",
            "LEPTON_JOB_NAME": name,
            "LEPTON_JOB_SERVICE_PREFIX": name,
            "LEPTON_SUBDOMAIN": f"{name}-job-svc",
            "LEPTON_JOB_WORKER_INDEX": str(index),
            "LEPTON_JOB_TOTAL_WORKERS": str(count),
            "GLOO_SOCKET_IFNAME": "lo",
        }
        for variable in spec.get("envs") or []:
            reference = (variable.get("value_from") or {}).get("secret_name_ref")
            value = self.secrets[reference] if reference else _expand(variable.get("value") or "", env)
            env[variable["name"]] = value
        return env

    def _image(self, name: str, index: int, count: int, spec: dict[str, Any], path: str) -> str:
        """The shell commands that make a worker's root and enter it with the command that follows."""
        host = f"{name}-{index}"
        hosts = f"127.0.0.1 localhost {host}\n" + "".join(
            f"127.0.0.1 {name}-{n}.{name}-job-svc\n" for n in range(count)
        )
        lines = [
            "mount --make-rprivate /",
            f"echo {host} > /proc/sys/kernel/hostname",
            "mount -t tmpfs worker /mnt",
            "mkdir /mnt/upper /mnt/work /mnt/root",
            "mount -t overlay overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work /mnt/root",
            "for d in proc dev sys; do mount --rbind /$d /mnt/root/$d; done",
            "rm -rf /mnt/root/nemo_run",
            f"printf %s {shlex.quote(hosts)} > /mnt/root/etc/hosts",
            "mkdir -p /mnt/root/usr/local/bin",
        ]
        for tool in ("wget", "curl"):
            target = f"/mnt/root/usr/local/bin/{tool}"
            lines += [f"printf %s {shlex.quote(_NO_DOWNLOADS)} > {target}", f"chmod 755 {target}"]
        for mount in spec.get("mounts") or []:
            source, inside = (
                shlex.quote(str(self.storage(mount["path"]))),
                shlex.quote(f"/mnt/root{mount['mount_path']}"),
            )
            lines += [f"mkdir -p {source} {inside}", f"mount --rbind {source} {inside}"]
        lines.append(f'cd /; exec chroot /mnt/root /usr/bin/env PATH={shlex.quote(path)} "$@"')
        return "\n".join(lines)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    service: LeptonWorkspace

    def log_message(self, *args: Any) -> None: ...

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        answer = self.service.handle(self.command, self.path, body, self.headers.get("Authorization"))
        if answer is None:
            self.service.wait_closed()
            self.close_connection = True
        elif isinstance(answer[0], Path):
            try:
                self._stream(*answer)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True
        else:
            data = json.dumps(answer[1]).encode()
            self.send_response(answer[0])
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    def _stream(self, log: Path, worker: "subprocess.Popen[bytes]") -> None:
        """The log so far and as it grows, until the worker ends."""
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        with log.open("rb") as handle:
            while True:
                ended = worker.poll() is not None
                if data := handle.read(65536):
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
                    self.wfile.flush()
                elif ended or self.service._closing.is_set():
                    break
                else:
                    time.sleep(0.05)
        self.wfile.write(b"0\r\n\r\n")

    do_GET = do_POST = do_PATCH = do_DELETE = _answer  # noqa: N815 - the names that http.server calls


def _expand(text: str, env: dict[str, str]) -> str:
    """Kubernetes: `$(NAME)` of a variable that is set is its value, `$$` is `$`, anything else stays."""

    def value(match: re.Match[str]) -> str:
        return "$" if match[0] == "$$" else env.get(match[1], match[0])

    return re.sub(r"\$\$|\$\(([^()]*)\)", value, text)
