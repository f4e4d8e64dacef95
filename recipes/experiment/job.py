"""What is about to be submitted: a recipe's typed values, where they run, and the directory they get."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.experiment.releases import Addressed, address
from recipes.models import ModelFacts, facts_of
from recipes.planner.gpus import Gpu, gpu_of
from recipes.planner.layout import SIZES, Layout, default_ep, layout_of
from scripts.args.configuration import KEYS, of_role
from scripts.args.interpolation import MODEL_FIELDS, resolve, tag_of
from scripts.args.meaning import Role, ScriptArgs, ScriptSpec, Torchrun, field_of, fields_of, meanings, value_of
from scripts.engines.choice import Chosen, choose_engine
from scripts.engines.script.flags.tables import releases_in
from scripts.engines.script.locate import installed
from scripts.run.problems import JobError, Problem

if TYPE_CHECKING:
    import nemo_run as run

    from executors.base import Place, Profile


@dataclass(frozen=True, kw_only=True)
class Shape:
    """How many machines and processes a job gets; one source, torchrun.nnodes and torchrun.nproc_per_node."""

    nodes: int
    processes: int  # on each node
    torchrun: bool  # nodes x processes ranks; else one process on the first node


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job about to be submitted: its values, where it runs, and the run directory it would get."""

    recipe: str
    algorithm: str
    args: Any
    resolved: Any
    script: ScriptSpec
    torchrun: Torchrun
    extra_args: list[str]
    engine: Chosen | None  # None: an algorithm without a choice
    addressed: Addressed | None  # of the script engine
    promised: frozenset[str]  # the args that name what another run is going to leave
    given: frozenset[str]  # the args that are not what the shipped recipe says
    place: "Place"
    shape: Shape
    run_dir: Path
    online: bool
    models: Mapping[str, ModelFacts]  # of each argument that names a model of which something is known
    gpu: Gpu | None  # what a process gets one of; None: not known, or the job needs none

    def get(self, role: Role, default: Any = None) -> Any:
        """The resolved value of the argument, or in the configuration, that has a role; else what the script itself
        does, or `default`."""
        value = value_of(self.resolved, role)
        config = value_of(self.resolved, "config") if value is None else None
        if config is not None:
            value = of_role(config, self.extra_args, role)
        if value is None:
            value = self.resolved.own().get(role)
        return default if value is None else value

    def key(self, role: Role) -> str | None:
        """What the user calls it: `args.calib_size`, `args.config.train.micro_batch_size`; None where no argument and
        no configuration has the role."""
        name = field_of(self.resolved, role)
        config = field_of(self.resolved, "config") if name is None else None
        if config is not None and role in KEYS:
            return f"args.{config}.{KEYS[role][0]}"
        return None if name is None else f"args.{name}"

    @property
    def model(self) -> ModelFacts | None:
        """The model that the outputs are made of; a distillation's is the student."""
        return next((self.models[name] for name in MODEL_FIELDS if name in self.models), None)

    @property
    def teacher(self) -> ModelFacts | None:
        """Of a distillation."""
        return self.models.get("teacher_hf_path")

    @property
    def layout(self) -> Layout:
        """How the job's ranks share the model. The hf engine's is one process."""
        if self.engine == "hf" or not self.shape.torchrun:
            return Layout(nodes=1, processes=1)
        return layout_of(self.get, self.shape.nodes, self.shape.processes)

    @property
    def profile(self) -> "Profile":
        """Where it runs, as values."""
        return self.place.profile

    @property
    def here(self) -> bool:
        """Whether the job sees this machine's files under the paths they have here."""
        return self.place.capabilities.local_files


def job_of(
    partial: "run.Partial[Any]",
    place: "Place",
    overrides: Mapping[str, str],
    run_id: str,
    *,
    online: bool,
    promised: frozenset[str],
) -> tuple[Job | None, list[Problem]]:
    """Build the typed values of `partial` and resolve its late values as they will be on the node."""
    from fiddle import build

    args, torchrun, script = build(partial.args), build(partial.torchrun), build(partial.script)
    run_dir = Path(place.run_root()) / run_id
    algorithm = partial.__fn_or_cls__.__name__
    given = _given(partial.recipe, args)
    sizes = {name for size in SIZES for name in fields_of(args, size) if getattr(args, name) is not None}
    spread = overrides.get("nodes", "1") != "1" or torchrun.nnodes > 1 or bool(sizes & given)
    engine = choose_engine(partial.engine, args, script, has_script=lambda: _has_script(args, place, spread=spread))
    if engine == "script" and (ep := default_ep(args, torchrun)) is not None:
        args = replace(args, ep=ep)
    try:
        resolved = type(args)(**resolve(asdict(args), run_dir=run_dir, run_tag=tag_of(args)))
    except JobError as error:
        return None, [error.as_problem("args")]
    addressed, problems = address(args, script, place) if engine == "script" else (None, [])
    job = Job(
        recipe=partial.recipe,
        algorithm=algorithm,
        args=args,
        resolved=resolved,
        script=script,
        torchrun=torchrun,
        extra_args=list(partial.extra_args),
        engine=engine,
        addressed=addressed,
        promised=promised,
        given=given,
        place=place,
        shape=_shape(args, addressed, engine, torchrun, place.profile, explicit="nodes" in overrides),
        run_dir=run_dir,
        online=online,
        models=_models(resolved),
        gpu=gpu_of(place.profile, stated_hardware(partial.recipe)),
    )
    return job, [*_contradiction(torchrun, overrides), *problems]


def _has_script(args: ScriptArgs, place: "Place", *, spread: bool) -> bool:
    """Whether a place is known to have the script in its container.

    `spread`: somebody asked for several machines, or for a size of the layout, which the hf engine has no use for;
    away from this machine that means the script. The job is told which engine it is, because its shape depends on
    it: ranks, or one process.
    """
    if place.runs_here:
        return installed(args.SCRIPTS)
    return spread or bool(place.image and releases_in(place.image))


def written(job: Job) -> Iterator[tuple[str, str, Path]]:
    """The outputs of the engine that is to be used: the key that names each, its artifact type, its path."""
    for field, meaning in meanings(job.resolved):
        value = getattr(job.resolved, field.name)
        if meaning.produces and meaning.engine in ("any", job.engine) and value:
            yield f"args.{field.name}", meaning.produces, Path(value) / meaning.within


def outputs_of(job: Job) -> list[dict[str, str]]:
    """What the job is going to leave, by type and path."""
    return [{"type": kind, "path": str(path)} for _, kind, path in written(job)]


def _models(args: Any) -> dict[str, ModelFacts]:
    """Facts of every model that the arguments name, as far as they are known here."""
    found = {}
    for field, meaning in meanings(args):
        value = getattr(args, field.name)
        named = meaning.consumes == "checkpoint_hf" or meaning.card or field.name in MODEL_FIELDS
        if named and isinstance(value, str):
            facts = facts_of(value)
            if facts is not None:
                found[field.name] = facts
    return found


def stated_hardware(recipe: str) -> str | None:
    """The GPU that a shipped recipe's values are made for."""
    from recipes.catalogue import RECIPES

    return RECIPES[recipe].hardware if recipe in RECIPES else None


def _given(recipe: str, args: Any) -> frozenset[str]:
    from fiddle import build

    from recipes.catalogue import RECIPES

    shipped = build(RECIPES[recipe].build().args) if recipe in RECIPES else type(args)()
    names = (field.name for field in fields(args))
    return frozenset(name for name in names if getattr(args, name) != getattr(shipped, name, None))


def _shape(
    args: Any,
    addressed: Addressed | None,
    engine: str | None,
    torchrun: Torchrun,
    profile: "Profile",
    *,
    explicit: bool,
) -> Shape:
    ranked = engine != "hf" and args.RANKED and not (addressed and addressed.script in args.ONE_PROCESS)
    # The recipe's value wins over a site's default, and a job that has no use for machines takes none by default.
    wanted = explicit or (ranked and getattr(args, "DATA_PARALLEL", True))
    nodes = torchrun.nnodes if torchrun.nnodes != 1 or not wanted else (profile.nodes or 1)
    several = ranked and nodes * torchrun.nproc_per_node > 1
    return Shape(nodes=nodes, processes=torchrun.nproc_per_node if several else 1, torchrun=several)


def _contradiction(torchrun: Torchrun, overrides: Mapping[str, str]) -> list[Problem]:
    given = overrides.get("nodes")
    if given is None or torchrun.nnodes == 1 or given == str(torchrun.nnodes):
        return []
    cause = f"torchrun.nnodes={torchrun.nnodes} says otherwise"
    remedy = "Both set the number of machines; give one of them."
    return [Problem(name="contradiction", key="executor.nodes", value=given, cause=cause, remedy=remedy)]
