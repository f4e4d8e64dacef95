"""Whether teacher and student mean the same tokens: distillation compares their logits, column by column.

ModelOpt's KL loss (torch/distill/plugins/megatron.py) takes both as they come; Megatron-Bridge makes each as
wide as its config.json says, without padding, whatever the tokenizer holds.
"""

import json
import posixpath
from collections.abc import Iterator, Mapping

from recipes.experiment.job import Job
from recipes.preflight.paths import model_folder
from scripts.run.problems import Problem
from scripts.run.registry import check

_NAME = "teacher_student_or_tokenizer_mismatch"
#: Files that tell every token, with how to read them.
_FILES = ("tokenizer.json", "vocab.json")


def _distils(job: Job) -> bool:
    return job.get("teacher") is not None and job.get("teacher") != job.get("model")


@check(_NAME, needs=("teacher.vocab_size", "model.vocab_size"), applies=_distils)
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


@check(_NAME, applies=_distils, can_force=True)
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
    for file in _FILES:
        paths = (folders[0] / file, folders[1] / file)
        if all(posixpath.isfile(path) for path in paths):
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
