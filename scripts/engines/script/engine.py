"""The script engine: what one rank does to run NVIDIA's own script, from finding it to verified outputs.

Nothing heavy is imported here: the script has a process of its own.
"""

import os
import sys
from collections.abc import Sequence
from importlib import metadata

from configs import CONFIGS
from scripts.args import constraints
from scripts.args.meaning import ScriptArgs, ScriptSpec
from scripts.checkpoints import kinds
from scripts.engines import cpu_runtime
from scripts.engines import outputs as out
from scripts.engines.choice import refuse_ranks
from scripts.engines.inputs import inputs_of
from scripts.engines.ranks import Child, across_ranks
from scripts.engines.script.command import Argv, command_words, with_inputs, write_files
from scripts.engines.script.flags.reader import read_interface
from scripts.engines.script.flags.tables import completed, releases_like, repository_of
from scripts.engines.script.locate import Located, child_environment, is_module, locate
from scripts.run.content import content_of
from scripts.run.problems import JobError
from scripts.run.record import Follower, Record
from scripts.run.registry import refuse


def run_script(args: ScriptArgs, script: ScriptSpec, extra_args: Sequence[str], record: Record) -> None:
    """Run the script of `args`, resolved ones, on this rank. Raises JobError for everything that is understood.

    Before anything is loaded, the job's flags are compared with those that the installed script's
    source declares. Rank 0 prepares the outputs, waits for every rank, and verifies what is there.
    """
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

    def prepare() -> None:
        write_files(args, record.dir)
        digest = content_of(located.file).digest
        facts = {"path": str(located.file), "name": located.script, "digest": digest, "releases": list(releases)}
        facts |= {"argv": list(argv.words), "left_out": list(argv.left_out)}
        record.update(inputs=inputs_of(args), script=facts)

    for key in argv.left_out:
        record.line(f"{key} is left out: this release of the script has no such flag")
    env, before = child_environment(os.environ), []
    if script.runtime == "cpu":
        before = ["-m", cpu_runtime.__name__, *(["--te-layers"] if args.TE_LAYERS else [])]
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(CONFIGS.parent), env.get("PYTHONPATH")]))
    child = Child(
        name=located.file.name,
        words=[sys.executable, *before, *located.words, *argv.words],
        env=env,
        silence_minutes=script.silence_minutes,
        ranked=args.RANKED,
    )
    across_ranks(child, outputs, prepare, record)
    if script.runtime == "cpu" and not isinstance(record, Follower):
        cpu_runtime.tell(record)


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
