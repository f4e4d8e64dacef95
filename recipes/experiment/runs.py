"""Runs: what became of jobs. Each is one record on the submitting machine, set against what its scheduler says."""

import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from executors.base import JobState, Place, SchedulerJob
from recipes.experiment.figures import key_figure
from recipes.experiment.job import Job
from recipes.experiment.job_file import DAMAGE, FLAGS, flags_of, job_file, own_job
from recipes.experiment.store import RunFolder, run_folders
from scripts.run.diagnosis import LOG_BYTES, diagnose, is_vague
from scripts.run.files import write_json
from scripts.run.identity import beats, identity, is_alive, started_with
from scripts.run.problems import JobError, error_data
from scripts.run.record import FINAL_STATES, DamagedRecordError, Record, now, observe, read_json, read_record
from scripts.run.session import rank_error
from scripts.stores.objects import is_url

_POLL_SECONDS = 0.3
_REMOTE_POLL_SECONDS = 2.0
#: By run directory, the processes of this machine that were started for it; None: nobody has looked for them yet.
_Living = Mapping[str, Sequence[int]] | None
_Answer = tuple[JobState | None, dict[str, Any] | None, str]


@dataclass(frozen=True, kw_only=True, repr=False)
class Run:
    """What became of a job: job.json of this machine, and run.json as it stood when it was looked at."""

    folder: RunFolder
    record: dict[str, Any]
    job: Job | None = None  # None: it was not submitted from here, and nobody but the job itself looks after it
    scheduled: SchedulerJob | None = None  # what the scheduler calls it, or is going to
    submitting: bool = False  # whether the scheduler has not confirmed that yet
    supervisor: dict[str, Any] | None = None  # identity of the process that looks after it, where one must
    cancel_asked: bool = False
    settled: bool = False  # nothing about it can change any more
    note: str = ""  # why what is shown may be out of date

    @classmethod
    def read(cls, folder: RunFolder) -> "Run":
        """A run as it was last written down; nobody is asked. Raises DamagedRecordError."""
        folder.refuse_planted()
        record = read_record(folder.dir)
        try:
            data = job_file(folder, record)
            job = own_job(folder, data)
            return cls(folder=folder, record=record, job=job, **flags_of(data, job))
        except FileNotFoundError:
            return cls(folder=folder, record=record)
        except DAMAGE as error:
            raise DamagedRecordError(f"{folder.job}: {error}") from error

    def again(self) -> "Run":
        """The same run, read once more, of the job that is known. Raises DamagedRecordError."""
        record = read_record(self.dir)
        try:
            return replace(self, record=record, **flags_of(job_file(self.folder, record), self.job))
        except DAMAGE as error:
            raise DamagedRecordError(f"{self.folder.job}: {error}") from error

    def __str__(self) -> str:
        return f"{self.id}: {self.state} ({self.dir})"

    __repr__ = __str__  # a record is some kilobytes

    @property
    def id(self) -> str:
        return self.folder.id

    @property
    def dir(self) -> Path:
        """Its folder on this machine."""
        return self.folder.dir

    @property
    def where(self) -> str:
        """The executor profile's name."""
        return self.job.executor if self.job else "local"

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
        return self.read_report("report.json")

    def read_report(self, name: str) -> dict[str, Any] | None:
        """A document of its report; None where there is none, or none that can be read from here."""
        return read_json(Path(self.record.get("run_dir", self.dir)) / "report" / name)

    @property
    def figure(self) -> str:
        """The one that says most; raises as `key_figure` does."""
        return key_figure(self.record, self.report or {})

    @property
    def outputs(self) -> list[dict[str, Any]]:
        """What it left, as its record has it."""
        return self.record.get("outputs") or []

    def path_here(self, path: Path) -> Path | None:
        """Where a path of its job lies on this machine, be it there still or not; None where it is not seen."""
        return path if self.job is None else self.job.place.path_here(path, self.job.run_dir)

    @property
    def artifacts(self) -> dict[str, Path | str]:
        """What it left, by type; of several of one type the last. What is in an object store is its URL."""
        paths = {output["type"]: output["path"] for output in self.outputs}
        return {kind: path if is_url(path) else Path(path) for kind, path in paths.items()}

    def time_of(self, *keys: str) -> datetime | None:
        """The first of these times that its record has; one that was written without a zone is UTC's."""
        for key in keys:
            with suppress(ValueError):
                found = datetime.fromisoformat(str(self.record.get(key)))
                return found if found.tzinfo else found.replace(tzinfo=UTC)
        return None

    @property
    def seconds(self) -> float | None:
        """How long its job took, or has been going on; None where that was not recorded."""
        until = datetime.now(UTC) if self.state == "running" else self.time_of("finished_at")
        began = self.time_of("started_at")
        return (until - began).total_seconds() if began and until else None

    def wait(self, seconds: float = math.inf) -> "Run":
        """The run as it has ended, or as it stands after so many seconds. Ctrl-C leaves it running."""
        deadline = time.monotonic() + seconds
        while not (run := look([self.folder])[0]).ended and time.monotonic() < deadline:
            time.sleep(min(run.poll_seconds, max(0.0, deadline - time.monotonic())))
        return run

    def raise_for_state(self) -> "Run":
        """The run itself, where it succeeded. Raises JobError with the cause of its end, or `still_running`."""
        if self.state == "succeeded":
            return self
        error = self.record.get("error")
        if not self.ended or not error:
            raise JobError("still_running", f"{self.id} is {self.state}.", "Wait for its end: run.wait().")
        raise JobError(error["name"], error["message"], error["remedy"])

    @property
    def is_elsewhere(self) -> bool:
        """Whether the job records itself in another folder than this machine's."""
        return self.job is not None and self.job.run_dir != self.dir

    @property
    def processes(self) -> Sequence[int]:
        """Those of this machine that run its job."""
        if self.job is None or not self.job.place.runs_here:
            return ()
        return started_with("NEMO_RUN_DIR").get(str(self.job.run_dir), ())

    @property
    def supervised(self) -> bool:
        """Whether the process that looks after it lives."""
        return self.supervisor is not None and is_alive(self.supervisor, self.folder.supervisor_heartbeat)

    @property
    def attended(self) -> bool:
        """Whether another process sees its job to the end, and is going to write down what came of it."""
        seer = self.supervisor
        if seer is None or self.job is None or self.job.capabilities.detach != "supervisor" or not self.supervised:
            return False
        if seer["pid"] == os.getpid():
            return False
        me = identity()
        here = all(seer.get(key) == me[key] for key in ("host", "boot"))
        # It lives on, where it is a notebook; on another machine, whoever saw the job's end has beaten before.
        return beats(self.folder.supervisor_heartbeat, absent=here)

    @property
    def poll_seconds(self) -> float:
        """How long to wait between two looks: a scheduler is not to be asked three times a second."""
        return _REMOTE_POLL_SECONDS if self.job is not None and self.supervisor is None else _POLL_SECONDS

    def as_data(self) -> dict[str, Any]:
        """As JSON has it."""
        return self.record | {"dir": str(self.dir), "where": self.where, "note": self.note}

    def write(self) -> None:
        """Replace job.json."""
        assert self.job is not None, self.dir
        scheduler = asdict(self.scheduled) if self.scheduled else None
        write_json(self.folder.job, {"job": self.job.as_data(), "scheduler": scheduler, **self._flags})

    @property
    def _flags(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in FLAGS}

    def update(self, **fields: Any) -> "Run":
        """Change job.json; what others have changed of it stays. Raises DamagedRecordError where it is gone."""
        with self.folder.turn():
            return self._changed(**fields)

    def conclude(self, record: dict[str, Any], *, settled: bool) -> "Run":
        """Write down what was found out of how it stands. Raises OSError, DamagedRecordError.

        Where somebody else has written meanwhile, as who resumes it does, nothing of that is touched.
        """
        with self.folder.turn():
            present = self.again()
            if (present.record, present._flags) != (self.record, self._flags):
                return present
            if record != self.record:  # it could not write down itself how it ended, or did so elsewhere
                Record(self.dir, record).update()
            return replace(self, record=record)._changed(settled=settled)

    def reopen(self) -> "Run":
        """Make one that ended badly ready to be started again, as a further attempt. Raises as Record.reopen does."""
        assert self.job is not None
        with self.folder.turn():
            Record(self.dir, self.record).update()
            reopened = Record.reopen(self.dir)
            attempt = f"{self.id}-r{len(reopened.values['attempts']) + 1}"
            job = replace(self.job, id=attempt, secrets=self.job.place.secrets_path(self.id), waits_for=(), array=0)
            if self.is_elsewhere:  # what the last attempt left over there cannot be moved aside from here
                job = replace(job, run_dir=job.run_dir.parent / attempt)
            unheard = {"scheduled": None, "supervisor": None, "cancel_asked": False, "settled": False}
            return replace(self, record=reopened.values)._changed(job=job, **unheard)

    def _changed(self, **fields: Any) -> "Run":
        """In one's turn."""
        try:
            flags = flags_of(job_file(self.folder, self.record), self.job)
        except DAMAGE as error:
            raise DamagedRecordError(f"{self.folder.job}: {error}") from error
        changed = replace(self, **{**flags, **fields})
        changed.write()
        return changed


Watcher = Callable[[Run], None]


def all_runs() -> list[Run]:
    """Every run recorded on this machine, oldest first."""
    runs = look(run_folders())
    return sorted(runs, key=lambda run: (run.record.get("submitted_at", ""), run.id))


def runs_below(folder: Path) -> list[Run]:
    """The runs that recorded themselves below a folder, as recipes do on stock executors; oldest first."""
    found = look(RunFolder(dir=path.parent) for path in folder.rglob("run.json"))
    return sorted(found, key=lambda run: (run.record.get("submitted_at", ""), run.id))


def look(folders: Iterable[RunFolder], places: Mapping[str, Place] | None = None) -> list[Run]:
    """How runs stand; every scheduler is asked once for all of its jobs.

    A run that its scheduler ended without a last word of its own is recorded as what it is. A
    scheduler that does not answer leaves the last known state, and a note. `places` are those
    that a supervisor holds open: they know the jobs that it started itself.
    """
    known = [_read(folder) for folder in folders]
    runs = _look(known, places or {}, None)
    unsure = [run for run, found in zip(known, runs, strict=True) if found is None]
    # Who was found gone may have left its last word after that was read, and others of its job may live: whoever does
    # is looked for now, and what they wrote is read after that.
    later = iter(_look(unsure, places or {}, started_with("NEMO_RUN_DIR"))) if unsure else iter(())
    return [found for run in runs if (found := run or next(later))]


def _look(known: Sequence[Run], places: Mapping[str, Place], living: _Living) -> list[Run | None]:
    """How runs stand; None of one for which it matters whether processes of it live, which nobody has looked for."""
    seen = _ask([run for run in known if not run.folder.is_foreign], places)
    runs = [_stands(run, *seen.get(run.id, (None, None, "")), living) for run in known]
    _forget_secrets(run for run in runs if run and run.id in seen)
    return runs


def _read(folder: RunFolder) -> Run:
    try:
        return Run.read(folder)
    except DamagedRecordError as error:
        remedy = f"Its job, if it has one, goes on. Put the file right, or remove {folder.dir}."
        cause = error_data("damaged_record", str(error), remedy)
        return Run(folder=folder, record={"id": folder.id, "state": "unreadable", "error": cause})


def _by_scheduler(runs: Iterable[Run], held: Mapping[str, Place] = {}) -> list[tuple[Place, list[Run]]]:
    """Runs that can be asked about together, with the place to ask; `held` places have their own runs alone."""
    groups: dict[str, tuple[Place, list[Run]]] = {}
    for run in runs:
        assert run.job is not None
        key = run.id if run.id in held else repr(run.job.place.connection)
        groups.setdefault(key, (held.get(run.id) or run.job.place, []))[1].append(run)
    return list(groups.values())


def _ask(runs: Iterable[Run], held: Mapping[str, Place]) -> dict[str, _Answer]:
    """By run id: the scheduler's state, the record where the job runs, and why it could not be asked."""
    answers: dict[str, _Answer] = {}
    for place, group in _by_scheduler((run for run in runs if run.scheduled and not run.settled), held):
        jobs = [run.scheduled for run in group if run.scheduled]
        try:
            states, records = place.states(jobs), place.records(jobs)
            answers |= {job.run_id: (states.get(job.run_id), records.get(job.run_id), "") for job in jobs}
        except (JobError, OSError) as error:
            answers |= {job.run_id: (None, None, str(error)) for job in jobs}
    return answers


def _stands(
    run: Run, seen: JobState | None, remote: dict[str, Any] | None, unasked: str, living: _Living
) -> Run | None:
    """A run with what was found out about it, which is written down where it is new."""
    if run.state == "unreadable" or run.settled:
        return run
    if run.folder.is_foreign:
        return replace(run, note="It belongs to another user, and nobody was asked about it.")
    try:
        if run.job is None:
            return replace(run, record=observe(run.dir))
        run = run.again()  # it may have ended while its scheduler was asked
    except DamagedRecordError:
        return _read(run.folder)
    if run.settled:
        return run
    record = run.record
    if remote is not None and run.is_elsewhere:  # else it is the same file, read earlier
        record = record | remote | {"submitted_at": record["submitted_at"]}
    if unasked:
        return replace(run, record=record, note=unasked)
    found = _settle(run, record, seen, living)
    if found is None:
        return None
    change, over = found
    if change.get("state") == "failed":
        change |= _diagnosed(run, record, change["error"], seen)
    record = record | change
    over = over and record["state"] in FINAL_STATES - {"lost"}
    if not over and (remote is None or not run.is_elsewhere):
        return replace(run, record=record)
    try:
        return run.conclude(record, settled=over)
    except (OSError, DamagedRecordError) as error:
        return replace(run, record=record, note=f"It could not be written down here: {error}.")


def _forget_secrets(runs: Iterable[Run]) -> None:
    """Remove the files that jobs could not remove themselves, for every place in one go."""
    for place, group in _by_scheduler(run for run in runs if run.settled and run.job and run.job.secrets):
        try:
            place.unstage([run.job.secrets for run in group if run.job and run.job.secrets])
        except (JobError, OSError):
            for run in group:  # so that the next look tries it again
                with suppress(OSError):
                    run.update(settled=False)


def _settle(
    run: Run, record: dict[str, Any], seen: JobState | None, living: _Living
) -> tuple[dict[str, Any], bool] | None:
    """What to change of the recorded state, and whether the run is over for good; None: see `_look`."""
    recorded = record["state"] if record["state"] in FINAL_STATES else None
    if seen is None:
        return _without_scheduler(run, record, recorded, living)
    word = {"scheduler": seen.detail or seen.state}
    if seen.state in ("submitted", "running"):
        # Until its scheduler is done with it, another rank may fail, and a failed one may be started again.
        change = {"state": seen.state} if record["state"] == "submitted" else {}
        return word | (_goes_on(seen.state) if recorded else change), False
    if seen.state == "succeeded" and recorded is None:
        message = "the job ended with status 0 and left no word of how"
        return word | _ended("failed", "no_record", message, "Look at its log: nemo experiment logs."), True
    if seen.state == "failed" and (recorded is None or _can_be_belied(run, recorded)):
        if cause := rank_error(_run_dir(run) / "logs", _began(record)):
            return word | _failed(cause), True
        why = seen.detail or "the job failed"
        if recorded == "succeeded":
            why = f"rank 0 succeeded, and after that another rank failed or was ended ({why})"
        return word | _ended("failed", seen.name or "job_failed", why, "Look at its log: nemo experiment logs."), True
    if seen.state == "cancelled" and recorded is None:
        why = seen.detail or ("somebody asked for its end" if run.cancel_asked else "the scheduler ended it")
        return word | _ended("cancelled", seen.name or "cancelled", why, ""), True
    return word, True


def _can_be_belied(run: Run, recorded: str) -> bool:
    """Whether more can come out about a job than the word that its rank 0 left.

    A job of one process has succeeded when it says so: it does nothing afterwards, and what ends it then spoils
    nothing. One that recorded a cancellation for which nobody asked was ended by its launcher or its scheduler.
    """
    several = run.job is not None and run.job.nodes * run.job.processes > 1
    return (recorded == "succeeded" and several) or (recorded == "cancelled" and not run.cancel_asked)


def _diagnosed(run: Run, record: dict[str, Any], error: dict[str, Any], seen: JobState | None) -> dict[str, Any]:
    """What the logs say about a job that could not write down itself why it failed."""
    if not is_vague(error):
        return {}
    logs = _run_dir(run) / "logs"
    found = diagnose(
        logs,
        since=_began(record),
        error=error,
        phase=record.get("phase"),
        scheduler=seen.name if seen and seen.name == error["name"] else None,
        printed=_printed(run, ["launcher.log"] if logs.is_dir() else ["rank0.log", "launcher.log"]),
    )
    return {"diagnosis": asdict(found)} if found else {}


def _printed(run: Run, names: list[str]) -> dict[str, bytes]:
    """The ends of logs that lie where the job ran; without those that cannot be had."""
    printed: dict[str, bytes] = {}
    if run.scheduled is None or run.job is None:
        return printed
    for name in names:
        with suppress(JobError, OSError):
            printed[name] = run.job.place.log(run.scheduled, name, 0)[-LOG_BYTES:]
    if len(set(printed.values())) < len(printed):  # where a rank has no log, its launcher's stands in for it
        del printed["rank0.log"]
    return printed


def _without_scheduler(
    run: Run, record: dict[str, Any], recorded: str | None, living: _Living
) -> tuple[dict[str, Any], bool] | None:
    """Nobody but the job, and the process that looks after it, can tell."""
    # It may know better, and whoever resumes the run must not meet it; nobody resumes what has succeeded for good.
    if recorded and (recorded != "succeeded" or _can_be_belied(run, recorded)) and run.attended:
        return _goes_on("running"), False
    supervised = run.supervised
    if run.submitting or (run.scheduled is None and run.supervisor is None):  # then whoever submits looks after it
        supervised = supervised or is_alive(record["process"], run.folder.supervisor_heartbeat)
    if recorded and not _can_be_belied(run, recorded):
        return {}, not supervised
    # Whoever looks after it is about to see that the job is gone.
    if not recorded and (
        supervised or ("started_at" in record and is_alive(record["process"], _run_dir(run) / "heartbeat"))
    ):
        return {}, False
    if run.job is not None and run.job.place.runs_here:
        if living is None:
            return None
        if str(run.job.run_dir) in living:  # it begins, or a rank of it goes on
            return _goes_on("running") if recorded else {}, False
        if run.cancel_asked and not recorded:
            return _ended("cancelled", "cancelled", "somebody asked for its end", ""), True
    if recorded:
        cause = rank_error(_run_dir(run) / "logs", _began(record))
        return _failed(cause) if cause else {}, not supervised
    who = "the process that looked after it" if run.scheduled is None or run.submitting else "its job"
    message = f"{who} is gone and left no word of how it ended"
    remedy = f"Nothing half-written was published; take it up again: nemo experiment resume {run.id}"
    return _ended("lost", "lost", message, remedy), False


def _goes_on(state: str) -> dict[str, Any]:
    """Of a job that has said already how it ended."""
    return {"state": state, "error": None, "diagnosis": None}


def _failed(cause: Mapping[str, Any]) -> dict[str, Any]:
    return _ended("failed", cause["name"], cause["message"], cause["remedy"])


def _run_dir(run: Run) -> Path:
    """As the job sees it; it may not be there on this machine."""
    return run.job.run_dir if run.job else run.dir


def _began(record: dict[str, Any]) -> float:
    """Seconds since the epoch at which the present attempt began, or was asked for."""
    began = record.get("started_at") or record.get("reopened_at") or record["submitted_at"]
    return datetime.fromisoformat(began).timestamp()


def _ended(state: str, name: str, message: str, remedy: str) -> dict[str, Any]:
    return {"state": state, "finished_at": now(), "error": error_data(name, message, remedy)}
