"""What the harness is given: its command line, and the tasks that ship, on text kept from the built-in models.

Source: lm_eval 0.4.13 and 0.4.9. Since 0.4.9 the arguments of a model may be JSON, the one form in which
a path with a comma, an equals sign or a blank arrives as it is.
"""

import glob
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from configs import CONFIGS
from scripts.args.evaluate import Backend, EvaluateArgs
from scripts.args.meaning import ScriptArgs, doc
from scripts.run.files import write_text
from scripts.tiny.corpus import passages

#: Of a choice: words of the beginning, words of a continuation, and how many continuations there are.
_CONTEXT_WORDS, _NEXT_WORDS, _CHOICES = 40, 12, 4
#: What the harness takes as it was given.
_AS_GIVEN = (
    *("num_fewshot", "limit", "fewshot_as_multiturn", "system_instruction"),
    *("seed", "confirm_run_unsafe_code"),
)


@dataclass(frozen=True, kw_only=True)
class HarnessArgs(ScriptArgs):
    """The harness's own flags."""

    SCRIPTS: ClassVar[tuple[str, ...]] = ("-m lm_eval",)
    RANKED: ClassVar[bool] = False

    checkpoint: str = doc(
        "what is scored", "", consumes="checkpoint_hf", accepts=("checkpoint_modelopt",), into=("pretrained",)
    )
    model: str = doc("what loads it", "hf")
    model_args: str = doc("how, as JSON", "{}")
    tasks: str = doc("names, separated by commas", "")
    include_path: str | None = doc("folder of further tasks", None)
    num_fewshot: int | None = doc("examples before each question", None)
    limit: float | None = doc("questions of each task", None)
    batch_size: str = doc("questions at a time", "1")
    gen_kwargs: str | None = doc("how answers are generated, as JSON", None)
    fewshot_as_multiturn: bool = doc("each example is a turn of the chat", False)
    system_instruction: str | None = doc("what the chat begins with", None)
    seed: int | None = doc("of everything random", None)
    log_samples: bool = doc("write every question and answer, of which scripts.evaluation.questions keeps values", True)
    confirm_run_unsafe_code: bool = doc("run code that the model writes", False)
    output_path: str = doc("where the results go", "")


def harness_args(
    args: EvaluateArgs, *, model: str, backend: Backend, include: Path | None, results: Path
) -> HarnessArgs:
    """The flags for scoring `model`, a folder or a hub name; results_<time>.json appears beside `results`.

    `results` ends in .json: in a folder the harness would make another, called after the model's path, and
    lose the results where that is too long for a name.
    """
    return HarnessArgs(
        checkpoint=model,
        model=backend,
        model_args=json.dumps(_model_args(args, model, backend)),
        tasks=",".join(args.tasks),
        include_path=str(include) if include else None,
        batch_size=str(args.batch_size),
        gen_kwargs=json.dumps(args.gen_kwargs) if args.gen_kwargs else None,
        output_path=str(results),
        **{name: getattr(args, name) for name in _AS_GIVEN},
    )


def closing_words(args: EvaluateArgs) -> list[str]:
    """What must come last: a flag that takes the word after it for a template's name, if there is one."""
    return ["--apply_chat_template"] if args.apply_chat_template else []


def _model_args(args: EvaluateArgs, model: str, backend: Backend) -> dict[str, Any]:
    """Its flag --trust_remote_code is not used: before 0.4.10 it does not go together with JSON."""
    values: dict[str, Any] = {"pretrained": model, "dtype": args.dtype}
    if args.trust_remote_code:
        values["trust_remote_code"] = True
    if backend == "vllm":
        values["tensor_parallel_size"] = args.tensor_parallel_size
    elif args.parallelize:
        values["parallelize"] = True
    if args.max_length is not None:
        values["max_model_len" if backend == "vllm" else "max_length"] = args.max_length
    return values | args.model_args


def write_tasks(folder: Path) -> Path:
    """Write the shipped tasks with their rows to `folder`. The harness takes absolute paths of data, as patterns."""
    import yaml

    for file in sorted((CONFIGS / "evaluate" / "tasks").glob("*.yaml")):
        task = yaml.safe_load(file.read_text(encoding="utf-8"))
        files = task["dataset_kwargs"]["data_files"]
        task["dataset_kwargs"]["data_files"] = {split: glob.escape(str(folder / name)) for split, name in files.items()}
        write_text(folder / file.name, yaml.safe_dump(task, sort_keys=False))
    _write_rows(folder / "tiny_text.jsonl", [{"text": text} for text in passages("eval")])
    _write_rows(folder / "tiny_choice.jsonl", _choices())
    return folder


def _choices() -> list[dict[str, Any]]:
    """For each part of each passage: its beginning, and its continuation among those of other passages."""
    parts = [part for text in passages("eval") for part in _parts(text)]
    rows = []
    for number, (context, continuation) in enumerate(parts):
        others = [parts[(number + step * (len(parts) // _CHOICES)) % len(parts)][1] for step in range(1, _CHOICES)]
        answer = number % _CHOICES
        rows.append(
            {"context": context, "choices": [*others[:answer], continuation, *others[answer:]], "answer": answer}
        )
    return rows


def _parts(text: str) -> list[tuple[str, str]]:
    words = text.split()
    length = _CONTEXT_WORDS + _NEXT_WORDS
    starts = range(0, len(words) - length + 1, length)
    return [
        (" ".join(words[start : start + _CONTEXT_WORDS]), " ".join(words[start + _CONTEXT_WORDS : start + length]))
        for start in starts
    ]


def _write_rows(file: Path, rows: list[dict[str, Any]]) -> None:
    write_text(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
