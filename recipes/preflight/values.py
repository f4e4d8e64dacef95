"""Values of a job that speak against each other: the script would refuse them, or do less than they seem to say.

Sources: Megatron-Core's optimizer_param_scheduler and transformer_config, Megatron-Bridge's training/train.py and
training/config.py, Model-Optimizer's examples/megatron_bridge/distill.py.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from recipes.experiment.job import Job
from scripts.run.problems import Problem
from scripts.run.registry import check

#: Figures of a training, by the name of the argument and by the section of a configuration that it stands in.
_SECTIONS = {
    "train_iters": ("train",),
    "train_samples": ("train",),
    "eval_interval": ("train", "validation"),
    "save_interval": ("checkpoint",),
    "lr": ("optimizer",),
    "min_lr": ("optimizer",),
    "lr_warmup_iters": ("scheduler",),
}
#: Releases of distill.py that end at once when they are to export and are not told whose configuration to take.
_ASKS_WHOSE = ("0.44", "0.45")

Figures = Mapping[str, tuple[str, Any]]


def _has(*names: str) -> Callable[[Job], bool]:
    return lambda job: all(hasattr(job.args, name) for name in names)


def _figures(job: Job) -> dict[str, tuple[str, Any]]:
    """By name: the key that sets a figure of the training, and its value."""
    found = {}
    config = getattr(job.resolved, "config", None)
    for name, sections in _SECTIONS.items():
        value = getattr(job.resolved, name, None)
        if isinstance(value, (int, float)):
            found[name] = (f"args.{name}", value)
        for section in sections:
            inside = config.get(section) if isinstance(config, dict) else None
            if isinstance(inside, dict) and isinstance(inside.get(name), (int, float)):
                found[name] = (f"args.config.{section}.{name}", inside[name])
    return found


@check("contradiction")
def training(job: Job) -> Iterator[Problem]:
    figures = _figures(job)
    for of_figures in (_rates, _warmup, _intervals, _lengths):
        yield from of_figures(figures)


def _rates(figures: Figures) -> Iterator[Problem]:
    if "lr" in figures and "min_lr" in figures:
        (key, low), (_, high) = figures["min_lr"], figures["lr"]
        if low > high:
            cause = f"the learning rate would end above where it begins, {high:g}, and Megatron refuses that"
            yield _contradiction(key, low, cause, f"Use {high / 10:g}, or a larger lr.")


def _warmup(figures: Figures) -> Iterator[Problem]:
    if "lr_warmup_iters" in figures and "train_iters" in figures:
        (key, warmup), (_, iterations) = figures["lr_warmup_iters"], figures["train_iters"]
        if warmup >= iterations > 0:
            cause = f"the training has {iterations} iterations, and Megatron refuses a warm-up that fills it"
            yield _contradiction(key, warmup, cause, f"Use {iterations // 10}, or more iterations.")


def _intervals(figures: Figures) -> Iterator[Problem]:
    if "train_iters" not in figures:
        return
    iterations = figures["train_iters"][1]
    for name, what in (
        ("eval_interval", "nothing is validated before the end"),
        ("save_interval", "there is no checkpoint before the end: a job that is stopped starts over"),
    ):
        key, value = figures.get(name, ("", 0))
        if value > iterations:
            cause = f"the training has {iterations} iterations: {what}"
            yield Problem(key=key, value=value, cause=cause, remedy="Use less.", severity="warning")


def _lengths(figures: Figures) -> Iterator[Problem]:
    if "train_iters" in figures and "train_samples" in figures:
        key, value = figures["train_samples"]
        cause = f"{figures['train_iters'][0]}={figures['train_iters'][1]} says how long to train too"
        yield _contradiction(key, value, cause, "Set one of them to null.")


@check("contradiction", applies=_has("recompute_granularity", "recompute_modules"))
def recompute(job: Job) -> Iterator[Problem]:
    args = job.resolved
    details = {name: getattr(args, f"recompute_{name}") for name in ("method", "num_layers", "modules")}
    given = {name: value for name, value in details.items() if value is not None}
    granularity, key = args.recompute_granularity, "args.recompute_granularity"
    if granularity is None and given:
        name, value = next(iter(given.items()))
        wanted = "selective" if name == "modules" else "full"
        cause = "args.recompute_granularity is null: nothing is recomputed, and this is left out"
        yield _contradiction(f"args.recompute_{name}", value, cause, f"Add {key}={wanted}.")
    for name in ("method", "num_layers") if granularity == "full" else ():
        if name not in given:
            cause = f"Megatron refuses it without args.recompute_{name}"
            remedy = "Add args.recompute_method=uniform args.recompute_num_layers=1, or use selective."
            yield _contradiction(key, granularity, cause, remedy)
            return
    if granularity == "full" and "modules" in given:
        cause = "full recomputes whole layers; modules are chosen with selective"
        yield _contradiction("args.recompute_modules", given["modules"], cause, f"Use {key}=selective.")
    if granularity == "selective" and "num_layers" in given:
        cause = "selective recomputes modules in every layer, and Megatron refuses a number of layers"
        yield _contradiction("args.recompute_num_layers", given["num_layers"], cause, "Leave it out.")


@check("contradiction", applies=_has("hf_export_path", "student_hf_model", "teacher_hf_path"))
def export_after_training(job: Job) -> Iterator[Problem]:
    args, release = job.resolved, job.addressed.release if job.addressed else None
    if args.hf_export_path and args.student_hf_model is None and release and release.startswith(_ASKS_WHOSE):
        cause = f"{release} of the script ends at once without args.student_hf_model"
        remedy = f"Add args.student_hf_model={args.student_hf_path}."
        yield _contradiction("args.hf_export_path", args.hf_export_path, cause, remedy)


@check("contradiction", applies=_has("calib_num_samples", "calib_batch_size"), severity="warning")
def calibration_batches(job: Job) -> Iterator[Problem]:
    samples = getattr(job.resolved, "calib_num_samples", None)
    batch = job.resolved.calib_batch_size
    if samples is not None and batch is not None and batch > samples > 0:
        cause = f"there are {samples} calibration samples: one batch is not full"
        yield Problem(
            key="args.calib_batch_size",
            value=batch,
            cause=cause,
            remedy=f"Use {samples} or less.",
        )


def _contradiction(key: str, value: Any, cause: str, remedy: str) -> Problem:
    return Problem(key=key, value=value, cause=cause, remedy=remedy)
