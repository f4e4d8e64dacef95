"""What a job's inputs went through before: orders that undo work, doubtful data, another model's checkpoint.

Read from the records of runs on this machine; no scheduler is asked, and nothing is opened but run.json and job.json.
What is doubtful about data says nothing of a model's quality, however good it looks: random, or too little of it.
"""

import json
import os
import posixpath
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

from executors.base import is_below
from executors.kinds import place_from_record
from recipes.catalogue import FAMILIES
from recipes.experiment.job import Job
from recipes.experiment.runs import Run
from recipes.experiment.store import RunFolder, last_written, runs_dir
from recipes.preflight.paths import inputs_of, overlap, real
from scripts.args.evaluate import EvaluateArgs
from scripts.args.meaning import ScriptArgs, field_of, meanings, values_of
from scripts.evaluation.checks import has_vllm
from scripts.formats import formats_named
from scripts.run import schema
from scripts.run.files import read_limited
from scripts.run.identity import is_alive
from scripts.run.problems import JobError, Problem
from scripts.run.provenance import compute_capabilities
from scripts.run.record import FINAL_STATES, DamagedRecordError, read_json
from scripts.run.registry import check

#: Algorithms whose result somebody reads as a model's quality, or ships.
_JUDGED = ("evaluate", "serve", "export")
_QUANTIZES = ("quantize", "qat")
#: What leaves a checkpoint in the shape of the model that its arguments name; pruning changes the shape.
_KEEPS_SHAPE = ("quantize", "distill", "qat", "convert")
#: Of recorded runs, how many are looked through: the newest ones. A home may hold thousands.
_MOST_RUNS = 200
_MOST_ANCESTORS = 16
_UNFINISHED = tuple(f'"state": "{state}"'.encode() for state in ("submitted", "running"))
#: Calibration samples from which on a score is worth something; the source documents name 128 to 512 as common.
WORTH_SCORING = 128
_MOCK = "mock_data_used_as_quality_signal"
_TINY = "tiny_calibration_used_as_quality_signal"
_LIMITED = "limited_run_used_as_quality_signal"


# --- where files come from -----------------------------------------------------------------------------------------


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
        if run.settled:
            return True
        own = read_json(run.job.run_dir / "run.json")  # where its storage is here too: nobody may have asked yet
        return own is not None and own.get("id") == self.name and own.get("state") in FINAL_STATES


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
    as_written = (json.dumps(str(one), ensure_ascii=False) for one in (path, *Path(path).parents))
    words = [word.encode(errors="surrogatepass") for word in as_written]
    found = recorded_runs(lambda content: any(word in content for word in words))
    return next((one for one in found if any(is_below(path, output) for output in one.outputs)), None)


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
    """The newest runs recorded on this machine, by when they last wrote, whose run.json, as bytes, passes `where`.

    Bytes, because most are passed over: to parse two hundred records takes longer than to read them.
    """
    try:
        with os.scandir(runs_dir()) as entries:
            newest_first = sorted(entries, key=last_written, reverse=True)
    except OSError:
        return
    for entry in islice(newest_first, _MOST_RUNS):
        origin = _read(Path(entry.path), where=where)
        if origin is not None:
            yield origin


def _read(
    folder: Path, *, run_dir: Path | None = None, where: Callable[[bytes], bool] = lambda _: True
) -> Origin | None:
    """The record in `folder`, if it is one of ours, and of the run that has `run_dir`."""
    path = folder / "run.json"
    try:
        content = read_limited(path, schema.MAX_BYTES)
        record = schema.parse(content) if where(content) else {}
    except (OSError, ValueError):
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
        extra_args=tuple(word for word in schema.listed(values.get("extra_args")) if isinstance(word, str)),
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
    kinds = [family.args for family in FAMILIES.values() if family.algorithm == algorithm]
    return max(kinds, key=lambda kind: len(args.keys() & {field.name for field in fields(kind)}), default=ScriptArgs)


def _outputs(record: Mapping[str, Any]) -> tuple[str, ...]:
    """What a run left, and what it was going to leave."""
    listed = [one for key in ("outputs", "expects") for one in schema.listed(record.get(key))]
    paths = (one.get("path") for one in listed if isinstance(one, dict))
    return tuple(dict.fromkeys(path for path in paths if isinstance(path, str)))


def _paths(values: Any) -> Iterator[str]:
    for value in values:
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, str) and item.startswith("/"):
                yield item


# --- doubts about quality ------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Doubt:
    """Why what a job leaves is no measure of quality: the Problem's name, the argument at fault, what it means."""

    name: str
    field: str
    value: Any
    why: str
    remedy: str


def doubts(kind: type, algorithm: str, args: Mapping[str, Any], extra_args: Sequence[str]) -> Iterator[Doubt]:
    """Every Doubt about a job with these arguments of that class, be it planned or recorded."""
    said = {meaning.role: (field.name, args.get(field.name)) for field, meaning in meanings(kind) if meaning.role}
    nothing = ("", None)
    field, mock = said.get("mock_data", nothing)
    if mock and algorithm != "quantize":
        why = "the data is random tokens; losses and scores say nothing about quality"
        yield Doubt(name=_MOCK, field=field, value=True, why=why, remedy="Set args.data_paths for a result.")
    field, config = said.get("config", nothing)
    if algorithm in ("distill", "qat") and isinstance(config, dict) and not _names_data(config, extra_args):
        why = "no section `dataset` names data, and the script's own recipe is random tokens then"
        remedy = "Add dataset: {blend: [[PREFIX], null]} to args.config, or dataset.blend=... after --."
        yield Doubt(name=_MOCK, field=field, value=None, why=why, remedy=remedy)
    built_in = str(said.get("model", nothing)[1]).startswith("tiny:")  # nobody asks for its quality
    field, samples = said.get("samples", nothing)
    if algorithm in ("quantize", "prune") and not built_in and isinstance(samples, int) and 0 < samples < WORTH_SCORING:
        why = f"{samples} calibration samples show that it runs, no more"
        remedy = f"Use {WORTH_SCORING} to 512 for a result."
        yield Doubt(name=_TINY, field=field, value=samples, why=why, remedy=remedy)
    if mock and algorithm == "quantize":
        (field, _), why = said["mock_data"], "random images show that it runs, no more"
        yield Doubt(name=_TINY, field=field, value=True, why=why, remedy="Set it to false for a result.")
    field, limit = said.get("limit", nothing)
    if algorithm == "evaluate" and isinstance(limit, (int, float)) and (field == "limit" or limit < 1):
        asked = f"{limit:g} of each task's" if field == "limit" else f"{limit:.0%} of the"
        why, whole = f"{asked} questions shows that it runs, no more", "null" if field == "limit" else "1"
        why = why if field == "limit" else why.replace("shows", "show")
        remedy = f"Set args.{field}={whole} for a result."
        yield Doubt(name=_LIMITED, field=field, value=limit, why=why, remedy=remedy)


def _names_data(config: Mapping[str, Any], extra_args: Sequence[str]) -> bool:
    dataset = config.get("dataset")
    return bool(dataset) or any(word.lstrip("+").startswith("dataset.") for word in extra_args)


# --- the checks ----------------------------------------------------------------------------------------------------


@check("prune_after_distill", "already_quantized", "input_of_a_running_run", "wrong_base_model")
def history(job: Job) -> Iterator[Problem]:
    """Problems that the records of earlier runs tell."""
    for key, origin in lineage(job):
        yield from _of_origin(job, key, origin)
        if not origin.ended and key.removeprefix("args.") not in job.promised:
            waits = f"Write ${{artifact:{origin.name}}}, and this job waits for it."
            yield Problem(
                name="input_of_a_running_run",
                key=key,
                value=getattr(job.resolved, key.removeprefix("args.")),
                cause=f"{origin.name}, which leaves it, is {origin.state} as far as is recorded",
                remedy=f"{waits} Or look: nemo experiment status {origin.name}",
                can_force=True,
            )
    yield from _wrong_base(job, recorded_origin)


@check(_MOCK, _TINY, _LIMITED, severity="warning")
def quality(job: Job) -> Iterator[Problem]:
    for doubt in doubts(type(job.args), job.algorithm, vars(job.args), job.extra_args):
        key = f"args.{doubt.field}"
        yield Problem(name=doubt.name, key=key, value=doubt.value, cause=doubt.why, remedy=doubt.remedy)


def experiment_problems(stages: Sequence[tuple[str, Job]]) -> Iterator[Problem]:
    """Problems between the stages of one experiment, parents first: each with its name and its job."""
    origins = [origin_of_spec(name, job) for name, job in stages]
    for number, (_, job) in enumerate(stages):
        same = [other for other in origins[:number] if other.storage == origins[number].storage]
        taken = [(other.name, folder) for other in same for folder in other.outputs]
        for key, _, path in job.outputs:
            for owner, folder in taken:
                if overlap(path, folder):
                    cause, remedy = f"{owner} leaves something in {folder}", "Name another folder."
                    yield Problem(name="outputs_collide", key=key, value=path, cause=cause, remedy=remedy)
    for number, (_, job) in enumerate(stages):

        def find(path: str, before: Sequence[Origin] = origins[:number][::-1]) -> Origin | None:
            made = (origin for origin in before if any(is_below(path, output) for output in origin.outputs))
            return next(made, None) or recorded_origin(path)

        for key, origin in lineage(job, find):
            yield from _of_origin(job, key, origin)
        yield from _wrong_base(job, find)
    for _, job in stages:
        yield from _of_what_loads_it(job, [other for _, other in stages])


def _of_what_loads_it(job: Job, others: Sequence[Job]) -> Iterator[Problem]:
    """What does not exist yet is scored by what loads it, which this Python and machine must have."""
    if not isinstance(job.resolved, EvaluateArgs) or not job.in_this_python or job.script.path is not None:
        return
    key, path = f"{job.name}.args.checkpoint", job.resolved.checkpoint
    makers = [one for one in others if one.algorithm in ("quantize", "best", "export")]
    for maker, kind in ((one, kind) for one in makers for _, kind, out in one.outputs if path == str(out)):
        facts = next((one for one in formats_named(maker.resolved.makes()) if one.gpu_only), None)
        if kind == "checkpoint_hf" and not has_vllm():
            cause = f"it is an export of {maker.name}, for which vLLM is needed, and this Python has none"
            remedy = "Run this stage where vLLM is (STAGE.executor=NAME), or score the ModelOpt-restorable checkpoint."
            yield Problem(name="backend_not_installed", key=key, value=path, cause=cause, remedy=remedy)
        elif kind == "checkpoint_modelopt" and facts and not compute_capabilities():
            cause = (
                f"{maker.name} makes {facts.name} of it, which ModelOpt computes on a GPU only, and there is none here"
            )
            remedy = "Run this stage where there is a GPU (STAGE.executor=NAME), or take another format."
            yield Problem(name="backend_cannot_load", key=key, value=path, cause=cause, remedy=remedy)


def _of_origin(job: Job, key: str, origin: Origin) -> Iterator[Problem]:
    value = getattr(job.resolved, key.removeprefix("args."))
    if job.algorithm == "prune" and origin.algorithm == "distill":
        cause = f"it comes from the distillation {origin.name}, and pruning would throw away what that taught"
        name, remedy = "prune_after_distill", "Prune first, then distill."
        yield Problem(name=name, key=key, value=value, cause=cause, remedy=remedy, can_force=True)
    if job.algorithm == "prune" and origin.algorithm in _QUANTIZES:
        cause = f"it was quantized by {origin.name}, and pruning scores and cuts weights of full precision"
        name, remedy = "already_quantized", "Prune the checkpoint that was quantized, then quantize what is left."
        yield Problem(name=name, key=key, value=value, cause=cause, remedy=remedy, can_force=True)
    if job.algorithm == "distill" and origin.algorithm in _QUANTIZES and key == job.key("model"):
        cause = f"it was quantized by {origin.name}, and a student of full precision is trained"
        remedy = "A quantized student is QAD's: qad with args.student_megatron_path, which quantize_modelopt leaves."
        yield Problem(name="already_quantized", key=key, value=value, cause=cause, remedy=remedy, can_force=True)
    if job.algorithm in _JUDGED:
        for doubt in doubts(origin.kind, origin.algorithm, origin.args, origin.extra_args):
            cause = f"{origin.name}, which it comes from, ran with args.{doubt.field}"
            cause += f"={doubt.value}: {doubt.why}" if doubt.value is not None else f": {doubt.why}"
            yield Problem(name=doubt.name, key=key, value=value, cause=cause, severity="warning")


def _wrong_base(job: Job, find: Find) -> Iterator[Problem]:
    """A checkpoint of one model with the configuration of another: its shape and its name would be wrong."""
    said, name, listed = job.get("model"), field_of(job.resolved, "model"), [*values_of(job.resolved)]
    if said is None or not any(field == name and not (of.consumes or of.card) for field, _, of in listed):
        return  # its model is an input itself, or known by its card
    for field, path, meaning in listed:
        if meaning.consumes != "checkpoint_megatron" or not isinstance(path, str):
            continue
        origin = find(path)
        if origin is None or origin.algorithm not in _KEEPS_SHAPE or origin.base is None:
            continue
        if not same_model(said, origin.base):
            yield Problem(
                name="wrong_base_model",
                key=job.key("model") or "",
                value=said,
                cause=f"args.{field} was made of {origin.base} by {origin.name}",
                remedy=f"Use {job.key('model')}={origin.base}.",
                can_force=True,
            )


def same_model(one: str, other: str) -> bool:
    """Whether two names may mean the same model: the same path, or names that end alike (a hub's, and its copy's)."""
    if posixpath.isabs(one) and posixpath.isabs(other) and real(one) == real(other):
        return True
    return PurePosixPath(one).name.lower() == PurePosixPath(other).name.lower()
