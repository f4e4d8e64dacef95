"""Files converted by several processes of this machine, each with its share of the processors' cores.

A worker is this module as a program, with one end of a socket: it is sent the conversion, then one name after another,
and answers each when the file is whole, or with what it failed of. Whoever is gone leaves the other an end of file: a
worker ends at once with the job, however that ends, and the job with a worker that was killed.
"""

import os
import select
import signal
import subprocess
import sys
import threading
import traceback
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import prod
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path

from scripts.engines.hf.shards import Conversion
from scripts.engines.hf.weights import WEIGHT, memory_of
from scripts.processor import cores, free_memory
from scripts.run.files import opened
from scripts.run.problems import JobError

#: What a process has in memory before it works, in no file: RssAnon with ModelOpt's exporter imported (measured).
LIBRARIES = 560 << 20
#: Less than this is converted sooner than a process more has imported all that it needs.
_WORTH = 2 << 30


def several_on_a_gpu(count: int) -> JobError:
    """What to say of so many processes, of a job that computes on a GPU."""
    cause = f"args.from_files is one process where it computes on a GPU, and args.processes={count}."
    return JobError("world_size_not_one", cause, "Use args.processes=null, or args.device=cpu.")


def number(conversion: Conversion, sizes: Mapping[str, int]) -> int:
    """How many processes convert files of these sizes in bytes: as asked for, else as many as the machine has room for.

    Raises JobError('world_size_not_one') for several on a GPU.
    """
    asked = conversion.args.processes
    if conversion.device.type != "cpu":
        if asked and asked > 1:
            raise several_on_a_gpu(asked)
        return 1
    if asked is None:
        shapes = conversion.source.shapes
        largest = max((prod(shapes[name + WEIGHT]) for name in conversion.selection.quantized), default=0)
        room = free_memory() // (LIBRARIES + sum(memory_of(largest).values()))
        asked = min(cores(), room, sum(sizes.values()) // _WORTH)
    return max(1, min(asked, len(sizes)))


def made(conversion: Conversion, names: Sequence[str], count: int, logs: Path) -> Generator[str]:
    """Make the files of these names, and yield each when it is whole; whoever closes this ends the processes.

    Raises JobError as `Conversion.make`, or `worker_killed`.
    """
    if count == 1:
        for name in names:
            conversion.make(name)
            yield name
        return
    ahead, busy = deque(names), dict[Connection, _Worker]()
    with ExitStack() as living:
        started = [living.enter_context(_started(one, max(1, cores() // count), logs)) for one in range(count)]
        for worker in started:
            worker.send(conversion)
            worker.send(ahead.popleft())
            busy[worker.connection] = worker
        while busy:
            for ready in wait(list(busy)):
                assert isinstance(ready, Connection)
                worker = busy.pop(ready)
                yield worker.answer()
                if ahead:
                    worker.send(ahead.popleft())
                    busy[worker.connection] = worker


@dataclass(frozen=True, kw_only=True)
class _Worker:
    connection: Connection
    process: "subprocess.Popen[bytes]"
    log: Path

    def send(self, what: object) -> None:
        """Raises JobError('worker_killed')."""
        try:
            self.connection.send(what)
        except OSError as error:
            raise self._killed() from error

    def answer(self) -> str:
        """The name of the file that is whole. Raises what it failed of, or JobError('worker_killed')."""
        try:
            said = self.connection.recv()
        except (EOFError, OSError) as error:
            raise self._killed() from error
        if isinstance(said, BaseException):
            raise said
        return str(said)

    def _killed(self) -> JobError:
        status = self.process.wait()
        how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        cause = f"Process {self.process.pid} of those that convert files {how}; {self.log} is what it said."
        remedy = "SIGKILL is what the kernel does when memory runs out: lower args.processes, and resume."
        return JobError("worker_killed", cause, remedy)


@contextmanager
def _started(at: int, threads: int, logs: Path) -> Iterator[_Worker]:
    threads, log = min(threads, int(os.environ.get("OMP_NUM_THREADS") or threads)), logs / f"worker{at}.log"
    logs.mkdir(parents=True, exist_ok=True)
    ours, theirs = Pipe()
    with ours:
        with theirs, opened(log, "ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno())],
                env={**os.environ, "OMP_NUM_THREADS": str(threads)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is the job's, which ends all of them
            )
        try:
            yield _Worker(connection=ours, process=process, log=log)
        finally:
            process.kill()
            process.wait()


def main() -> None:
    """Make what is asked for until nobody is there to ask."""
    connection = Connection(int(sys.argv[1]))
    threading.Thread(target=_end_with_job, args=(connection.fileno(),), daemon=True).start()
    conversion: Conversion = connection.recv()
    while True:
        name = connection.recv()
        try:
            conversion.make(name)
            connection.send(name)
        except Exception as error:
            error.add_note(traceback.format_exc())
            connection.send(error)


def _end_with_job(handle: int) -> None:
    """Nothing is waited for but the other end's being closed."""
    poll = select.poll()
    poll.register(handle, 0)
    poll.poll()
    os._exit(1)


if __name__ == "__main__":
    main()
