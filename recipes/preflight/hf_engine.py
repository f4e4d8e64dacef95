"""What can be wrong with a quantize job, as far as the submitting machine can tell."""

from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from importlib.metadata import version
from pathlib import Path
from typing import Any

from recipes.catalogue import RECIPES
from recipes.experiment.job import Job
from recipes.models import hub
from recipes.models.weights import folder_of, linear_shapes
from recipes.planner.disk import hidden_states_bytes
from recipes.planner.shares import undivided
from recipes.preflight.formats import made_formats
from recipes.preflight.paths import path_here
from recipes.preflight.references import faulty
from scripts.args.auto_quantize import AutoQuantizeArgs
from scripts.args.best import BestArgs
from scripts.args.meaning import AS_STORED, Role, field_of, values_of
from scripts.args.quantize import MeasuredArgs, QuantizeArgs
from scripts.checkpoints.causal import (
    AWQ_EXPERTS,
    FSDP_EXPERTS,
    GPTQ_EXPERTS,
    HESSIAN_EXPERTS,
    NO_AWQ,
    WHOLE_MODEL,
    architectures,
    failure,
    not_layerwise,
    refused,
    unbuilt,
    unscaled,
)
from scripts.checkpoints.figures import kind_of
from scripts.checkpoints.model import Trouble, local_model_problems, read_config
from scripts.checkpoints.quantization import MIXED
from scripts.data.texts import read, source_of
from scripts.engines.choice import is_built_in
from scripts.engines.hf import sharded
from scripts.engines.hf.layerwise import troubles
from scripts.engines.hf.mixture import refuse_different
from scripts.engines.hf.quantizers import (
    ATTENTION_KERNEL,
    NEEDS_CUDA,
    PACKED,
    UNPACKED,
    refuse_compress,
    refuse_weight_only,
)
from scripts.engines.hf.weights import fused_by_name
from scripts.engines.hf.workers import several_on_a_gpu
from scripts.formats import (
    CACHES,
    FITS_ANY_WIDTH,
    FORMATS,
    LEFT,
    MIXABLE,
    WEIGHTS_ALONE,
    format_error,
    format_problems,
    known_format,
    quantizes_attention,
)
from scripts.processor import gpus_here
from scripts.run.drawing import size_text
from scripts.run.files import expanded, is_there
from scripts.run.problems import JobError, Problem, Severity, near_miss, nearest
from scripts.run.registry import check
from scripts.run.secrets import masked, secrets_here
from scripts.serving.servers import able

_PARALLEL: tuple[Role, ...] = ("tp", "pp", "ep", "etp")
_PEEKED_ROWS = 200
#: Parts of the names of formats that ModelOpt's exporter cannot write of experts in one tensor.
_NOT_OF_EXPERTS = ("awq", "svdquant", "int4_blockwise")


def quantize_notes(job: Job) -> Iterator[str]:
    """What a user should know although nothing is wrong."""
    if isinstance(job.resolved, BestArgs):
        yield job.resolved.asked
    if passing := hidden_states_bytes(job):
        yield f"layer by layer, hidden states take up to {size_text(passing)} of the run folder until the job ends"
    if job.get("from_files"):
        yield "args.from_files writes args.export_dir alone; what is calibrated, scored or continued is left out"
    elif job.get("fsdp"):
        yield "args.fsdp shards the layers and writes args.export_dir alone; args.prompts are not continued"
    elif job.get("memory"):
        yield "args.memory goes layer by layer and writes args.export_dir alone; args.prompts are not continued"
    else:
        others = [name for name, _, meaning in values_of(job.resolved) if meaning.produces == "checkpoint_megatron"]
        unused = "".join(f"; args.{name} is not used" for name in others)
        yield f"engine hf writes args.modelopt_save_path and args.export_dir{unused}"
    sizes = [f"{job.key(role)}" for role in _PARALLEL if job.get(role, 1) != 1]
    if sizes:
        yield f"engine hf does not split a model; {', '.join(sizes)} of the recipe is not used"
    if job.processes < job.torchrun.nproc_per_node and not is_built_in(job.get("model")):
        fewer = f"engine hf is {job.processes} of the recipe's {job.torchrun.nproc_per_node} processes on a machine"
        yield f"{fewer}: {undivided(job.resolved) or 'no more GPUs are known there'}"
    if not job.online and not hub.is_local(job.args.hf_model_id) and hub.cached_model(job.args.hf_model_id) is None:
        yield f"args.hf_model_id={job.args.hf_model_id} is not on this machine; a run fetches it from the hub"
    elif not job.here and hub.is_local(job.args.hf_model_id) and not job.args.hf_model_id.startswith("tiny:"):
        yield f"args.hf_model_id={job.args.hf_model_id} is looked for where the job runs, and was not checked here"


@check("engine_has_no_parallelism", "script_unused", engines=("hf", "bridge"))
def unused_by_hf(job: Job) -> Iterator[Problem]:
    for role in _PARALLEL if job.engine == "hf" else ():
        value, name = job.get(role, 1), field_of(job.resolved, role)
        if value != 1 and name in job.given:
            cause = "each rank of the hf engine holds the whole model, or with args.fsdp a share of every layer"
            yield Problem(key=f"args.{name}", value=value, cause=cause, remedy=f"Use args.{name}=1.")
    if job.script.path is not None:
        cause = f"the {job.engine} engine runs ModelOpt itself, no script"
        remedy = "Use script.path=null."
        yield Problem(name="script_unused", key="script.path", value=job.script.path, cause=cause, remedy=remedy)


@check("world_size_not_one", engines=("hf",), applies=lambda job: not job.ranked)
def ranks_of_hf(job: Job) -> Iterator[Problem]:
    """Somebody asked for ranks, and one process has to see all samples."""
    shipped = RECIPES[job.recipe].outline().torchrun.nproc_per_node if job.recipe in RECIPES else 1
    asked = {"torchrun.nproc_per_node": job.torchrun.nproc_per_node, "executor.nodes": job.nodes}
    for key, value in asked.items():
        if value not in (1, shipped if key == "torchrun.nproc_per_node" else 1) and (cause := undivided(job.resolved)):
            yield Problem(key=key, value=value, cause=f"{cause}: it is one process", remedy=f"Use {key}=1.")


@check("no_experts", engines=("hf",), needs=("model",), applies=lambda job: job.get("every_expert"))
def experts_of_hf(job: Job) -> Iterator[Problem]:
    if job.model and job.model.experts == 0:
        cause = f"{job.get('model')} has no experts"
        yield Problem(key=job.key("every_expert") or "", value=True, cause=cause, remedy="Use false.")


@check("extra_args_unused", applies=lambda job: job.engine in ("hf", "bridge") or not job.resolved.TAKES_WORDS)
def words_without_script(job: Job) -> Iterator[Problem]:
    if job.extra_args:
        who = f"the {job.engine} engine" if job.engine else job.algorithm
        cause = f"they go to a script or program, and {who} runs none"
        words = masked(list(job.extra_args), secrets_here(job.profile.secrets))
        yield Problem(key="extra_args", value=words, cause=cause, remedy="Remove them.")


@check("unsupported_quant_recipe", "format_does_not_fit", engines=("hf", "bridge"), args=QuantizeArgs)
def format_of_hf(job: Job) -> Iterator[Problem]:
    value = job.resolved.export_quant_cfg
    error = format_error(value)
    if error:
        yield Problem(name="unsupported_quant_recipe", key="args.export_quant_cfg", value=value, cause=error)
        return
    yield from _misfits(job)


@check("format_does_not_fit", args=AutoQuantizeArgs)
def formats_of_search(job: Job) -> Iterator[Problem]:
    """Any layer may get any of them."""
    yield from _misfits(job)


def _misfits(job: Job) -> Iterator[Problem]:
    """Widths of the model that are no multiples of a format's blocks, where its files are here."""
    named = [(key, name) for key, name in made_formats(job) if name in FORMATS]
    folder = folder_of(job.resolved.hf_model_id) if named else None
    shapes = linear_shapes(folder) if folder else {}
    for key, name in named:
        for sentence in format_problems(name, shapes)[:1]:
            cause = f"{name} does not fit this model: {sentence}"
            yield Problem(name="format_does_not_fit", key=key, value=name, cause=cause, remedy=FITS_ANY_WIDTH)


@check("format_needs_cuda", engines=("hf",), args=QuantizeArgs, applies=lambda job: job.place.runs_here)
def kernels_of_hf(job: Job) -> Iterator[Problem]:
    value = job.resolved.export_quant_cfg
    if quantizes_attention(value) and (job.resolved.device == "cpu" or gpus_here() == 0):
        cause = f"{ATTENTION_KERNEL}, and the job runs on a CPU"
        yield Problem(key="args.export_quant_cfg", value=value, cause=cause, remedy=NEEDS_CUDA)


@check("format_not_exportable", engines=("hf",), applies=lambda job: job.resolved.export_dir)
def layout_of_export(job: Job) -> Iterator[Problem]:
    for key, value in made_formats(job):
        if (facts := known_format(value)) and not facts.exported:
            yield Problem(key=key, value=value, cause=UNPACKED, remedy=PACKED)


@check("format_not_exportable", engines=("hf",), needs=("model",), applies=lambda job: job.resolved.export_dir)
def exportable_by_hf(job: Job) -> Iterator[Problem]:
    model = job.model
    for key, value in made_formats(job) if model else ():
        assert model is not None
        if model.experts and any(word in value.lower() for word in _NOT_OF_EXPERTS):
            yield _of_experts(job, AWQ_EXPERTS, key, value)
        elif not refused(_config(job) or {}) and (said := failure(model.model_type, value, model.experts))[0]:
            versions = " and ".join(f"{name} {architectures()[name]}" for name in ("transformers", "modelopt"))
            cause = f"a small {model.model_type} in {value} was tried with {versions}: {said[0]}"
            named = job.resolved.hf_model_id
            yield Problem(key="args.hf_model_id", value=named, cause=cause, remedy=said[1], can_force=True)


def _of_experts(job: Job, cause: str, key: str, value: Any, remedy: str = NO_AWQ) -> Problem:
    """Transformers 4, which somewhere else may have, keeps experts apart."""
    shared = job.in_this_python and version("transformers") >= "5"
    severity: Severity = "error" if shared else "warning"
    return Problem(key=key, value=value, cause=cause, remedy=remedy, severity=severity)


@check("unsupported_model", engines=("hf",), needs=("model",), args=QuantizeArgs)
def columns_of_experts(job: Job) -> Iterator[Problem]:
    value = job.resolved.export_quant_cfg
    if job.model and job.model.experts and "gptq" in value.lower():
        yield _of_experts(job, GPTQ_EXPERTS, "args.export_quant_cfg", value)


@check("unservable_checkpoint", engines=("hf",), severity="warning", applies=lambda job: job.resolved.export_dir)
def servable(job: Job) -> Iterator[Problem]:
    named = [(key, known_format(name)) for key, name in made_formats(job)]
    made = [(key, facts) for key, facts in named if facts is not None and facts.exported]
    alone, small = job.get("weight_only", False), job.get("compress", False)
    words = [
        (alone and facts.quant_algo_weight_only) or (small and facts.quant_algo_compressed) or facts.quant_algo
        for _, facts in made
    ]
    words += [MIXED] if len(set(words)) > 1 else []
    if made and not set.intersection(*(set(able(word.upper())) for word in words)):
        cause = f"no server that is known here loads what it exports, {' with '.join(words)} of ModelOpt"
        remedy = "Use fp8, or look whether your server loads it."
        yield Problem(key=made[0][0], value=made[0][1].name, cause=cause, remedy=remedy)


@check(
    *("unsupported_quant_recipe", "contradiction", "format_does_not_fit", "unmatched_layers", "fused_layers_differ"),
    roles=("layer_formats",),
)
def layers_of_hf(job: Job) -> Iterator[Problem]:
    """Formats of some layers: named ones, of layers that are there, over a format that has a name."""
    args = job.resolved
    if job.engine != "hf" or not args.layer_formats:
        return
    key, folder = "args.layer_formats", folder_of(args.hf_model_id)
    shapes = linear_shapes(folder) if folder else {}
    for name in (one for one in args.layer_formats if one not in (*MIXABLE, LEFT)):
        cause, remedy = f"{name!r} is no format that some layers can have", nearest(name, [*MIXABLE, LEFT])
        yield Problem(name="unsupported_quant_recipe", key=key, value=name, cause=cause, remedy=remedy)
    unnamed = [] if args.export_quant_cfg in MIXABLE else [f"args.export_quant_cfg={args.export_quant_cfg}"]
    unnamed += [f"args.{one}=true" for one in ("weight_only", "compress", "from_files") if job.get(one)]
    for other in unnamed:
        cause, remedy = f"it is of named formats as they are, and not with {other}", "Leave one of them out."
        yield Problem(name="contradiction", key=key, value=args.layer_formats, cause=cause, remedy=remedy)
    for name, patterns in args.layer_formats.items():
        for one in patterns if shapes else ():
            given = {layer: shape for layer, shape in shapes.items() if fnmatchcase(layer, one)}
            if not given:
                cause, some = "it is the name of no linear layer of this model", f"They are such as {min(shapes)}."
                yield Problem(
                    name="unmatched_layers",
                    key=key,
                    value=one,
                    cause=cause,
                    remedy=near_miss(one, shapes, some),
                )
            for sentence in format_problems(name, given)[:1] if name in FORMATS else ():
                cause = f"{name} does not fit these layers: {sentence}"
                yield Problem(name="format_does_not_fit", key=key, value=one, cause=cause, remedy=FITS_ANY_WIDTH)
    try:  # on the node the model itself says which are fused
        refuse_different(fused_by_name(shapes), args.export_quant_cfg, args.layer_formats)
    except JobError as error:
        yield error.as_problem(key, args.layer_formats)


@check("weight_only_meaningless", "compress_unsupported", engines=("hf", "bridge"), args=QuantizeArgs)
def combinations_of_hf(job: Job) -> Iterator[Problem]:
    if format_error(job.resolved.export_quant_cfg):
        return
    args = job.resolved
    for key, asked, refuse in (
        ("weight_only", args.weight_only, refuse_weight_only),
        ("compress", args.compress, refuse_compress),
    ):
        if asked:
            try:
                refuse(args)
            except JobError as error:
                yield error.as_problem(f"args.{key}", True)


@check("contradiction", "world_size_not_one", engines=("hf",), roles=("processes",))
def processes_of_hf(job: Job) -> Iterator[Problem]:
    args = job.resolved
    if args.processes is None or args.processes < 2:
        return
    if not args.from_files:
        cause, remedy = "args.from_files alone converts files by processes", "Use null, or args.from_files=true."
        yield Problem(name="contradiction", key="args.processes", value=args.processes, cause=cause, remedy=remedy)
    elif args.device == "cuda":
        yield several_on_a_gpu(args.processes).as_problem("args.processes", args.processes)


@check("needs_calibration", "no_output", "compress_unsupported", engines=("hf",), roles=("from_files",))
def files_of_hf(job: Job) -> Iterator[Problem]:
    """From files, a format must follow from the weights, and the export is all that there is."""
    args, facts = job.resolved, known_format(job.resolved.export_quant_cfg)
    if not args.from_files or args.memory is not None:  # `layer_by_layer` speaks of both
        return
    if facts is not None and facts.exported and not facts.of_weights(args.weight_only):
        cause = f"{facts.name} is calibrated on text, and args.from_files reads weights alone"
        yield Problem(key="args.from_files", value=True, cause=cause, remedy=WEIGHTS_ALONE)
    cache = CACHES.get(args.export_kv_cache_quant)
    if cache and not cache.cast:
        cause = "the key/value cache is calibrated on text, and args.from_files reads weights alone"
        key, value = "args.export_kv_cache_quant", args.export_kv_cache_quant
        remedy = f"Use {key}={' or '.join(name for name, one in CACHES.items() if one.cast)} or none."
        yield Problem(name="needs_calibration", key=key, value=value, cause=cause, remedy=remedy)
    if args.compress:
        cause = "args.from_files writes the export alone, which is packed anyway"
        yield Problem(
            name="compress_unsupported", key="args.compress", value=True, cause=cause, remedy="Use args.compress=false."
        )
    if not args.export_dir:
        cause = "args.from_files writes nothing else"
        yield Problem(
            name="no_output", key="args.export_dir", value=None, cause=cause, remedy="Set args.export_dir to a folder."
        )


@check("layerwise_unsupported", "wrong_value", "no_output", engines=("hf",), roles=("memory",))
def layer_by_layer(job: Job) -> Iterator[Problem]:
    """Layer by layer, each must follow from the one before it, and the export is all that there is."""
    if job.resolved.memory is None or format_error(job.resolved.export_quant_cfg):
        return
    yield from troubles(job.resolved)
    yield from _in_layers(job)
    facts = known_format(job.resolved.export_quant_cfg)
    if job.model and job.model.experts and facts and facts.method == "local_hessian":
        yield _of_experts(job, HESSIAN_EXPERTS, "args.export_quant_cfg", facts.name)


@check("fsdp_unsupported", "layerwise_unsupported", "no_output", engines=("hf",), roles=("fsdp",))
def sharded_layers(job: Job) -> Iterator[Problem]:
    """Over ranks that each have a share of every layer, and the export is all that there is."""
    if job.resolved.fsdp and not format_error(job.resolved.export_quant_cfg):
        yield from sharded.troubles(job.resolved, job.layout.world)
        yield from _in_layers(job) if job.resolved.memory is None else ()
        if job.model and job.model.experts:
            yield _of_experts(job, FSDP_EXPERTS, "args.fsdp", True, WHOLE_MODEL)


def _in_layers(job: Job) -> Iterator[Problem]:
    config = _config(job)
    if config and (found := not_layerwise(kind_of(config))) and "hf_model_id" not in job.promised:
        name, cause, remedy = found
        yield Problem(name=name, key="args.hf_model_id", value=job.resolved.hf_model_id, cause=cause, remedy=remedy)


@check("unknown_model", engines=("hf", "bridge"), args=MeasuredArgs)
def model_of_hf(job: Job) -> Iterator[Problem]:
    name = job.resolved.hf_model_id
    if "hf_model_id" in job.promised or "args.hf_model_id" in faulty(job):
        return
    if hub.is_local(name):
        folder = name if job.here or name.startswith("tiny:") else path_here(job, name)
        if folder is None or not (job.here or is_there(folder)):
            return  # a folder over there; `quantize_notes` says that it was not looked at
        found: list[Trouble | None] = [*local_model_problems(str(folder))]
        if any(map(job.get, AS_STORED)) and not found and not name.startswith("tiny:"):
            found = [_as_it_is(expanded(folder))]
    else:  # from here, a hub's answer says nothing about another machine's network and tokens
        found = [hub.model_problem(name, online=job.online and job.here)]
    for problem, cause, remedy in filter(None, found):
        yield Problem(name=problem, key="args.hf_model_id", value=name, cause=cause, remedy=remedy)


def _as_it_is(folder: Path) -> Trouble | None:
    """What is wrong with weights that are read as they are stored, without a library that unpacks them."""
    try:
        return unscaled(folder)
    except JobError as error:
        return error.name, error.cause, error.remedy


def _config(job: Job) -> Mapping[str, Any] | None:
    """config.json of the model, where it is here or known of the hub."""
    name = job.resolved.hf_model_id
    folder = folder_of(name)
    return read_config(folder) if folder else hub.published().configs.get(name)


@check("unsupported_model", "unknown_model", "impossible_config", engines=("hf",))
def kind_of_hf(job: Job) -> Iterator[Problem]:
    """Another machine may have another Transformers; what that one does not build is then a guess."""
    name, config = job.resolved.hf_model_id, _config(job)
    certain = refused(config) if config else None
    guess = unbuilt(config) if config and not certain else None
    by_names = guess and job.get("from_files")  # which needs no class of the model
    severity: Severity = "error" if certain or (job.in_this_python and not by_names) else "warning"
    if (found := certain or guess) and "hf_model_id" not in job.promised:
        key, force = "args.hf_model_id", guess is not None
        yield Problem(
            name=found[0], key=key, value=name, cause=found[1], remedy=found[2], severity=severity, can_force=force
        )


@check("too_little_text", engines=("hf", "bridge"), args=MeasuredArgs)
def data_of_hf(job: Job) -> Iterator[Problem]:
    if not job.here or job.get("from_files"):  # which reads no text
        return
    for key, value in (("calib_dataset", job.resolved.calib_dataset), ("eval_dataset", job.resolved.eval_dataset)):
        if value is None and (key == "eval_dataset" or job.args.hf_model_id.startswith("tiny:")):
            continue
        if key in job.promised or f"args.{key}" in faulty(job):
            continue
        try:
            source = source_of(value, job.args.hf_model_id)
            if source.kind in ("jsonl", "text"):
                rows = sum(
                    1
                    for _, text in zip(range(_PEEKED_ROWS), read(source, job.args.calib_text_key), strict=False)
                    if text.strip()
                )
                needed = 2 if key == "calib_dataset" and job.args.eval_dataset is None and job.args.eval_size else 1
                if rows < needed:
                    raise JobError(
                        "too_little_text", f"{source.place} holds {rows} texts; {needed} are needed.", "Give more text."
                    )
            elif source.kind == "hub":
                hub.require_dataset(source.place, online=job.online)
        except JobError as error:
            yield error.as_problem(f"args.{key}", value)
