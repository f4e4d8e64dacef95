"""Handing a job to the place where it runs: what travels with it, and NeMo-Run's experiment around it."""

import base64
import json
import os
import sys
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from executors.base import Launch, Place, SchedulerJob, SubmitError
from recipes.experiment.store import RunFolder, handle_of
from scripts.entrypoints import current
from scripts.run.problems import JobError
from scripts.run.secrets import pack_secrets


@contextmanager
def named_failures() -> Iterator[None]:
    """NeMo-Run's own failures become ours: a record must not stay at `submitted` for want of a name."""
    try:
        yield
    except JobError:
        raise
    except OSError as error:
        raise JobError.of_os_error(error) from error
    except Exception as error:
        cause = f"{type(error).__name__}: {error}"
        raise JobError("launch_failed", cause, "NeMo-Run or the executor failed; nothing runs.") from error


@contextmanager
def disk_failures() -> Iterator[None]:
    """What cannot be written on this machine has a name too."""
    try:
        yield
    except OSError as error:
        raise JobError.of_os_error(error) from error


def deliver(folders: Sequence[RunFolder], place: Place, launch: Launch, experiment: Any) -> SchedulerJob:
    """Put what the job needs where it runs, submit it, and note what the scheduler calls it.

    Several folders are the elements of one job array. Nothing stays behind where that fails.
    """
    put = _staged_files(folders, place)
    try:
        if (expected := place.expected(experiment, launch)) is not None:
            _note(folders, launch, expected, submitting=True)
        place.stage(put)
        with without_stdin():
            job = place.submit(experiment, launch)
    except BaseException as error:
        if isinstance(error, SubmitError) and error.job is not None:
            _note(folders, launch, error.job)  # it may run, and need what was put there
        else:
            for folder in folders:
                with suppress(OSError):  # a full disk: then `look` finds no job of that name
                    folder.update_handle(job=None, submitting=False)
            with suppress(JobError, OSError):
                place.unstage(list(put))
        raise
    _note(folders, launch, job)
    return job


def _note(folders: Sequence[RunFolder], launch: Launch, job: SchedulerJob, *, submitting: bool = False) -> None:
    for index, folder in enumerate(folders):
        own = replace(job, run_id=folder.id, run_dir=handle_of(folder).as_launch().run_dir)
        element = own if len(folders) == 1 and not launch.array else replace(own, id=f"{job.id}_{index}")
        folder.update_handle(job=asdict(element), submitting=submitting)


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


def _staged_files(folders: Sequence[RunFolder], place: Place) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    secrets = pack_secrets(place.profile.secrets)
    for folder in folders:
        launch = handle_of(folder).as_launch()
        if launch.run_dir != str(folder.dir):
            files[f"{launch.run_dir}/run.json"] = (folder.dir / "run.json").read_bytes()
        if launch.secrets and secrets:
            files[launch.secrets] = secrets
    return files


def partial_of(folder: RunFolder) -> Any:
    """The recipe that a folder keeps."""
    from fiddle.experimental.serialization import load_json

    try:
        document = json.loads(zlib.decompress(base64.urlsafe_b64decode(folder.partial.read_text(encoding="utf-8"))))
        return load_json(json.dumps(current(document)))
    except Exception as error:  # whatever a damaged file makes of itself
        cause = f"{folder.partial} cannot be read: {type(error).__name__}: {error}."
        raise JobError("damaged_recipe", cause, "Submit the recipe again, as a new run.") from error


@contextmanager
def opened_experiment(launch: Launch, partial: Any, place: Place, base_dir: str | None = None) -> Iterator[Any]:
    """A NeMo-Run experiment of one task, entered, quiet, and left without NeMo-Run's waiting."""
    import nemo_run as run
    from rich.console import Console

    title, _, _ = launch.run_id.rpartition("_")
    experiment = run.Experiment(
        title,
        id=launch.run_id,
        base_dir=base_dir,
        log_level="WARN",
        enable_goodbye_message=False,
        skip_status_at_exit=True,
    )
    # Not clean_mode: it is saved with the experiment, and would silence `nemo experiment status` later.
    experiment.console = Console(quiet=True)
    with experiment:
        experiment.add(partial, executor=place.executor(launch), name=launch.task)
        try:
            yield experiment
        finally:
            experiment.detach = True  # or it waits once more for what has ended, in steps of two seconds


def write_partial(folder: RunFolder, partial: Any) -> None:
    """Keep the recipe beside the record, to start it from another process, or again."""
    from scripts.run.files import write_text

    write_text(folder.partial, serialized(partial))


def serialized(partial: Any) -> str:
    """A recipe as text."""
    from nemo_run.core.serialization.zlib_json import ZlibJSONSerializer

    return str(ZlibJSONSerializer().serialize(partial))
