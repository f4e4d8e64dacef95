"""Object stores that a job reads from or publishes to: whether it could, as far as that is seen from here."""

from collections.abc import Iterator
from contextlib import suppress

from recipes.experiment.job import Job
from recipes.experiment.runs import Run
from recipes.experiment.store import RunFolder
from scripts.run.problems import JobError, Problem
from scripts.run.record import DamagedRecordError
from scripts.run.registry import Skipped, check
from scripts.stores.objects import fault, manifest_above, opened, urls_in

_NO_MANIFEST = "no manifest is beside it, so that no run has published it, or not all of it"


@check("secret_in_url", "wrong_value")
def urls(job: Job) -> Iterator[Problem]:
    """Inputs that are URLs; what is wrong with the profile's is said with the profile."""
    for field, url in urls_in(job.resolved):
        if (wrong := fault(url)) is not None:
            yield wrong.as_problem(f"args.{field}")


@check("missing_input", "artifact_damaged", "store_not_installed", "store_unreachable")
def objects_there(job: Job) -> Iterator[Problem | Skipped]:
    """What is named is there and was published whole; but for what a run is going to leave."""
    for field, url in urls_in(job.resolved):
        if fault(url) is not None or _is_to_come(url, job):
            continue
        on_disk = url.startswith("file:")
        try:
            with opened(url):  # whether a filesystem is installed; nobody is asked yet
                pass
            if not (job.here if on_disk else job.online):
                yield Skipped(missing=(url,))
            elif manifest_above(url) is None:
                remedy = "Name an artifact that a run left: nemo experiment artifacts."
                if on_disk:
                    remedy = f"Use {url.removeprefix('file://')}."
                yield Problem(name="missing_input", key=f"args.{field}", value=url, cause=_NO_MANIFEST, remedy=remedy)
        except JobError as error:
            yield _from_here(job, error, f"args.{field}", url)


@check("store_not_installed", "store_unreachable")
def store_reached(job: Job) -> Iterator[Problem | Skipped]:
    """The bucket of executor.output_root; whether one may write there only a write tells."""
    url, key = job.profile.output_store, "executor.output_root"
    if url is None or fault(url) is not None or url.startswith("file:"):
        return
    try:
        with opened(url) as (fs, path):
            if not job.online:
                return
            fs.ls(path.partition("/")[0])
    except FileNotFoundError:
        cause, remedy = "there is no such bucket", "Make it, or name another one."
        yield Problem(name="store_unreachable", key=key, value=url, cause=cause, remedy=remedy, can_force=True)
    except JobError as error:
        yield _from_here(job, error, key, url)


def _from_here(job: Job, error: JobError, key: str, url: str) -> Problem | Skipped:
    """What is so for a job in this environment, and unknown for one that has others: packages, a network, keys."""
    if error.name.startswith("store_") and not job.in_this_python:
        return Skipped(missing=(url,))
    return error.as_problem(key, url, cause=error.cause.removeprefix(f"{url}: ").rstrip("."), can_force=True)


def _is_to_come(url: str, job: Job) -> bool:
    """Whether it is what a run leaves that has not ended, or is a stage of the same experiment."""
    for run_id in set(job.after) & set(url.split("/")):
        with suppress(DamagedRecordError):
            return not (RunFolder.of(run_id).dir.is_dir() and Run.read(RunFolder.of(run_id)).ended)
    return False
