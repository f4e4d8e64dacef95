"""Results that say nothing about a model's quality, however good they look: random data, or too little of it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from recipes.experiment.job import Job
from scripts.args.meaning import meanings
from scripts.run.problems import Problem
from scripts.run.registry import check

#: Calibration samples from which on a score is worth something; the source documents name 128 to 512 as common.
WORTH_SCORING = 128
_MOCK = "mock_data_used_as_quality_signal"
_TINY = "tiny_calibration_used_as_quality_signal"
_LIMITED = "limited_run_used_as_quality_signal"


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


@check(_MOCK, _TINY, _LIMITED, severity="warning")
def quality(job: Job) -> Iterator[Problem]:
    for doubt in doubts(type(job.args), job.algorithm, vars(job.args), job.extra_args):
        yield Problem(
            name=doubt.name,
            key=f"args.{doubt.field}",
            value=doubt.value,
            cause=doubt.why,
            remedy=doubt.remedy,
        )
