"""The ModelOpt configuration for the arguments, and quantizing, compressing and summing up a model."""

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import redirect_stdout
from io import StringIO
from typing import TYPE_CHECKING, Any

from scripts.args.quantize import QuantizeArgs
from scripts.checkpoints.causal import AWQ_EXPERTS, GPTQ_EXPERTS, NO_AWQ, NOT_EXPORTED, OWN_LINEARS, PLAIN_LINEARS
from scripts.engines.hf.load import first_line
from scripts.engines.hf.mixture import Loop, calibrate_mixed, mixed_config
from scripts.engines.hf.nvfp4 import cpu_kernels
from scripts.engines.hf.packing import replaced
from scripts.engines.hf.reference import joined_names, quantized_linears
from scripts.formats import CACHES, LEFT, FormatRef, known_format, resolve_format
from scripts.run.problems import JobError

if TYPE_CHECKING:
    from torch import nn

NO_INPUTS = {"quantizer_name": "*input_quantizer*", "enable": False}
#: Said where a job is submitted too.
UNPACKED = "ModelOpt's exporter has no layout for these numbers"
PACKED = "Use mxfp8 or mxfp4, or args.export_dir=null and the ModelOpt checkpoint."
ATTENTION_KERNEL = "ModelOpt quantizes what attention multiplies values with in a Triton kernel only"
NEEDS_CUDA = "Use a machine with a CUDA GPU (device=cuda), or another format."
_PACKED_ANYWAY = "Set args.compress=false; the export is packed anyway."


def _base_config(ref: FormatRef, weight_only: bool) -> dict[str, Any]:
    import modelopt.torch.quantization as mtq

    facts = known_format(ref.value)
    own = ((weight_only and facts.config_weight_only) or facts.config) if facts else ref.value
    config = copy.deepcopy(getattr(mtq, own)) if own.endswith("_CFG") else _of_recipe(own)
    return config | ({"algorithm": copy.deepcopy(facts.algorithm)} if facts and facts.algorithm else {})


def _of_recipe(name: str) -> dict[str, Any]:
    from modelopt.recipe import load_recipe
    from pydantic import ValidationError
    from yaml import YAMLError

    try:
        recipe = load_recipe(name)
    except (ValidationError, ValueError, KeyError, TypeError, OSError, YAMLError) as error:
        cause = f"ModelOpt refuses the recipe {name}: " + str(error).strip().replace("\n", " ")[:300]
        raise JobError("unsupported_quant_recipe", cause, "Correct the file.") from error
    section = getattr(recipe, "quantize", None)
    if section is None or type(recipe).__name__ != "ModelOptPTQRecipe":
        cause = f"{name} is a {type(recipe).__name__}, not a recipe for post-training quantization."
        raise JobError("unsupported_quant_recipe", cause, "Take one from general/ptq.")
    config = dict(section.model_dump())
    for each in config["algorithm"] if isinstance(config["algorithm"], list) else [config["algorithm"]]:
        if isinstance(each, dict) and isinstance(layerwise := each.get("layerwise"), dict):
            layerwise["checkpoint_dir"] = None  # a folder that all jobs share: each would go on from another's layers
    return config


def refuse_weight_only(args: QuantizeArgs) -> None:
    """Raise JobError `weight_only_meaningless` where leaving activations alone makes no format of its own."""
    facts = known_format(args.export_quant_cfg)
    if not args.weight_only or facts is None or facts.weight_only:
        return
    if len(facts.numbers) > 1:
        cause = f"weight_only with {facts.name} leaves 4-bit weights rounded twice, labelled as if inputs were FP8."
        raise JobError("weight_only_meaningless", cause, "Use int4_awq, which is the same without FP8 inputs.")
    cause = f"weight_only with {facts.name} leaves its weights alone, which no server takes for what they are then."
    alone = "w4a16_nvfp4" if facts.scales["weight_scale"][0] == "F8_E4M3" else "mxfp4 with args.weight_only=true"
    raise JobError("weight_only_meaningless", cause, f"Use {alone}.")


def cache_config(name: str) -> dict[str, Any]:
    """The ModelOpt quantization config of a named format of the key/value cache."""
    import modelopt.torch.quantization as mtq

    config: dict[str, Any] = copy.deepcopy(getattr(mtq, CACHES[name].config))
    for rule in config["quant_cfg"] if CACHES[name].cast else []:
        rule["cfg"]["use_constant_amax"] = True
    return config


def build_config(args: QuantizeArgs) -> dict[str, Any]:
    """The ModelOpt quantization config for format, weight_only and key/value cache.

    Raises JobError: unsupported_quant_recipe, weight_only_meaningless.
    """
    ref = resolve_format(args.export_quant_cfg)
    refuse_weight_only(args)
    config = _base_config(ref, args.weight_only)
    if args.layer_formats:
        others = {name: _base_config(resolve_format(name), False) for name in args.layer_formats if name != LEFT}
        config = mixed_config({args.export_quant_cfg: config, **others}, args.layer_formats)
    rules = list(config["quant_cfg"])
    if args.weight_only:
        rules.append(dict(NO_INPUTS))
    if args.export_kv_cache_quant != "none":
        rules += cache_config(args.export_kv_cache_quant)["quant_cfg"]
    config["quant_cfg"] = rules
    return config


def algorithm_name(config: dict[str, Any]) -> str | None:
    """The calibration method of a config: 'max', 'smoothquant', 'awq_lite', ...; None when it calibrates nothing.

    A list of methods gives their names joined by '+', which no calibration loop takes for a known one.
    """
    algorithm = config.get("algorithm")
    if isinstance(algorithm, list):
        return "+".join(str(algorithm_name({"algorithm": entry})) for entry in algorithm)
    if isinstance(algorithm, dict):
        method = algorithm.get("method")
        layerwise = algorithm.get("layerwise") or {}
        return f"{method}+layerwise" if isinstance(layerwise, dict) and layerwise.get("enable") else method
    return None if algorithm is None else str(getattr(algorithm, "method", algorithm))


def quantize(
    model: "nn.Module",
    config: dict[str, Any],
    loop: "Callable[[nn.Module], None] | None",
    loop_of: "Callable[[str | None], Loop] | None" = None,
) -> "nn.Module":
    """Insert and calibrate quantizers in place; `loop` from calibrate.calibration_loop, None for weights alone.

    `loop_of` makes one for each algorithm of a configuration of several formats.
    Raises JobError('nothing_quantized') when no weight matches the format.
    """
    import modelopt.torch.quantization as mtq
    from torch.nn import functional

    # ModelOpt's expert layers leave their own linear function behind where they fail.
    with cpu_kernels(), replaced([functional], "linear", functional.linear):
        if loop_of is not None and "steps" in config:
            mtq.quantize(model, {"quant_cfg": config["quant_cfg"], "algorithm": None})
            calibrate_mixed(model, config, lambda one: loop_of(algorithm_name({"algorithm": one})))
        else:
            mtq.quantize(model, config, loop)
    settle(model)
    return model


def settle(model: "nn.Module") -> None:
    """What is left to do once scales are there. Raises JobError('nothing_quantized')."""
    _require_weights(model)
    scale_zeros(model)


def scale_zeros(model: "nn.Module") -> None:
    """Give what is zero everywhere a positive scale: with the scale 0 that ModelOpt takes, 0 / 0 is computed.

    That of a weight is far below those that an export may merge it with.
    """
    import torch
    from modelopt.torch.quantization.nn import TensorQuantizer

    for name, module in model.named_modules():
        amax = module.amax if isinstance(module, TensorQuantizer) and module.is_enabled else None
        if amax is not None and bool((amax == 0).any()):
            module.amax = torch.where(amax == 0, 1e-6 if "weight_quantizer" in name else 1.0, amax)


def _require_weights(model: "nn.Module") -> None:
    if not any(kind and "weight" in kind for _, kind in placed(model)):
        raise _nothing_quantized()


def _nothing_quantized() -> JobError:
    return JobError("nothing_quantized", "The format matches no weight of this model.", "Take another format.")


def rehearse(model: "nn.Module", config: dict[str, Any], *, exported: bool, on_cpu: bool = False) -> None:
    """Insert the quantizers into a model without weights, which that spends: what comes of it is known before any work.

    `exported`: a Hugging Face checkpoint is to be written. Raises JobError: nothing_quantized, unsupported_model,
    format_not_exportable, format_needs_cuda.
    """
    import modelopt.torch.quantization as mtq
    from modelopt.torch.export.layer_utils import is_quantlinear
    from transformers.pytorch_utils import Conv1D

    if any(isinstance(module, Conv1D) for module in model.modules()):
        raise JobError("unsupported_model", f"{type(model).__name__}: {OWN_LINEARS['gpt2']}.", PLAIN_LINEARS)
    try:
        with redirect_stdout(StringIO()):
            mtq.quantize(model, {"quant_cfg": config["quant_cfg"], "algorithm": None})
    except JobError:
        raise
    except Exception as error:  # of ModelOpt's plugins, which take an architecture's own layers apart
        if "nothing would be quantized" in str(error):
            raise _nothing_quantized() from error
        cause = f"ModelOpt cannot insert its quantizers into {type(model).__name__}: {first_line(error)}."
        raise JobError("unsupported_model", cause, "Name another model; a newer ModelOpt may take this one.") from error
    _require_weights(model)
    if on_cpu and any(kind and name.endswith("p_bmm_quantizer") for name, kind in placed(model)):
        raise JobError("format_needs_cuda", f"{ATTENTION_KERNEL}.", NEEDS_CUDA)
    if exported:
        _refuse_unpacked(model)
    lost = [
        f"{name} is a {type(module).__name__}"
        for name, module in quantized_linears(model)[0].items()
        if not is_quantlinear(module)
    ]
    if exported and lost:
        cause = f"{lost[0]}, which ModelOpt's exporter does not pack."
        raise JobError("format_not_exportable", cause, NOT_EXPORTED)
    method = algorithm_name(config) or ""
    experts = [kind for name, kind in placed(model) if kind and "_weight_quantizer" in name]  # each one's, or all their
    if exported and experts and ("awq" in method or "svdquant" in method or any("INT4" in kind for kind in experts)):
        raise JobError("format_not_exportable", f"{AWQ_EXPERTS}.", NO_AWQ)
    if experts and "gptq" in method:
        raise JobError("unsupported_model", f"{GPTQ_EXPERTS}.", NO_AWQ)
    if exported:
        _refuse_unnamed(model)


def _refuse_unpacked(model: "nn.Module") -> None:
    """Raise JobError for numbers that ModelOpt's exporter has no layout for.

    It takes integers of the MX formats for INT8 with scales of its own, and fails or writes something else.
    """
    from modelopt.torch.export.quant_utils import get_quantization_format

    for name, module in quantized_linears(model)[0].items():
        try:
            integers = get_quantization_format(module) in ("int8_sq", "int8_wo")
        except (NotImplementedError, AssertionError):
            integers = None
        if integers is None or (integers and getattr(module.weight_quantizer, "is_mx_format", False)):
            kind = dict(placed(model)).get(f"{name}.weight_quantizer")
            raise JobError("format_not_exportable", f"{UNPACKED}: {kind} of {name}.", PACKED)


def _refuse_unnamed(model: "nn.Module") -> None:
    """Raise JobError for layers of which no loader finds what ModelOpt's exporter writes.

    Of experts it writes one each, which transformers joins by rules, if the source's files are like that.
    """
    tied, joined = getattr(model, "all_tied_weights_keys", None) or {}, joined_names(model)
    names = dict.fromkeys(f"{name}.weight" for name in quantized_linears(model)[0])
    lost = [f"{name.removesuffix('.weight')} shares its weight" for name in names if tied.get(name) in names]
    for name in (name for name, _ in model.named_modules() if name.endswith("_weight_quantizers")):
        if joined is not None and not (tensor := name.removesuffix("_weight_quantizers")).endswith(joined):
            lost.append(f"the model's files have {tensor} in one tensor of all experts")
    for cause in lost:
        raise JobError("format_not_exportable", f"{cause}; no loader finds what ModelOpt writes of it.", NOT_EXPORTED)


def leave_unreached(model: "nn.Module") -> list[str]:
    """Leave linear layers as they are that no text went through (attention to an encoder): their inputs have no scale.

    Returns their names. Experts get their neighbours' scales.
    """
    linears = {name: module for name, module in quantized_linears(model)[0].items() if "expert" not in name}
    scaled = {name for name, module in linears.items() if module.input_quantizer.amax is not None}
    left = [name for name in linears if scaled and linears[name].input_quantizer.is_enabled and name not in scaled]
    for name in left:
        linears[name].input_quantizer.disable()
        linears[name].weight_quantizer.disable()
    return left


def placed(model: "nn.Module") -> Iterator[tuple[str, str | None]]:
    """Each quantizer by its module's name: place and number format, or None where it is disabled."""
    from modelopt.torch.quantization.nn import TensorQuantizer

    for name, module in model.named_modules():
        if not isinstance(module, TensorQuantizer):
            continue
        if not module.is_enabled:
            yield name, None
            continue
        part = next(part for part in reversed(name.split(".")) if "quantizer" in part)
        place = part.replace("_quantizers", "").replace("_quantizer", "")
        bits = module.num_bits
        number = f"E{bits[0]}M{bits[1]}" if isinstance(bits, tuple) else f"INT{bits}"
        sizes = [str(size) for key, size in (module.block_sizes or {}).items() if isinstance(key, int) and size]
        yield name, f"{place} {number}" + (f" block {'x'.join(sizes)}" if sizes else "")


def summary(kinds: Iterable[str | None]) -> dict[str, Any]:
    """How many quantizers are `enabled` and `disabled`; `kinds` counts the enabled by place and number format."""
    counted = Counter(kinds)
    disabled = counted.pop(None, 0)
    ordered = sorted(((str(kind), count) for kind, count in counted.items()), key=_weights_first)
    return {"enabled": sum(counted.values()), "disabled": disabled, "kinds": dict(ordered)}


def _weights_first(kind: tuple[str, int]) -> tuple[bool, str]:
    return "weight" not in kind[0], kind[0]


def refuse_compress(args: QuantizeArgs) -> None:
    """Raise JobError for what mtq.compress cannot do; by name, before any work."""
    facts = known_format(args.export_quant_cfg)
    if facts is None:
        return
    if len(facts.numbers) > 1:
        cause = f"ModelOpt packs only the first of the two steps of {facts.name}; the compressed model cannot run."
        raise JobError("compress_unsupported", cause, _PACKED_ANYWAY)
    if not facts.compress:
        cause = f"ModelOpt loses what is special of {facts.name} when it packs a model's weights, or cannot pack them."
        raise JobError("compress_unsupported", cause, _PACKED_ANYWAY)
    if not facts.compress_export and args.export_dir:
        cause = "ModelOpt's exporter scales packed INT4 and MXFP4 weights as if they were not packed."
        raise JobError("compress_unsupported", cause, "Set args.compress=false, or args.export_dir=null.")


def compress(model: "nn.Module") -> None:
    """Replace the fake-quantized weights by packed ones, in place. Raises JobError('compress_unsupported')."""
    import modelopt.torch.quantization as mtq
    from modelopt.torch.quantization.nn import SequentialQuantizer

    for name, module in model.named_modules():
        if isinstance(module, SequentialQuantizer):
            cause = f"{name} quantizes in {len(module)} steps, of which ModelOpt packs only the first."
            raise JobError("compress_unsupported", cause, _PACKED_ANYWAY)
        if name.endswith("experts") and any("weight_quantizers" in child for child, _ in module.named_children()):
            cause = f"ModelOpt cannot compute with packed weights in {name}, where experts share one tensor."
            raise JobError("compress_unsupported", cause, _PACKED_ANYWAY)
    with cpu_kernels():
        mtq.compress(model)
