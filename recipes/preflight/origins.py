"""What made the files that a job reads: the run that left them, the run before that one, and so on.

Read from the records of runs on this machine; no scheduler is asked, and nothing is opened but run.json and job.json.
"""

import json
import posixpath
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any

from executors.base import is_below
from executors.kinds import place_from_record
from recipes.catalogue import RECIPES
from recipes.experiment.job import Job
from recipes.experiment.runs import Run
from recipes.experiment.store import RunFolder, runs_dir
from recipes.preflight.paths import inputs_of
from scripts.args.meaning import ScriptArgs, meanings
from scripts.checkpoints.documents import parse_json, read_bytes, read_json
from scripts.run.identity import is_alive
from scripts.run.problems import JobError
from scripts.run.record import FINAL_STATES, DamagedRecordError

#: Of recorded runs, how many are looked through: the newest ones. A home may hold thousands.
_MOST_RUNS = 200
_MOST_ANCESTORS = 16
_UNFINISHED = tuple(f'"state": "{state}"'.encode() for state in ("submitted", "running"))


@dataclass(frozen=True, kw_only=True)
class Origin:
    """A job that leaves files: a recorded run, or a stage of the experiment that is being made."""

    name: str  # the run's id, or the stage's name
    algorithm: str
    kind: type  # of its arguments, as far as it is known
    state: str  # as recorded last; "planned" for a stage
    args: Mapping[str, Any]
    extra_args: tuple[str, ...]
    inputs: tuple[str, ...]  # absolute paths among its arguments that are no outputs
    outputs: tuple[str, ...]
    storage: tuple[Any, ...]  # of the place where it runs
    folder: Path | None = None  # of its record on this machine

    @property
    def base(self) -> str | None:
        """The Hugging Face model whose shape its outputs have, as its arguments name it."""
        named = (field.name for field, meaning in meanings(self.kind) if meaning.role == "model" and not meaning.card)
        return next((value for name in named if isinstance(value := self.args.get(name), str)), None)

    @property
    def ended(self) -> bool:
        """Whether it has, as far as that can be told here: a scheduler's job counts as running until it is asked."""
        if self.state in FINAL_STATES or self.folder is None:
            return self.state in FINAL_STATES
        try:
            run = Run.read(RunFolder(dir=self.folder))
            process = run.record["process"]
        except (DamagedRecordError, KeyError):
            return True
        if run.job is None or run.job.place.runs_here:
            return not run.supervised and not is_alive(process, self.folder / "heartbeat")
        return run.settled or self._says_so_itself(run.job.run_dir)

    def _says_so_itself(self, run_dir: Path) -> bool:
        """Whether the job's own record, where its storage is here too, has it ended; nobody may have asked yet."""
        try:
            own = read_json(run_dir / "run.json")
        except JobError:
            return False
        return own.get("id") == self.name and own.get("state") in FINAL_STATES


Find = Callable[[str], Origin | None]


def origin_of_spec(name: str, job: Job) -> Origin:
    """A stage that is going to run, as what its outputs will have come from."""
    return Origin(
        name=name,
        algorithm=job.algorithm,
        kind=type(job.resolved),
        state="planned",
        args=vars(job.resolved),
        extra_args=tuple(job.extra_args),
        inputs=tuple(named.path for named in inputs_of(job)),
        outputs=tuple(str(path) for _, _, path in job.outputs),
        storage=job.place.storage,
    )


def recorded_origin(path: str) -> Origin | None:
    """The run in whose directory `path` lies, or that left it elsewhere; None where none is recorded here."""
    runs = runs_dir()
    for parent in Path(path).parents:
        for folder in (runs / parent.name, parent):
            origin = _read(folder, run_dir=parent)
            if origin is not None:
                return origin
    words = [_as_written(str(one)) for one in (path, *Path(path).parents)]
    found = recorded_runs(lambda content: any(word in content for word in words))
    return next((one for one in found if any(is_below(path, output) for output in one.outputs)), None)


def _as_written(path: str) -> bytes:
    """A path as run.json has it."""
    return json.dumps(path, ensure_ascii=False).encode(errors="surrogatepass")


def lineage(job: Job, find: Find = recorded_origin) -> Iterator[tuple[str, Origin]]:
    """Every job that the job's inputs come from, nearest first, each with the argument that leads there."""
    for named in inputs_of(job):
        seen: set[str] = set()
        paths = deque([named.path])
        while paths and len(seen) < _MOST_ANCESTORS:
            origin = find(paths.popleft())
            if origin is not None and origin.name not in seen:
                seen.add(origin.name)
                paths += origin.inputs
                yield named.key, origin


def unfinished_runs() -> Iterator[Origin]:
    """The newest runs that have not ended, as far as that can be told here."""
    marked = recorded_runs(lambda content: any(mark in content for mark in _UNFINISHED))
    return (origin for origin in marked if not origin.ended)


def recorded_runs(where: Callable[[bytes], bool]) -> Iterator[Origin]:
    """The newest runs recorded on this machine, newest first, whose run.json, as bytes, passes `where`.

    Bytes, because most are passed over: to parse two hundred records takes longer than to read them.
    """
    try:
        names = sorted((path.name for path in runs_dir().iterdir()), key=_began, reverse=True)
    except OSError:
        return
    for name in islice(names, _MOST_RUNS):
        origin = _read(runs_dir() / name, where=where)
        if origin is not None:
            yield origin


def _began(run_id: str) -> str:
    """What orders run ids by time: `quantize_fp8_1700000000000-a1b2c3` without the recipe's name."""
    return run_id.rpartition("_")[2]


def _read(
    folder: Path, *, run_dir: Path | None = None, where: Callable[[bytes], bool] = lambda _: True
) -> Origin | None:
    """The record in `folder`, if it is one of ours, and of the run that has `run_dir`."""
    path = folder / "run.json"
    if not posixpath.isfile(path):
        return None
    try:
        content = read_bytes(path)
        record = parse_json(content, path) if where(content) else {}
    except JobError:
        return None
    values, algorithm, state = record.get("values"), record.get("algorithm"), record.get("state")
    args = values.get("args") if isinstance(values, dict) else None
    if not (isinstance(values, dict) and isinstance(args, dict) and isinstance(algorithm, str)):
        return None
    if run_dir is not None and record.get("run_dir", str(folder)) != str(run_dir):
        return None
    outputs = _outputs(record)
    return Origin(
        name=folder.name,
        algorithm=algorithm,
        kind=_kind_of(algorithm, args),
        state=str(state),
        args=args,
        extra_args=tuple(word for word in values.get("extra_args") or () if isinstance(word, str)),
        inputs=tuple(path for path in _paths(args.values()) if path not in outputs),
        outputs=outputs,
        storage=_storage(record.get("executor")),
        folder=folder,
    )


def _storage(executor: Any) -> tuple[Any, ...]:
    """Of a recorded executor; one that this version cannot read shares its files with nothing else."""
    try:
        return place_from_record(executor if isinstance(executor, dict) else {"kind": "local"}).storage
    except JobError:
        return (repr(executor),)


def _kind_of(algorithm: str, args: Mapping[str, Any]) -> type:
    """Of the classes of an algorithm the one that has most of these arguments; a record does not say which it was."""
    kinds = dict.fromkeys(one.family.args for one in RECIPES.values() if one.algorithm == algorithm)
    return max(kinds, key=lambda kind: len(args.keys() & {field.name for field in fields(kind)}), default=ScriptArgs)


def _outputs(record: Mapping[str, Any]) -> tuple[str, ...]:
    """What a run left, and what it was going to leave."""
    listed = [one for key in ("outputs", "expects") if isinstance(record.get(key), list) for one in record[key]]
    paths = (one.get("path") for one in listed if isinstance(one, dict))
    return tuple(dict.fromkeys(path for path in paths if isinstance(path, str)))


def _paths(values: Any) -> Iterator[str]:
    for value in values:
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, str) and item.startswith("/"):
                yield item
