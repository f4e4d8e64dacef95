"""Whether the models and checkpoints that a job reads are what it takes them for: whole models, merged and finished."""

import posixpath
from collections.abc import Iterator
from pathlib import Path

from recipes.experiment.job import Job
from recipes.preflight.hf_engine import is_local
from recipes.preflight.history import same_model
from recipes.preflight.origins import recorded_origin
from recipes.preflight.paths import inputs_of, model_folder, path_here
from scripts.args.convert import MergeLoraArgs
from scripts.args.meaning import meanings
from scripts.checkpoints import Checkpoint, look
from scripts.checkpoints.documents import read_json
from scripts.checkpoints.model import read_config
from scripts.run.problems import JobError, Problem
from scripts.run.registry import check

_TRAINED_BY = ("optimizer*", "scheduler.pt", "rng_state*.pth", "global_step*")
_PROGRESS = "trainer_state.json"
#: Algorithms that make something of a checkpoint that others rely on.
_BUILDS_ON = ("quantize", "prune", "distill", "qat", "export", "convert")
#: Those that read a Megatron checkpoint's weights alone. Training goes on from its state, which is no mistake.
_TAKES_WEIGHTS = ("quantize", "prune", "export", "convert")
#: What differs between the configurations of a model and of its copy.
_OF_A_COPY = ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache")


@check("unmerged_adapter")
def unmerged_adapter(job: Job) -> Iterator[Problem]:
    """A LoRA adapter where a whole model is needed. Model folders that are inputs here are looked at elsewhere."""
    for field, meaning in meanings(job.resolved):
        name = getattr(job.resolved, field.name)
        consumed = meaning.consumes == "checkpoint_hf"
        if not isinstance(name, str) or not meaning.names_a_model:
            continue
        if consumed and job.here and is_local(name):
            continue
        folder = model_folder(job, name)
        if folder is not None and posixpath.isfile(folder / "adapter_config.json"):
            yield Problem(
                key=f"args.{field.name}",
                value=name,
                cause=f"it is a LoRA adapter{_of_base(folder)}, not a model",
                remedy="Merge it into its base model first: merge_lora.",
            )


def _of_base(folder: Path) -> str:
    try:
        base = read_json(folder / "adapter_config.json").get("base_model_name_or_path")
    except JobError:
        return ""
    return f" of {base}" if isinstance(base, str) and base else ""


@check("wrong_base_model", args=MergeLoraArgs, can_force=True)
def base_of_adapter(job: Job) -> Iterator[Problem]:
    """The weights of an adapter are differences: added to another model than it was trained on, they mean nothing."""
    args = job.resolved
    checkpoint = None if "lora_checkpoint" in job.promised else _looked_at(job, args.lora_checkpoint)
    trained_on = checkpoint.base_model if checkpoint else None
    if checkpoint is None or not trained_on:
        return
    peft = checkpoint.layout == "peft"
    field, given = ("hf_model_path", args.hf_model_path) if peft else ("pretrained", args.pretrained)
    if given is None or same_model(given, trained_on) or _same_config(job, given, trained_on):
        return
    yield Problem(
        key=f"args.{field}",
        value=given,
        cause=f"the adapter was trained on {trained_on}",
        remedy=f"Use args.{field}={trained_on}.",
    )


def _same_config(job: Job, one: str, other: str) -> bool:
    """Whether two models whose folders are here have one configuration."""
    configs = [read_config(folder) for name in (one, other) if (folder := model_folder(job, name))]
    if len(configs) < 2 or None in configs:
        return False
    first, second = ({k: v for k, v in (config or {}).items() if k not in _OF_A_COPY} for config in configs)
    return first == second


@check("training_state_as_source", algorithms=_BUILDS_ON)
def training_state(job: Job) -> Iterator[Problem]:
    for named in inputs_of(job):
        path = path_here(job, named.path)
        if path is None or not named.consumes.startswith("checkpoint_") or not posixpath.isdir(path):
            continue
        if named.consumes != "checkpoint_megatron":
            yield from _of_trainer(named.key, named.path, path)
        elif job.algorithm in _TAKES_WEIGHTS:
            yield from _of_megatron(job, named.key, named.path)


def _of_trainer(key: str, value: str, folder: Path) -> Iterator[Problem]:
    """What Transformers' Trainer and DeepSpeed leave beside the weights, and how far the training was."""
    beside = [file.name for pattern in _TRAINED_BY for file in folder.glob(pattern)]
    step, last = _progress(folder)
    if not beside and step is None:
        return
    amid = step is not None and last is not None and step < last
    cause = f"{beside[0] if beside else _PROGRESS} in it is of a training"
    cause += f" that had done {step} of {last} steps" if amid else ""
    yield Problem(
        key=key,
        value=value,
        cause=cause,
        remedy="Name the folder that the finished training saved: weights, config.json and tokenizer alone.",
        severity="error" if amid else "warning",
        can_force=True,
    )


def _progress(folder: Path) -> tuple[int | None, int | None]:
    """Steps done and asked for, as trainer_state.json says."""
    try:
        state = read_json(folder / _PROGRESS)
    except JobError:
        return None, None
    step, last = state.get("global_step"), state.get("max_steps")
    return step if type(step) is int else None, last if type(last) is int else None


def _of_megatron(job: Job, key: str, value: str) -> Iterator[Problem]:
    origin = recorded_origin(value)
    if origin is not None and origin.state == "succeeded":
        return  # the end of a training of ours: only the weights are read
    checkpoint = _looked_at(job, value)
    if checkpoint is None or not checkpoint.training_state:
        return
    which = f" of iteration {checkpoint.iteration}" if checkpoint.iteration is not None else ""
    yield Problem(
        key=key,
        value=value,
        cause=f"it holds the optimizer's state{which}: a training may not have ended there",
        remedy="Name the iteration that is meant (.../iter_0001000), or the checkpoint that was saved at the end.",
        severity="warning",
    )


def _looked_at(job: Job, value: str | None) -> Checkpoint | None:
    """What a path of the job holds; None where that cannot be told here. Other checks say what is wrong with it."""
    path = path_here(job, value) if value else None
    try:
        return look(path) if path is not None and posixpath.exists(path) else None
    except JobError:
        return None
