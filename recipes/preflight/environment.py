"""What a job has of the machine that submits it, and of its place, whatever it does."""

import re
from collections.abc import Iterator

from executors.base import nemorun_home
from recipes.experiment.job import Job
from scripts.args.meaning import values_of
from scripts.engines.choice import can_run
from scripts.engines.installed import BRIDGE, HF_PACKAGES, is_installed
from scripts.engines.script.flags.tables import container_tags, releases_in, releases_of
from scripts.engines.script.locate import is_module
from scripts.run.problems import Problem, install
from scripts.run.registry import check
from scripts.run.secrets import holds, looks_secret, secrets_here

#: NVIDIA's, also by the name that a mirror or this machine has for it; not nemo-rl.
_NEMO = re.compile(r"(?:^|[/#])nemo(?:[:@]|$)")

_FROM_ENV = re.compile(r"oc\.env\s*:\s*(\w+)")


@check("wrong_home")
def home(job: Job) -> Iterator[Problem]:
    """NeMo-Run puts its home into shell lines, scripts and mounts as it is."""
    home = nemorun_home()
    if wrong := job.place.breaks_on(home):
        cause = f"what NeMo-Run does for {job.place.title} breaks on {' '.join(map(repr, wrong))} in its path"
        remedy = "Set NEMORUN_HOME to a folder whose path has letters, digits and . _ / - only."
        yield Problem(key="NEMORUN_HOME", value=home, cause=cause, remedy=remedy)


@check("secret_in_args")
def secrets_in_values(job: Job) -> Iterator[Problem]:
    """Values stand in records, scripts and the lists of processes; of what a secret is, nothing is shown."""
    names = {*job.profile.secrets, *(hidden := secrets_here(job.profile.secrets))}
    stated = {f"args.{name}": str(value) for name, value, _ in values_of(job.args)}
    for key, text in (stated | {"extra_args": " ".join(job.extra_args)}).items():
        used = [name for name in _FROM_ENV.findall(text) if name in names or looks_secret(name)]
        used += holds(text, hidden)
        if used:
            cause = f"{used[0]} holds a secret, and values are written to scripts and records"
            remedy = f"Leave it out: list {used[0]} in executor.secrets, and the job has the variable."
            yield Problem(key=key, value=None, cause=cause, remedy=remedy)


@check("too_many_nodes", "out_of_range")
def machines(job: Job) -> Iterator[Problem]:
    if not job.place.capabilities.multi_node and job.nodes != 1:
        key = "torchrun.nnodes" if job.torchrun.nnodes != 1 else "executor.nodes"
        cause = f"the {job.place.title} executor has one machine"
        yield Problem(name="too_many_nodes", key=key, value=job.nodes, cause=cause, remedy=f"Use {key}=1.")
    shape = {"torchrun.nproc_per_node": job.torchrun.nproc_per_node, "torchrun.nnodes": job.torchrun.nnodes}
    for key, value in shape.items():
        if value < 1:
            yield Problem(name="out_of_range", key=key, value=value, cause="at least 1 is needed")


@check("set_by_the_launcher")
def rendezvous(job: Job) -> Iterator[Problem]:
    """NVIDIA's configs have these values; a rank and a meeting point of one machine fit no other."""
    given = {"node_rank": job.torchrun.node_rank, "master_addr": job.torchrun.master_addr}
    for name, value in (given | {"master_port": job.torchrun.master_port}).items():
        if value is not None:
            cause = f"{job.place.title} tells every machine its rank and where they meet, and nothing reads this"
            yield Problem(key=f"torchrun.{name}", value=value, cause=cause, remedy="Leave it null.")


@check("unknown_container", severity="warning", engines=("script", "hf"))
def container(job: Job) -> Iterator[Problem]:
    """A NeMo container of which nothing is known: its tag may be mistyped."""
    image = job.place.image or ""
    if _NEMO.search(image) is None or releases_in(image) is not None or job.script.release or job.script.path:
        return
    script = next((one for one in job.resolved.SCRIPTS if not is_module(one)), "")
    named = [release for release in (releases_of(script) if script else ()) if not release.startswith("main")]
    then = "the command is written for the newest scripts"
    if job.engine != "script":
        then = "nobody can say that it has NVIDIA's script, so that engine hf is used, which needs none"
    stated = f"script.release={named[-1].removeprefix('v')}" if named else "script.release"
    yield Problem(
        key="executor.image",
        value=image,
        cause=f"what this NeMo container holds is not known: {then}",
        remedy=f"Known are {', '.join(container_tags())}; for another one say the release that is in it, such as "
        f"{stated}, and the script is run.",
    )


@check("engine_cannot", applies=lambda job: job.engine is not None, decisive=True)
def engine_of_algorithm(job: Job) -> Iterator[Problem]:
    """ModelOpt on a Transformers model does what one algorithm asks for; Megatron-Bridge does some, scripts do most."""
    if not can_run(type(job.resolved), job.engine or ""):
        other = "script" if job.resolved.SCRIPTS else "hf"
        cause = f"the {job.engine} engine cannot do {job.recipe}"
        yield Problem(key="engine", value=job.engine, cause=cause, remedy=f"Use engine={other}, or leave it out.")


@check("engine_not_installed", engines=("hf", "bridge"))
def engine_installed(job: Job) -> Iterator[Problem]:
    if not job.place.runs_here:
        return  # `executors check` looks at the place itself
    needed = (*HF_PACKAGES, BRIDGE) if job.engine == "bridge" else HF_PACKAGES  # in the environment that submits
    missing = [name for name in needed if not is_installed(name)]
    if missing:
        cause = f"the job runs in this environment, which lacks {', '.join(missing)}"
        remedy = f"Install them: {install('hf')}"
        if job.engine == "bridge":
            remedy = "In a checkout, with Python 3.12: `make bridge`."
            remedy += "  Or use engine=hf, which needs no Megatron." if job.resolved.HF_ENGINE else ""
        yield Problem(key="engine", value=job.engine, cause=cause, remedy=remedy)
