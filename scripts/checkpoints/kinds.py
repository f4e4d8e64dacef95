"""Whether a checkpoint is what a script can begin with, by looking at it: on the submitting machine and on the node."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scripts.args.meaning import Meaning, values_of
from scripts.checkpoints.detect import look
from scripts.formats import EXPORTABLE
from scripts.run.files import expanded, is_there
from scripts.run.problems import JobError, Problem
from scripts.run.registry import check

#: How to get from what is there to what is needed.
CONVERSION = {
    ("checkpoint_hf", "checkpoint_megatron"): "Convert it first: hf_to_megatron.",
    ("checkpoint_megatron", "checkpoint_hf"): "Convert it first: megatron_to_hf, or export for a quantized one.",
    ("checkpoint_lora", "checkpoint_megatron"): "Merge it into its base first: merge_lora.",
    ("checkpoint_lora", "checkpoint_hf"): "Merge it into its base first: merge_lora, then megatron_to_hf.",
}


@check(
    *("wrong_checkpoint_kind", "damaged_checkpoint", "not_quantized", "already_quantized", "format_not_exportable"),
    *("unknown_checkpoint", "unreadable_checkpoint", "missing_path", "no_iteration"),
    where="node",
)
def checkpoints(job: Any) -> Iterator[Problem]:
    """Every checkpoint that is there can be used; a hub's name is the script's to fetch."""
    for name, value, meaning in values_of(job.resolved):
        checkpoint = isinstance(value, str) and meaning.consumes.startswith("checkpoint_")
        if not checkpoint or not meaning.used_by("script"):
            continue
        path = expanded(value)
        if is_there(path):
            yield from checkpoint_problems(path, f"args.{name}", meaning)


def checkpoint_problems(path: Path, key: str, meaning: Meaning) -> Iterator[Problem]:
    """What is wrong with the checkpoint at `path`, which is there, for the argument that names it."""
    try:
        checkpoint = look(path)
    except JobError as error:
        yield Problem(name=error.name, key=key, value=path, cause=error.cause.rstrip("."), remedy=error.remedy)
        return
    if checkpoint.kind not in (meaning.consumes, *meaning.accepts):
        cause = f"it is a {checkpoint.kind}, and a {meaning.consumes} is needed"
        pair = (checkpoint.kind, meaning.consumes)
        remedy = CONVERSION.get(pair, "")
        yield Problem(name="wrong_checkpoint_kind", key=key, value=path, cause=cause, remedy=remedy)
        return
    for sentence in checkpoint.problems:
        yield Problem(name="damaged_checkpoint", key=key, value=path, cause=sentence)
    found = checkpoint.quantization
    if meaning.quantized is True and found is None:
        cause = "nothing in it is quantized"
        yield Problem(name="not_quantized", key=key, value=path, cause=cause, remedy="Quantize it first.")
    if meaning.quantized is False and found is not None:
        cause = f"it is quantized ({found}), which this would drop"
        remedy = "Use export, export_modelopt or mlm_export: the exporter of who quantized it."
        yield Problem(name="already_quantized", key=key, value=path, cause=cause, remedy=remedy)
    if found in meaning.refuses:
        cause = f"it is quantized in {found}, which the Megatron exporter cannot write"
        yield Problem(name="format_not_exportable", key=key, value=path, cause=cause, remedy=EXPORTABLE)
