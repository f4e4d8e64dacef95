"""`nemo experiment inspect`: what a checkpoint or a data set on disk is, told from its files."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from recipes.cli.document import AsJson, answer, exits, say
from scripts.run.drawing import size_text
from scripts.run.problems import JobError, ProblemsError

if TYPE_CHECKING:
    from scripts.checkpoints import Checkpoint


def inspect(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A checkpoint, one of its iterations, or data.")],
    as_json: AsJson = False,
) -> None:
    """Say what a path holds: its kind, parameters, dtypes, iteration, quantization, size, and what is wrong with it.

    Example: nemo experiment inspect /checkpoints/qwen3-8b-fp8

    Only headers are read and nothing is unpickled, so a checkpoint from anywhere can be looked at. Exit
    status: 1 when a file in it cannot be read, 2 when nothing is there or it is of no known kind.
    """
    from scripts.checkpoints import look

    with exits(as_json=as_json):
        try:
            found = look(path)
        except JobError as error:
            if error.name == "unreadable_checkpoint":  # a failure; any other path is a problem with what was asked
                raise
            raise ProblemsError([error.as_problem("PATH", str(path))]) from None
    if as_json:
        answer(dataclasses.asdict(found) | {"path": str(found.path)})
        return
    for key, value in _lines(found):
        say(f"{key:13} {value}", as_line=True)


def _lines(found: "Checkpoint") -> Iterator[tuple[str, object]]:
    """What is known, a line each; what a checkpoint lacks is said only where somebody would look for it."""
    is_data = found.kind in ("binidx", "training_jsonl")
    yield "path", found.path
    stored = f"{found.layout}, {found.format}" if found.format else found.layout
    yield "kind", found.kind if is_data else f"{found.kind} ({stored})"
    if found.architecture:
        yield "architecture", found.architecture
    if found.base_model:
        yield "base model", found.base_model
    if found.iteration is not None:
        others = ", ".join(str(one) for one in found.iterations if one != found.iteration)
        yield "iteration", f"{found.iteration} (also there: {others})" if others else found.iteration
    if not is_data:
        yield "parameters", f"{found.parameters:,}" if found.parameters is not None else "not told by its files"
    if found.dtypes:
        yield "tokens" if is_data else "dtypes", ", ".join(f"{name} {count:,}" for name, count in found.dtypes.items())
    if not is_data:
        cache = f", key/value cache {found.kv_cache}" if found.kv_cache else ""
        yield "quantization", (found.quantization or "none") + cache
        yield "ModelOpt", "state to restore" if found.modelopt_state else "no state"
        yield "training", "has optimizer, scheduler or random state" if found.training_state else "clean"
    yield "size", f"{size_text(found.bytes)} in {found.files} file{'s' if found.files != 1 else ''}"
    for problem in found.problems:
        yield "problem", problem
    for doubt in found.doubts:
        yield "doubt", doubt
