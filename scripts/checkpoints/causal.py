"""Whether a config.json describes what the hf engine quantizes: a causal language model with plain weights in linear
layers. Asked where a job is submitted, and by the engine before it loads anything."""

import functools
import re
from collections.abc import Mapping
from importlib import util
from pathlib import Path
from typing import Any

import yaml

from configs import CONFIGS
from scripts.checkpoints.figures import kind_of
from scripts.checkpoints.huggingface import exported_format, read_weights
from scripts.checkpoints.model import Trouble
from scripts.checkpoints.quantization import THEIRS
from scripts.formats import FORMATS
from scripts.run.problems import near_miss

#: Sections of configurations that have an encoder for other things than text.
_OTHER_SENSES = ("vision_config", "audio_config", "mm_vision_tower")
#: Of those, what transformers' AutoModelForCausalLM builds all the same.
WITH_TEXT = frozenset({"fuyu", "gemma3", "gemma3n", "gemma4", "gemma4_unified", "llama4", "qwen3_5", "qwen3_5_moe"})
#: Heads that predict something else than the next token.
_OTHER_HEAD = re.compile(r"For(?!CausalLM|ConditionalGeneration)\w+$")
#: Other tools' formats of which transformers makes plain weights.
UNPACKED = ("fp8", "mxfp4")
_REFUSED: dict[str, Any] = yaml.safe_load((CONFIGS / "models" / "refused.yaml").read_text(encoding="utf-8"))
#: Models whose linear layers are none of torch's, and what comes of it.
OWN_LINEARS: dict[str | None, str] = _REFUSED["own_linears"]
#: Model types whose decoder layers can be computed one after the other.
LAYERWISE = frozenset(yaml.safe_load((CONFIGS / "models" / "layerwise.yaml").read_text(encoding="utf-8")))
PLAIN_LINEARS = "Name a model of torch.nn.Linear."
NOT_EXPORTED = "Name another model, or use args.export_dir=null and the ModelOpt checkpoint."
AWQ_EXPERTS = "ModelOpt's exporter cannot write AWQ of experts that share one tensor, as transformers 5 keeps them"
GPTQ_EXPERTS = "ModelOpt's GPTQ leaves out experts that share one tensor, as transformers 5 keeps them"
FSDP_EXPERTS = "experts that share one tensor, as transformers 5 keeps them, are not sharded"
HESSIAN_EXPERTS = "local Hessian spoils the weights of experts that few tokens reach, which are compared layer by layer"
NO_AWQ = "Use fp8, nvfp4 or fp8_blockwise."
_PLAIN = "Name a causal language model."
_IN_BF16 = "Name the model that it was made of, in BF16."
#: What is computed otherwise with the whole model in memory.
WHOLE_MODEL = "Set args.memory=null and args.fsdp=false, which quantizes the whole model in memory."
_PLAIN_TYPES = ("bfloat16", "float16", "float32", "float64")
_OF_THE_TRIAL = ("format_does_not_fit", "unknown_model", "not built")


def refused(config: Mapping[str, Any]) -> Trouble | None:
    """Why the engine cannot take a model of this config.json, as (problem, cause, remedy); None where it may."""
    name, kind = "unsupported_model", kind_of(config)
    listed, own = config.get("architectures"), config.get("auto_map")
    built = str(listed[0]) if isinstance(listed, list) and listed else ""
    if isinstance(own, Mapping) and "AutoModelForCausalLM" in own:
        return None
    if kind in _REFUSED["no_language_model"]:
        return name, f"it is no language model by itself ({kind}): {_REFUSED['no_language_model'][kind]}", _PLAIN
    if any(section in config for section in _OTHER_SENSES) and kind not in WITH_TEXT:
        remedy = "Use quantize_vlm, which runs NVIDIA's script for them."
        return name, f"it is a vision-language model ({kind}), and the hf engine takes text alone", remedy
    if config.get("is_encoder_decoder"):
        return name, f"it is an encoder-decoder model ({kind}); no recipe quantizes those", _PLAIN
    if _OTHER_HEAD.search(built) and not config.get("is_decoder"):
        return name, f"{built} does not predict the next token, which calibration and scores need", _PLAIN
    headless = built.endswith("Model") and not built.endswith("LMHeadModel")
    if headless and (config.get("tie_word_embeddings") is False or kind in _REFUSED["encoders"]):
        return name, f"{built} has no language-model head; random numbers would be put in its place", _PLAIN
    return (name, OWN_LINEARS[kind], PLAIN_LINEARS) if kind in OWN_LINEARS else None


def _transformers() -> Path:
    """The folder of the Transformers in this Python; where it is not installed, one that is not there."""
    found = util.find_spec("transformers")
    return Path(next(iter((found and found.submodule_search_locations) or ("/nowhere/transformers",))))


@functools.cache
def built_types() -> tuple[frozenset[str], frozenset[str]]:
    """The model types that the Transformers in this Python has, and those of causal language models among them.

    Read from the text of its tables, which takes milliseconds; both are empty where it is not installed.
    """
    folder = _transformers() / "models" / "auto"
    text = {file.name: file.read_text("utf-8") for file in sorted(folder.glob("*auto*.py"))}
    known = re.findall(r'"([\w.-]+)"[,:]\s*"\w+Config"', "".join(text.values()))
    table = re.search(r"^MODEL_FOR_CAUSAL_LM_MAPPING_NAMES = .*?^\)", text.get("modeling_auto.py", ""), re.M | re.S)
    return frozenset(known), frozenset(re.findall(r'"([\w.-]+)",\s*"\w+"', table[0]) if table else ())


@functools.cache
def _layer_words(kind: str) -> frozenset[str]:
    """What the Transformers in this Python may call a layer of a type that it has; empty where that is not told.

    Those of all models, and each word of the type's own file, which may allow more.
    """
    root, name = _transformers(), kind.replace("-", "_")
    files = (root / "configuration_utils.py", root / "models" / name / f"configuration_{name}.py")
    if not all(file.is_file() for file in files):
        return frozenset()
    shared, own = (file.read_text("utf-8") for file in files)
    tables = re.findall(r"^(?:ALLOWED_\w*LAYER_TYPES|_LEGACY_LAYER_\w+) = [({].*?^[)}]", shared, re.M | re.S)
    return frozenset(re.findall(r'"(\w+)"', "".join([*tables, own]))) if tables else frozenset()


def _stray_layer(config: Mapping[str, Any], kind: str) -> Trouble | None:
    """A word of layer_types that Transformers refuses."""
    text = config.get("text_config")
    listed = [section.get("layer_types") for section in (config, text) if isinstance(section, Mapping)]
    words, known = [str(one) for layers in listed if isinstance(layers, list) for one in layers], _layer_words(kind)
    stray = next((word for word in words if known and word not in known), None)
    if stray is None:
        return None
    cause = f"no model is like its config.json: layer_types has {stray}, which Transformers knows for no layer"
    return "impossible_config", cause, near_miss(stray, known, "Copy the model's config.json again.")


def not_layerwise(kind: str | None) -> Trouble | None:
    """Why a model of this type is not quantized layer by layer; None where it is."""
    if kind in LAYERWISE:
        return None
    cause = f"{kind} was not tried layer by layer; {', '.join(sorted(LAYERWISE))} were"
    return "layerwise_unsupported", cause, WHOLE_MODEL


def unbuilt(config: Mapping[str, Any]) -> Trouble | None:
    """Why the Transformers in this Python builds no causal language model of this config.json; None where it may."""
    known, causal = built_types()
    kind = kind_of(config)
    if not known or not causal or config.get("auto_map"):
        return None
    if kind in causal:
        return _stray_layer(config, str(kind))
    if kind is None:
        return "unknown_model", "its config.json says no model_type", "Copy the model's config.json again."
    if kind in known:
        return "unsupported_model", f"Transformers builds no causal language model of {kind}", _PLAIN
    remedy = near_miss(kind, causal, "A newer transformers may know it.")
    return "unknown_model", f"the Transformers that is here has no model_type {kind}", remedy


def packed(found: str | None, *, loaded: bool = True) -> Trouble | None:
    """The same of a model that is quantized in `found`, unless transformers unpacks that when it loads it."""
    if found is None or (loaded and found not in FORMATS and found.removesuffix(THEIRS) in UNPACKED):
        return None
    who = "the hf engine" if loaded else "what reads files as they are, args.memory and args.from_files"
    cause = f"it is quantized already, in {found}, which {who} cannot undo"
    return "already_quantized", cause, _IN_BF16


def unscaled(folder: Path) -> Trouble | None:
    """The same of a folder with weights of fewer than 16 bits, of which no configuration says what they stand for.

    Raises JobError `unreadable_checkpoint`.
    """
    for one in read_weights(folder, "model", "").tensors if exported_format(folder) is None else ():
        if one.dtype not in _PLAIN_TYPES and (one.name.endswith(".weight") or one.dtype.startswith("float")):
            cause = f"it is quantized already: {one.name} holds {one.dtype}, and nothing says what that stands for"
            return "already_quantized", cause, _IN_BF16
    return None


@functools.cache
def architectures() -> dict[str, Any]:
    """What became of each architecture, tiny, by model type and format, with the versions that it was tried with.

    Made by tests/architectures.py: `right`, or the name under which it ended and why.
    """
    return dict(yaml.safe_load((CONFIGS / "models" / "architectures.yaml").read_text(encoding="utf-8")))


def failure(kind: str | None, fmt: str, experts: int | None) -> tuple[str, str]:
    """How an architecture ended that came out badly in this format, and what to do; else empty.

    Widths and libraries of the trial alone do not count, nor experts where a model has 0.
    """
    said = str((tried := architectures()["tried"].get(kind, {})).get(fmt, "right"))
    if said == "right" or said.startswith(_OF_THE_TRIAL) or (experts == 0 and "expert" in said):
        return "", ""
    right = [name for name, outcome in tried.items() if outcome == "right"]
    remedy = f"Use {' or '.join(sorted(right))}, which came out right." if right else ""
    return said, remedy or (NOT_EXPORTED if said.startswith(("export", "format", "wrong")) else _PLAIN)
