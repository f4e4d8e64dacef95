"""Submission: check a recipe, record it, hand it to NeMo-Run, and follow it to its end."""

import dataclasses
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from executors import LocalProfile, load_profile, local
from recipes.preflight import Spec, preflight, spec_of
from scripts.problems import ProblemsError
from scripts.process import identity
from scripts.provenance import git_state, versions
from scripts.record import FINAL_STATES, Record, observe, read_json

if TYPE_CHECKING:
    import nemo_run as run

_POLL_SECONDS = 0.3
_LAUNCHED = frozenset({"SUCCEEDED", "FAILED", "CANCELLED"})
Watcher = Callable[[Path], None]


@dataclass(frozen=True, kw_only=True)
class Run:
    """A submitted job: its run directory, and its record as it stands now."""

    id: str
    dir: Path

    @property
    def record(self) -> dict[str, Any]:
        """run.json, with `lost` for a run whose process is gone. Raises DamagedRecordError."""
        return observe(self.dir)

    @property
    def state(self) -> str:
        """One of submitted, running, succeeded, failed, cancelled, lost."""
        return str(self.record["state"])

    @property
    def report(self) -> dict[str, Any] | None:
        """report/report.json: the measured quality, once there is one."""
        report: dict[str, Any] | None = read_json(self.dir / "report" / "report.json")
        return report


@dataclass(frozen=True, kw_only=True)
class Submission:
    """A checked job that has not been handed over yet; making one writes nothing."""

    id: str
    partial: "run.Partial[Any]"
    profile: LocalProfile
    executor: str
    spec: Spec

    @property
    def run_dir(self) -> Path:
        """Where the job will record itself."""
        return self.spec.run_dir


def prepare(
    partial: "run.Partial[Any]",
    executor: str = "local",
    profile: Mapping[str, str] | None = None,
    *,
    online: bool = True,
) -> Submission:
    """Check `partial` on the executor profile named. Raises ProblemsError with every Problem; writes nothing."""
    loaded, problems = load_profile(executor, profile or {})
    run_id = f"{partial.recipe}_{time.time_ns() // 1_000_000}-{secrets.token_hex(2)}"
    spec, unresolved = spec_of(partial, loaded, runs_dir() / run_id, online=online)
    problems += unresolved + (preflight(spec) if spec else [])
    if problems or spec is None:
        raise ProblemsError(problems)
    return Submission(id=run_id, partial=partial, profile=loaded, executor=executor, spec=spec)


def runs_dir() -> Path:
    """Where the run directories of this machine lie: `runs` in NeMo-Run's home."""
    from nemo_run.config import get_nemorun_home

    return Path(get_nemorun_home()) / "runs"


def submit(
    partial: "run.Partial[Any]",
    executor: str = "local",
    profile: Mapping[str, str] | None = None,
    *,
    detach: bool = False,
    watch: Watcher | None = None,
) -> Run:
    """Run `partial` on `executor` and return when it has ended, or at once with `detach`.

    Raises ProblemsError before anything is written. A job that fails later does not raise: look
    at `.state` and `.record["error"]`. `watch` is called with the run directory as the job goes on.
    """
    return start(prepare(partial, executor, profile), detach=detach, watch=watch)


def start(submission: Submission, *, detach: bool = False, watch: Watcher | None = None) -> Run:
    """Record a prepared submission and run it."""
    record_submission(submission)
    run = Run(id=submission.id, dir=submission.run_dir)
    if detach:
        _spawn_supervisor(submission)
    else:
        launch(submission.partial, submission.profile, run, watch=watch)
    return run


def record_submission(submission: Submission) -> Record:
    """Write run.json in state submitted."""
    return Record.submit(
        submission.run_dir,
        id=submission.id,
        recipe=submission.partial.recipe,
        algorithm=submission.partial.__fn_or_cls__.__name__,
        executor={"name": submission.executor, **dataclasses.asdict(submission.profile)},
        values=values_of(submission.partial),
        versions=versions(),
        git=git_state(Path.cwd()),
        cwd=str(Path.cwd()),
    )


def values_of(partial: "run.Partial[Any]") -> dict[str, Any]:
    """A recipe's values as plain data, section by section, as a YAML file would hold them."""
    from fiddle import build

    sections = {name: dataclasses.asdict(build(getattr(partial, name))) for name in ("script", "args", "torchrun")}
    return {"engine": partial.engine, **sections, "extra_args": list(partial.extra_args)}


def launch(partial: "run.Partial[Any]", profile: LocalProfile, job: Run, *, watch: Watcher | None = None) -> None:
    """Run a recorded job as a NeMo-Run experiment of one stage, until it ends. Ctrl-C cancels it.

    Whatever happens, the record ends in a final state.
    """
    import nemo_run as run
    from rich.console import Console

    title, _, _ = job.id.rpartition("_")
    executor = local(profile, NEMO_RUN_DIR=str(job.dir))
    end = "failed"
    try:
        experiment = run.Experiment(
            title, id=job.id, log_level="WARN", enable_goodbye_message=False, skip_status_at_exit=True
        )
        # Not clean_mode: it is saved with the experiment, and would silence `nemo experiment status` later.
        experiment.console = Console(quiet=True)
        with experiment:
            stage = experiment.add(partial, executor=executor, name=title)
            try:
                experiment.run()
                _follow(experiment, job, watch)
            except KeyboardInterrupt:
                end = "cancelled"
                experiment.cancel(stage)
                _await_end(job)
        cause = _last_words(Path(experiment._exp_dir))
    except Exception as error:  # NeMo-Run's own failures: the record must not stay at `submitted`
        cause = f"{type(error).__name__}: {error}"
    except KeyboardInterrupt:
        end, cause = "cancelled", "stopped by Ctrl-C before the job began"
    record = job.record
    if record["state"] not in FINAL_STATES or (record["state"] == "lost" and "started_at" not in record):
        name = "launch_failed" if end == "failed" else "cancelled"
        Record(job.dir, record).finish(end, {"name": name, "message": cause, "remedy": ""})


def _follow(experiment: Any, job: Run, watch: Watcher | None) -> None:
    while True:
        ended = all(task.state.name in _LAUNCHED for task in _refresh(experiment))
        if watch:
            watch(job.dir)
        if ended:
            return
        time.sleep(_POLL_SECONDS)


def _refresh(experiment: Any) -> list[Any]:
    for task in experiment.jobs:
        task.state = task.status(experiment._runner)
    return list(experiment.jobs)


def _await_end(job: Run, seconds: float = 20.0) -> None:
    """Let a job that was told to stop record it; one that has not begun has nothing to record."""
    deadline = time.monotonic() + seconds
    while job.state == "running" and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)


def _last_words(experiment_folder: Path) -> str:
    """The end of what the launcher wrote, for a job that never opened its record."""
    logs = sorted(experiment_folder.rglob("std*.log"), key=lambda file: file.stat().st_mtime)
    lines = [line for file in logs for line in file.read_text(errors="replace").splitlines()[-3:] if line]
    return " | ".join(lines) or "the job's process never started"


def _spawn_supervisor(submission: Submission) -> None:
    """Hand the job to a process of its own session, which outlives the terminal."""
    from nemo_run.core.serialization.zlib_json import ZlibJSONSerializer

    from scripts.files import write_text

    logs = submission.run_dir / "logs"
    logs.mkdir(exist_ok=True)
    write_text(submission.run_dir / "partial.zlib", ZlibJSONSerializer().serialize(submission.partial))
    with (logs / "launcher.log").open("ab") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "recipes.supervisor", str(submission.run_dir), submission.id],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    # The supervisor waits for the end of its standard input, so the record has one writer at a time.
    Record(submission.run_dir, observe(submission.run_dir)).update(process=identity(child.pid))
    assert child.stdin is not None
    child.stdin.close()
