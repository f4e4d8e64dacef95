"""The frame of a job's typed values: engine, script, launch shape, and what a field of `args` means.

Plain data: no torch, no ModelOpt. The `args` of each algorithm are in scripts.args.
"""

from collections.abc import Iterator, Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any, ClassVar, Literal

#: auto: NVIDIA's script where the job's container has one, else ModelOpt on a Transformers model where that can be.
Engine = Literal["auto", "script", "hf"]
FlagStyle = Literal["hyphen", "underscore"]


@dataclass(frozen=True, kw_only=True)
class Meaning:
    """What a field of `args` stands for, on this side and on the script's."""

    doc: str
    flags: tuple[str, ...] = ()  # what scripts call it, newest release first; empty: as the field is called
    engine: Literal["any", "hf", "script"] = "any"  # who uses it
    consumes: str = ""  # the artifact type that it names
    accepts: tuple[str, ...] = ()  # other types that do as well
    chained: bool = False  # of several inputs, the one that a chain hands on
    required: bool = False  # nothing can be done without it
    produces: str = ""
    quantized: bool | None = None  # whether the checkpoint, read or written, must be quantized; None: either
    refuses: tuple[str, ...] = ()  # formats that a checkpoint must not be quantized in
    within: str = ""  # the checkpoint is in this folder of the output
    concrete: bool = False  # of a checkpoint with several iterations, the script must be given one
    in_place: bool = False  # an output that the script itself goes on with after a stop: never moved
    file: str = ""  # the mapping is written to this file in the run directory, and the flag gets its path
    aliases: Mapping[str, str] = field(
        default_factory=dict
    )  # values that releases without a list of choices call otherwise
    card: bool = False  # no flag: names a model card, whose flags come first
    into: tuple[str, ...] = ()  # no flag: dotted keys of that mapping
    optional: bool = False  # a tuning value that only some releases take: left out for the others, which is said


def doc(meaning: str, default: Any, **facts: Any) -> Any:
    """A dataclass field with a default and a one-line meaning; `facts` are those of Meaning."""
    metadata = {"doc": meaning, "meaning": Meaning(doc=meaning, **facts)}
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
    #: Those of its scripts that are one process all the same.
    ONE_PROCESS: ClassVar[frozenset[str]] = frozenset()
    #: Whether more ranks than the model is split into work on more data; else they would do the same again.
    DATA_PARALLEL: ClassVar[bool] = True
    #: Whether ModelOpt on a Transformers model can do it as well.
    HF_ENGINE: ClassVar[bool] = False


def meanings(args: Any) -> Iterator[tuple[Field[Any], Meaning]]:
    """The fields of an `args` class or object, each with its Meaning."""
    for one in fields(args):
        yield one, one.metadata["meaning"]


@dataclass(frozen=True, kw_only=True)
class ScriptSpec:
    """Which upstream script the script engine runs, and how it spells its flags."""

    path: str | None = doc("the script's file, or a checkout that holds it; null takes the container's own copy", None)
    flag_style: FlagStyle = doc("spelling of flags that cannot be read from the script: hyphen or underscore", "hyphen")
    release: str | None = doc("the release that the job will meet, such as 0.4; null takes the container's", None)
    silence_minutes: float = doc("stop a script that prints nothing for this long on rank 0; 0 waits forever", 60.0)


@dataclass(frozen=True, kw_only=True)
class Torchrun:
    """The launch shape, one source for every executor. The hf engine runs as one process."""

    nnodes: int = doc("machines", 1)
    nproc_per_node: int = doc("processes on each machine", 1)
    node_rank: int | None = doc("this machine's rank, where no scheduler sets it", None)
    master_addr: str | None = doc("rendezvous host, where no scheduler sets it", None)
    master_port: int | None = doc("rendezvous port, where no scheduler sets it", None)
