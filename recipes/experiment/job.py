"""A job: a stage that was checked. One object, made by `examine`, that everything after it reads."""

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs import CONFIGS
from executors.base import AnyJob, Capabilities, Place, Profile
from executors.kinds import place_from_record
from recipes.catalogue import RECIPES, Recipe
from recipes.experiment.releases import Addressed, address
from recipes.experiment.run_ids import pipeline_of
from recipes.experiment.stage import Options, Stage
from recipes.models import ModelFacts, facts_of
from recipes.planner.gpus import Gpu, gpu_of
from recipes.planner.layout import ENDS, SIZES, Asked, Layout, default_ep, fewest
from recipes.planner.shares import processes_of, undivided
from scripts.args.configuration import KEYS, of_role
from scripts.args.interpolation import UnresolvedError, resolve_args
from scripts.args.meaning import (
    MEGATRON,
    Role,
    ScriptArgs,
    ScriptSpec,
    Torchrun,
    field_of,
    fields_of,
    value_of,
    values_of,
)
from scripts.engines.choice import Chosen, choose_engine, is_built_in
from scripts.engines.script.command import Argv, command_words
from scripts.engines.script.flags.tables import releases_in
from scripts.engines.script.locate import installed
from scripts.entrypoints import tool_command
from scripts.processor import gpus_here
from scripts.run.problems import JobError, Problem
from scripts.run.registry import Skipped
from scripts.run.secrets import secrets_here
from scripts.stores.objects import urls_in

if TYPE_CHECKING:
    import nemo_run as run


@dataclass(frozen=True, kw_only=True)
class Job(AnyJob):
    """What runs, where, and what is known of it. It is plain data in job.json.

    What changes on the way to the scheduler (the packaged code, the jobs that it waits for, its place in an array)
    makes another Job of it with `dataclasses.replace`.
    """

    name: str  # the stage's
    algorithm: str
    executor: str  # the profile's name
    place: Place
    args: Any  # typed; None where it was read back and its recipe is not in the catalogue any more
    resolved: Any
    script: ScriptSpec
    torchrun: Torchrun
    extra_args: list[str]
    engine: Chosen | None  # None: an algorithm without a choice
    partial: "run.Partial[Any] | None" = None  # as the job gets it; None where it was read back: partial.zlib has it
    addressed: Addressed | None = None  # of the script engine
    promised: frozenset[str] = frozenset()  # the args that name what another run leaves, or what is in a store
    given: frozenset[str] = frozenset()  # the args that are not what the shipped recipe says
    takers: Mapping[str, Sequence[str]] = field(default_factory=dict)  # later stages' args, by the type that each takes
    after: tuple[str, ...] = ()  # runs that must succeed first
    pipeline: str | None = None  # the id of the pipeline that it is a stage of
    stands: Mapping[str, str] = field(default_factory=dict)  # runs that stand for others of its stages, by those
    request: Mapping[str, Any] | None = None  # what was asked for where `values` has another; None: nobody noted it
    code: Path | None = None  # whose files travel with it; None: those of the folder where it is submitted
    fingerprint: Mapping[str, Any] | None = None  # what its result depends on; None where that cannot be told
    needs: Mapping[str, int] | None = None  # of this machine, where it runs here beside others; None: nobody can tell
    online: bool = True
    models: Mapping[str, ModelFacts]  # of each argument that names a model of which something is known
    gpu: Gpu | None  # what a process gets one of; None: not known, or the job needs none
    warnings: tuple[Problem, ...] = ()  # those that somebody forced among them
    skipped: tuple[Skipped, ...] = ()

    def noting(self, **facts: Any) -> "Job":
        """The same job with facts that change nothing of what was worked out from it: warnings, archive ..."""
        noted = copy(self)
        vars(noted).update(facts)
        return noted

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
    def profile(self) -> Profile:
        """The values of the place."""
        return self.place.profile

    @cached_property
    def capabilities(self) -> Capabilities:
        """What the place can do."""
        return self.place.capabilities

    @property
    def here(self) -> bool:
        """Whether the job sees this machine's files under the paths they have here."""
        return self.capabilities.local_files

    @property
    def in_container(self) -> bool:
        """Whether it sees what is mounted, and nothing else."""
        return self.place.mounts(self.run_dir) is not None

    @property
    def model(self) -> ModelFacts | None:
        """The model that the outputs are made of; a distillation's is the student."""
        return self.models.get(field_of(self.resolved, "model") or "")

    @property
    def teacher(self) -> ModelFacts | None:
        """Of a distillation."""
        return self.models.get(field_of(self.resolved, "teacher") or "")

    @cached_property
    def layout(self) -> Layout:
        """How the job's ranks share the model. Those of the hf engine hold all of it, each."""
        if not self.ranked:
            return Layout(nodes=1, processes=1)
        if self.engine == "hf":
            return Layout(nodes=self.nodes, processes=self.processes)
        return replace(self.asked.layout, processes=self.processes)

    @cached_property
    def asked(self) -> Asked:
        """The layout that the job asks for by its arguments, or by the configuration that its script takes."""
        first, last = (self.get(end) for end in ENDS)
        sizes = {size: 1 if (said := self.get(size)) is None else said for size in SIZES}
        return Asked(
            layout=Layout(nodes=self.nodes, processes=self.torchrun.nproc_per_node, **sizes),
            keys={size: key for size in SIZES if (key := self.key(size))},
            stages=(first, last),
            stage_keys=tuple(key for end in ENDS if (key := self.key(end)) and self.get(end) is not None),
        )

    @cached_property
    def outputs(self) -> tuple[tuple[str, str, Path], ...]:
        """What the engine that is to be used writes: the key that names each, its artifact type, its path."""
        return tuple(
            (f"args.{field}", meaning.produces, Path(value) / meaning.within)
            for field, value, meaning in values_of(self.resolved)
            if meaning.produces and meaning.used_by(self.engine) and value
            if not any(self.get(role) for role in meaning.unless)
        )

    @property
    def expects(self) -> list[dict[str, str]]:
        """The outputs by type and path, as run.json has them, or URL; with the report of what measures."""
        found = [{"type": kind, "path": str(path)} for _, kind, path in self.outputs]
        recipe = RECIPES.get(self.recipe)
        if recipe is not None and _SCORES in recipe.family.also and self.engine != "script":
            found.append({"type": _SCORES, "path": str(self.run_dir / "report")})
        return [{**one, "path": self.place.published(one["path"], self.run_dir)} for one in found]

    @property
    def in_this_python(self) -> bool:
        """Whether it runs in the Python that submits it."""
        return self.place.runs_here

    @cached_property
    def command(self) -> Argv:
        """The words after the script's name, for the release that they are written for. Raises JobError."""
        assert self.addressed is not None
        name, interface = self.addressed.script, self.addressed.interface
        values = (self.resolved, self.script, self.extra_args)
        return command_words(*values, name=name, interface=interface, run_dir=self.run_dir)

    @cached_property
    def words(self) -> tuple[str, ...] | None:
        """What each rank runs, without the launcher; `<...>` is known on the node only.

        None where it starts no program, or names a model card that there is not.
        """
        if self.addressed is None:
            values = (self.resolved, self.script, self.extra_args, self.run_dir)
            return tool_command(self.algorithm, *values, here=self.in_this_python)
        try:
            return ("python", *self.addressed.path.split(" ", 1), *self.command.words)
        except JobError:
            return None

    @cached_property
    def values(self) -> dict[str, Any]:
        """The recipe's values as plain data, section by section, as a YAML file would hold them."""
        engine = self.engine or (self.partial.engine if self.partial is not None else "auto")
        sections = {"script": self.script, "args": self.args, "torchrun": self.torchrun}
        typed = {name: {} if values is None else asdict(values) for name, values in sections.items()}
        return {"engine": engine, **typed, "extra_args": list(self.extra_args)}

    @cached_property
    def text(self) -> str:
        """The recipe as NeMo-Run serializes it: what travels, and what partial.zlib keeps."""
        return serialized(self.partial)

    def as_data(self) -> dict[str, Any]:
        """As job.json keeps it; all but the recipe, and what is known of the models and the GPU."""
        return {
            **{name: getattr(self, name) for name in _AS_THEY_ARE},
            "profile": asdict(self.profile),
            "values": self.values,
            "resolved": None if self.resolved is None else asdict(self.resolved),
            "promised": sorted(self.promised),
            "given": sorted(self.given),
            "run_dir": str(self.run_dir),
            "after": list(self.after),
            "pipeline": self.pipeline,
            "stands": dict(self.stands),
            "request": None if self.request is None else dict(self.request),
            "fingerprint": None if self.fingerprint is None else dict(self.fingerprint),
            "needs": None if self.needs is None else dict(self.needs),
            "waits_for": list(self.waits_for),
            "archive": str(self.archive) if self.archive else None,
            "warnings": [problem.as_data() for problem in self.warnings],
            "skipped": [vars(skipped) for skipped in self.skipped],
        }

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> "Job":
        """What `as_data` made, read back. Raises ValueError, KeyError or TypeError, or JobError for its profile."""
        values = data["values"]
        args = RECIPES[data["recipe"]].family.args if values["args"] and data["recipe"] in RECIPES else None
        return cls(
            **{name: data[name] for name in _AS_THEY_ARE},
            after=tuple(data["after"]),
            pipeline=data.get("pipeline"),
            stands=data.get("stands") or {},
            request=data.get("request"),
            fingerprint=data.get("fingerprint"),
            needs=data.get("needs"),
            waits_for=tuple(data["waits_for"]),
            promised=frozenset(data["promised"]),
            given=frozenset(data["given"]),
            place=place_from_record(data["profile"]),
            args=_typed(args, values["args"]),
            resolved=_typed(args, data["resolved"]),
            script=_typed(ScriptSpec, values["script"]),
            torchrun=_typed(Torchrun, values["torchrun"]),
            extra_args=values["extra_args"],
            run_dir=Path(data["run_dir"]),
            archive=Path(data["archive"]) if data["archive"] else None,
            models={},
            gpu=None,
            warnings=tuple(_typed(Problem, problem) for problem in data["warnings"]),
            skipped=tuple(_typed(Skipped, skipped) for skipped in data["skipped"]),
        )


_SCORES = "eval_results"
#: What a Job and its plain data call alike, and hold alike.
_AS_THEY_ARE = (
    *("id", "name", "recipe", "algorithm", "executor", "engine", "nodes", "processes", "ranked"),
    *("secrets", "array", "force_squash", "online"),
)


def _typed(cls: type | None, values: Mapping[str, Any] | None) -> Any:
    """Values of a dataclass, without keys that this version does not have; None where either is not known."""
    if cls is None or values is None:
        return None
    return cls(**{field.name: values[field.name] for field in fields(cls) if field.name in values})


def serialized(partial: "run.Partial[Any] | None") -> str:
    """A recipe as text."""
    from nemo_run.core.serialization.zlib_json import ZlibJSONSerializer

    return str(ZlibJSONSerializer().serialize(partial))


def job_of(
    stage: Stage, run_id: str, executor: str, place: Place, options: Options, promised: frozenset[str] = frozenset()
) -> tuple[Job | None, list[Problem]]:
    """Build the typed values of a stage's recipe and resolve its late values as they will be on the node."""
    from fiddle import build, copy_with

    overrides = options.overrides if stage.profile is None else stage.profile
    partial, engine = engine_at(stage.partial, place, overrides)
    args, torchrun, script = build(partial.args), build(partial.torchrun), build(partial.script)
    run_dir = Path(place.run_root()) / run_id
    recipe = RECIPES.get(partial.recipe)
    given = _given(build(stage.partial.args), recipe)
    if engine == "bridge" and place.runs_here and gpus_here() == 0:  # this very machine, and it has none
        script = replace(script, runtime="cpu")
        partial = copy_with(partial, script=copy_with(partial.script, runtime="cpu"))
        # Nobody asked for a number: as few as the sizes need.
        if recipe and torchrun == build(recipe.outline().torchrun):
            torchrun = replace(torchrun, nproc_per_node=fewest(args))
            partial = copy_with(partial, torchrun=copy_with(partial.torchrun, nproc_per_node=fewest(args)))
    if engine in MEGATRON and (ep := default_ep(args, torchrun)) is not None:
        args = replace(args, ep=ep)
        partial = copy_with(partial, args=copy_with(partial.args, ep=ep))
    try:
        secrets = {*place.profile.secrets, *secrets_here(place.profile.secrets)}
        at_home = place.capabilities.local_files
        values = resolve_args(args, run_dir=run_dir, at_home=at_home, secrets=secrets)
    except UnresolvedError as error:
        return None, [*error.problems]
    addressed, problems = address(args, script, place) if engine == "script" and args.SCRIPTS else (None, [])
    # Some scripts, and some work of ModelOpt's own engine, are one process whatever is asked for.
    can_rank = args.RANKED and not (addressed and addressed.script in args.ONE_PROCESS)
    processes = torchrun.nproc_per_node
    if engine == "hf":
        can_rank = not undivided(values)
        processes = processes_of(values, torchrun, place, build(recipe.outline().torchrun) if recipe else None)
    # The recipe's value wins over a site's default, and a job that has no use for machines takes none by default.
    wanted = "nodes" in overrides or (can_rank and args.DATA_PARALLEL and engine != "hf")
    nodes = torchrun.nnodes if torchrun.nnodes != 1 or not wanted else (place.profile.nodes or 1)
    ranked = can_rank and nodes * processes > 1
    job = Job(
        id=run_id,
        name=stage.name,
        recipe=partial.recipe,
        algorithm=partial.__fn_or_cls__.__name__,
        executor=executor,
        place=place,
        args=args,
        resolved=values,
        script=script,
        torchrun=torchrun,
        extra_args=list(partial.extra_args),
        engine=engine,
        # What was decided here is not decided again on the node.
        partial=partial if engine is None else copy_with(partial, engine=engine),
        addressed=addressed,
        promised=promised | {name for name, _ in urls_in(values)},
        given=given,
        nodes=nodes,
        processes=processes if ranked else 1,
        ranked=ranked,
        run_dir=run_dir,
        after=tuple(stage.after),
        pipeline=pipeline_of(run_id, stage.name) if stage.pipeline else None,
        secrets=place.secrets_path(run_id),
        force_squash=options.force_squash,
        online=options.online,
        code=options.code,
        models=_models(values),
        gpu=gpu_of(place, recipe.hardware if recipe else None),
    )
    if (said := overrides.get("nodes")) not in (None, str(torchrun.nnodes)) and torchrun.nnodes != 1:
        cause = f"torchrun.nnodes={torchrun.nnodes} says otherwise"
        remedy = "Both set the number of machines; give one of them."
        wrong = Problem(name="contradiction", key="executor.nodes", value=said, cause=cause, remedy=remedy)
        problems = [wrong, *problems]
    return job, problems


def engine_at(
    partial: "run.Partial[Any]", place: Place, overrides: Mapping[str, str]
) -> "tuple[run.Partial[Any], Chosen | None]":
    """The engine that a recipe has in a place, and the recipe with what goes with that."""
    from fiddle import build, copy_with

    args, torchrun, script = build(partial.args), build(partial.torchrun), build(partial.script)
    recipe = RECIPES.get(partial.recipe)
    given = _given(args, recipe)
    sizes = {name for size in SIZES for name in fields_of(args, size) if getattr(args, name) is not None}
    spread = overrides.get("nodes", "1") != "1" or torchrun.nnodes > 1 or bool(sizes & given)

    def has_script() -> bool:
        return _has_script(args, place, spread=spread)

    full_size = _full_size(args, given, recipe) if recipe and partial.engine == "auto" and not place.runs_here else {}
    if full_size and has_script():
        partial = copy_with(partial, args=copy_with(partial.args, **full_size))
        args = build(partial.args)
    return partial, choose_engine(partial.engine, args, script, has_script=has_script)


def _given(args: ScriptArgs, recipe: Recipe | None) -> frozenset[str]:
    """The args that are not what the shipped recipe says."""
    from fiddle import build

    shipped = build(recipe.outline().args) if recipe else type(args)()
    return frozenset(name for name, value, _ in values_of(args) if value != getattr(shipped, name, None))


def _full_size(args: ScriptArgs, given: frozenset[str], recipe: Recipe) -> dict[str, str]:
    """The model of the family, where a recipe that ships names a built-in one and nobody said otherwise.

    A smoke test has the command that it is a test of, and NVIDIA's script knows no built-in model.
    """
    name = field_of(args, "model")
    if name is None or name in given or not recipe.file.is_relative_to(CONFIGS):
        return {}
    return {name: getattr(RECIPES[recipe.family.name].outline().args, name)} if is_built_in(getattr(args, name)) else {}


def _has_script(args: ScriptArgs, place: Place, *, spread: bool) -> bool:
    """Whether a place is known to have the script in its container.

    `spread`: somebody asked for several machines, or for a size of the layout: away from this machine that means the
    script. The job is told which engine it is, because its shape depends on it.
    """
    if place.runs_here or not args.SCRIPTS:
        return installed(args.SCRIPTS)
    return spread or bool(place.image and releases_in(place.image))


def _models(args: Any) -> dict[str, ModelFacts]:
    """Facts of every model that the arguments name, as far as they are known here."""
    found = {}
    for name, value, meaning in values_of(args):
        named = meaning.consumes == "checkpoint_hf" or meaning.role == "model"
        if named and isinstance(value, str) and (facts := facts_of(value)) is not None:
            found[name] = facts
    return found
