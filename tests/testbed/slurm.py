"""A private Slurm cluster for tests: real daemons, several nodes on this machine, accounting, a login node over SSH.

Needs root and Debian's slurm-wlm, slurmdbd, munge, mariadb-server, openssh-server, rsync, libslurm-dev
and gcc. Everything listens on the loopback interface and lies in a new folder, and goes with it.
Real are Slurm, munge, MariaDB and OpenSSH; Pyxis and enroot are stand-ins (minipyxis.c, `ENROOT`).
"""

import os
import random
import shutil
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.testbed import cannot_run

_TOOLS = ("slurmctld", "slurmd", "slurmdbd", "sbatch", "munged", "mariadbd", "sshd", "ssh", "rsync", "gcc")
_PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
_SECONDS = 30.0
#: Below the range that outgoing connections take theirs from.
_PORTS = range(11000, 19000)

#: Writes the file that it was asked for, after a second, and a line to the log that its folder holds.
ENROOT = """#!/bin/sh
# A stand-in for NVIDIA's enroot: `import --output FILE URI`, without any registry.
[ "$1" = import ] && [ "$2" = --output ] || { echo "unexpected: $*" >&2; exit 2; }
echo "$4" >> "$(dirname "$0")/imports.log"
case "$4" in *absent*) echo "[ERROR] URL returned error code: 404 Not Found" >&2; exit 1;; esac
sleep 1
echo "squashed $4" > "$3"
"""


@dataclass
class Cluster:
    """A running cluster. `env` is what a process needs to talk to it."""

    folder: Path
    env: dict[str, str]
    nodes: int
    _daemons: "dict[str, tuple[Sequence[str], subprocess.Popen[bytes]]]" = field(default_factory=dict, repr=False)

    @property
    def state(self) -> Path:
        """Where slurmctld keeps scripts and environments of jobs."""
        return self.folder / "state"

    def run(self, *argv: str, check: bool = True) -> str:
        """Run a command of Slurm's; its output."""
        done = subprocess.run(argv, capture_output=True, text=True, env=self.env, timeout=60, check=False)
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(argv)}: {done.stderr}")
        return done.stdout

    def start(self, name: str, argv: Sequence[str]) -> None:
        with (self.folder / "log" / f"{name}.out").open("ab") as log:
            # Slurm gives jobs the signal mask and groups of its daemons: a session for each, so that Ctrl-C is ours.
            process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.env, start_new_session=True
            )
        self._daemons[name] = (argv, process)

    def stop(self, name: str) -> None:
        _, process = self._daemons.pop(name)
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)

    @contextmanager
    def without(self, name: str) -> Iterator[None]:
        """The cluster while one of its daemons is down."""
        argv = self._daemons[name][0]
        self.stop(name)
        try:
            yield
        finally:
            self.start(name, argv)
            self.wait_for("scontrol", "ping")

    def restart(self, name: str) -> None:
        """Start a daemon again that ended by itself."""
        argv, process = self._daemons.pop(name)
        process.wait(10)
        self.start(name, argv)

    def revive(self, name: str) -> None:
        """Start a daemon again if a test that failed has left it dead."""
        argv, process = self._daemons[name]
        if process.poll() is not None:
            self.start(name, argv)

    def wait_for(self, *argv: str, until: Callable[[str], bool] = lambda _: True) -> None:
        deadline = time.monotonic() + _SECONDS
        while time.monotonic() < deadline:
            done = subprocess.run(argv, capture_output=True, text=True, env=self.env, timeout=60, check=False)
            if done.returncode == 0 and until(done.stdout):
                return
            time.sleep(0.05)
        raise TimeoutError(f"{' '.join(argv)}: {done.stdout} {done.stderr}")

    def close(self) -> None:
        """End every job, then every daemon, the last one first."""
        with suppress(Exception):
            self.run("scancel", "--user=root", check=False)
            self.wait_for("squeue", "--noheader", until=lambda text: not text.strip())
        for name in list(self._daemons)[::-1]:
            self.stop(name)


@dataclass(frozen=True, kw_only=True)
class Login:
    """The cluster's login node, reached over SSH as root with a key of its own."""

    daemon: str  # its name in the cluster
    host: str
    port: int
    user: str
    identity: str
    home: Path
    bin: Path  # first on the PATH of whoever logs in
    env: Mapping[str, str]  # for the submitting side: its `ssh` knows the node's host key, and nothing else


@contextmanager
def slurm_cluster(*, nodes: int = 2, gpus: int = 2, accounting: bool = True) -> Iterator[Cluster]:
    """Start a cluster, and end all of it. About 4 s."""
    missing = [tool for tool in _TOOLS if shutil.which(tool, path=_PATH) is None]
    if missing or os.getuid() != 0:
        cannot_run(f"needs root, and Debian's packages for {', '.join(missing)}")
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
    folder.chmod(0o755)
    for name in ("etc", "log", "state", "run", "spool", "images", "xdg"):
        (folder / name).mkdir()
    env = {**os.environ, "PATH": _PATH, "SLURM_CONF": str(folder / "etc" / "slurm.conf")}
    cluster = Cluster(folder=folder, env=env, nodes=nodes)
    try:
        _start(cluster, free_ports(nodes + 3), gpus, accounting)
        yield cluster
    finally:
        cluster.close()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def login_node(cluster: Cluster) -> Iterator[Login]:
    """An SSH daemon that lets root in with one key, and gives that session Slurm's environment."""
    folder = Path(tempfile.mkdtemp(prefix="ssh-", dir="/tmp"))
    (port,) = free_ports(1)
    home, bin_, client = folder / "home", folder / "bin", folder / "client"
    for path in (home, bin_, client, folder / "xdg"):
        path.mkdir()
    Path("/run/sshd").mkdir(exist_ok=True)  # sshd insists on this one
    for name in ("host_key", "user_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True, timeout=20)
    shutil.copy(folder / "user_key.pub", folder / "authorized_keys")
    host_key = (folder / "host_key.pub").read_text().split()
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {host_key[0]} {host_key[1]}\n")
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host_key\nPidFile none\nUsePAM no\n"
        f"AuthorizedKeysFile {folder}/authorized_keys\nStrictModes no\nPasswordAuthentication no\n"
        f"KbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\nMaxStartups 100\nMaxSessions 100\n"
        f"SetEnv SLURM_CONF={cluster.env['SLURM_CONF']} PATH={bin_}:{_PATH} HOME={home}\n"
    )
    (folder / "ssh_config").write_text(
        f"UserKnownHostsFile {folder}/known_hosts\nGlobalKnownHostsFile /dev/null\nStrictHostKeyChecking yes\n"
    )
    # OpenSSH looks for its files in the user's home as the system knows it, whatever HOME says.
    executable(client / "ssh", f'#!/bin/sh\nexec {shutil.which("ssh")} -F {folder}/ssh_config "$@"\n')
    env = {"PATH": f"{client}:{os.environ['PATH']}", "XDG_RUNTIME_DIR": str(folder / "xdg")}
    sshd = shutil.which("sshd", path=_PATH)
    assert sshd is not None
    cluster.start(f"sshd-{port}", [sshd, "-D", "-e", "-f", str(folder / "sshd_config")])
    try:
        login = Login(
            daemon=f"sshd-{port}",
            host="127.0.0.1",
            port=port,
            user="root",
            identity=str(folder / "user_key"),
            home=home,
            bin=bin_,
            env=env,
        )
        ssh = [client / "ssh", "-p", str(port), "-i", login.identity, "root@127.0.0.1", "true"]
        cluster.wait_for(*map(str, ssh))
        yield login
    finally:
        cluster.stop(f"sshd-{port}")
        shutil.rmtree(folder, ignore_errors=True)


def executable(path: Path, text: str) -> None:
    """A script that can be run."""
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, held together for a moment so that they differ."""
    found: list[int] = []
    with ExitStack() as stack:
        for port in random.sample(_PORTS, len(_PORTS)):
            if len(found) == count:
                break
            probe = stack.enter_context(socket.socket())
            with suppress(OSError):
                probe.bind(("127.0.0.1", port))
                found.append(port)
    return found


def _start(cluster: Cluster, ports: list[int], gpus: int, accounting: bool) -> None:
    folder, etc = cluster.folder, cluster.folder / "etc"
    (etc / "munge.key").write_bytes(random.randbytes(1024))
    (etc / "munge.key").chmod(0o600)
    files = [f"--{name}={folder}/run/munged.{name}" for name in ("pid-file", "log-file", "seed-file")]
    munge = ["munged", "--foreground", f"--key-file={etc}/munge.key", f"--socket={folder}/run/munge.socket", *files]
    cluster.start("munged", munge)
    _plugin(cluster)
    _configure(cluster, ports, gpus, accounting)
    if accounting:
        _database(cluster, ports[2])
        cluster.start("slurmdbd", ["slurmdbd", "-D"])
        cluster.wait_for("sacctmgr", "-n", "show", "cluster")
    cluster.start("slurmctld", ["slurmctld", "-D"])
    cluster.wait_for("scontrol", "ping")
    if accounting:
        for words in (["cluster", "test"], ["account", "acct"], ["user", "root", "account=acct"]):
            cluster.run("sacctmgr", "-i", "add", *words, check=False)  # those that are there are no error
    for i in range(1, cluster.nodes + 1):
        cluster.start(f"slurmd-n{i}", ["slurmd", "-D", "-N", f"n{i}"])
    cluster.wait_for("sinfo", "-h", "-t", "idle", "-o", "%D", until=lambda text: text.strip() == str(cluster.nodes))


def _plugin(cluster: Cluster) -> None:
    source = Path(__file__).with_name("minipyxis.c")
    plugin = cluster.folder / "etc" / "minipyxis.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", plugin, source], check=True, timeout=60)
    line = f"required {plugin} images={cluster.folder}/images fallback=host\n"
    (cluster.folder / "etc" / "plugstack.conf").write_text(line)


def _database(cluster: Cluster, port: int) -> None:
    folder = cluster.folder
    data, sock = folder / "db", folder / "run" / "my.sock"
    # A tmpdir of its own: a server that starts removes every other one's temporary tables from there.
    install = ["mariadb-install-db", "--no-defaults", "--user=root", f"--datadir={data}", "--skip-test-db"]
    install += ["--auth-root-authentication-method=normal", f"--tmpdir={folder}/run"]
    done = subprocess.run(install, capture_output=True, text=True, timeout=120, env=cluster.env)
    if done.returncode:
        raise RuntimeError(f"mariadb-install-db: {done.stdout[-2000:]} {done.stderr[-2000:]}")
    options = f"""--no-defaults --user=root --datadir={data} --socket={sock} --port={port} --bind-address=127.0.0.1
        --innodb-buffer-pool-size=32M --innodb-log-file-size=16M --performance-schema=OFF
        --pid-file={folder}/run/my.pid --tmpdir={folder}/run --innodb-flush-log-at-trx-commit=0"""
    cluster.start("mariadbd", ["mariadbd", *options.split()])
    client = ["--no-defaults", "-u", "root", "-S", str(sock)]
    cluster.wait_for("mariadb-admin", *client, "ping")
    grant = "create database slurm_acct_db; "
    for host in ("127.0.0.1", "localhost"):
        grant += f"create user slurm@'{host}' identified by 'pw'; grant all on slurm_acct_db.* to slurm@'{host}'; "
    cluster.run("mariadb", *client, "-e", grant)


def _configure(cluster: Cluster, ports: list[int], gpus: int, accounting: bool) -> None:
    folder, nodes = cluster.folder, cluster.nodes
    controller, dbd, database, *_ = ports
    munge = f"{folder}/run/munge.socket"
    storage = "accounting_storage/none"
    if accounting:
        storage = "accounting_storage/slurmdbd\nAccountingStorageHost=127.0.0.1\n"
        storage += f"AccountingStoragePort={dbd}\nAccountingStoragePass={munge}"
        settings = f"""AuthType=auth/munge
AuthInfo=socket={munge}
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={dbd}
SlurmUser=root
LogFile={folder}/log/slurmdbd.log
PidFile={folder}/run/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={database}
StorageUser=slurm
StoragePass=pw
StorageLoc=slurm_acct_db
"""
        _write(folder / "etc" / "slurmdbd.conf", settings, 0o600)
    # GPUs are any character devices: nothing opens them.
    names = "".join(f"NodeName=n[1-{nodes}] Name=gpu Flags=nvidia_gpu_env File=/dev/tty{i}\n" for i in range(gpus))
    _write(folder / "etc" / "gres.conf", f"AutoDetect=off\n{names}")
    hosts = "\n".join(
        f"NodeName=n{i + 1} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port} CPUs=8 Boards=1 SocketsPerBoard=1 "
        f"CoresPerSocket=8 ThreadsPerCore=1 RealMemory=4000 Gres=gpu:{gpus} State=UNKNOWN"
        for i, port in enumerate(ports[3:])
    )
    # A requeued job is refused its credential until the old one has expired: cred_expire is short.
    _write(
        folder / "etc" / "slurm.conf",
        f"""ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmUser=root
SlurmdUser=root
SlurmctldPort={controller}
AuthType=auth/munge
AuthInfo=socket={munge},cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd-%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
PropagateResourceLimits=NONE
SlurmdParameters=config_overrides
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,sched_min_interval=0,batch_sched_delay=0,bf_resolution=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
KillWait=5
MinJobAge=86400
JobRequeue=1
GresTypes=gpu
JobAcctGatherType=jobacct_gather/linux
JobCompType=jobcomp/none
AccountingStorageType={storage}
DebugFlags=NO_CONF_HASH
PlugStackConfig={folder}/etc/plugstack.conf
{hosts}
PartitionName=batch Nodes=n[1-{nodes}] Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
""",
    )


def _write(path: Path, text: str, mode: int = 0o644) -> None:
    path.write_text(text)
    path.chmod(mode)
