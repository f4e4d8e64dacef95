"""Whether the models and checkpoints that a job reads are what it takes them for: whole models, merged and finished,
and teacher and student of the same tokens.

Distillation compares their logits column by column: ModelOpt's KL loss (torch/distill/plugins/megatron.py) takes both
as they come; Megatron-Bridge makes each as wide as its config.json says, without padding, whatever the tokenizer holds.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from recipes.experiment.job import Job
from recipes.models import ModelFacts, hub
from recipes.preflight.history import recorded_origin, same_model
from recipes.preflight.paths import inputs_of, model_folder, path_here
from scripts.args.convert import MergeLoraArgs
from scripts.args.meaning import values_of
from scripts.args.megatron_lm import MegatronLmArgs
from scripts.checkpoints import Checkpoint, look
from scripts.checkpoints.causal import built_types
from scripts.checkpoints.documents import neighbour, read_json
from scripts.checkpoints.hub_cache import is_hub_name
from scripts.checkpoints.model import read_config
from scripts.run.files import is_file, is_folder, is_there
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
#: Files that tell every token, with how to read them.
_VOCABULARIES = ("tokenizer.json", "vocab.json")


@check("missing_input", can_force=True, applies=lambda job: bool(job.resolved.BEGINS))
def beginning(job: Job) -> Iterator[Problem]:
    """Something to begin with, in an argument or among the words that go to the script as they are."""
    named = {field: value for field, value, meaning in values_of(job.resolved) if meaning.role in job.resolved.BEGINS}
    required = any(meaning.required for field, _, meaning in values_of(job.resolved) if field in named)
    words = {word.partition("=")[0].lstrip("-").replace("-", "_") for word in job.extra_args}
    if not (required or any(named.values()) or words & {*named, "pretrained_checkpoint"}):
        cause = "nothing says what to begin with, and the script goes on with random weights"
        remedy = f"Set {' or '.join(f'args.{field}' for field in named)}."
        yield Problem(key=f"args.{next(iter(named))}", value=None, cause=cause, remedy=remedy)


@check("missing_input", algorithms=("distill",), can_force=True)
def teacher_of_checkpoint(job: Job) -> Iterator[Problem]:
    """A distillation whose teacher is a checkpoint has one."""
    if (key := job.key("teacher_checkpoint")) is not None and job.get("teacher_checkpoint") is None:
        cause = "there is no teacher, and without one the script trains plainly"
        yield Problem(key=key, value=None, cause=cause, remedy=f"Set {key}, or use mlm_finetune.")


@check("student_larger_than_teacher", severity="warning", needs=("teacher", "model"), applies=lambda job: _distils(job))
def larger_student(job: Job) -> Iterator[Problem]:
    """The large model teaches the small one."""
    assert job.model is not None and job.teacher is not None
    student, teacher = (facts.architecture.parameters for facts in (job.model, job.teacher))
    if student and teacher and student.total > teacher.total:
        cause = f"the student has {student.total:.3g} parameters, its teacher {teacher.total:.3g}"
        yield Problem(key=job.key("model") or "", value=job.get("model"), cause=cause, remedy="Are the two swapped?")


@check("wrong_base_model", severity="warning", args=MegatronLmArgs, roles=("weights",))
def card_and_weights(job: Job) -> Iterator[Problem]:
    """The card says how the model is built that the weights are put into."""
    card, weights = job.get("model"), job.get("weights")
    of_weights = job.models.get("pretrained_model_path")
    figures = [(one.hidden_size, one.layers, one.vocab_size) for one in (job.model, of_weights) if one is not None]
    differ = figures[0] != figures[1] if len(figures) == 2 else is_hub_name(weights)
    if differ and not same_model(card, weights):
        cause, remedy = f"args.model_card is another model, {card}", "Name one model in both."
        yield Problem(key=job.key("weights") or "", value=weights, cause=cause, remedy=remedy)


@check("no_vision_tower", can_force=True, needs=("model.model_type",), applies=lambda job: job.resolved.IMAGES)
def tower(job: Job) -> Iterator[Problem]:
    """Images are shown to a model that can see."""
    assert job.model is not None
    if job.model.vision is None:
        other = {"quantize": "quantize_fp8", "generate": "generate"}.get(job.algorithm, "")
        cause = f"{job.model.model_type} has no vision tower, and the script shows it images"
        yield Problem(key=job.key("model") or "", value=job.get("model"), cause=cause, remedy=f"Use {other}.")


@check("remote_code_not_trusted", applies=lambda job: job.get("remote_code") is False)
def code_of_models(job: Job) -> Iterator[Problem]:
    """Models whose repositories bring code that is needed to load them (`auto_map`).

    What hub.yaml says of one may be out of date: then the Transformers that is here must not have it either.
    """
    key = job.key("remote_code")
    for field, facts in job.models.items():
        listed = facts.source == hub.SOURCE
        if facts.remote_code and not (listed and _may_be_built(facts)):
            cause = "its repository brings Python code of its own, which is not run unless it is trusted"
            remedy, value = f"Read that code, then set {key}=true.", getattr(job.resolved, field)
            yield Problem(key=f"args.{field}", value=value, cause=cause, remedy=remedy, can_force=listed)


def _may_be_built(facts: ModelFacts) -> bool:
    """Whether Transformers may have the architecture: the one that is here has, or there is none."""
    known, _ = built_types()
    return not known or facts.model_type in known


@check("missing_model", severity="warning", applies=lambda job: job.here)
def folder_or_hub(job: Job) -> Iterator[Problem]:
    """`models/qwen` where models is a folder here and has no qwen: whoever loads it takes that for the hub's."""
    for field, value, meaning in values_of(job.resolved):
        named = meaning.names_a_model and meaning.used_by(job.engine) and field not in job.promised
        if not named or not isinstance(value, str) or not is_hub_name(value) or hub.is_local(value):
            continue
        folder, _, name = value.partition("/")
        if is_folder(folder) and value not in hub.published().configs and hub.cached_model(value) is None:
            models = [child.name for child in sorted(Path(folder).iterdir()) if _is_model_like(child)]
            inside = f"In it are the models {', '.join(models[:8])}." if models else "There is no model in it."
            remedy = neighbour(Path(value), inside, like=_is_model_like)
            cause = f"{folder} is a folder here and has no {name} in it: this is taken for a name of the hub"
            yield Problem(key=f"args.{field}", value=value, cause=cause, remedy=remedy)


def _is_model_like(folder: Path) -> bool:
    return is_file(folder / "config.json")


@check("unmerged_adapter")
def unmerged_adapter(job: Job) -> Iterator[Problem]:
    """A LoRA adapter where a whole model is needed. Model folders that are inputs here are looked at elsewhere."""
    for field, name, meaning in values_of(job.resolved):
        consumed = meaning.consumes == "checkpoint_hf"
        if not isinstance(name, str) or not meaning.names_a_model:
            continue
        if consumed and job.here and hub.is_local(name):
            continue
        folder = model_folder(job, name)
        if folder is not None and is_file(folder / "adapter_config.json"):
            yield Problem(
                key=f"args.{field}",
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
        if path is None or not named.consumes.startswith("checkpoint_") or not is_folder(path):
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
        return look(path) if path is not None and is_there(path) else None
    except JobError:
        return None


# --- vocabularies ----------------------------------------------------------------------------------------------------


def _distils(job: Job) -> bool:
    return job.get("teacher") is not None and job.get("teacher") != job.get("model")


@check("teacher_student_or_tokenizer_mismatch", needs=("teacher.vocab_size", "model.vocab_size"), applies=_distils)
def vocabulary_widths(job: Job) -> Iterator[Problem]:
    assert job.model is not None and job.teacher is not None
    teacher, student = job.teacher.vocab_size, job.model.vocab_size
    if teacher == student:
        return
    cause = f"the teacher's vocabulary has {teacher} tokens, the student's {student}: their logits cannot be compared"
    remedy = "Use models of one family with the same vocab_size in config.json."
    texts = _texts(job)
    if texts is not None and _tokens(texts[0]) == _tokens(texts[1]):
        cause += ". Their tokenizers are the same; the rest is padding"
        remedy = (
            f"Resize the smaller one's embeddings: model.resize_token_embeddings({max(teacher or 0, student or 0)})."
        )
    yield Problem(key=job.key("model") or "", value=job.get("model"), cause=cause, remedy=remedy)


@check("teacher_student_or_tokenizer_mismatch", applies=_distils, can_force=True)
def vocabulary_contents(job: Job) -> Iterator[Problem]:
    texts = _texts(job)
    if texts is None or texts[0] == texts[1]:
        return
    teacher, student = map(_tokens, texts)
    if teacher is None or student is None or teacher == student:
        return
    yield Problem(
        key=job.key("model") or "",
        value=job.get("model"),
        cause=_difference(teacher, student),
        remedy="Use models with one tokenizer: of one family, or a student that took the teacher's.",
    )


def _difference(teacher: Mapping[str, int], student: Mapping[str, int]) -> str:
    """In how many tokens two vocabularies differ, and the first of them by id."""
    wrong = [token for token in teacher.keys() | student.keys() if teacher.get(token) != student.get(token)]
    first = min(wrong, key=lambda token: (min(teacher.get(token, 1 << 62), student.get(token, 1 << 62)), token))
    ids = [f"{vocabulary[first]}" if first in vocabulary else "no token" for vocabulary in (teacher, student)]
    count = f"{len(wrong)} token{'s' if len(wrong) > 1 else ''}"
    return (
        f"the tokenizers (teacher's {len(teacher)} tokens, student's {len(student)}) differ in {count}: "
        f"{first!r} is {ids[0]} to the teacher and {ids[1]} to the student"
    )


def _texts(job: Job) -> tuple[bytes, bytes] | None:
    """The files with both vocabularies, of the same kind; None where one cannot be read here."""
    names = (job.get("teacher"), job.get("model"))
    folders = [model_folder(job, name) for name in names]
    if folders[0] is None or folders[1] is None:
        return None
    for file in _VOCABULARIES:
        paths = (folders[0] / file, folders[1] / file)
        if all(is_file(path) for path in paths):
            try:
                return paths[0].read_bytes(), paths[1].read_bytes()
            except OSError:
                return None
    return None


def _tokens(text: bytes) -> dict[str, int] | None:
    """Ids by token, from a tokenizer.json or a vocab.json; None for what is neither."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict):
        return None
    model = value.get("model")
    if not isinstance(model, dict):
        return value if value and all(type(number) is int for number in value.values()) else None
    tokens = _of_model(model.get("vocab"))
    if tokens is None:
        return None
    added = value.get("added_tokens")
    return tokens | {
        one["content"]: one["id"]
        for one in (added if isinstance(added, list) else [])
        if isinstance(one, dict) and isinstance(one.get("content"), str) and type(one.get("id")) is int
    }


def _of_model(vocabulary: object) -> dict[str, int] | None:
    """`model.vocab`: a mapping (BPE, WordPiece), or pairs of token and score in the order of their ids (Unigram)."""
    if isinstance(vocabulary, dict):
        return dict(vocabulary)
    if isinstance(vocabulary, list) and all(isinstance(pair, list) and pair for pair in vocabulary):
        return {str(pair[0]): number for number, pair in enumerate(vocabulary)}
    return None
