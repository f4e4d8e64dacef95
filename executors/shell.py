"""Run commands and move files on this machine or, through OpenSSH, on another one."""

import hashlib
import os
import shlex
import stat
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from executors.base import UnreachableError
from scripts.run.files import expanded
from scripts.run.problems import JobError

_CONNECT_SECONDS = 10
#: How long the shared connection stays open after its last use.
_PERSIST_SECONDS = 60
#: A socket's address holds 108 bytes: NUL, slash, 4 of ours, 40 of %C, and 17 that ssh appends while it binds.
_SOCKET_FOLDER_BYTES = 108 - 1 - 1 - 4 - 40 - 17
#: Exit status of ssh itself, whatever the command's.
_SSH_FAILED = 255

# Both ends speak bytes: a size, a path, then the content, without any of it on a command line.
_STORE = """
while IFS= read -r size && IFS= read -r path; do
    beside="$path.$$.part"
    mkdir -p -- "${path%/*}" || exit 1
    if (umask 077; head -c "$size" > "$beside") && [ "$(wc -c < "$beside")" -eq "$size" ]; then
        mv -f -- "$beside" "$path" || exit 1
    else
        rm -f -- "$beside"
        exit 1
    fi
done
"""
_REMOVE = 'while IFS= read -r path; do rm -f -- "$path" || exit 1; rmdir -- "${path%/*}" 2>/dev/null; done; :'
_READ = (
    'while IFS= read -r path; do [ -f "$path" ] && [ ! -h "$path" ] && cat -- "$path" 2>/dev/null; printf "\\0"; done'
)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a command that could be started left behind."""

    code: int
    out: bytes
    err: str

    @property
    def text(self) -> str:
        return self.out.decode(errors="replace").strip()

    @property
    def last_words(self) -> str:
        """Why it failed, in its own words."""
        return " ".join(self.err.split()) or " ".join(self.text.split()) or f"exit status {self.code}"


@dataclass(frozen=True, kw_only=True)
class Shell:
    """A machine that runs commands: this one, or `host` through ssh.

    ssh never asks for anything (BatchMode) and checks host keys as it is configured to. Calls share
    one connection, so that the second costs a few milliseconds.
    """

    host: str | None = None
    user: str | None = None
    port: int | None = None
    identity: str | None = None

    @property
    def where(self) -> str:
        return "this machine" if self.host is None else f"{self.user}@{self.host}" if self.user else self.host

    def run(self, argv: Sequence[str], *, stdin: bytes = b"", timeout: float = 60.0) -> Answer:
        """Run `argv` to its end. Raises UnreachableError when the machine does not answer in time."""
        if self.host is not None:
            argv = [*self.ssh(), "--", self.host, shlex.join(argv)]
        # Files and not pipes: the process that keeps a shared connection open may hold on to its stderr.
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            try:
                done = subprocess.run(argv, input=stdin, stdout=out, stderr=err, timeout=timeout, check=False)
            except subprocess.TimeoutExpired:
                cause = f"{self.where} did not answer within {timeout:.0f} s."
                raise UnreachableError("unreachable", cause, "Try again; nothing is known about it.") from None
            except FileNotFoundError as error:
                if self.host is None:
                    return Answer(code=127, out=b"", err=f"{argv[0]}: not found")
                raise UnreachableError("unreachable", f"there is no {error.filename} here.", "Install it.") from None
            for stream in (out, err):
                stream.seek(0)
            answer = Answer(code=done.returncode, out=out.read(), err=err.read().decode(errors="replace"))
        if self.host is not None and answer.code == _SSH_FAILED:
            raise UnreachableError("unreachable", f"{self.where}: {answer.last_words}", self._remedy(answer.err))
        return answer

    def sh(self, script: str, *args: str, stdin: bytes = b"", timeout: float = 60.0) -> Answer:
        """Run a POSIX shell script of ours; `args` are its $1, $2 ..."""
        return self.run(["sh", "-c", script, "sh", *args], stdin=stdin, timeout=timeout)

    def ssh(self) -> list[str]:
        """The ssh command up to the host's name."""
        argv = ["ssh", "-T", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={_CONNECT_SECONDS}"]
        argv += ["-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=3"]
        folder = _socket_folder()
        if folder is not None:
            # Who may use a connection depends on the key as well, which ssh's own %C does not include.
            key = hashlib.sha256((self.identity or "").encode()).hexdigest()[:4]
            argv += ["-o", "ControlMaster=auto", "-o", f"ControlPath={folder}/{key}%C"]
            argv += ["-o", f"ControlPersist={_PERSIST_SECONDS}"]
        if self.identity:
            argv += ["-o", "IdentitiesOnly=yes", "-i", str(expanded(self.identity))]
        if self.port:
            argv += ["-p", str(self.port)]
        if self.user:
            argv += ["-l", self.user]
        return argv

    def store(self, files: Mapping[str, bytes]) -> None:
        """Write whole files of mode 0600, each beside its place and then renamed. Raises JobError `not_stored`."""
        stream = b"".join(f"{len(data)}\n{path}\n".encode() + data for path, data in files.items())
        answer = self.sh(_STORE, stdin=stream, timeout=300)
        if answer.code:
            cause = f"files could not be written on {self.where}: {answer.last_words}"
            raise JobError("not_stored", cause, "Check the folder's permissions and free space.")

    def remove(self, paths: Iterable[str]) -> None:
        """Remove files, and the folder of each when nothing else is in it. Raises JobError `not_removed`."""
        answer = self.sh(_REMOVE, stdin="".join(f"{path}\n" for path in paths).encode())
        if answer.code:
            raise JobError("not_removed", f"files are left on {self.where}: {answer.last_words}", "Remove them.")

    def read(self, paths: Sequence[str]) -> list[bytes]:
        """The content of text files, in one round trip; empty for what cannot be read."""
        answer = self.sh(_READ, stdin="".join(f"{path}\n" for path in paths).encode())
        return answer.out.split(b"\0")[: len(paths)]

    def close(self) -> None:
        """End the shared connection, if there is one."""
        if self.host is not None:
            subprocess.run([*self.ssh(), "-O", "exit", "--", self.host], capture_output=True, timeout=20, check=False)

    def _remedy(self, words: str) -> str:
        port = ["-p", str(self.port)] if self.port else []
        command = shlex.join(["ssh", *port, self.where, "true"])
        if "Host key verification failed" in words:
            return f"Compare the host's key with what its operators publish, then accept it: {command}"
        if "Permission denied" in words:
            return f"Set user and identity so that this asks for nothing: {command}"
        return f"Try: {command}"


def _socket_folder() -> Path | None:
    """A folder that only this user can enter, for the sockets of shared connections; None when there is none."""
    base = os.environ.get("XDG_RUNTIME_DIR") or "/tmp"
    folder = Path(base) / f"modelopt-ssh-{os.getuid()}"
    if len(str(folder)) > _SOCKET_FOLDER_BYTES:
        return None
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError:
        return None
    private = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077
    return folder if private else None
