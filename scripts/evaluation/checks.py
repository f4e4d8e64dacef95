"""What can be known before an evaluation: whether its values can be, and which library can load the checkpoint.

What cannot score a checkpoint as it is, must not score it at all.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import util
from pathlib import Path

from scripts.args.evaluate import Backend, EvaluateArgs
from scripts.args.meaning import ScriptSpec
from scripts.checkpoints import look
from scripts.checkpoints.huggingface import exported_algorithm
from scripts.formats import FORMATS
from scripts.run.problems import JobError, Problem
from scripts.run.provenance import compute_capabilities


def refuse_without_harness(script: ScriptSpec) -> None:
    """Raise JobError `harness_not_installed` where this Python cannot run it."""
    if script.path is None and util.find_spec("lm_eval") is None:
        cause = "the lm-evaluation-harness is not installed in this Python."
        raise JobError("harness_not_installed", cause, 'Use a container that has it, or: pip install "lm-eval>=0.4.9"')


def evaluate_problems(args: EvaluateArgs) -> Iterator[Problem]:
    """Every Problem of `args`, before anything is looked at."""
    if not args.tasks:
        yield Problem(name="no_tasks", key="args.tasks", value=[], cause="there is nothing to score")
    for task in args.tasks:
        if "," in task:
            cause = "the harness takes a comma for the end of a task's name"
            remedy = "Make each task an entry of its own; for a YAML file whose path has a comma use args.include_path."
            yield Problem(name="wrong_value", key="args.tasks", value=task, cause=cause, remedy=remedy)
    unused = {"vllm": ("parallelize", "tensor_parallel_size=2"), "hf": ("tensor_parallel_size", "parallelize=true")}
    if args.backend in unused:
        name, instead = unused[args.backend]
        value = getattr(args, name)
        if value > 1 or value is True:
            cause = f"it is not {args.backend}'s way to use several GPUs"
            remedy = f"Use args.{instead} or the like."
            yield Problem(name="not_of_this_backend", key=f"args.{name}", value=value, cause=cause, remedy=remedy)
    if args.fewshot_as_multiturn and not args.apply_chat_template:
        cause = "the turns of a chat need args.apply_chat_template=true"
        yield Problem(name="wrong_value", key="args.fewshot_as_multiturn", value=True, cause=cause)


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
    if not folder.is_dir():
        loading = Loading(backend="vllm" if args.backend == "vllm" else "hf", quantization=None, restored=False)
    else:
        loading = _of_folder(args, folder)
    if loading.backend == "vllm" and util.find_spec("vllm") is None:
        cause = f"vLLM is needed for {model}, and this Python has none."
        raise JobError("backend_not_installed", cause, "Use a container that has vLLM.")
    return loading


def _of_folder(args: EvaluateArgs, folder: Path) -> Loading:
    checkpoint = look(folder)
    if checkpoint.kind not in ("checkpoint_hf", "checkpoint_modelopt") or checkpoint.problems:
        cause = f"{folder} is a {checkpoint.kind}. {' '.join(checkpoint.problems)}".strip()
        remedy = "Score a Hugging Face checkpoint: export or convert this one, or merge it into its base."
        raise JobError("unscorable_checkpoint", cause, remedy)
    if checkpoint.kind == "checkpoint_modelopt":
        return _restored(args, folder, checkpoint.quantization)
    exported = exported_algorithm(folder) is not None
    if exported and args.backend == "hf":
        cause = f"{folder} is a ModelOpt export ({checkpoint.quantization}), which Transformers does not know."
        remedy = "Use args.backend=vllm, or score the ModelOpt-restorable checkpoint of the same run."
        raise JobError("backend_cannot_load", cause, remedy)
    auto: Backend = "vllm" if exported else "hf"
    return Loading(
        backend=auto if args.backend == "auto" else args.backend, quantization=checkpoint.quantization, restored=False
    )


def _restored(args: EvaluateArgs, folder: Path, quantization: str | None) -> Loading:
    if args.backend == "vllm":
        cause = f"{folder} holds ModelOpt's state, which vLLM ignores: it would score the weights unquantized."
        raise JobError("backend_cannot_load", cause, "Use args.backend=hf, or score the export of the same run.")
    facts = FORMATS.get(quantization or "")
    if facts is not None and facts.gpu_only and not compute_capabilities():
        cause = f"{folder} is in {facts.name}, which ModelOpt computes on a GPU only, and there is none here."
        raise JobError("backend_cannot_load", cause, "Score it where there is a GPU.")
    return Loading(backend="hf", quantization=quantization, restored=True)
