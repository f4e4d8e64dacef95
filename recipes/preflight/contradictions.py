"""Values of a job that speak against each other: the script would refuse them, or do less than they seem to say.

Sources: Megatron-Core's optimizer_param_scheduler and transformer_config, Megatron-Bridge's training/train.py and
training/config.py, Model-Optimizer's examples/megatron_bridge, Megatron-LM's post_training/model_builder.py.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from recipes.experiment.job import Job
from scripts.args.configuration import configured
from scripts.args.distill import DistillArgs, DistillBridgeArgs, QadArgs, QatArgs
from scripts.args.meaning import Role, value_of
from scripts.args.megatron_lm import MegatronLmArgs
from scripts.args.prune import PruneArgs
from scripts.args.quantize import QuantizeModelOptArgs
from scripts.run.problems import Problem, Severity
from scripts.run.registry import check

#: Figures of a training, by role, and where a configuration of Megatron-Bridge has them.
_FIGURES: Mapping[Role, tuple[str, ...]] = {
    "iterations": ("train.train_iters",),
    "train_samples": ("train.train_samples",),
    "eval_interval": ("train.eval_interval", "validation.eval_interval"),
    "save_interval": ("checkpoint.save_interval",),
    "learning_rate": ("optimizer.lr",),
    "min_learning_rate": ("optimizer.min_lr",),
    "warmup": ("scheduler.lr_warmup_iters",),
}
Figures = Mapping[Role, tuple[str, Any]]
#: Releases of distill.py that end at once when they are to export and are not told whose configuration to take.
_ASKS_WHOSE = ("0.44", "0.45")
_INTERLEAVED_FLAGS = (
    "--num-layers-per-virtual-pipeline-stage",
    "--num-virtual-stages-per-pipeline-rank",
    "--virtual-pipeline-model-parallel-size",
)
#: Flags of Megatron-LM that a distillation cannot be combined with (its model builder says so), and why.
_NOT_WITH_KD = {
    "--manual-gc": "it leaks memory in every step",
    "--tp-comm-overlap": "its communication is not made for two models",
    **dict.fromkeys(_INTERLEAVED_FLAGS, "interleaved pipelines are not supported"),
}
_VIRTUAL_STAGES = "model.virtual_pipeline_model_parallel_size"
#: The same in a configuration of Megatron-Bridge. It collects garbage by hand in its own distillations, if seldom.
_NOT_CONFIGURED_WITH_KD: tuple[tuple[str, int | bool, str, Severity], ...] = (
    (_VIRTUAL_STAGES, 0, "--virtual-pipeline-model-parallel-size", "error"),
    ("model.tp_comm_overlap", False, "--tp-comm-overlap", "error"),
    ("comm_overlap.tp_comm_overlap", False, "--tp-comm-overlap", "error"),
    ("train.manual_gc", False, "--manual-gc", "warning"),
)
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
_TARGETS = ("prune_target_params", "prune_target_active_params", "prune_target_memory_mb")


def _set(args: Any, names: Sequence[str]) -> list[str]:
    """Of several arguments those that are given."""
    return [name for name in names if vars(args)[name]]


@check("target_and_export_config_both_set", "no_target", args=PruneArgs)
def prune_targets(job: Job) -> Iterator[Problem]:
    """A search, or a fixed architecture."""
    targets = [name for name in _TARGETS if vars(job.args)[name] is not None]
    fixed = job.args.prune_export_config
    if targets and fixed is not None:
        cause = f"args.{targets[0]} asks for a search, and this names the architecture"
        remedy = f"Set one of them to null: args.{targets[0]}=null for this architecture."
        yield Problem(key="args.prune_export_config", value=fixed, cause=cause, remedy=remedy)
    if not targets and fixed is None:
        cause, remedy = "nothing says how small the model is to become", "Set a target, or prune_export_config."
        yield Problem(name="no_target", key="args.prune_target_params", value=None, cause=cause, remedy=remedy)


@check("not_one_output", args=PruneArgs)
def prune_outputs(job: Job) -> Iterator[Problem]:
    """A Hugging Face checkpoint, or a Megatron one."""
    outputs = _set(job.args, ("output_hf_path", "output_megatron_path"))
    if len(outputs) != 1:
        cause = "the script writes one of output_hf_path and output_megatron_path"
        remedy = "Set the other one to null." if outputs else "Set one of them."
        value = vars(job.args)[outputs[-1]] if outputs else None
        yield Problem(key="args.output_megatron_path", value=value, cause=cause, remedy=remedy)


@check("no_data", "two_kinds_of_data", args=DistillArgs)
def distillation_data(job: Job) -> Iterator[Problem]:
    """Something to train on, of one kind."""
    sources = _set(job.args, ("data_paths", "use_mock_data", "sft"))
    if not sources:
        remedy = "Set [weight, prefix, ...] of prepared data, or use_mock_data=true to try the plumbing."
        yield Problem(key="args.data_paths", value=None, cause="there is nothing to train on", remedy=remedy)
    if len(sources) > 1:
        cause, value = f"args.{sources[0]} gives data too", vars(job.args)[sources[1]]
        name, key = "two_kinds_of_data", f"args.{sources[1]}"
        yield Problem(name=name, key=key, value=value, cause=cause, remedy="Choose one.")


@check("wrong_blend", args=DistillArgs)
def blend(job: Job) -> Iterator[Problem]:
    """A folder of prepared data; prefixes of it; or weights and prefixes in turn."""
    paths = job.args.data_paths or []
    numbers = [isinstance(entry, (int, float)) or _NUMBER.fullmatch(str(entry)) is not None for entry in paths]
    if not any(numbers):  # Megatron weighs bare prefixes by their sizes
        numbers = [True, False] * len(paths)
        paths = [entry for path in paths for entry in (1.0, path)]
    for index, (entry, number) in enumerate(zip(paths, numbers, strict=True)):
        if (index % 2 == 0) != number:
            cause = f"entry {index + 1} is {entry!r}: weights and prefixes take turns"
        elif number and not 0 < float(entry) < float("inf"):
            cause = f"entry {index + 1} is {entry!r}: a weight is above 0"
        elif not number and str(entry).endswith((".bin", ".idx")):
            cause = f"entry {index + 1} is a file: its prefix is expected, {str(entry)[:-4]}"
        else:
            continue
        remedy = "Write [1.0, /data/tokenized/domain_text_document, ...]."
        yield Problem(key="args.data_paths", value=job.args.data_paths, cause=cause, remedy=remedy)
        return
    if len(paths) % 2:
        cause = f"the weight {paths[-1]!r} at its end has no prefix"
        remedy = "Leave it out, or name what it is for."
        yield Problem(key="args.data_paths", value=job.args.data_paths, cause=cause, remedy=remedy)


@check("missing_input", args=QadArgs)
def quantized_student(job: Job) -> Iterator[Problem]:
    """Of quantization-aware distillation."""
    if job.args.student_megatron_path is None:
        cause = "QAD needs the quantized student; without it this is plain distillation"
        remedy = "Set it to what quantize_modelopt left."
        yield Problem(key="args.student_megatron_path", value=None, cause=cause, remedy=remedy)


@check(
    "kd_incompatible",
    engines=("script",),
    applies=lambda job: job.algorithm == "distill" or job.get("teacher_checkpoint") is not None,
)
def flags_with_distillation(job: Job) -> Iterator[Problem]:
    """Flags that Megatron-LM's model builder refuses beside a teacher."""
    for word in job.extra_args:
        if (why := _NOT_WITH_KD.get(word.partition("=")[0].replace("_", "-"))) is not None:
            yield Problem(key="extra_args", value=word, cause=f"not with distillation: {why}")


@check("kd_incompatible", args=DistillBridgeArgs)
def configuration_with_distillation(job: Job) -> Iterator[Problem]:
    """The same in a configuration."""
    for key, off, flag, severity in _NOT_CONFIGURED_WITH_KD:
        if value := configured(job.resolved.config, job.extra_args, key, off):
            cause = f"not with distillation: {_NOT_WITH_KD[flag]}"
            yield Problem(key=f"args.config.{key}", value=value, cause=cause, severity=severity)


@check("pipeline_not_interleaved", args=QatArgs)
def virtual_stages(job: Job) -> Iterator[Problem]:
    """ModelOpt's state is not kept for them."""
    if value := configured(job.resolved.config, job.extra_args, _VIRTUAL_STAGES, 0):
        cause = "a checkpoint with ModelOpt's state cannot have virtual stages (Megatron-Bridge raises)"
        yield Problem(key=f"args.config.{_VIRTUAL_STAGES}", value=value, cause=cause, remedy="Leave it out.")


@check("pipeline_not_interleaved", args=MegatronLmArgs)
def virtual_stages_by_flags(job: Job) -> Iterator[Problem]:
    """Megatron-LM's scripts say so and end with status 0, nothing done."""
    for word in job.extra_args:
        if word.partition("=")[0] in _INTERLEAVED_FLAGS:
            cause = "the script would end at once, with status 0 and nothing done"
            yield Problem(key="extra_args", value=word, cause=cause, remedy="Leave it out.")


def _figures(job: Job) -> Figures:
    """By role: the key that sets a figure of the training, and its value."""
    found: dict[Role, tuple[str, Any]] = {}
    config = job.get("config", {})
    for role, keys in _FIGURES.items():
        given = [(job.key(role) or "", value_of(job.resolved, role))]  # what is said, not what follows from it
        for section, _, name in (key.partition(".") for key in keys):
            values = config.get(section)
            given.append((f"args.config.{section}.{name}", values.get(name) if isinstance(values, dict) else None))
        for key, value in given:
            if isinstance(value, (int, float)):
                found[role] = (key, value)
    return found


@check("contradiction")
def rates(job: Job) -> Iterator[Problem]:
    """A learning rate falls."""
    figures = _figures(job)
    if figures.keys() >= {"learning_rate", "min_learning_rate"}:
        (key, low), (_, high) = figures["min_learning_rate"], figures["learning_rate"]
        if low > high > 0:  # else that is what is wrong
            cause = f"the learning rate would end above where it begins, {high:g}, and Megatron refuses that"
            yield Problem(key=key, value=low, cause=cause, remedy=f"Use {high / 10:g}, or a larger lr.")


@check("contradiction")
def lengths(job: Job) -> Iterator[Problem]:
    """How long a training is, its warm-up, and what it does between."""
    figures = _figures(job)
    if "iterations" not in figures:
        return
    iterations_key, iterations = figures["iterations"]
    key, warmup = figures.get("warmup", ("", -1))
    if warmup >= iterations > 0:
        cause = f"the training has {iterations} iterations, and Megatron refuses a warm-up that fills it"
        yield Problem(key=key, value=warmup, cause=cause, remedy=f"Use {iterations // 10}, or more iterations.")
    intervals: Mapping[Role, str] = {
        "eval_interval": "nothing is validated before the end",
        "save_interval": "there is no checkpoint before the end: a job that is stopped starts over",
    }
    for role, what in intervals.items():
        key, value = figures.get(role, ("", 0))
        if value > iterations:
            cause = f"the training has {iterations} iterations: {what}"
            yield Problem(key=key, value=value, cause=cause, remedy="Use less.", severity="warning")
    if "train_samples" in figures:
        key, value = figures["train_samples"]
        cause = f"{iterations_key}={iterations} says how long to train too"
        yield Problem(key=key, value=value, cause=cause, remedy="Set one of them to null.")


@check("contradiction", args=DistillArgs)
def recompute(job: Job) -> Iterator[Problem]:
    """What is recomputed, how, and of how much."""
    args = job.resolved
    details = {"method": args.recompute_method, "num_layers": args.recompute_num_layers}
    given = {name: value for name, value in details.items() if value is not None}
    if args.recompute_modules is not None:
        given["modules"] = args.recompute_modules
    granularity, key = args.recompute_granularity, "args.recompute_granularity"
    if granularity is None and given:
        name, value = next(iter(given.items()))
        wanted = "selective" if name == "modules" else "full"
        cause = "args.recompute_granularity is null: nothing is recomputed, and this is left out"
        yield Problem(key=f"args.recompute_{name}", value=value, cause=cause, remedy=f"Add {key}={wanted}.")
    lacking = next((name for name in details if granularity == "full" and name not in given), None)
    if lacking:
        cause = f"Megatron refuses it without args.recompute_{lacking}"
        remedy = "Add args.recompute_method=uniform args.recompute_num_layers=1, or use selective."
        yield Problem(key=key, value=granularity, cause=cause, remedy=remedy)
    elif granularity == "full" and "modules" in given:
        cause = "full recomputes whole layers; modules are chosen with selective"
        remedy = f"Use {key}=selective."
        yield Problem(key="args.recompute_modules", value=given["modules"], cause=cause, remedy=remedy)
    if granularity == "selective" and "num_layers" in given:
        cause = "selective recomputes modules in every layer, and Megatron refuses a number of layers"
        key, value = "args.recompute_num_layers", given["num_layers"]
        yield Problem(key=key, value=value, cause=cause, remedy="Leave it out.")


@check("contradiction", args=DistillArgs)
def export_after_training(job: Job) -> Iterator[Problem]:
    """Some releases want to be told whose configuration an export takes."""
    args, release = job.resolved, job.addressed.release if job.addressed else None
    if args.hf_export_path and args.student_hf_model is None and release and release.startswith(_ASKS_WHOSE):
        cause = f"{release} of the script ends at once without args.student_hf_model"
        remedy = f"Add args.student_hf_model={args.student_hf_path}."
        yield Problem(key="args.hf_export_path", value=args.hf_export_path, cause=cause, remedy=remedy)


@check("contradiction", args=QadArgs)
def export_of_quantized(job: Job) -> Iterator[Problem]:
    """The export at the end of a distillation is one in full precision, whatever the student is."""
    if job.resolved.hf_export_path:
        cause = "it would leave out what the student was quantized with, without a word"
        remedy = f"Leave it null, and run {job.resolved.EXPORTER} on what the training leaves."
        yield Problem(key="args.hf_export_path", value=job.resolved.hf_export_path, cause=cause, remedy=remedy)


@check("contradiction", args=(PruneArgs, QuantizeModelOptArgs), roles=("samples", "batch"), severity="warning")
def calibration_batches(job: Job) -> Iterator[Problem]:
    """A batch of more samples than there are."""
    samples, batch = job.get("samples"), job.get("batch")
    if batch > samples > 0:
        cause = f"there are {samples} calibration samples: one batch is not full"
        yield Problem(key=job.key("batch") or "", value=batch, cause=cause, remedy=f"Use {samples} or less.")
