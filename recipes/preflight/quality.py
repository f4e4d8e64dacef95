"""Results that say nothing about a model's quality, however good they look: random data, or too little of it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from recipes.experiment.job import Job
from scripts.run.problems import Problem
from scripts.run.registry import check

#: Calibration samples from which on a score is worth something; the source documents name 128 to 512 as common.
WORTH_SCORING = 128
_MODELS = ("hf_model_id", "hf_model_name_or_path")
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


def doubts(algorithm: str, args: Mapping[str, Any], extra_args: Sequence[str]) -> Iterator[Doubt]:
    """Every Doubt about a job with these arguments, be it planned or recorded."""
    if args.get("use_mock_data"):
        why = "the data is random tokens; losses and scores say nothing about quality"
        yield Doubt(name=_MOCK, field="use_mock_data", value=True, why=why, remedy="Set args.data_paths for a result.")
    config = args.get("config")
    if algorithm in ("distill", "qat") and isinstance(config, dict) and not _names_data(config, extra_args):
        why = "no section `dataset` names data, and the script's own recipe is random tokens then"
        remedy = "Add dataset: {blend: [[PREFIX], null]} to args.config, or dataset.blend=... after --."
        yield Doubt(name=_MOCK, field="config", value=None, why=why, remedy=remedy)
    if algorithm in ("quantize", "prune") and not _is_built_in(args):
        yield from _calibration(args)
    yield from _limits(algorithm, args)


def _names_data(config: Mapping[str, Any], extra_args: Sequence[str]) -> bool:
    dataset = config.get("dataset")
    return bool(dataset) or any(word.lstrip("+").startswith("dataset.") for word in extra_args)


def _is_built_in(args: Mapping[str, Any]) -> bool:
    """Whether the model is one that ships with this project, whose quality nobody asks for."""
    return any(str(args.get(name)).startswith("tiny:") for name in _MODELS)


def _calibration(args: Mapping[str, Any]) -> Iterator[Doubt]:
    for field in ("calib_size", "calib_num_samples"):
        samples = args.get(field)
        if isinstance(samples, int) and 0 < samples < WORTH_SCORING:
            why = f"{samples} calibration samples show that it runs, no more"
            remedy = f"Use {WORTH_SCORING} to 512 for a result."
            yield Doubt(name=_TINY, field=field, value=samples, why=why, remedy=remedy)
    if args.get("use_random_calib"):
        why = "random images show that it runs, no more"
        yield Doubt(name=_TINY, field="use_random_calib", value=True, why=why, remedy="Set it to false for a result.")


def _limits(algorithm: str, args: Mapping[str, Any]) -> Iterator[Doubt]:
    """What makes a score one of a part of its questions. `generate` has a `fraction` too, and no score."""
    limit, fraction = args.get("limit"), args.get("fraction")
    if algorithm != "evaluate":
        return
    if isinstance(limit, (int, float)):
        why = f"{limit:g} of each task's questions shows that it runs, no more"
        yield Doubt(name=_LIMITED, field="limit", value=limit, why=why, remedy="Set args.limit=null for a result.")
    if isinstance(fraction, (int, float)) and fraction < 1:
        why = f"{fraction:.0%} of the questions show that it runs, no more"
        yield Doubt(
            name=_LIMITED, field="fraction", value=fraction, why=why, remedy="Set args.fraction=1 for a result."
        )


@check(_MOCK, _TINY, _LIMITED, severity="warning")
def quality(job: Job) -> Iterator[Problem]:
    for doubt in doubts(job.algorithm, vars(job.args), job.extra_args):
        yield Problem(
            name=doubt.name,
            key=f"args.{doubt.field}",
            value=doubt.value,
            cause=doubt.why,
            remedy=doubt.remedy,
        )
