"""Runs: what became of jobs. Each is one record on the submitting machine, set against what its scheduler says."""

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from executors.base import JobState, Place, SchedulerJob
from recipes.experiment.job import Job
from recipes.experiment.store import RunFolder, run_folders
from scripts.run import schema
from scripts.run.diagnosis import LOG_BYTES, diagnose, is_vague
from scripts.run.files import write_json
from scripts.run.identity import is_alive, started_with, terminate
from scripts.run.problems import JobError, Problem, ProblemsError, error_data
from scripts.run.record import FINAL_STATES, DamagedRecordError, Record, now, observe, read_json, read_record
from scripts.run.session import rank_error

_POLL_SECONDS = 0.3
_REMOTE_POLL_SECONDS = 2.0
_FLAGS = ("submitting", "supervisor", "cancel_asked", "settled")
#: What reading a file that somebody damaged can raise.
_DAMAGE = (OSError, ValueError, TypeError, KeyError, AttributeError, JobError)
#: By run directory, the processes of this machine that were started for it; they are looked for when they matter.
_Living = Callable[[], Mapping[str, Sequence[int]]]
_Answer = tuple[JobState | None, dict[str, Any] | None, str]


@dataclass(frozen=True, kw_only=True)
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
            data = _job_file(folder, record)
            job = _own_job(folder, data)
            return cls(folder=folder, record=record, job=job, **_flags(data, job))
        except FileNotFoundError:
            return cls(folder=folder, record=record)
        except _DAMAGE as error:
            raise DamagedRecordError(f"{folder.job}: {error}") from error

    def again(self) -> "Run":
        """The same run, read once more, of the job that is known. Raises DamagedRecordError."""
        record = read_record(self.dir)
        try:
            return replace(self, record=record, **_flags(_job_file(self.folder, record), self.job))
        except _DAMAGE as error:
            raise DamagedRecordError(f"{self.folder.job}: {error}") from error

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
        return read_json(Path(self.record.get("run_dir", self.dir)) / "report" / "report.json")

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
        flags = {name: getattr(self, name) for name in _FLAGS}
        write_json(self.folder.job, {"job": self.job.as_data(), "scheduler": scheduler, **flags})

    def update(self, **fields: Any) -> "Run":
        """Change job.json; what others have changed of it stays. Raises DamagedRecordError where it is gone."""
        with self.folder.turn():
            try:
                flags = _flags(_job_file(self.folder, self.record), self.job)
            except _DAMAGE as error:
                raise DamagedRecordError(f"{self.folder.job}: {error}") from error
            changed = replace(self, **{**flags, **fields})
            changed.write()
            return changed


Watcher = Callable[[Run], None]


#: job.json, as far as somebody relies on it.
_JOB = {
    **dict.fromkeys(("name", "recipe", "algorithm", "executor", "run_dir"), str),
    **{"id": schema.run_id, "engine": (str, None), "secrets": (str, None), "archive": (str, None)},
    **{"nodes": int, "processes": int, "array": int, "ranked": bool, "force_squash": bool, "online": bool},
    "values": {"args": (dict, None), "script": (dict, None), "torchrun": (dict, None), "extra_args": [str]},
    **{"profile": dict, "resolved": (dict, None), "promised": [str], "given": [str]},
    **{"after": [schema.run_id], "waits_for": [str], "warnings": [dict], "skipped": [dict]},
}
_JOB_FILE = {
    **{"job": _JOB, "scheduler": (dict.fromkeys(("run_id", "id", "run_dir", "folder"), str), None)},
    **{"submitting": bool, "supervisor": (schema.IDENTITY, None), "cancel_asked": bool, "settled": bool},
}


def _job_file(folder: RunFolder, record: Mapping[str, Any]) -> dict[str, Any]:
    """job.json; one that was written before it held a whole job, as today's would be."""
    data = schema.read(folder.job)
    if "launch" in data:
        launch = data["launch"]
        same = ("nodes", "processes", "run_dir", "secrets", "archive", "array", "force_squash")
        job = {
            **{"id": launch["run_id"], "name": launch["task"], "recipe": launch["task"], "ranked": launch["torchrun"]},
            **{name: launch[name] for name in same},
            **{"executor": data["executor"], "profile": data["profile"], "after": data["after"], "waits_for": []},
            **{"algorithm": record.get("algorithm", ""), "engine": None, "values": record.get("values")},
            **{"resolved": None, "online": True, "promised": [], "given": [], "skipped": []},
            **{"warnings": record.get("warnings", [])},
        }
        data = {"job": job, "scheduler": data["job"], **{name: data[name] for name in _FLAGS}}
    found: dict[str, Any] = schema.fitting(data, _JOB_FILE)
    return found


def _own_job(folder: RunFolder, data: Mapping[str, Any]) -> Job:
    """The job of job.json, which names nothing that this product would not have named. Raises ValueError."""
    job, attempt = Job.from_data(data["job"]), re.escape(folder.id) + r"(-r\d+)?"
    if not re.fullmatch(attempt, job.id) or not re.fullmatch(attempt, job.run_dir.name):
        raise ValueError(f"job.id {job.id} and job.run_dir {job.run_dir} are not this run's")
    if job.archive is not None and job.archive.name != folder.archive.name:
        raise ValueError(f"job.archive {job.archive} is no packaged code")
    patterns = [re.escape(path) for one in (folder.id, job.id) if (path := job.place.secrets_path(one))]
    if array := job.place.secrets_path("ARRAY"):  # an element's lie beside those of the others
        patterns.append(re.escape(array).replace("ARRAY", r"[\w.-]+-array") + r"\.\d+")
    own = any(re.fullmatch(pattern, job.secrets or "") for pattern in patterns)
    return job if own else job.noting(secrets=None)


def _flags(data: Mapping[str, Any], job: Job | None) -> dict[str, Any]:
    """Of job.json, what changes while the run goes on. Raises ValueError."""
    scheduled = SchedulerJob(**data["scheduler"]) if data["scheduler"] else None
    own = scheduled is None or job is None or scheduled.run_dir == str(job.run_dir)
    if not own or (scheduled and job and not re.fullmatch(job.place.job_ids, scheduled.id)):
        raise ValueError(f"scheduler {data['scheduler']} is not this run's")
    return {"scheduled": scheduled, **{name: data[name] for name in _FLAGS}}


def all_runs() -> list[Run]:
    """Every run recorded on this machine, oldest first."""
    runs = look(run_folders())
    return sorted(runs, key=lambda run: (run.record.get("submitted_at", ""), run.id))


def look(folders: Iterable[RunFolder], places: Mapping[str, Place] | None = None) -> list[Run]:
    """How runs stand; every scheduler is asked once for all of its jobs.

    A run that its scheduler ended without a last word of its own is recorded as what it is. A
    scheduler that does not answer leaves the last known state, and a note. `places` are those
    that a supervisor holds open: they know the jobs that it started itself.
    """
    known = [_read(folder) for folder in folders]
    seen = _ask([run for run in known if not run.folder.is_foreign], places or {})
    living = cache(lambda: started_with("NEMO_RUN_DIR"))
    runs = [_stands(run, *seen.get(run.id, (None, None, "")), living) for run in known]
    _forget_secrets(run for run in runs if run.id in seen)
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


def _stands(run: Run, seen: JobState | None, remote: dict[str, Any] | None, unasked: str, living: _Living) -> Run:
    """A run with what was found out about it, which is written down where it is new."""
    if run.state == "unreadable":
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
    if remote is not None:
        record = record | remote | {"submitted_at": record["submitted_at"]}
    if unasked:
        return replace(run, record=record, note=unasked)
    change, over = _settle(run, record, seen, living)
    if change.get("state") == "failed":
        change |= _diagnosed(run, record, change["error"], seen)
    record, note = record | change, ""
    try:
        if over and record["state"] in FINAL_STATES - {"lost"}:
            if record != read_record(run.dir):  # it could not write down itself how it ended
                Record(run.dir, record).update()
            run = run.update(settled=True)
        elif run.is_elsewhere and remote is not None:
            Record(run.dir, record).update()
    except (OSError, DamagedRecordError) as error:
        note = f"It could not be written down here: {error}."
    return replace(run, record=record, note=note)


def _forget_secrets(runs: Iterable[Run]) -> None:
    """Remove the files that jobs could not remove themselves, for every place in one go."""
    for place, group in _by_scheduler(run for run in runs if run.settled and run.job and run.job.secrets):
        try:
            place.unstage([run.job.secrets for run in group if run.job and run.job.secrets])
        except (JobError, OSError):
            for run in group:  # so that the next look tries it again
                with suppress(OSError):
                    run.update(settled=False)


def _settle(run: Run, record: dict[str, Any], seen: JobState | None, living: _Living) -> tuple[dict[str, Any], bool]:
    """What to change of the recorded state, and whether the run is over for good."""
    recorded = record["state"] if record["state"] in FINAL_STATES else None
    if seen is None:
        return _without_scheduler(run, record, recorded, living)
    word = {"scheduler": seen.detail or seen.state}
    if seen.state in ("submitted", "running"):
        # Until its scheduler is done with it, another rank may fail, and a failed one may be started again.
        change = {"state": seen.state} if recorded or record["state"] == "submitted" else {}
        return word | change | ({"error": None, "diagnosis": None} if recorded else {}), False
    if seen.state == "succeeded" and recorded is None:
        message = "the job ended with status 0 and left no word of how"
        return word | _ended("failed", "no_record", message, "Look at its log: nemo experiment logs."), True
    # A job that recorded a cancellation for which nobody asked was ended by its launcher or its scheduler.
    by_others = recorded == "cancelled" and not run.cancel_asked
    if seen.state == "failed" and (recorded in (None, "succeeded") or by_others):
        cause = rank_error(_run_dir(run) / "logs", _began(record))
        if cause:
            return word | _ended("failed", cause["name"], cause["message"], cause["remedy"]), True
        remedy = "Look at its log: nemo experiment logs."
        return word | _ended("failed", seen.name or "job_failed", seen.detail or "the job failed", remedy), True
    if seen.state == "cancelled" and recorded is None:
        why = seen.detail or ("somebody asked for its end" if run.cancel_asked else "the scheduler ended it")
        return word | _ended("cancelled", seen.name or "cancelled", why, ""), True
    return word, True


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
) -> tuple[dict[str, Any], bool]:
    """Nobody but the job, and the process that looks after it, can tell."""
    supervised = run.supervised
    if run.submitting or (run.scheduled is None and run.supervisor is None):  # then whoever submits looks after it
        supervised = supervised or is_alive(record["process"], run.folder.supervisor_heartbeat)
    if recorded:
        return {}, not supervised
    # Whoever looks after it is about to see that the job is gone.
    if supervised or ("started_at" in record and is_alive(record["process"], _run_dir(run) / "heartbeat")):
        return {}, False
    if run.job is not None and run.job.place.runs_here:
        if str(run.job.run_dir) in living():  # it begins, or a rank of it goes on
            return {}, False
        if run.cancel_asked:
            return _ended("cancelled", "cancelled", "somebody asked for its end", ""), True
    who = "the process that looked after it" if run.scheduled is None or run.submitting else "its job"
    message = f"{who} is gone and left no word of how it ended"
    remedy = f"Nothing half-written was published; take it up again: nemo experiment resume {run.id}"
    return _ended("lost", "lost", message, remedy), False


def _run_dir(run: Run) -> Path:
    """As the job sees it; it may not be there on this machine."""
    return run.job.run_dir if run.job else run.dir


def _began(record: dict[str, Any]) -> float:
    """Seconds since the epoch at which the present attempt began, or was asked for."""
    began = record.get("started_at") or record.get("reopened_at") or record["submitted_at"]
    return datetime.fromisoformat(began).timestamp()


def _ended(state: str, name: str, message: str, remedy: str) -> dict[str, Any]:
    return {"state": state, "finished_at": now(), "error": error_data(name, message, remedy)}


def cancel_run(folder: RunFolder, seconds: float = 30.0) -> Run:
    """End a run, and wait until that is recorded (or `seconds` are over). Ended runs stay as they are.

    Raises JobError when that cannot be, as for a damaged record.
    """
    run = look([folder])[0]
    if run.state == "unreadable":
        error = run.record["error"]
        raise JobError(error["name"], error["message"], error["remedy"])
    if folder.is_foreign:
        raise JobError("not_your_run", f"{folder.dir} belongs to another user.", "Ask whoever submitted it.")
    if run.ended and (run.state != "lost" or run.job is None or run.job.place.runs_here):
        return run
    if run.job is None:
        terminate(run.record["process"])
    else:
        job, place, run = run.job, run.job.place, run.update(cancel_asked=True)
        if run.supervisor and run.supervised:
            terminate(run.supervisor)
        elif run.scheduled is not None:
            place.cancel(run.scheduled)
        elif run.processes:  # whoever started it died before noting that
            place.cancel(SchedulerJob.of(job, "", ""))
        else:  # it never got to its scheduler
            Record(folder.dir, read_record(folder.dir)).finish(
                "cancelled", error_data("cancelled", "cancelled before it was submitted")
            )
    deadline = time.monotonic() + seconds
    while not (run := look([folder])[0]).ended and time.monotonic() < deadline:
        time.sleep(run.poll_seconds)
    return run


def refuse_unless_ended_badly(folder: RunFolder) -> Run:
    """The run, which was lost, failed or cancelled. Raises ProblemsError `cannot_resume` for any other."""
    run = look([folder])[0]
    if run.job is None or run.state not in ("lost", "failed", "cancelled"):
        cause = f"it is {run.state}" if run.job else "it was not submitted from here"
        if run.state == "unreadable":
            cause = run.record["error"]["message"]
        remedy = "Only a run that ended badly can be started over."
    elif folder.is_foreign:
        cause, remedy = "it belongs to another user", "Submit the recipe as a run of your own."
    elif run.processes:
        cause = f"processes of it go on: {', '.join(map(str, run.processes))}"
        remedy = "Wait for their end, or kill them."
    else:
        return run
    raise ProblemsError([Problem(name="cannot_resume", key="ID", value=folder.id, cause=cause, remedy=remedy)])


def reopen_run(folder: RunFolder) -> Run:
    """Make a run that ended badly ready to be started again. Raises ProblemsError when it did not.

    Of two who ask at once one does it: the other finds it submitted.
    """
    with folder.turn("resume"):
        run = refuse_unless_ended_badly(folder)
        assert run.job is not None
        Record(folder.dir, run.record).update()
        reopened = Record.reopen(folder.dir)
        attempt = f"{folder.id}-r{len(reopened.values['attempts']) + 1}"
        job = replace(run.job, id=attempt, secrets=run.job.place.secrets_path(folder.id), waits_for=(), array=0)
        if run.is_elsewhere:  # what the last attempt left over there cannot be moved aside from here
            job = replace(job, run_dir=job.run_dir.parent / attempt)
        run = run.update(job=job, scheduled=None, supervisor=None, cancel_asked=False, settled=False)
        return replace(run, record=reopened.values)
