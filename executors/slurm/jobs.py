"""What Slurm says about jobs: sacct and squeue asked once for all of them, and their words as states."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from executors.base import JobState, SchedulerJob, State, UnreachableError
from executors.shell import Shell

#: SchedulerJob.id of a submission whose answer was lost: the job is looked for by its name.
UNKNOWN_ID = "?"
JOB_IDS = r"(\d+|\?)(_\d+)?"
#: Slurm's words by ours, and the name of the error that each means; a word that is newer than these is `running`.
_WORDS: tuple[tuple[State, str, str], ...] = (
    ("submitted", "", "PENDING CONFIGURING REQUEUED REQUEUE_FED REQUEUE_HOLD RESV_DEL_HOLD SPECIAL_EXIT"),
    ("running", "", "STAGE_OUT RESIZING SIGNALING RUNNING STOPPED SUSPENDED COMPLETING"),
    ("succeeded", "", "COMPLETED"),
    ("cancelled", "cancelled", "CANCELLED REVOKED"),
    ("failed", "job_failed", "FAILED LAUNCH_FAILED"),
    ("failed", "timeout", "TIMEOUT"),
    ("failed", "deadline", "DEADLINE"),
    ("failed", "out_of_memory", "OUT_OF_MEMORY"),
    ("failed", "node_failed", "NODE_FAIL BOOT_FAIL RECONFIG_FAIL"),
    ("failed", "preempted", "PREEMPTED"),
)
_STATES = {word: (state, name) for state, name, words in _WORDS for word in words.split()}
_NO_REASON = ("", "None", "0:0")
_NEVER = ("DependencyNeverSatisfied", "Dependency")
_SACCT = ["--allocations", "--parsable2", "--noheader", "--format=JobID,JobIDRaw,State,ExitCode,Reason,JobName"]
#: -r: elements of an array one by one. The exit code has no short form, so the long one for everything.
_SQUEUE_FIELDS = "ArrayJobID:|,ArrayTaskID:|,JobID:|,State:|,exit_code:|,Reason:|,Name:256"
_SQUEUE = ["--noheader", "--array", "--states=all", f"--Format={_SQUEUE_FIELDS}"]
#: With its controller down squeue tries again for a minute and more.
_PATIENCE_SECONDS = 30
#: How far back a lost submission is looked for by its name.
_NAMED_SINCE = "now-30days"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One job or array element, as sacct or squeue lists it."""

    id: str  # 123, or 123_4
    raw_id: str  # the number that file names of an element carry
    state: str
    exit_code: str
    reason: str
    name: str


def job_name(job: SchedulerJob) -> str:
    """The job's unique name at Slurm: the experiment's id and the task, which its folder is called after."""
    return ".".join(job.folder.rsplit("/", 2)[-2:])


def is_unknown(job: SchedulerJob) -> bool:
    """Whether only the job's name is known; of an array element also its number (`?_4`)."""
    return job.id.startswith(UNKNOWN_ID)


def job_states(shell: Shell, jobs: Sequence[SchedulerJob]) -> dict[str, JobState | None]:
    """How `jobs` stand, by run id; None for one that Slurm does not know. One round trip."""
    if not jobs:
        return {}
    rows = _rows_of(shell, jobs)
    return {run_id: state_of(row) if row else None for run_id, row in rows.items()}


def row_of(shell: Shell, job: SchedulerJob) -> Row | None:
    """What Slurm says of one job; None when it does not know it."""
    return _rows_of(shell, [job])[job.run_id]


def _rows_of(shell: Shell, jobs: Sequence[SchedulerJob]) -> dict[str, Row | None]:
    rows = _ask(shell, jobs)
    by_id = {row.id: row for row in rows}
    by_name = {(row.name, row.id.partition("_")[2]): row for row in rows}
    return {
        job.run_id: by_name.get((job_name(job), job.id.partition("_")[2])) if is_unknown(job) else by_id.get(job.id)
        for job in jobs
    }


def unfit_parent(shell: Shell, ids: Sequence[str]) -> str | None:
    """Why a job must not wait for these to succeed; None when it may.

    Slurm takes a job that it has forgotten for one that succeeded.
    """
    asked = [SchedulerJob(run_id=id_, id=id_, run_dir="", folder="") for id_ in ids]
    rows = _ask(shell, asked)
    for id_ in ids:
        of_job = [state_of(row) for row in rows if row.id == id_ or row.id.startswith(f"{id_}_")]
        if not of_job:
            return f"Slurm does not know job {id_} any more."
        for found in of_job:
            if found.state in ("failed", "cancelled"):
                return f"job {id_} ended badly: {found.detail}"
    return None


def raw_id(shell: Shell, job: SchedulerJob) -> str:
    """The number that launcher logs carry: of an array element it differs from its id."""
    if "_" not in job.id and not is_unknown(job):
        return job.id
    row = row_of(shell, job)
    return row.raw_id if row else job.id


def state_of(row: Row) -> JobState:
    """Slurm's state as ours; a state that Slurm added since is `running`, with its word as the detail."""
    word = row.state.split()[0].rstrip("+") if row.state.strip() else "UNKNOWN"
    state, name = _STATES.get(word, ("running", ""))
    if state == "cancelled" and row.reason in _NEVER:
        name = "dependency_failed"
    said = [row.state]
    if state == "failed" and row.exit_code not in _NO_REASON:
        said.append(f"exit code {row.exit_code}")
    if row.reason not in _NO_REASON:
        said.append(f"({row.reason})")
    return JobState(state=state, name=name, detail=" ".join(said))


def _ask(shell: Shell, jobs: Sequence[SchedulerJob]) -> list[Row]:
    """sacct's and then squeue's rows. Raises UnreachableError when neither answered.

    sacct knows what ended long ago but lags; squeue knows the present, and is all there is without
    accounting. A controller that is down leaves what sacct has.
    """
    ids = sorted({job.id for job in jobs if not is_unknown(job)})
    names = ",".join(sorted({job_name(job) for job in jobs if is_unknown(job)}))
    sacct, squeue = [], []
    if ids:
        # squeue fails when asked for one id that it does not know, but not for several: hence the first one twice.
        sacct.append('--jobs="$1"')
        squeue.append('--jobs="$1,$2"')
    if names:
        sacct.append(f'--starttime={_NAMED_SINCE} --name="$3"')
        squeue.append('--name="$3"')
    commands = [f"sacct {options} {shlex.join(_SACCT)}" for options in sacct]
    commands += [f"timeout {_PATIENCE_SECONDS} squeue {options} {shlex.join(_SQUEUE)}" for options in squeue]
    script = "\n".join(f"{command} && ok=1" for command in commands)
    answer = shell.sh(f'{script}\n[ -n "$ok" ]', ",".join(ids), ids[0] if ids else "", names, timeout=90)
    if answer.code:
        cause = f"Slurm on {shell.where} does not answer: {answer.last_words}"
        raise UnreachableError("slurm_unreachable", cause, "Try again; jobs that run go on without it.")
    return _parse(answer.out.decode(errors="replace"))


def _parse(text: str) -> list[Row]:
    """Rows of both commands; of one job the last line counts, which is squeue's where it has one."""
    rows: dict[str, Row] = {}
    for line in text.splitlines():
        parts = [part.strip() for part in line.split("|")]
        if len(parts) == 6:
            job, raw, state, exit_code, reason, name = parts
            ids = expand(job)
        elif len(parts) == 7:
            array, index, raw, state, exit_code, reason, name = parts
            ids = [raw if index in ("", "N/A") else f"{array}_{index}"]
            if exit_code.isdigit():  # squeue writes wait(2)'s number, sacct `code:signal`
                exit_code = f"{int(exit_code) >> 8}:{int(exit_code) & 0x7F}"
        else:
            continue
        for id_ in ids:
            rows[id_] = Row(id=id_, raw_id=raw, state=state, exit_code=exit_code, reason=reason, name=name)
    return list(rows.values())


def expand(job: str) -> list[str]:
    """Ids of the elements that one line of a waiting array stands for: `7_[0-2,5%2]` is 7_0, 7_1, 7_2, 7_5."""
    match = re.fullmatch(r"(\d+)_\[([0-9,:-]+)(?:%\d+)?\]", job)
    if match is None:
        return [job]
    ids = []
    for part in match[2].split(","):
        span, _, step = part.partition(":")
        first, _, last = span.partition("-")
        ids += [f"{match[1]}_{i}" for i in range(int(first), int(last or first) + 1, int(step or 1))]
    return ids
