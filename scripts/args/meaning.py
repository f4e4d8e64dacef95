"""The frame of a job's typed values: engine, script, launch shape, and what a field of `args` means.

Plain data: no torch, no ModelOpt. The `args` of each algorithm are in scripts.args.
"""

import functools
from collections.abc import Iterator, Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any, ClassVar, Literal

#: auto: NVIDIA's script where the job's container has one, else ModelOpt on a Transformers model where that can be.
Engine = Literal["auto", "script", "hf", "bridge"]
#: Those whose ranks share a model, in Megatron.
MEGATRON = ("script", "bridge")
#: cuda: as the libraries are. cpu: Megatron without a GPU, with stand-ins for what needs one (engines/cpu_runtime).
Runtime = Literal["cuda", "cpu"]
FlagStyle = Literal["hyphen", "underscore"]
#: What the ranks of a job do, as far as memory and time are concerned.
#: calibration: forward passes with quantizers that watch. scoring: the same with Minitron's importance hooks.
#: training: forward, backward, optimizer. generation: prompts and continuations. transfer: weights in, weights out.
Work = Literal["calibration", "scoring", "training", "generation", "transfer"]

#: What a field is to the rest of the system. No class has a role twice, but for `data`, `output`, `checkpoint` and
#: `pruned_size`; of several the first that is set counts.
Role = Literal[
    "model", "teacher", "reference", "tokenizer", "weights", "checkpoint", "teacher_checkpoint", "adapter",
    "data", "eval_data", "baseline", "config", "prompts", "output",
    "format", "formats", "layer_formats", "effective_bits", "format_recipe", "unquantized", "kv_format", "precision",
    "samples", "eval_samples", "limit", "mock_data", "sequence", "calib_sequence",
    "batch", "micro_batch", "global_batch", "iterations", "train_samples", "new_tokens",
    "learning_rate", "min_learning_rate", "warmup", "eval_interval", "save_interval",
    "checkpoints_kept", "stop_minutes",
    "tp", "pp", "cp", "ep", "etp", "first_stage", "last_stage",
    "sequence_parallel", "recompute", "recompute_layers", "distributed_optimizer",
    "command", "every_expert", "weight_only", "compress", "file_precision", "bf16", "device", "cpu", "server_gpus",
    "draft_heads", "pruned_sizes", "pruned_size", "unpruned", "width_share", "depth_share",
    "kept_memory", "kept_parameters", "kept_active_parameters", "remote_code", "wandb", "gate", "from_files",
    "memory", "processes", "fsdp",
]  # fmt: skip
#: Of these ways to quantize, which take weights as files hold them and write the export alone.
AS_STORED: tuple[Role, ...] = ("from_files", "memory", "fsdp")


@dataclass(frozen=True, kw_only=True)
class Meaning:
    """What a field of `args` stands for, on this side and on the script's."""

    doc: str
    role: Role | None = None  # what it is to checks, planner, chains, command line and engines, whatever it is called
    path: Literal["", "read", "write"] = ""  # a path that is no artifact's: it must exist, or it is made
    least: float | None = None  # of a number; so are the next three
    above: float | None = None
    most: float | None = None
    below: float | None = None
    flags: tuple[str, ...] = ()  # what scripts call it, newest release first; empty: as the field is called
    #: Who uses it. script: the bridge engine as well, which takes what NVIDIA's scripts take; nvidia: those scripts
    #: alone; ours: no script.
    engine: Literal["any", "hf", "script", "nvidia", "ours"] = "any"
    consumes: str = ""  # the artifact type that it names
    accepts: tuple[str, ...] = ()  # other types that do as well
    chained: bool = False  # of several inputs, the one that a chain hands on
    required: bool = False  # nothing can be done without it
    produces: str = ""
    quantized: bool | None = None  # whether the checkpoint, read or written, must be quantized; None: either
    refuses: tuple[str, ...] = ()  # formats that a checkpoint must not be quantized in
    unless: tuple[Role, ...] = ()  # not written where one of those is set
    within: str = ""  # the checkpoint is in this folder of the output
    concrete: bool = False  # of a checkpoint with several iterations, the script must be given one
    in_place: bool = False  # an output that the script itself goes on with after a stop: never moved
    file: str = ""  # the mapping is written to this file in the run directory, and the flag gets its path
    #: Values that releases without a list of choices call otherwise.
    aliases: Mapping[str, str] = field(default_factory=dict)
    card: bool = False  # no flag: names a model card, whose flags come first
    into: tuple[str, ...] = ()  # no flag: dotted keys of that mapping
    optional: bool = False  # a tuning value that only some releases take: left out for the others, which is said

    def used_by(self, engine: str | None) -> bool:
        """Whether an engine uses it; None: an algorithm that has no choice of engine, and takes what scripts take."""
        users = {"hf": ("any", "hf", "ours"), "bridge": ("any", "script", "ours")}
        return self.engine in users.get(engine or "script", ("any", "script", "nvidia"))

    @property
    def names_a_model(self) -> bool:
        """Whether it names a whole model: a folder, or a repository of the hub."""
        return not (self.produces or self.card) and (
            self.consumes == "checkpoint_hf" or self.role in ("model", "reference")
        )

    @property
    def names(self) -> Literal["", "model", "data", "path", "output"]:
        """What its text names: a model or data of the hub or a disk, or a path alone, which is read or written."""
        if self.produces or self.path == "write":
            return "output"
        if self.names_a_model or self.role == "tokenizer":
            return "model"
        if self.role in ("data", "eval_data") and not self.path and self.consumes != "binidx":
            return "data"
        return "path" if self.consumes or self.path == "read" else ""

    @property
    def reads(self) -> bool:
        """Whether it may name something on a disk that is read."""
        return self.names in ("model", "data", "path")

    def violation(self, value: Any) -> str:
        """What is wrong with a number, in a sentence; empty where it may be so, or is none."""
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return ""
        bounds = (self.least, self.above, self.most, self.below)
        if bounds == (None, None, None, None):
            return "" if value >= 0 else "it counts or measures something: at least 0 is needed"
        holds = (self.least is None or value >= self.least, self.above is None or value > self.above)
        if all((*holds, self.most is None or value <= self.most, self.below is None or value < self.below)):
            return ""  # NaN is none of these
        if self.below is not None:
            return f"it is a part: from {self.least:g} to below {self.below:g}"
        if self.most is not None:
            begin = f"above {self.above:g}, and at most" if self.least is None else f"from {self.least:g} to"
            return f"it is a number {begin} {self.most:g}"
        return (
            f"at least {self.least:g} is needed" if self.above is None else f"a number above {self.above:g} is expected"
        )


_AT_LEAST_ONE: tuple[Role, ...] = (
    *("samples", "sequence", "calib_sequence", "batch", "micro_batch", "global_batch", "iterations", "train_samples"),
    *("new_tokens", "first_stage", "last_stage", "server_gpus", "tp", "pp", "cp", "ep", "etp", "processes"),
)
_ABOVE_ZERO: tuple[Role, ...] = ("kept_parameters", "kept_active_parameters", "kept_memory")
_SHARES: tuple[Role, ...] = ("width_share", "depth_share")
#: What a number can be because of its role, where its field says nothing else.
_LIMITS: Mapping[Role | None, Mapping[str, float]] = {
    **{role: {"least": 1} for role in _AT_LEAST_ONE},
    "eval_samples": {"least": 0},
    "min_learning_rate": {"least": 0},
    **{role: {"above": 0} for role in _ABOVE_ZERO},
    "learning_rate": {"above": 0, "most": 1},
    **{role: {"least": 0, "below": 1} for role in _SHARES},
}


def doc(meaning: str, default: Any, **facts: Any) -> Any:
    """A dataclass field with a default and a one-line meaning; `facts` are those of Meaning, over those of its role."""
    limits = _LIMITS.get(facts.get("role"), {})
    metadata = {"doc": meaning, "meaning": Meaning(doc=meaning, **{**limits, **facts})}
    if isinstance(default, (list, dict)):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class ScriptArgs:
    """Base of every `args` class that a script can take; a field is a flag of that script, by its newest name."""

    #: The scripts that carry it out, as configs/upstream/flags.json calls them; the newest first.
    SCRIPTS: ClassVar[tuple[str, ...]] = ()
    #: By script, the words before its flags: a subcommand.
    COMMANDS: ClassVar[dict[str, tuple[str, ...]]] = {}
    #: Whether its processes are ranks of torchrun; else it is one process on the first machine.
    RANKED: ClassVar[bool] = True
    #: Whether there is a program that words after `--` can go to.
    TAKES_WORDS: ClassVar[bool] = True
    #: Those of its scripts that are one process all the same.
    ONE_PROCESS: ClassVar[frozenset[str]] = frozenset()
    #: Whether more ranks than the model is split into work on more data; else they would do the same again.
    DATA_PARALLEL: ClassVar[bool] = True
    #: Whether ModelOpt on a Transformers model can do it as well.
    HF_ENGINE: ClassVar[bool] = False
    #: What the bridge engine does of it, as `module:function`; empty: nothing.
    BRIDGE: ClassVar[str] = ""
    #: The module that another tool is imported as, and the extra of pyproject.toml that brings it.
    TOOL: ClassVar[tuple[str, str] | None] = None
    #: Whether the libraries do it on Transformer Engine's layers alone.
    TE_LAYERS: ClassVar[bool] = False
    #: The recipe that exports the quantized checkpoint that it leaves; empty: it leaves none.
    EXPORTER: ClassVar[str] = ""
    #: Of the arguments with these roles one must say what to begin with; else the script takes random weights.
    BEGINS: ClassVar[tuple[Role, ...]] = ()
    #: What its ranks do; None: nothing on a GPU, or nothing that can be told.
    WORK: ClassVar[Work | None] = None
    #: Models that the script itself names, by role.
    MODELS: ClassVar[dict[Role, str]] = {}
    #: Whether samples are images with questions.
    IMAGES: ClassVar[bool] = False
    #: The word of `extra_args` without which each rank holds the whole optimizer; empty: it is always spread.
    SPREADS_OPTIMIZER: ClassVar[str] = ""
    #: Whether the vocabulary is filled up to what tensor parallelism needs.
    PADS_VOCABULARY: ClassVar[bool] = False
    #: Whether the script refuses more tokens in a sequence than its model has positions.
    REFUSES_LONG: ClassVar[bool] = False

    def own(self) -> dict[Role, Any]:
        """What the script does in a role that no argument has."""
        return {}

    def makes(self) -> tuple[str, ...]:
        """The formats that it may quantize to, by the names that it is asked for with."""
        named = value_of(self, "format")
        return (named,) if isinstance(named, str) else ()

    def variant(self) -> str:
        """What is made of the model, in a word of which names of folders are made."""
        return str(value_of(self, "format") or value_of(self, "format_recipe", ""))

    def work(self) -> dict[str, Any]:
        """Fields of `recipes.planner.workload.Workload` that no role tells."""
        return {}


def meanings(args: Any) -> Iterator[tuple[Field[Any], Meaning]]:
    """The fields of an `args` class or object, each with its Meaning."""
    for one in fields(args):
        yield one, one.metadata["meaning"]


def values_of(args: Any) -> Iterator[tuple[str, Any, Meaning]]:
    """The fields of an `args` object: name, value, Meaning."""
    for one, meaning in meanings(args):
        yield one.name, getattr(args, one.name), meaning


def fields_of(args: Any, role: Role) -> list[str]:
    """The names of the fields that have a role in an `args` class or object; mostly one, or none."""
    return _by_role(args if isinstance(args, type) else type(args)).get(role, [])


@functools.cache
def _by_role(args: type) -> dict[Role, list[str]]:
    """A job is asked for roles hundreds of times before it is submitted."""
    found: dict[Role, list[str]] = {}
    for one, meaning in meanings(args):
        if meaning.role is not None:
            found.setdefault(meaning.role, []).append(one.name)
    return found


def field_of(args: Any, role: Role) -> str | None:
    """The field that has a role: of several the first that is set, else the first; None where no field has it."""
    names = fields_of(args, role)
    return next((name for name in names if getattr(args, name) is not None), names[0] if names else None)


def value_of(args: Any, role: Role, default: Any = None) -> Any:
    """What `args` says in a role; `default` where no field has it, or it is null."""
    name = field_of(args, role)
    value = None if name is None else getattr(args, name)
    return default if value is None else value


@dataclass(frozen=True, kw_only=True)
class ScriptSpec:
    """Which upstream script the script engine runs, and how it spells its flags."""

    path: str | None = doc("the script's file, or a checkout that holds it; null takes the container's own copy", None)
    flag_style: FlagStyle = doc("spelling of flags that cannot be read from the script: hyphen or underscore", "hyphen")
    release: str | None = doc("the release that the job will meet, such as 0.4; null takes the container's", None)
    runtime: Runtime = doc("cpu: without a GPU, slowly, through stand-ins for CUDA; also of the bridge engine", "cuda")
    silence_minutes: float = doc("stop a script that prints nothing for this long on rank 0; 0 waits forever", 60.0)


@dataclass(frozen=True, kw_only=True)
class Torchrun:
    """The launch shape, one source for every executor. Processes of the hf engine share the samples."""

    nnodes: int = doc("machines", 1)
    nproc_per_node: int = doc("processes on each machine", 1)
    node_rank: int | None = doc("null: every executor tells a machine its rank", None)
    master_addr: str | None = doc("null: every executor says where ranks meet", None)
    master_port: int | None = doc("null: every executor says where ranks meet", None)
