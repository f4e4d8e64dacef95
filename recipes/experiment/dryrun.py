"""What would be submitted, word for word, without leaving anything behind."""

import io
import tempfile
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from executors.base import Launch
from recipes.experiment.delivery import opened_experiment, without_stdin
from recipes.experiment.examine import Submission
from recipes.experiment.launching import native_id
from recipes.experiment.standing import recorded
from recipes.experiment.store import RunFolder
from recipes.experiment.submit import package_for
from recipes.experiment.sweep import array_job, as_elements

if TYPE_CHECKING:
    import nemo_run as run


def rehearse(submission: Submission) -> dict[str, Any]:
    """The script or request that this submission would send, and the code that would travel with it.

    NeMo-Run writes while it makes one; it does so in a folder that does not stay. Raises
    ProblemsError for code that cannot be packaged.
    """
    return _rehearse(submission, lambda archive: (submission.launch(archive), submission.partial))


def rehearse_array(submissions: Sequence[Submission]) -> dict[str, Any]:
    """The same of a sweep that is submitted as one job array."""
    elements = as_elements(submissions)
    return _rehearse(elements[0], lambda archive: array_job(elements, archive))


def _rehearse(
    submission: Submission, job: "Callable[[Path | None], tuple[Launch, run.Partial[Any]]]"
) -> dict[str, Any]:
    from nemo_run.config import get_nemorun_home

    with tempfile.TemporaryDirectory() as folder:
        code = package_for(submission, Path(folder) / "code.tar.gz")
        launch, partial = job(code.archive if code else None)
        launch = replace(launch, after=_waits_for(submission))
        with (
            without_stdin(),
            redirect_stdout(io.StringIO()),  # NeMo-Run reports some of its steps there
            opened_experiment(launch, partial, submission.place, base_dir=folder) as experiment,
        ):
            experiment.dryrun(log=False, delete_exp_dir=False)
            text = submission.place.text(experiment, launch).replace(folder, get_nemorun_home())
    return {"code": code.as_record() if code else None, "submits": text}


def _waits_for(submission: Submission) -> tuple[str, ...]:
    """The jobs of earlier runs that its scheduler would wait for, as far as is written down here."""
    parents = [RunFolder.of(run_id) for run_id in submission.after]
    going_on = [parent for parent in parents if parent.dir.is_dir() and not recorded(parent.dir).ended]
    return tuple(job_id for parent in going_on if (job_id := native_id(parent, submission.place)))
