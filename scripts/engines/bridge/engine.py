"""What one rank does to carry a job out with Megatron-Bridge, around the process that does it.

Nothing heavy is imported here.
"""

import json
import os
import sys
from dataclasses import asdict

from configs import CONFIGS
from scripts.args import constraints
from scripts.args.meaning import ScriptArgs, ScriptSpec, values_of
from scripts.checkpoints import kinds
from scripts.data.texts import BUILT_IN
from scripts.engines import cpu_runtime
from scripts.engines import outputs as out
from scripts.engines.choice import is_built_in
from scripts.engines.inputs import inputs_of
from scripts.engines.installed import BRIDGE, is_installed
from scripts.engines.ranks import Child, across_ranks
from scripts.engines.script.command import blends
from scripts.run.problems import JobError
from scripts.run.record import Follower, Record, read_json
from scripts.run.registry import refuse
from scripts.tiny.model import local_model

#: What the process leaves beside the record of each rank: why it failed, in the words of run.json.
ERROR_FILE = "bridge.error.rank{rank}.json"


def run_bridge(args: ScriptArgs, script: ScriptSpec, record: Record) -> None:
    """Carry out `args`, resolved ones, on this rank. Raises JobError for everything that is understood.

    Rank 0 prepares the outputs, waits for every rank, verifies what is there, and records the report.
    """
    with record.phase("check the job"):
        if not is_installed(BRIDGE):
            raise JobError("engine_not_installed", "Megatron-Bridge is not installed here.", "Run `make bridge`.")
        refuse(args, script, constraints, kinds)
    outputs = out.outputs_of(args, record.dir, "bridge")
    named = {name: value for name, value, meaning in values_of(args) if meaning.names_a_model and value is not None}
    # A built-in model is trained by whoever comes first; the others wait for its lock.
    models = {name: local_model(value, record) for name, value in named.items()}
    values = asdict(args) | blends(args) | {one.field: str(one.written) for one in outputs} | models
    if any(map(is_built_in, named.values())):  # it has text of its own, which its folder does not tell
        unsaid = ((name, meaning) for name, value, meaning in values_of(args) if value is None)
        data = [name for name, meaning in unsaid if (meaning.role, meaning.names) == ("data", "data")]
        values |= dict.fromkeys(data, BUILT_IN)
    kind = type(args)
    rank = os.environ.get("RANK", "0")
    error = record.dir / "logs" / ERROR_FILE.format(rank=rank)
    work = {
        "args": f"{kind.__module__}:{kind.__name__}",
        "values": values,
        "called": next(iter(named.values()), ""),
        "runtime": script.runtime,
        "report": str(record.dir / "report"),
        "error": str(error),
    }
    words = [sys.executable, "-m", "scripts.engines.bridge.worker", json.dumps(work)]
    entries = [str(CONFIGS.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(entries), "PYTHONUNBUFFERED": "1"}
    child = Child(
        name=f"the bridge engine's {kind.__name__.removesuffix('Args').lower()}",
        words=words,
        env=env,
        silence_minutes=script.silence_minutes,
        error=error,
    )
    across_ranks(child, outputs, lambda: record.update(inputs=inputs_of(args, "bridge")), record)
    if not isinstance(record, Follower):
        _record_report(record)
        if script.runtime == "cpu":
            cpu_runtime.tell(record)


#: What a function of the engine leaves for a person; its figures go into the record.
_REPORTS = ("report.json", "training.json", "pruning.json")


def _record_report(record: Record) -> None:
    """What the process found out goes into the record."""
    found = [report for name in _REPORTS if (report := read_json(record.dir / "report" / name)) is not None]
    for name, value in ((name, value) for report in found for name, value in (report.get("evaluation") or {}).items()):
        if isinstance(value, (int, float)):
            record.metric(name, value)
    if found:
        record.artifact("eval_results", record.dir / "report")
