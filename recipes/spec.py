"""What is about to be submitted: a recipe's typed values, where they run, and the directory they get."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.errors import JobError
from scripts.late import resolve, run_tag
from scripts.problems import Problem
from scripts.types import ScriptSpec, Torchrun

if TYPE_CHECKING:
    import nemo_run as run

    from executors.place import Capabilities, Place, Profile

#: Algorithms whose entrypoint takes part in torchrun; the hf engine is one process.
_RANKED = frozenset({"probe"})


@dataclass(frozen=True, kw_only=True)
class Shape:
    """How many machines and processes a job gets; one source, torchrun.nnodes and torchrun.nproc_per_node."""

    nodes: int
    processes: int  # on each node
    torchrun: bool  # nodes x processes ranks; else one process on the first node


@dataclass(frozen=True, kw_only=True)
class Spec:
    """A job about to be submitted: its values, where it runs, and the run directory it would get."""

    recipe: str
    algorithm: str
    args: Any
    resolved: Any
    script: ScriptSpec
    torchrun: Torchrun
    extra_args: list[str]
    profile: "Profile"
    capabilities: "Capabilities"
    shape: Shape
    run_dir: Path
    online: bool

    @property
    def here(self) -> bool:
        """Whether the job sees this machine's files under the paths they have here."""
        return self.capabilities.local_files


def spec_of(
    partial: "run.Partial[Any]", place: "Place", overrides: Mapping[str, str], run_id: str, *, online: bool
) -> tuple[Spec | None, list[Problem]]:
    """Build the typed values of `partial` and resolve its late values as they will be on the node."""
    from fiddle import build

    args, torchrun = build(partial.args), build(partial.torchrun)
    run_dir = Path(place.run_root()) / run_id
    algorithm = partial.__fn_or_cls__.__name__
    try:
        resolved = type(args)(**resolve(asdict(args), run_dir=run_dir, run_tag=tag_of(args)))
    except JobError as error:
        return None, [Problem(name=error.name, key="args", value=None, cause=error.cause, remedy=error.remedy)]
    spec = Spec(
        recipe=partial.recipe,
        algorithm=algorithm,
        args=args,
        resolved=resolved,
        script=build(partial.script),
        torchrun=torchrun,
        extra_args=list(partial.extra_args),
        profile=place.profile,
        capabilities=place.capabilities,
        shape=_shape(algorithm, torchrun, place.profile),
        run_dir=run_dir,
        online=online,
    )
    return spec, list(_contradiction(torchrun, overrides))


def tag_of(args: Any) -> str:
    """What `${run_tag}` stands for; empty for an algorithm whose outputs are not named after a model."""
    model, variant = getattr(args, "hf_model_id", None), getattr(args, "export_quant_cfg", None)
    return run_tag(model, variant) if model and variant else ""


def _shape(algorithm: str, torchrun: Torchrun, profile: "Profile") -> Shape:
    # The recipe's value wins over a site's default; the default of both is one machine.
    nodes = torchrun.nnodes if torchrun.nnodes != 1 else (profile.nodes or 1)
    ranked = algorithm in _RANKED and nodes * torchrun.nproc_per_node > 1
    return Shape(nodes=nodes, processes=torchrun.nproc_per_node if ranked else 1, torchrun=ranked)


def _contradiction(torchrun: Torchrun, overrides: Mapping[str, str]) -> list[Problem]:
    given = overrides.get("nodes")
    if given is None or torchrun.nnodes == 1 or given == str(torchrun.nnodes):
        return []
    cause = f"torchrun.nnodes={torchrun.nnodes} says otherwise"
    remedy = "Both set the number of machines; give one of them."
    return [Problem(name="contradiction", key="executor.nodes", value=given, cause=cause, remedy=remedy)]
