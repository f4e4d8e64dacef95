"""How many processes of the hf engine share the samples of a job, and what keeps them from it.

Each holds the whole model, or with args.fsdp a share of every layer. What a recipe ships with is the number of GPUs
that it is made for: without another word there is a process for each GPU that is known or to be expected, and one where
there is none.
"""

from executors.base import Place
from recipes.planner.gpus import gpus_per_node
from scripts.args.meaning import ScriptArgs, Torchrun, field_of, value_of
from scripts.engines.choice import SEARCH, is_built_in
from scripts.engines.hf.calibrate import sharing_of
from scripts.formats import CACHES, FORMATS, formats_named
from scripts.processor import gpus_here


def undivided(args: ScriptArgs) -> str:
    """Why one process has to see all samples; empty where they can be shared, or the node alone can tell."""
    cache = CACHES.get(value_of(args, "kv_format", ""))
    if value_of(args, "from_files"):
        return "args.from_files reads weights, and no samples"
    if value_of(args, "layer_formats"):
        return "formats of some layers are calibrated one after the other"
    if value_of(args, "memory"):
        return "args.memory goes layer by layer in one process"
    if field_of(args, "formats"):
        return SEARCH
    for facts in formats_named(args.makes()):
        if sharing_of(facts.method) != "mixed":
            return f"{facts.name} is calibrated by {facts.method}, which takes no maxima over samples"
    if cache is not None and cache.affine:
        return "the bias of an affine key/value cache is a running mean over the samples"
    return ""


def processes_of(args: ScriptArgs, torchrun: Torchrun, place: Place, shipped: Torchrun | None) -> int:
    """On each machine. `shipped`: what the recipe says itself."""
    asked = torchrun.nproc_per_node
    if shipped is None or asked != shipped.nproc_per_node:
        return asked
    on_cpu, small = value_of(args, "device") == "cpu", is_built_in(value_of(args, "model"))
    if on_cpu or small or undivided(args) or value_of(args, "format") not in FORMATS:
        return 1
    if place.runs_here:
        return min(asked, gpus_here() or 1)
    return min(asked, gpus_per_node(place) or (asked if place.expects_gpus else 1))
