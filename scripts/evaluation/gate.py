"""A gate: limits that a job sets itself. What breaks one fails, keeps what it made, and nothing after it begins."""

from collections.abc import Iterator, Mapping
from typing import Any

from scripts.args.evaluate import EvaluateArgs
from scripts.args.meaning import value_of
from scripts.evaluation.verdict import Limits, judge
from scripts.run.problems import JobError, Problem
from scripts.run.record import Record, read_json
from scripts.run.registry import check

#: What an evaluation measures; a quantization measures the others.
_OF_TASKS = ("min_score", "max_drop")
_KEY = "args.gate"
_NO_BASELINE = (
    "there is no args.baseline that a score could drop below  "
    "Name the report of an earlier evaluate run, or have the stage come after one of the model: after: [baseline]."
)
#: What a job ends with that did its work, and whose result breaks a limit.
GATE_FAILED = "gate_failed"


@check("bad_gate", "gate_cannot_be_judged", roles=("gate",), of_values=True)
def gate(job: Any) -> Iterator[Problem]:
    """Its limits are some, and the job is going to measure what they are of."""
    given = value_of(job.resolved, "gate")
    try:
        asked = Limits.of(given).asked
    except ValueError as error:
        cause, _, remedy = str(error).partition("  ")
        yield Problem(name="bad_gate", key=_KEY, value=given, cause=cause, remedy=remedy)
        return
    if job.engine == "script" and not isinstance(job.resolved, EvaluateArgs):
        cause, remedy = "NVIDIA's script measures nothing", "Take engine=bridge or hf, or a gate of an evaluate stage."
        yield Problem(name="gate_cannot_be_judged", key=_KEY, value=given, cause=cause, remedy=remedy)
        return
    for name in asked:
        if why := _unmeasured(name, job):
            cause, _, remedy = why.partition("  ")
            key = f"{_KEY}.{name}"
            yield Problem(name="gate_cannot_be_judged", key=key, value=given[name], cause=cause, remedy=remedy)


def _unmeasured(name: str, job: Any) -> str:
    """Why the job does not measure what a limit is of; empty where it does."""
    args = job.resolved
    if isinstance(args, EvaluateArgs):
        if name not in _OF_TASKS:
            return "an evaluation measures scores: min_score and max_drop are limits of it"
        return "" if name == "min_score" or args.baseline else _NO_BASELINE
    if name in _OF_TASKS:
        return "no harness asks anything here: min_score and max_drop are limits of evaluate"
    if name == "max_size":
        writes = job.engine != "bridge" and getattr(args, "export_dir", None)
        return "" if writes else "no Hugging Face checkpoint is written, whose size could be held against the model's"
    if value_of(args, "from_files", False):
        return "args.from_files: nothing is scored"
    return "" if value_of(args, "eval_samples", 1) else "args.eval_size=0: nothing is scored"


def keep_gate(limits: Mapping[str, Any] | None, record: Record) -> None:
    """Judge a job that has done its work; run.json has the verdict. Raises JobError `gate_failed` or `bad_gate`."""
    if limits is None:
        return
    try:
        asked = Limits.of(limits)
    except ValueError as error:
        raise JobError("bad_gate", f"{_KEY}={dict(limits)}: {error}", "") from error
    found = judge("succeeded", read_json(record.dir / "report" / "report.json"), asked)
    record.update(verdict=found.as_data())
    record.line(f"gate: {found.answer}: {'; '.join(found.reasons)}")
    if found.answer != "accept":
        remedy = "What was made is kept. Change the recipe, or the limit: args.gate."
        raise JobError(GATE_FAILED, f"{found.answer}: {'; '.join(found.reasons)}.", remedy)
