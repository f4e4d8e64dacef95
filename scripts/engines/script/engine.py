"""The script engine: what one rank does to run NVIDIA's own script, from finding it to verified outputs.

Nothing heavy is imported here: the script has a process of its own.
"""

import os
import re
import shlex
import socket
import sys
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any

from scripts.args import constraints
from scripts.args.meaning import ScriptArgs, ScriptSpec, values_of
from scripts.checkpoints import kinds
from scripts.engines.choice import refuse_ranks
from scripts.engines.script import outputs as out
from scripts.engines.script.child import LOG_BYTES, Ended, Output, SilentError, last_words, run_child
from scripts.engines.script.command import Argv, command_words, with_inputs, write_files
from scripts.engines.script.flags.reader import read_interface
from scripts.engines.script.flags.tables import completed, releases_like, repository_of
from scripts.engines.script.locate import Located, child_environment, is_module, locate
from scripts.run.files import content_of, write_json
from scripts.run.problems import JobError
from scripts.run.record import Follower, Record, read_json
from scripts.run.registry import refuse

_WAIT_SECONDS = 1800.0  # as long as torch's own store waits
_PREPARE_SECONDS = 600.0  # ranks start together, but for what a slow file system makes of their imports
_PREPARED = "prepared.json"
#: Ranks other than 0 share the launcher's log with it, and say the same.
_OTHER_LOG_BYTES = 8 << 20
_SHOWN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "CUDA_VISIBLE_DEVICES")
#: The last line of a traceback, or argparse's own word; once a process group exists torch puts [rank0] in front.
_ERROR = re.compile(
    r"^(?:\[rank\d+\]: )?((?:(?:\w+\.)*\w*(?:Error|Exception|Interrupt|Failure)\b|\S+: error: ).*)", re.MULTILINE
)


def run_script(args: ScriptArgs, script: ScriptSpec, extra_args: Sequence[str], record: Record) -> None:
    """Run the script of `args`, resolved ones, on this rank. Raises JobError for everything that is understood.

    Before anything is loaded, the job's flags are compared with those that the installed script's
    source declares. Rank 0 prepares the outputs, waits for every rank, and verifies what is there.
    """
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    ranks = record.dir / "ranks"
    with record.phase("check the script"):
        located = locate(args.SCRIPTS, script.path)
        if not args.RANKED or located.script in args.ONE_PROCESS:
            refuse_ranks(located.script)
        args = with_inputs(args)
        refuse(args, script, constraints, kinds)
        found = read_interface(located.file, located.roots)
        releases = releases_like(located.script, found)
        interface = completed(found, located.script, releases)
        outputs = out.outputs_of(args, record.dir)
        argv = command_words(args, script, extra_args, name=located.script, interface=interface, run_dir=record.dir)
        refuse_drift(argv, located, releases)
        _refuse_package_drift(located.script, releases)
    if not isinstance(record, Follower):
        with record.phase("prepare"):
            out.prepare(outputs, record)
            write_files(args, record.dir)
            inputs = _inputs(args)
            digest = content_of(located.file).digest
            facts = {"path": str(located.file), "name": located.script, "digest": digest, "releases": list(releases)}
            record.update(inputs=inputs, script=facts | {"argv": list(argv.words), "left_out": list(argv.left_out)})
            write_json(ranks / _PREPARED, _launch())
    else:
        cause = "rank 0 had not prepared the run within {minutes:.0f} minutes."
        _wait(lambda: read_json(ranks / _PREPARED) != _launch(), _PREPARE_SECONDS, cause)
    with record.phase("run the script"):
        ended = _run(args, script, located, argv, rank, record)
    write_json(ranks / f"{rank}.json", {"rank": rank, "host": socket.gethostname(), "seconds": ended.seconds})
    if not isinstance(record, Follower):
        cause = "ranks {missing} did not end within {minutes:.0f} minutes of rank 0."
        _wait(lambda: [one for one in range(world) if read_json(ranks / f"{one}.json") is None], _WAIT_SECONDS, cause)
        with record.phase("verify"):
            out.finish(outputs, record)


def refuse_drift(argv: Argv, located: Located, releases: Sequence[str]) -> None:
    """Raise JobError `script_drift` where the job's words do not fit the script that is here.

    A flag that somebody forced against a table has to be one of this script's all the same.
    """
    if not argv.problems:
        return
    which = f" (release {' or '.join(releases)})" if releases else ""
    parts = [f"{problem.key}: {problem.cause}. {problem.remedy}".strip() for problem in argv.problems]
    remedy = "Name the container's release with script.release, and submit again: it will be written for that one."
    raise JobError("script_drift", f"{located.file}{which} does not take this job. {' '.join(parts)}", remedy)


def _refuse_package_drift(script: str, releases: Sequence[str]) -> None:
    """Model-Optimizer's examples work with the package of their own release only."""
    if is_module(script) or repository_of(script) != "Model-Optimizer" or not releases:
        return
    try:
        version = metadata.version("nvidia-modelopt")
    except metadata.PackageNotFoundError:
        return  # the script itself will say so
    minors = {tuple(release.split(".")[:2]) for release in releases if not release.startswith("main")}
    if minors and len(minors) == len(releases) and tuple(version.split(".")[:2]) not in minors:
        cause = f"the checkout is Model-Optimizer {' or '.join(releases)}, the installed package {version}."
        raise JobError("modelopt_package_drift", cause, f"Check out {version}, or use the container of that release.")


def _inputs(args: Any) -> list[dict[str, Any]]:
    """What the job reads; paths that are here with what they hold, and names for what the script fetches itself."""
    rows = []
    for _, value, meaning in values_of(args):
        if meaning.consumes and meaning.engine != "hf" and value is not None:
            listed = value if isinstance(value, (list, tuple)) else [str(value)]
            rows += [{"type": meaning.consumes, "name": item} for item in listed if isinstance(item, str)]
    return rows


def _run(args: ScriptArgs, script: ScriptSpec, located: Located, argv: Argv, rank: int, record: Record) -> Ended:
    words = [sys.executable, *located.words, *argv.words]
    env = child_environment(os.environ) | ({} if "RANK" in os.environ or not args.RANKED else _lone_rank())
    logs = record.dir / "logs"
    shown = {name: env[name] for name in _SHOWN if name in env}
    write_json(logs / f"rank{rank}.command.json", {"host": socket.gethostname(), "argv": words, "env": shown})
    record.line(f"rank {rank}: {shlex.join(words)}")
    for key in argv.left_out:
        record.line(f"{key} is left out: this release of the script has no such flag")
    output = Output(logs / f"rank{rank}.tail.log", limit=LOG_BYTES if rank == 0 else _OTHER_LOG_BYTES)
    silence = script.silence_minutes * 60 if rank == 0 else 0
    try:
        ended = run_child(
            words, env=env, output=output, silence=silence, progress=lambda done, of: record.progress(done, of, "steps")
        )
    except SilentError:
        cause = f"{located.file.name} printed nothing for {script.silence_minutes:g} minutes, and was stopped."
        raise JobError("script_hangs", cause, "Look for a rank that died, or raise script.silence_minutes.") from None
    except OSError as error:
        raise JobError("script_not_started", f"{located.file}: {error}.", "Can this Python run it?") from error
    if ended.status:
        raise _failure(located.file.name, ended)
    return ended


def _lone_rank() -> dict[str, str]:
    """What torchrun tells the only process of a job."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    one = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    return one | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def _failure(name: str, ended: Ended) -> JobError:
    remedy = "The end of its output is in this rank's file in logs/."
    if ended.status < 0:
        cause = f"{name} was killed by signal {-ended.status}."
        if ended.status == -9:
            remedy = "SIGKILL is what the kernel does when memory runs out; look at the machine's memory."
        return JobError("script_killed", cause, remedy)
    words = last_words(ended.tail, _ERROR).rstrip(".") or "it said nothing"
    return JobError("script_failed", f"{name} ended with status {ended.status}: {words}.", remedy)


def _launch() -> dict[str, str | None]:
    """What all ranks of one launch have in common, and no other launch of the same run."""
    return {name: os.environ.get(name) for name in ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT")}


def _wait(missing: Callable[[], Any], seconds: float, cause: str) -> None:
    """Until nothing is missing. Raises JobError `rank_missing`, whose cause may say what is, and how many minutes."""
    deadline = time.monotonic() + seconds
    while found := missing():
        if time.monotonic() > deadline:
            cause = cause.format(missing=found, minutes=seconds / 60)
            raise JobError("rank_missing", cause, "Is the run directory on storage that every node shares?")
        time.sleep(0.05)
