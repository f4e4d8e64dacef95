"""A private Docker engine for tests: a real dockerd on a socket of its own, without network or registry.

Its one image is empty folders; the host's /usr and /etc, this Python and its packages, and this
checkout are mounted read-only, so that a container can run what the tests run. Needs root and
Debian's docker.io. Everything lies in a new folder, and goes with it.
"""

import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.testbed import cannot_run

IMAGE = "hostroot"
_START_SECONDS = 30
_FOLDERS = ("usr", "etc", "tmp", "root", "proc", "sys", "dev", "run", "var", "nemo_run")
_LINKS = ("bin", "sbin", "lib", "lib64")  # to usr/..., as Debian has them


@dataclass
class Engine:
    """A dockerd of its own."""

    folder: Path
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def host(self) -> str:
        return f"unix://{self.folder}/docker.sock"

    @property
    def log(self) -> str:
        return (self.folder / "dockerd.log").read_text(encoding="utf-8", errors="replace")

    @property
    def image_id(self) -> str:
        with self.client() as client:
            return str(client.images.get(IMAGE).id)

    @contextmanager
    def client(self) -> Iterator[Any]:
        import docker

        client = docker.DockerClient(base_url=self.host, timeout=60)
        try:
            yield client
        finally:
            client.close()

    def start(self) -> None:
        """Start the engine and wait until it answers; one that was killed finds its containers again and ends them."""
        words = ["dockerd", "--host", self.host, "--storage-driver", "overlay2", "--debug"]
        words += ["--data-root", f"{self.folder}/data", "--exec-root", f"{self.folder}/exec"]
        words += ["--pidfile", f"{self.folder}/dockerd.pid"]
        words += ["--iptables=false", "--ip6tables=false", "--bridge=none", "--ip-forward=false", "--ip-masq=false"]
        words += ["--userland-proxy=false"]
        (self.folder / "dockerd.pid").unlink(missing_ok=True)
        env = {**os.environ, "PATH": f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"}
        with (self.folder / "dockerd.log").open("ab") as log:
            self._process = subprocess.Popen(words, stdout=log, stderr=log, env=env, start_new_session=True)
        deadline = time.monotonic() + _START_SECONDS
        while True:
            with suppress(Exception), self.client() as client:
                client.ping()
                return
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"dockerd did not start:\n{self.log[-3000:]}")
            time.sleep(0.1)

    def kill(self) -> None:
        """End the engine as a crash would; its containers run on."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(timeout=30)
        # Its containerd goes with it, in a moment; until it is reaped, the next engine takes it for one to use.
        file = self.folder / "exec" / "containerd" / "containerd.pid"
        with suppress(psutil.NoSuchProcess, FileNotFoundError):
            containerd = psutil.Process(int(file.read_text()))
            deadline = time.monotonic() + _START_SECONDS
            while containerd.status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
                time.sleep(0.05)
        file.unlink(missing_ok=True)

    def start_if_gone(self) -> None:
        if self._process is None or self._process.poll() is not None:
            self.start()

    def stop(self) -> None:
        """End the engine and every container, then remove all that it kept."""
        self.start_if_gone()  # only an engine can end what a killed one left
        assert self._process is not None
        with suppress(Exception), self.client() as client:
            for container in client.containers.list(all=True):
                with suppress(Exception):
                    container.remove(force=True)
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(timeout=30)
        _unmount_below(self.folder)
        shutil.rmtree(self.folder)


@contextmanager
def docker_engine() -> Iterator[Engine]:
    """A running engine with the image IMAGE; skips the test where there can be none."""
    if shutil.which("dockerd", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin") is None or os.getuid() != 0:
        cannot_run("a Docker engine needs root and dockerd (apt-get install docker.io)")
    engine = Engine(folder=Path(tempfile.mkdtemp(prefix="dk-", dir="/tmp")))  # a socket's path must be short
    try:
        engine.start()
        with engine.client() as client:
            client.api.import_image_from_data(_root_of_links(), repository=IMAGE, tag="latest")
        yield engine
    finally:
        engine.stop()


def host_mounts() -> list[str]:
    """What makes the empty image a copy of this machine, read-only."""
    checkout = Path(__file__).resolve().parents[2]
    folders = ["/usr", "/etc", sys.base_prefix, sys.prefix, str(checkout)]
    return [f"{folder}:{folder}:ro" for folder in dict.fromkeys(folders) if folder != "/usr"] + ["/usr:/usr:ro"]


def host_path() -> str:
    """PATH inside, with this environment's python and torchrun first."""
    return f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"


def _unmount_below(folder: Path) -> None:
    """dockerd leaves the mount of a network name space, and a killed one those of its containers."""
    table = Path("/proc/self/mountinfo").read_text(encoding="utf-8")
    points = [line.split()[4] for line in table.splitlines()]
    for point in reversed([point for point in points if point.startswith(f"{folder}/")]):
        subprocess.run(["umount", "--lazy", point], check=True, timeout=30)


def _root_of_links() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in _FOLDERS:
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755
            archive.addfile(entry)
        for name in _LINKS:
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, f"usr/{name}"
            archive.addfile(entry)
    return buffer.getvalue()
