"""One evaluation, from the checkpoint's folder to a report."""

import dataclasses
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from scripts.args import constraints
from scripts.args.evaluate import EvaluateArgs
from scripts.args.meaning import ScriptArgs, ScriptSpec
from scripts.engines.inputs import inputs_of
from scripts.engines.script.command import command_words
from scripts.engines.script.engine import run_script
from scripts.engines.script.flags.interface import UNKNOWN
from scripts.evaluation import checks
from scripts.evaluation.checks import Loading, loading_of
from scripts.evaluation.harness import HarnessArgs, closing_words, harness_args, write_tasks
from scripts.evaluation.questions import keep_questions
from scripts.evaluation.report import as_text, write_report
from scripts.evaluation.scores import SCHEMA, Baseline, as_rows, compare, read_baseline, read_results, scores_of
from scripts.processor import bf16_is_slow
from scripts.run.files import expanded, staged
from scripts.run.page import about
from scripts.run.problems import JobError
from scripts.run.provenance import compute_capabilities
from scripts.run.record import Record
from scripts.run.registry import refuse
from scripts.run.schema import mapping
from scripts.tiny.model import local_model

_TASKS = "tasks"  # of the run directory
_RESTORED = Path(__file__).resolve().parent / "restored" / "lm_eval_restored.py"
#: What must be equal for two runs to have asked alike, besides what each task says of itself.
_CONDITIONS = ("apply_chat_template", "fewshot_as_multiturn", "system_instruction", "gen_kwargs", "seed")


def score_checkpoint(args: ScriptArgs, script: ScriptSpec, extra_args: Sequence[str], record: Record) -> None:
    """Score, compare, report. Raises JobError for everything that is understood."""
    assert isinstance(args, EvaluateArgs)
    baseline = read_baseline(Path(args.baseline)) if args.baseline else None
    refuse(args, script, constraints, checks)
    model = local_model(args.checkpoint, record)
    with record.phase("check the checkpoint"):
        loading = loading_of(args, model)
        refuse(dataclasses.replace(args, backend=loading.backend), script, checks)
        if loading.restored and script.path is not None:
            cause = f"script.path={script.path}, and a checkpoint with ModelOpt's state has a script of its own."
            raise JobError("script_unused", cause, "Leave it out.")
    how = ", restored by ModelOpt" if loading.restored else ""
    record.line(f"backend: {loading.backend}{how}; quantization: {loading.quantization or 'none'}")
    if not args.include_path:
        write_tasks(record.dir / _TASKS)
    if _widens(args, loading) and bf16_is_slow():
        args = dataclasses.replace(args, dtype="float32")  # holds every bfloat16 value, and is 50 times faster here
    harness, script = _harness(args, script, loading, model, record.dir)
    run_script(harness, script, [*extra_args, *closing_words(args)], record)
    record.update(inputs=inputs_of(args))  # of the recipe: the script's are folders that were made of them
    with record.phase("report"):
        _report(args, loading, baseline, Path(harness.output_path).parent, record)


def _widens(args: EvaluateArgs, loading: Loading) -> bool:
    """Whether weights in bfloat16 become float32 where the processor multiplies bfloat16 slowly."""
    return (args.dtype, loading.backend, loading.restored) == ("auto", "hf", False)


def _harness(
    args: EvaluateArgs, script: ScriptSpec, loading: Loading, model: str, run_dir: Path
) -> tuple[HarnessArgs, ScriptSpec]:
    """The harness's own arguments, and the script that takes them."""
    include = expanded(args.include_path) if args.include_path else run_dir / _TASKS
    results = run_dir / "harness" / "results.json"
    harness = harness_args(args, model=model, backend=loading.backend, include=include, results=results)
    path = str(_RESTORED) if loading.restored else script.path
    return harness, dataclasses.replace(script, path=path, flag_style="underscore")


def expected_command(
    args: ScriptArgs, script: ScriptSpec, extra_args: Sequence[str], run_dir: Path, *, here: bool
) -> list[str]:
    """The harness's command before anybody has looked at a checkpoint that is not here."""
    assert isinstance(args, EvaluateArgs)
    loading = Loading(backend="vllm" if args.backend == "vllm" else "hf", quantization=None, restored=False)
    with suppress(JobError):  # it is not here, or what is to load it is not
        loading = loading_of(args, args.checkpoint)
    if here and _widens(args, loading) and not compute_capabilities():
        settled = {"dtype": "<float32 where the processor multiplies bfloat16 slowly, else auto>"}
        args = dataclasses.replace(args, model_args=settled | args.model_args)
    harness, script = _harness(args, script, loading, args.checkpoint, run_dir)
    (name,) = harness.SCRIPTS
    words = [*extra_args, *closing_words(args)]
    argv = command_words(harness, script, words, name=name, interface=UNKNOWN, run_dir=run_dir)
    return ["python", *([script.path] if script.path else name.split(" ", 1)), *argv.words]


def _report(args: EvaluateArgs, loading: Loading, baseline: Baseline | None, folder: Path, record: Record) -> None:
    results = read_results(folder)
    scores, different = scores_of(results), _differences(args, baseline)
    questions = keep_questions(folder, mapping(results.get("group_subtasks")))
    rows, warnings = compare(scores, None if different else baseline, questions)
    warnings += [*different, *_warnings(args, loading, baseline)]
    if not args.log_samples:
        for file in folder.glob("samples_*.jsonl"):
            file.unlink()
    report = {
        "schema": SCHEMA,
        "harness": {"name": "lm-eval", "version": results.get("lm_eval_version")},
        "checkpoint": args.checkpoint,
        **dataclasses.asdict(loading),
        "conditions": {name: getattr(args, name) for name in _CONDITIONS},
        "baseline": baseline and {"path": str(baseline.path), "checkpoint": baseline.report.get("checkpoint")},
        "scores": as_rows(rows),
        "warnings": warnings,
        "seconds": record.values["timings"]["run the script"],
    }
    final = record.dir / "report"
    with staged(final) as beside:
        write_report(beside, report, rows, about(record.dir))
        for file in sorted(folder.iterdir()):  # the harness's own words, and the answers where they are kept
            shutil.copy2(file, beside / file.name)
    for score in (row.score for row in rows):
        record.metric(f"{score.task}/{score.metric}", score.value, filter=score.filter)
    record.artifact("eval_results", final, checkpoint=args.checkpoint, quantization=loading.quantization)
    record.line(as_text(rows, title=f"{args.checkpoint} by {loading.backend}", warnings=warnings))


def _differences(args: EvaluateArgs, baseline: Baseline | None) -> list[str]:
    """Why no value of the baseline can be compared."""
    before = baseline.report.get("conditions", {}) if baseline else {}
    return [
        f"baseline_not_comparable: {name} was {before[name]}, and is {getattr(args, name)}."
        for name in _CONDITIONS
        if name in before and before[name] != getattr(args, name)
    ]


def _warnings(args: EvaluateArgs, loading: Loading, baseline: Baseline | None) -> list[str]:
    found = []
    if args.limit is not None:
        found.append(f"limited_run_used_as_quality_signal: limit={args.limit:g} is a smoke test, not a measurement.")
    library = baseline.report.get("backend", loading.backend) if baseline else loading.backend
    if library != loading.backend:
        found.append(f"The baseline was scored by {library}: part of a change may be the library's.")
    return found
