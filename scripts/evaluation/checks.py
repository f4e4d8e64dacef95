"""What can be known before an evaluation: whether its values can be, and which library can load the checkpoint.

What cannot score a checkpoint as it is, must not score it at all.
"""

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from typing import Any

from configs import CONFIGS
from scripts.args.evaluate import Backend, EvaluateArgs
from scripts.checkpoints import look
from scripts.checkpoints.huggingface import exported_algorithm
from scripts.checkpoints.quantization import formats_in
from scripts.engines.installed import missing_tool
from scripts.run.files import expanded, is_folder, read_limited
from scripts.run.problems import JobError, Problem, near_miss, nearest
from scripts.run.provenance import compute_capabilities
from scripts.run.registry import Skipped, check

_BATCH = re.compile(r"auto(?::[1-9]\d*)?|[1-9]\d*")
#: A pattern, a file, or a task with a format (`mmlu@...`).
_FOUND_BY_HARNESS = re.compile(r"[*?\[/@]|\.ya?ml$")
_NAME = re.compile(rb"[\w.+-]*\w[\w.+-]*")
_NAMED = re.compile(
    rb"(?m)(?:^[ \t-]*|[{,][ \t]*)[\"']?(?:task|group|tag)[\"']?:[ \t]*"
    rb"(?:(\S[^#\n]*)|((?:\n[ \t]*-[ \t]*[\w.+-]+[ \t]*(?=\n|\Z))+))",
)
_MOST_BYTES = 1 << 20
#: Tasks that are asked for most, for a machine that submits without the harness.
_COMMON = (
    "agieval", "anli", "arc_challenge", "arc_easy", "bbh", "blimp", "boolq", "cmmlu", "commonsense_qa", "copa", "drop",
    "gpqa", "gsm8k", "gsm_plus", "hellaswag", "hendrycks_math", "humaneval", "ifeval", "lambada_openai",
    "lambada_standard", "leaderboard", "logiqa", "logiqa2", "longbench", "mathqa", "mbpp", "mgsm_direct", "mmlu_redux",
    "minerva_math", "mmlu", "mmlu_pro", "nq_open", "openbookqa", "piqa", "pubmedqa", "qnli", "race", "ruler", "sciq",
    "siqa", "social_iqa", "squadv2", "squad_completion", "swag", "toxigen", "triviaqa", "truthfulqa", "truthfulqa_mc1",
    "truthfulqa_mc2", "wikitext", "winogrande", "wsc", "xnli",
)  # fmt: skip
#: What each backend has no use for, and its own way to use several GPUs.
_UNUSED = {"vllm": ("parallelize", "tensor_parallel_size=2"), "hf": ("tensor_parallel_size", "parallelize=true")}


@check("no_tasks", "wrong_value", args=EvaluateArgs, where="both", of_values=True)
def tasks(job: Any) -> Iterator[Problem]:
    """There are some, and the harness can tell them apart."""
    if not job.resolved.tasks:
        yield Problem(key="args.tasks", value=[], cause="there is nothing to score")
    for task in job.resolved.tasks:
        if "," in task:
            cause = "the harness takes a comma for the end of a task's name"
            remedy = "Make each task an entry of its own; for a YAML file whose path has a comma use args.include_path."
            yield Problem(name="wrong_value", key="args.tasks", value=task, cause=cause, remedy=remedy)


@check("unknown_task", args=EvaluateArgs, where="both", of_values=True)
def tasks_of_the_harness(job: Any) -> Iterator[Problem | Skipped]:
    """It has them, and so has `include_path`; a pattern or a file is for the harness to find."""
    own, include = CONFIGS / "evaluate" / "tasks", job.resolved.include_path
    if include and not is_folder(include):  # somewhere else, or another check says what is wrong with it
        yield Skipped(missing=("the tasks of args.include_path",))
        return
    known = _tasks_in(Path(include) if include else own)
    asked = {task for task in job.resolved.tasks if not _FOUND_BY_HARNESS.search(task)} - known
    if not asked:
        return
    harness = util.find_spec("lm_eval")
    if harness is None:
        yield Skipped(missing=("the tasks of the lm-evaluation-harness",))
        for task in sorted(asked.difference(_COMMON)):
            if remedy := near_miss(task, _COMMON, cutoff=0.85):
                cause = "no task that is known here has that name"
                yield Problem(key="args.tasks", value=task, cause=cause, remedy=remedy, severity="warning")
        return
    root = Path(next(iter(harness.submodule_search_locations or ()))) / "tasks"
    # Ten thousand files: those of a folder that a name begins with first (arc_easy: arc), and no more if it is there.
    for folder in sorted(root.iterdir(), key=lambda one: not any(task.startswith(one.name) for task in asked)):
        known |= _tasks_in(folder)
        if asked <= known:
            return
    for task in sorted(asked - known):
        cause = "the installed lm-evaluation-harness has no task of that name"
        remedy = nearest(task, sorted(known))
        yield Problem(key="args.tasks", value=task, cause=cause, remedy=remedy, can_force=not job.in_this_python)


def _tasks_in(folder: Path) -> set[str]:
    """What the YAML files below a folder call their tasks, groups and tags; read as lines: parsing takes minutes."""
    found = set[str]()
    for file in folder.rglob("*.yaml"):
        with suppress(OSError, ValueError):
            for one, several in _NAMED.findall(read_limited(file, _MOST_BYTES)):
                found |= {name.decode() for name in _NAME.findall(one or several)}
    return found


@check("not_of_this_backend", args=EvaluateArgs, where="both")
def backend(job: Any) -> Iterator[Problem]:
    """Each backend has its own way to use several GPUs."""
    args: EvaluateArgs = job.resolved
    name, instead = _UNUSED.get(args.backend, ("", ""))
    value = getattr(args, name) if name else 1
    if value > 1 or value is True:
        cause = f"it is not {args.backend}'s way to use several GPUs"
        yield Problem(key=f"args.{name}", value=value, cause=cause, remedy=f"Use args.{instead} or the like.")


@check("wrong_value", args=EvaluateArgs, where="both")
def turns(job: Any) -> Iterator[Problem]:
    """Examples as turns of a chat, without a chat."""
    if job.resolved.fewshot_as_multiturn and not job.resolved.apply_chat_template:
        cause = "the turns of a chat need args.apply_chat_template=true"
        yield Problem(key="args.fewshot_as_multiturn", value=True, cause=cause)


@check("wrong_value", args=EvaluateArgs, where="both")
def questions_at_a_time(job: Any) -> Iterator[Problem]:
    """Questions at a time, or what the harness calls finding that out."""
    value = job.resolved.batch_size
    if isinstance(value, str) and not _BATCH.fullmatch(value):
        cause = "a number above 0, auto or auto:N is expected"
        yield Problem(key="args.batch_size", value=value, cause=cause, remedy="Use auto.")


@check("harness_not_installed", args=EvaluateArgs, where="both")
def harness(job: Any) -> Iterator[Problem]:
    """The Python that is to run it has the harness."""
    if job.in_this_python and job.script.path is None and (missing := missing_tool(EvaluateArgs)):
        cause = "the lm-evaluation-harness is not installed in this Python"
        remedy = f"Use a container that has it, or: {missing}"
        yield Problem(key="executor", value=None, cause=cause, remedy=remedy)


@check("backend_not_installed", "backend_cannot_load", args=EvaluateArgs, applies=lambda job: job.in_this_python)
def loadable(job: Any) -> Iterator[Problem]:
    """A checkpoint that is here already can be loaded by what this Python has."""
    if job.script.path is not None:
        return
    try:
        loading_of(job.resolved, str(expanded(job.resolved.checkpoint)))
    except JobError as error:  # of what is no checkpoint at all, other checks tell
        if error.name.startswith("backend_"):
            yield error.as_problem("args.checkpoint", job.resolved.checkpoint)


def has_vllm() -> bool:
    """Whether this Python has what loads a ModelOpt export."""
    return util.find_spec("vllm") is not None


def takes_first(kind: type) -> str:
    """The type of artifact that arguments of a class take here before others: what this Python can score; empty: any.

    Transformers cannot load an export; ModelOpt restores the checkpoint that the same run left beside it.
    """
    return "checkpoint_modelopt" if kind is EvaluateArgs and not has_vllm() else ""


@dataclass(frozen=True, kw_only=True)
class Loading:
    """How a checkpoint will be loaded."""

    backend: Backend
    quantization: str | None  # as Checkpoint says it
    restored: bool  # by ModelOpt, whose quantizers compute in the checkpoint's own precision


def loading_of(args: EvaluateArgs, model: str) -> Loading:
    """How `model`, a folder or a hub name, is loaded. Nothing but its files is looked at.

    Raises JobError: `unscorable_checkpoint`, `backend_cannot_load`, `backend_not_installed`, and those of look.
    """
    folder = Path(model)
    if not is_folder(folder):
        loading = Loading(backend="vllm" if args.backend == "vllm" else "hf", quantization=None, restored=False)
    else:
        loading = _of_folder(args, folder)
    if loading.backend == "vllm" and not has_vllm():
        cause = f"vLLM is needed for {model}, and this Python has none."
        remedy = "Use a container that has vLLM, or score the ModelOpt-restorable checkpoint of the same run."
        raise JobError("backend_not_installed", cause, remedy)
    return loading


def _of_folder(args: EvaluateArgs, folder: Path) -> Loading:
    checkpoint = look(folder)
    if checkpoint.kind not in ("checkpoint_hf", "checkpoint_modelopt") or checkpoint.problems:
        cause = f"{folder} is a {checkpoint.kind}. {' '.join(checkpoint.problems)}".strip()
        remedy = "Score a Hugging Face checkpoint: export or convert this one, or merge it into its base."
        raise JobError("unscorable_checkpoint", cause, remedy)
    quantization = checkpoint.quantization
    if checkpoint.kind == "checkpoint_modelopt":
        if args.backend == "vllm":
            cause = f"{folder} holds ModelOpt's state, which vLLM ignores: it would score the weights unquantized."
            raise JobError("backend_cannot_load", cause, "Use args.backend=hf, or score the export of the same run.")
        facts = next((one for one in formats_in(quantization) if one.gpu_only), None)
        if facts is not None and not compute_capabilities():
            cause = f"{folder} is in {facts.name}, which ModelOpt computes on a GPU only, and there is none here."
            raise JobError("backend_cannot_load", cause, "Score it where there is a GPU.")
        return Loading(backend="hf", quantization=quantization, restored=True)
    exported = exported_algorithm(folder) is not None
    if exported and args.backend == "hf":
        cause = f"{folder} is a ModelOpt export ({quantization}), which Transformers does not know."
        remedy = "Use args.backend=vllm, or score the ModelOpt-restorable checkpoint of the same run."
        raise JobError("backend_cannot_load", cause, remedy)
    auto: Backend = "vllm" if exported else "hf"
    backend = auto if args.backend == "auto" else args.backend
    return Loading(backend=backend, quantization=quantization, restored=False)
