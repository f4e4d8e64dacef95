"""How runs truly stand: what they recorded, set against what their scheduler says."""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from executors.base import JobState, Place, UnreachableError
from recipes.experiment.store import Handle, RunFolder
from scripts.run.diagnosis import LOG_BYTES, diagnose, is_vague
from scripts.run.identity import is_alive
from scripts.run.problems import JobError, error_data
from scripts.run.record import FINAL_STATES, DamagedRecordError, Record, now, observe, read_json, read_record
from scripts.run.session import rank_error

_Answer = tuple[JobState | None, dict[str, Any] | None, str]


@dataclass(frozen=True, kw_only=True)
class Run:
    """A recorded run and how it stood when it was looked at."""

    id: str
    dir: Path  # on this machine
    record: dict[str, Any]
    where: str = "local"  # the executor profile's name
    note: str = ""  # why what is shown may be out of date

    @property
    def state(self) -> str:
        """One of submitted, running, succeeded, failed, cancelled, lost, or unreadable."""
        return str(self.record["state"])

    @property
    def ended(self) -> bool:
        return self.state in FINAL_STATES or self.state == "unreadable"

    @property
    def report(self) -> dict[str, Any] | None:
        """report/report.json: the measured quality, once there is one and it can be read from here."""
        report: dict[str, Any] | None = read_json(Path(self.record.get("run_dir", self.dir)) / "report" / "report.json")
        return report

    def refreshed(self) -> "Run":
        """The same run as it stands now."""
        return look([self.dir])[0]


def recorded(path: Path) -> Run:
    """A run of ours as it was last written down; nobody is asked."""
    handle = RunFolder(dir=path).handle()
    return Run(id=path.name, dir=path, record=read_record(path), where=handle.executor if handle else "local")


def look(dirs: Iterable[Path], places: dict[str, Place] | None = None) -> list[Run]:
    """How the runs in `dirs` stand; every scheduler is asked once for all of its jobs.

    A run that its scheduler ended without a last word of its own is recorded as what it is. A
    scheduler that does not answer leaves the last known state, and a note. `places` are those
    that a supervisor holds open: they know the jobs that it started itself.
    """
    folders = [RunFolder(dir=path) for path in dirs]
    seen = _ask(folders, places or {})
    runs = [_one(folder, *seen.get(folder.id, (None, None, ""))) for folder in folders]
    _forget_secrets(folder for folder in folders if folder.id in seen)
    return runs


def _ask(folders: list[RunFolder], open_places: dict[str, Place]) -> dict[str, _Answer]:
    """By run id: the scheduler's state, the record where the job runs, and why it could not be asked."""
    groups: dict[str, tuple[Place, list[Any]]] = {}
    for folder in folders:
        try:
            handle = folder.handle()
        except DamagedRecordError:
            continue  # `_one` says so
        if handle is None or handle.settled or (job := handle.known_job) is None:
            continue
        key = folder.id if folder.id in open_places else repr(handle.scheduler)
        place = open_places.get(folder.id) or (groups[key][0] if key in groups else handle.place())
        groups.setdefault(key, (place, []))[1].append(job)
    answers: dict[str, _Answer] = {}
    for place, jobs in groups.values():
        try:
            states, records = place.states(jobs), place.records(jobs)
            answers |= {job.run_id: (states.get(job.run_id), records.get(job.run_id), "") for job in jobs}
        except UnreachableError as error:
            answers |= {job.run_id: (None, None, str(error)) for job in jobs}
    return answers


def _one(folder: RunFolder, seen: JobState | None, remote: dict[str, Any] | None, unasked: str) -> Run:
    try:
        record, handle = read_record(folder.dir), folder.handle()
        if handle is None:  # nobody but the job itself looks after it
            return Run(id=folder.id, dir=folder.dir, record=observe(folder.dir))
    except DamagedRecordError as error:
        remedy = f"Its job, if it has one, goes on. Put the file right, or remove {folder.dir}."
        cause = error_data("damaged_record", str(error), remedy)
        record = {"id": folder.id, "state": "unreadable", "error": cause}
        return Run(id=folder.id, dir=folder.dir, record=record)
    where = handle.executor
    if handle.settled:
        return Run(id=folder.id, dir=folder.dir, record=record, where=where)
    if remote is not None:
        record = record | remote | {"submitted_at": record["submitted_at"]}
    if unasked:
        return Run(id=folder.id, dir=folder.dir, record=record, where=where, note=unasked)
    change, over = _settle(folder, handle, record, seen)
    if change.get("state") == "failed":
        change |= _diagnosed(handle, record, change["error"], seen)
    record, note = record | change, ""
    try:
        if over and record["state"] in FINAL_STATES - {"lost"}:
            if record != read_record(folder.dir):  # it could not write down itself how it ended
                Record(folder.dir, record).update()
            folder.update_handle(settled=True)
        elif is_elsewhere(folder, handle) and remote is not None:
            Record(folder.dir, record).update()
    except OSError as error:
        note = f"It could not be written down here: {error}."
    return Run(id=folder.id, dir=folder.dir, record=record, where=where, note=note)


def _forget_secrets(folders: Iterable[RunFolder]) -> None:
    """Remove the files that jobs could not remove themselves, for every place in one go."""
    groups: dict[str, tuple[Place, dict[str, RunFolder]]] = {}
    for folder in folders:
        handle = folder.handle()
        if handle and handle.settled and (path := handle.launch.get("secrets")):
            key = repr(handle.scheduler)
            place = groups[key][0] if key in groups else handle.place()
            groups.setdefault(key, (place, {}))[1][path] = folder
    for place, files in groups.values():
        try:
            place.unstage(list(files))
        except (JobError, OSError):
            for folder in files.values():  # so that the next look tries it again
                with suppress(OSError):
                    folder.update_handle(settled=False)


def is_elsewhere(folder: RunFolder, handle: Handle) -> bool:
    return str(handle.launch["run_dir"]) != str(folder.dir)


def _settle(
    folder: RunFolder, handle: Handle, record: dict[str, Any], seen: JobState | None
) -> tuple[dict[str, Any], bool]:
    """What to change of the recorded state, and whether the run is over for good."""
    recorded = record["state"] if record["state"] in FINAL_STATES else None
    if seen is None:
        return _without_scheduler(folder, handle, record, recorded)
    word = {"scheduler": seen.detail or seen.state}
    if seen.state in ("submitted", "running"):
        # Until its scheduler is done with it, another rank may fail, and a failed one may be started again.
        change = {"state": seen.state} if recorded or record["state"] == "submitted" else {}
        return word | change | ({"error": None, "diagnosis": None} if recorded else {}), False
    if seen.state == "succeeded" and recorded is None:
        message = "the job ended with status 0 and left no word of how"
        return word | _ended("failed", "no_record", message, "Look at its log: nemo experiment logs."), True
    if (seen.state == "failed" and recorded in (None, "succeeded")) or _ended_by_others(handle, seen, recorded):
        cause = rank_error(Path(handle.launch["run_dir"]) / "logs", _began(record))
        if cause:
            return word | _ended("failed", cause["name"], cause["message"], cause["remedy"]), True
        remedy = "Look at its log: nemo experiment logs."
        return word | _ended("failed", seen.name or "job_failed", seen.detail or "the job failed", remedy), True
    if seen.state == "cancelled" and recorded is None:
        why = seen.detail or "the scheduler ended it"
        return word | _ended("cancelled", seen.name or "cancelled", why, ""), True
    return word, True


def _diagnosed(handle: Handle, record: dict[str, Any], error: dict[str, Any], seen: JobState | None) -> dict[str, Any]:
    """What the logs say about a job that could not write down itself why it failed."""
    if not is_vague(error):
        return {}
    logs = Path(handle.launch["run_dir"]) / "logs"
    found = diagnose(
        logs,
        since=_began(record),
        error=error,
        phase=record.get("phase"),
        scheduler=seen.name if seen and seen.name == error["name"] else None,
        printed=_printed(handle, ["launcher.log"] if logs.is_dir() else ["rank0.log", "launcher.log"]),
    )
    return {"diagnosis": asdict(found)} if found else {}


def _printed(handle: Handle, names: list[str]) -> dict[str, bytes]:
    """The ends of logs that lie where the job ran; without those that cannot be had."""
    job = handle.known_job
    printed: dict[str, bytes] = {}
    if job is None:
        return printed
    for name in names:
        with suppress(JobError, OSError):
            printed[name] = handle.place().log(job, name, 0)[-LOG_BYTES:]
    if len(set(printed.values())) < len(printed):  # where a rank has no log, its launcher's stands in for it
        del printed["rank0.log"]
    return printed


def _ended_by_others(handle: Handle, seen: JobState, recorded: str | None) -> bool:
    """Whether a job that recorded a cancellation was in truth ended by its launcher or its scheduler."""
    return seen.state == "failed" and recorded == "cancelled" and not handle.cancel_asked


def _without_scheduler(
    folder: RunFolder, handle: Handle, record: dict[str, Any], recorded: str | None
) -> tuple[dict[str, Any], bool]:
    """Nobody but the job, and the process that looks after it, can tell."""
    supervised = handle.supervisor is not None and is_alive(handle.supervisor, folder.dir / "supervisor.heartbeat")
    if handle.submitting or (handle.job is None and handle.supervisor is None):  # then whoever submits looks after it
        supervised = supervised or is_alive(record["process"], folder.dir / "supervisor.heartbeat")
    if recorded:
        return {}, not supervised
    if supervised and record["state"] == "submitted":
        return {}, False
    if "started_at" in record and is_alive(record["process"], Path(handle.launch["run_dir"]) / "heartbeat"):
        return {}, False
    if supervised:  # it is about to see that the job is gone
        return {}, False
    who = "the process that looked after it" if handle.job is None or handle.submitting else "its job"
    message = f"{who} is gone and left no word of how it ended"
    remedy = f"Nothing half-written was published; take it up again: nemo experiment resume {folder.id}"
    return _ended("lost", "lost", message, remedy), False


def _began(record: dict[str, Any]) -> float:
    """Seconds since the epoch at which the present attempt began, or was asked for."""
    began = record.get("started_at") or record.get("reopened_at") or record["submitted_at"]
    return datetime.fromisoformat(began).timestamp()


def _ended(state: str, name: str, message: str, remedy: str) -> dict[str, Any]:
    return {"state": state, "finished_at": now(), "error": error_data(name, message, remedy)}
