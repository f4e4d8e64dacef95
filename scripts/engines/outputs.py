"""What a script is to leave behind: where it writes, and whether it is there when the script says that it is done."""

import shutil
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from scripts.args.meaning import value_of, values_of
from scripts.checkpoints import Checkpoint, look
from scripts.engines.card import write_card
from scripts.engines.inputs import with_commits
from scripts.run.files import publish, refuse_existing, write_text
from scripts.run.problems import JobError
from scripts.run.record import Record

#: In an output that grows in place: which run it belongs to.
_OWNER = ".modelopt-recipes-run"
_FACTS = ("layout", "parameters", "iteration", "quantization", "modelopt_state")


@dataclass(frozen=True, kw_only=True)
class Output:
    """One folder that a script writes."""

    field: str
    kind: str  # the artifact type that it must turn out to be
    quantized: bool  # and whether it must be quantized
    final: Path
    within: str  # the folder of it that holds the checkpoint; empty for itself
    args: Any  # of which it is an output
    written: Path  # beside `final`, and renamed once it is verified; `final` itself where the script goes on with it


def outputs_of(args: Any, run_dir: Path, engine: str = "script") -> list[Output]:
    """The outputs that `args` names and the engine writes.

    Where they are written depends on the run alone, so that every rank knows it.
    """
    tag = sha256(run_dir.name.encode()).hexdigest()[:8]
    found = []
    for field, value, meaning in values_of(args):
        if not meaning.produces or not meaning.used_by(engine) or value is None:
            continue
        final = Path(value)
        output = Output(
            field=field,
            kind=meaning.produces,
            quantized=bool(meaning.quantized) and not value_of(args, "unquantized", False),
            final=final,
            within=meaning.within,
            args=args,
            written=final if meaning.in_place else final.with_name(f".{final.name}.partial-{tag}"),
        )
        found.append(output)
    return found


def prepare(outputs: list[Output], record: Record) -> None:
    """Make room for every output; what an ended attempt of this run left of one that goes on is taken up again.

    Raises JobError `output_exists` for a place that holds something else.
    """
    for output in outputs:
        output.final.parent.mkdir(parents=True, exist_ok=True)
        if output.written != output.final:
            refuse_existing(output.final)
            shutil.rmtree(output.written, ignore_errors=True)  # of an attempt that was killed
            continue
        _take_up(output, record)
        owner = output.final / _OWNER
        if not owner.is_file() or owner.read_text(encoding="utf-8") != record.dir.name:
            refuse_existing(output.final)
            output.final.mkdir(exist_ok=True)
            write_text(owner, record.dir.name)


def _take_up(output: Output, record: Record) -> None:
    attempts = len(record.values.get("attempts", []))
    if not attempts or not output.final.is_relative_to(record.dir) or output.final.exists():
        return
    left = record.dir / "attempts" / str(attempts) / output.final.relative_to(record.dir)
    if left.is_dir():
        left.rename(output.final)


def finish(outputs: list[Output], record: Record, *, card: bool = True) -> None:
    """Verify every output, then publish and record all. Raises JobError; then nothing is published.

    What is for the hub gets a model card, unless it is a user's own work (`card`), which stays as they left it.
    """
    found = [_verified(output) for output in outputs]
    record.update(inputs=with_commits(record.values.get("inputs") or []))
    for output, checkpoint in zip(outputs, found, strict=True):
        if card and output.kind == "checkpoint_hf":
            fmt = checkpoint.quantization
            write_card(output.written / output.within, output.args, record.values, fmt=fmt)
        if output.written != output.final:
            publish(output.written, output.final)
        facts = {name: value for name in _FACTS if (value := getattr(checkpoint, name)) is not None}
        record.artifact(output.kind, output.final / output.within, **facts)


def _verified(output: Output) -> Checkpoint:
    """What an output is. Raises JobError `output_missing`, `output_incomplete` or `output_of_another_kind`."""
    key = f"args.{output.field}"
    remedy = "The script said that it had succeeded; its output is in logs/rank0.log."
    if not any(file.is_file() and file.name != _OWNER for file in output.written.rglob("*")):
        raise JobError("output_missing", f"{key}: the script wrote nothing to {output.written}.", remedy)
    if output.written != output.final and output.written.is_symlink():
        cause = f"{key}: {output.written} is a link to {output.written.resolve()}, where others may change it."
        raise JobError("output_of_another_kind", cause, "Have the script write there, or copy to it.")
    try:
        checkpoint = look(output.written / output.within)
    except JobError as error:
        raise JobError("output_incomplete", f"{key}: {error.cause}", remedy) from error
    if checkpoint.kind != output.kind:
        cause = f"{key}: {output.written} holds {checkpoint.kind}, not {output.kind}."
        raise JobError("output_of_another_kind", cause, remedy)
    if output.quantized and checkpoint.quantization is None:
        cause = f"{key}: nothing in {output.written} is quantized."
        raise JobError("output_not_quantized", cause, remedy)
    if checkpoint.problems:
        raise JobError("output_incomplete", f"{key}: {'; '.join(checkpoint.problems)}", remedy)
    return checkpoint
