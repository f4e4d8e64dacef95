"""NeMo-Run's experiment of one job: made of a recipe that was kept, and kept from what it does besides."""

import base64
import json
import os
import sys
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from recipes.experiment.job import Job
from recipes.experiment.store import RunFolder
from scripts.entrypoints import current
from scripts.run.files import read_limited
from scripts.run.problems import JobError
from scripts.run.schema import MAX_BYTES

if TYPE_CHECKING:
    import nemo_run as run


@contextmanager
def without_stdin() -> Iterator[None]:
    """NeMo-Run's shell commands read from standard input what somebody types for the next command."""
    before = sys.stdin
    with Path(os.devnull).open() as nothing:
        sys.stdin = nothing
        try:
            yield
        finally:
            sys.stdin = before


def partial_of(folder: RunFolder) -> "run.Partial[Any]":
    """The recipe that a folder keeps."""
    from fiddle.experimental.serialization import load_json

    try:
        unpacked = zlib.decompressobj()
        content = unpacked.decompress(base64.urlsafe_b64decode(read_limited(folder.partial, MAX_BYTES)), MAX_BYTES)
        if not unpacked.eof:
            raise ValueError("it is cut short, or too large")
        return load_json(json.dumps(current(json.loads(content))))
    except Exception as error:  # whatever a damaged file makes of itself
        cause = f"{folder.partial} cannot be read: {type(error).__name__}: {error}."
        raise JobError("damaged_recipe", cause, "Submit the recipe again, as a new run.") from error


class _Hidden:
    """The main program, while as many threads as `by` have NeMo-Run not find it."""

    lock, by = threading.Lock(), 0
    main: ModuleType


@contextmanager
def without_main() -> Iterator[None]:
    """NeMo-Run finds no main program meanwhile; around a submission, which takes a moment.

    It sends the text of that along, and the node runs it before the task: a script that submits would submit again
    unless it has a `__main__` guard, and one from standard input has no text to send. Our tasks need nothing of it.
    """
    with _Hidden.lock:
        if not _Hidden.by:
            _Hidden.main, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
        _Hidden.by += 1
    try:
        yield
    finally:
        with _Hidden.lock:
            _Hidden.by -= 1
            if not _Hidden.by:
                sys.modules["__main__"] = _Hidden.main


@contextmanager
def opened_experiment(job: Job, partial: "run.Partial[Any] | None", base_dir: str | None = None) -> Iterator[Any]:
    """A NeMo-Run experiment of one task, entered, quiet, and left without NeMo-Run's waiting."""
    import nemo_run as run
    from rich.console import Console

    title, _, _ = job.id.rpartition("_")
    experiment = run.Experiment(
        title,
        id=job.id,
        base_dir=base_dir,
        log_level="WARN",
        enable_goodbye_message=False,
        skip_status_at_exit=True,
    )
    # Not clean_mode: it is saved with the experiment, and would silence `nemo experiment status` later.
    experiment.console = Console(quiet=True)
    with experiment:
        experiment.add(partial, executor=job.place.executor(job), name=job.recipe)
        try:
            yield experiment
        finally:
            experiment.detach = True  # or it waits once more for what has ended, in steps of two seconds
