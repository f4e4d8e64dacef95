"""The ranks of one job: each has the whole model and a share of the passes, and what they find is brought together.

A rank waits for the others in Python, where a signal reaches it, and looks about while it does: for what another has
failed of, for one that is gone without a word, for the time. The collectives that follow find everybody there.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from scripts.engines.hf.load import pick_device
from scripts.run import identity as process
from scripts.run.files import write_json
from scripts.run.problems import JobError
from scripts.run.record import Record, read_json
from scripts.run.session import Cancelled, end_undisturbed, rank_error

if TYPE_CHECKING:
    import torch

Value = TypeVar("Value")
#: Of a rank that computes, or that reads a model from slow storage, nobody hears for long.
WAIT_SECONDS = 3600.0
_LOOK_SECONDS = 0.5
#: Between the launcher's SIGTERM to one rank and the last words of another.
_GRACE_SECONDS = 2.0
_LOOK_THERE = "Look at that rank's log."


class _LostError(Exception):
    """Another rank will not come."""


class Group:
    """The ranks of a job, as one of them sees them. Alone, every method is done at once."""

    def __init__(
        self,
        rank: int = 0,
        world: int = 1,
        store: Any = None,
        failure: Callable[[], Any] = lambda: None,
        *,
        in_step: bool = False,
    ):
        """`in_step`: a pass gathers weights from all ranks, so that each has to make as many as any other."""
        self.rank, self.world, self.in_step = rank, world, in_step
        self._store, self._failure, self._met = store, failure, 0

    @property
    def leads(self) -> bool:
        """Whether this rank is the one that writes: run.json, checkpoints, the report."""
        return self.rank == 0

    def share(self, passes: Sequence[Value]) -> Sequence[Value]:
        """Those of this rank: they are dealt out one by one, as the longest come first."""
        return passes[self.rank :: self.world]

    def again(self, passes: Sequence[Value]) -> Sequence[Value]:
        """Those that this rank makes besides its share, for the others: the shortest once more, which tells nothing."""
        return passes[-1:] if self.in_step and self.rank >= len(passes) % self.world > 0 else passes[:0]

    def counter(self, record: Record, samples: int) -> Callable[[int], None]:
        """Progress over them, by what this rank does; an algorithm that goes through them again starts it anew."""
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            done = done + count * self.world if done < samples or self.world > 1 else count
            record.progress(min(done, samples), samples, "samples")

        return advance

    def same(self, value: Value) -> Value:
        """What the first rank has, for all."""
        box = [value]
        with self._together() as torch:
            if torch:
                torch.distributed.broadcast_object_list(box, src=0)
        return box[0]

    def gathered(self, mine: Value) -> list[Value]:
        """What each rank has, in their order, for all."""
        found: list[Any] = [mine] * self.world
        with self._together() as torch:
            if torch:
                torch.distributed.all_gather_object(found, mine)
        return found

    def collected(self, mine: Value) -> list[Value]:
        """The same for the first rank alone; for the others nothing."""
        found: list[Any] | None = [mine] * self.world if self.leads else None
        with self._together() as torch:
            if torch:
                torch.distributed.gather_object(mine, found, dst=0)
        return found or []

    @contextmanager
    def _together(self) -> Iterator[Any]:
        """When every rank is here: torch, None where there is one only."""
        if self.world == 1:
            yield None
            return
        import torch

        self.meet()
        try:
            yield torch
        except RuntimeError as error:  # of gloo, NCCL and their store
            raise _LostError(str(error)) from error

    def meet(self) -> None:
        """Wait until every rank is here."""
        self._met += 1
        places = [f"{self._met}/{rank}" for rank in range(self.world)]
        ends, look, pause = time.monotonic() + WAIT_SECONDS, time.monotonic() + _LOOK_SECONDS, 0.001
        try:
            self._store.set(places[self.rank], "")
            while not self._store.check(places):
                now = time.monotonic()
                if now > look:
                    look = now + _LOOK_SECONDS
                    if self._failure():
                        raise _LostError("a rank has failed")
                if now > ends:
                    missing = [rank for rank, place in enumerate(places) if not self._store.check([place])]
                    minutes = f"{WAIT_SECONDS / 60:.0f} minutes"
                    cause = f"ranks {missing} did not get as far as rank {self.rank} within {minutes}."
                    raise JobError("rank_missing", cause, _LOOK_THERE)
                time.sleep(pause)
                pause = min(2 * pause, 0.05)
        except RuntimeError as error:  # the store is gone, and with it the launcher of the first rank
            raise _LostError(str(error)) from error


@contextmanager
def joined(device: str, record: Record, *, in_step: bool = False) -> Iterator[Group]:
    """The ranks that torchrun has started, each with a GPU of its own where there are any, until the block ends.

    ModelOpt takes all of them for its data parallel group. Raises JobError `more_processes_than_gpus`, on rank 0 what
    another one failed of, rank_killed or rank_missing; the others then end with SystemExit, and nothing to say.
    `in_step`: see Group.
    """
    world, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if world == 1:
        yield Group()
        return
    import torch

    distributed: Any = torch.distributed
    place, here = _own_device(device), process.identity()
    mark = _mark(record.dir, rank)

    def failure() -> JobError | None:
        return _failure(record.dir, here["started"], world)

    try:
        store = next(iter(distributed.rendezvous("env://", rank, world)))[0]
        group = Group(rank, world, distributed.PrefixStore("meet", store), failure, in_step=in_step)
        group.meet()  # the first rank has opened the record, and put aside what an attempt before left
        write_json(mark, here)  # a signal that nobody can answer leaves it
        distributed.init_process_group(
            "gloo" if place.type == "cpu" else f"cpu:gloo,{place.type}:nccl",
            store=distributed.PrefixStore("group", store),
            rank=rank,
            world_size=world,
            timeout=timedelta(seconds=WAIT_SECONDS),
        )
        record.line(f"rank {rank} of {world}")
        yield group
        group.meet()
        distributed.destroy_process_group()
    except (Cancelled, _LostError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not in_step:
            raise
        end_undisturbed()
        # In step, it may be of a pass that has lost the other ranks.
        cause = _waited_for(failure)
        if cause is None and isinstance(error, _LostError):
            cause = JobError("rank_missing", f"The ranks have lost each other: {error}", _LOOK_THERE)
        if cause is None:
            raise
        if rank:
            record.line(f"rank {rank} ends, as another has failed")
            raise SystemExit(1) from error
        raise cause from error
    finally:
        mark.unlink(missing_ok=True)


def _own_device(device: str) -> "torch.device":
    """Raises JobError `more_processes_than_gpus`."""
    import torch

    place, local = pick_device(device), int(os.environ.get("LOCAL_RANK", "0"))
    if place.type == "cuda":
        if local >= (there := torch.cuda.device_count()):
            cause = f"Each rank takes a GPU, and this machine shows {there} to rank {local} of its own."
            raise JobError("more_processes_than_gpus", cause, f"Use torchrun.nproc_per_node={there}.")
        torch.cuda.set_device(local)
    return place


def _mark(run_dir: Path, rank: int) -> Path:
    return run_dir / "ranks" / f"{rank}.process.json"


def _failure(run_dir: Path, since: float, world: int) -> JobError | None:
    """Why another rank has failed: by its own words, or because it is gone without any."""
    said = rank_error(run_dir / "logs", since)
    if said:
        return JobError(said["name"], said["message"], said["remedy"])
    for rank in range(world):
        owner = read_json(_mark(run_dir, rank))
        if owner and not process.is_alive(owner, run_dir / "heartbeat"):
            cause = f"Rank {rank}, process {owner.get('pid')} on {owner.get('host')}, is gone without a word."
            remedy = "SIGKILL is what the kernel does when memory runs out, and each rank there loads a model."
            return JobError("rank_killed", cause, remedy)
    return None


def _waited_for(failure: Callable[[], JobError | None]) -> JobError | None:
    ends = time.monotonic() + _GRACE_SECONDS
    while (found := failure()) is None and time.monotonic() < ends:
        time.sleep(0.1)
    return found
