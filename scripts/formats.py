"""What may stand in `export_quant_cfg`, and what is known of each named format: all of it from configs/formats.yaml.

Those of the key/value cache are in configs/caches.yaml.

No torch here: the control plane checks values with these functions before anything is written.
"""

import difflib
import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from importlib import util
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import yaml

from configs import CONFIGS
from scripts.run.files import expanded, is_file
from scripts.run.problems import JobError

Kind = Literal["format", "config", "builtin_recipe", "recipe_file"]
#: Kinds of ModelOpt's recipes, as it calls their folders: one format for a model, or a search for one of each layer.
RecipeKind = Literal["ptq", "auto_quantize"]
#: By format, patterns of layers; of several that match one layer the last counts.
LayerFormats = Mapping[str, Sequence[str]]
ScaleFacts = Mapping[str, Sequence[str]]  # name suffix -> dtype, shape


@dataclass(frozen=True, kw_only=True)
class Format:
    """One named format; the fields are explained in configs/formats.yaml."""

    name: str
    config: str
    base: str | None = None  # the format that it is like
    block: tuple[int, int]
    numbers: tuple[int | tuple[int, ...], ...]
    weight_dtype: str
    packed: Literal["input", "output"] | None
    scales: ScaleFacts
    quant_algo: str
    min_sm: int
    native_sm: int
    group_error: float
    algorithm: Mapping[str, Any] | None = None
    method: str = "max"
    inputs: int | tuple[int, ...] | None = None
    input_scales: ScaleFacts = field(default_factory=dict)
    optional: Mapping[str, str] = field(default_factory=dict)
    low_rank: Mapping[str, str] = field(default_factory=dict)
    settled: bool = False
    exported: bool = True
    megatron_export: bool = False
    mixed: bool = False
    compress: bool = True
    compress_export: bool = True
    gpu_only: bool = False
    retained: tuple[float, float] = (1.7, 0.55)
    servers: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    config_weight_only: str | None = None
    quant_algo_weight_only: str | None = None
    quant_algo_compressed: str | None = None
    scales_compressed: ScaleFacts = field(default_factory=dict)
    search_bits: float | None = None

    @property
    def weight_only(self) -> bool:
        """Whether leaving activations alone makes something of its own.

        Else the second rounding is for nothing, or the name says no longer what it is.
        """
        return len(self.numbers) == 1 and self.inputs in (None, self.numbers[0])

    def of_weights(self, weight_only: bool) -> bool:
        """Whether it follows from the weights, and nothing is calibrated on text."""
        if not (self.exported and self.weight_only) or (self.input_scales and not weight_only):
            return False
        return self.method == "max" or bool(weight_only and self.config_weight_only)

    def of_maxima(self, weight_only: bool) -> bool:
        """Whether its scales are largest magnitudes of a layer's own weights and inputs, and it is exported."""
        plain = self.exported and self.method == "max" and (self.weight_only or not weight_only)
        return plain or bool(weight_only and self.config_weight_only)


@dataclass(frozen=True, kw_only=True)
class FormatRef:
    """A resolved `export_quant_cfg`: what kind it is, and its name or path."""

    kind: Kind
    value: str


@dataclass(frozen=True, kw_only=True)
class Cache:
    """One named format of the key/value cache; the fields are explained in configs/caches.yaml."""

    config: str
    numbers: tuple[int, ...]
    quant_algo: str
    affine: bool = False
    rotate: bool = False
    cast: bool = False


def _read(name: str, every: Mapping[str, dict[str, Any]]) -> Format:
    facts = _facts(name, every)
    weight = facts.pop("weight")
    steps = {"numbers": tuple(map(_number, facts.pop("numbers"))), "inputs": _number(facts.get("inputs"))}
    if steps["inputs"] is None and facts.get("input_scales"):
        steps["inputs"] = steps["numbers"][-1]
    shape = {"block": tuple(facts.pop("block")), "weight_dtype": weight["dtype"], "packed": weight.get("packed")}
    return Format(name=name, base=every[name].get("like"), **facts | steps | shape)


#: What is true of a format alone, and of none that is like it.
_OWN = ("search_bits", "mixed")


def _facts(name: str, every: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """With those of the format that it is like."""
    own = dict(every[name])
    base = own.pop("like", None)
    return {**{key: fact for key, fact in _facts(base, every).items() if key not in _OWN}, **own} if base else own


def _number(step: Any) -> Any:
    return tuple(step) if isinstance(step, list) else step


def _load(file: str) -> dict[str, dict[str, Any]]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    content: dict[str, dict[str, Any]] = yaml.load((CONFIGS / file).read_text(encoding="utf-8"), Loader=loader)
    return content


#: The named formats.
FORMATS: Mapping[str, Format] = MappingProxyType(
    {name: _read(name, every) for every in (_load("formats.yaml"),) for name in every}
)
#: Those that some layers may have beside others.
MIXABLE = tuple(name for name, facts in FORMATS.items() if facts.mixed)
#: What stands for no format, where layers have one each: they stay as they are.
LEFT = "none"
#: Those of the key/value cache.
CACHES: Mapping[str, Cache] = MappingProxyType(
    {name: Cache(numbers=tuple(facts.pop("numbers")), **facts) for name, facts in _load("caches.yaml").items()}
)
#: ModelOpt's own names, where a script does not list the short ones: they work in every release that takes free text.
#: Formats that are more than a config of ModelOpt's have none.
CONFIG_NAMES: Mapping[str, str] = MappingProxyType(
    {name: facts.config for name, facts in FORMATS.items() if facts.config.endswith("_CFG") and not facts.algorithm}
)
#: What Megatron's exporter cannot write, and what to do about it.
NOT_EXPORTABLE = tuple(name for name, facts in FORMATS.items() if not facts.megatron_export)
EXPORTABLE = (
    f"Quantize in {' or '.join(name for name, facts in FORMATS.items() if facts.megatron_export and not facts.base)}, "
    "or with engine=hf, which exports all that ModelOpt has a layout for."
)
_ALONE = [name for name, facts in FORMATS.items() if facts.of_weights(False)]
_WITHOUT_INPUTS = [name for name, facts in FORMATS.items() if facts.of_weights(True) and name not in _ALONE]
#: The remedy for a format that is calibrated, where that cannot be.
WEIGHTS_ALONE = (
    f"Use {', '.join(_ALONE)}, or {', '.join(_WITHOUT_INPUTS)} with args.weight_only=true; or args.from_files=false."
)
#: Those that ModelOpt's exporter writes.
EXPORTED = tuple(name for name, facts in FORMATS.items() if facts.exported)
#: Of those, the ones whose scales are largest magnitudes: no weight depends on what goes through other layers.
OF_MAXIMA = tuple(name for name, facts in FORMATS.items() if facts.of_maxima(False))
_NO_BLOCKS = " and ".join(name for name, facts in FORMATS.items() if facts.block == (1, 1))
#: The remedy for a format whose blocks do not fit a model.
FITS_ANY_WIDTH = f"{_NO_BLOCKS} have no blocks and fit any width."


def formats_named(names: Iterable[str]) -> list[Format]:
    """Those of the formats that are asked for which are known by name."""
    return [FORMATS[name] for name in names if name in FORMATS]


def most_bits(formats: Iterable[Format]) -> Format | None:
    """The one of most bits for a weight, as AutoQuantize counts them."""
    return max(formats, key=lambda facts: facts.search_bits or 0.0, default=None)


def get_format(name: str) -> Format:
    """The named format. Raises JobError('unsupported_quant_recipe') with the nearest name."""
    if name not in FORMATS:
        cause = f"{name!r} is not one of {', '.join(FORMATS)}."
        raise JobError("unsupported_quant_recipe", cause, _nearest(name, FORMATS))
    return FORMATS[name]


#: Methods of ModelOpt 0.47 that fail on Megatron's layers.
_NOT_OF_MEGATRON = ("gptq", "svdquant")


def megatron_trouble(name: str) -> tuple[str, str] | None:
    """Why ModelOpt cannot calibrate a format in Megatron, and the remedy; None where it can, or nothing is known."""
    facts = known_format(name)
    if facts is None or facts.method not in _NOT_OF_MEGATRON:
        return None
    return f"ModelOpt's {facts.method} fails on Megatron's layers", f"Use engine=hf, or {facts.base}."


def known_format(name: str) -> Format | None:
    """The format by its own name or by ModelOpt's."""
    own = next((own for own, config in CONFIG_NAMES.items() if config == name), name)
    return FORMATS.get(own)


def format_of(layer: str, otherwise: str, layer_formats: LayerFormats) -> str:
    """The format of a layer, or LEFT."""
    asked = (name for name, patterns in layer_formats.items() if any(fnmatchcase(layer, one) for one in patterns))
    return [otherwise, *asked][-1]


def format_problems(name: str, linear_shapes: Mapping[str, tuple[int, int]]) -> list[str]:
    """One sentence for each way the model's linear layers do not fit the format's blocks.

    `linear_shapes` maps a module name to (outputs, inputs). Layers that share a shape share a sentence.
    """
    block_out, block_in = get_format(name).block
    misfits: dict[tuple[str, int, int], list[str]] = {}
    for module, (outputs, inputs) in linear_shapes.items():
        for side, size, block in (("output", outputs, block_out), ("input", inputs, block_in)):
            if size % block:
                misfits.setdefault((side, size, block), []).append(module)
    sentences = []
    for (side, size, block), modules in misfits.items():
        more = f" and {len(modules) - 1} more" if len(modules) > 1 else ""
        sentences.append(f"{modules[0]}{more}: {size} {side}s are not a multiple of {block}, the block of {name}.")
    return sentences


def _package_folder(package: str) -> Path | None:
    """A top-level package's folder, found without importing it."""
    spec = util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))


@functools.cache
def config_names() -> tuple[str, ...]:
    """The `*_CFG` names ModelOpt defines for whole models, read from its source; empty without ModelOpt."""
    folder = _package_folder("modelopt")
    source = folder / "torch" / "quantization" / "config.py" if folder else None
    if source is None or not source.is_file():
        return ()
    # Parsing the whole 80 kB file costs 40 ms; the definitions are lines that start with the name.
    names = re.findall(r"^([A-Z]\w*_CFG) *[:=]", source.read_text(encoding="utf-8"), re.MULTILINE)
    # The key/value cache configs are fragments: alone they would leave ModelOpt's INT8 defaults on every layer.
    return tuple(name for name in dict.fromkeys(names) if "_KV_" not in name)


@functools.cache
def builtin_recipes(kind: RecipeKind = "ptq") -> tuple[str, ...]:
    """Names of the recipes of a kind that come with ModelOpt, without `.yaml`."""
    folder = _package_folder("modelopt_recipes")
    if folder is None:
        return ()
    found = (path for path in folder.rglob("*.yaml") if path.parent.name == kind and _is_recipe(path, kind))
    names = (path.relative_to(folder).with_suffix("") for path in found)
    return tuple(sorted(name.as_posix() for name in names if name.parts[0] != "configs"))


def _is_recipe(path: Path, kind: RecipeKind) -> bool:
    """Not a part that recipes share, which lies beside some."""
    return f"\n{_KINDS[kind][1]}:" in path.read_text(encoding="utf-8")


def quantizes_attention(value: str) -> bool:
    """Whether it is a recipe, ModelOpt's or a file, that quantizes what attention multiplies values with."""
    plain = value.removesuffix(".yaml").removesuffix(".yml")
    folder = _package_folder("modelopt_recipes") if plain in builtin_recipes() else None
    path = folder / f"{plain}.yaml" if folder else expanded(value)
    if not (folder or (path.suffix in (".yaml", ".yml") and is_file(path))):
        return False
    text = path.read_text(encoding="utf-8", errors="replace")
    return "attention_qkv_fp8" in text or "p_bmm_quantizer" in text


def _nearest(value: str, names: Any) -> str:
    by_lower = {name.lower(): name for name in names}
    close = difflib.get_close_matches(value.lower(), by_lower, n=3, cutoff=0.5)
    return f"Did you mean {' or '.join(by_lower[name] for name in close)}?" if close else ""


#: What each kind is, the section that ModelOpt asks for, and one that comes with it.
_KINDS: Mapping[RecipeKind, tuple[str, str, str]] = {
    "ptq": ("post-training quantization", "quantize", "general/ptq/fp8_default-kv_fp8"),
    "auto_quantize": ("AutoQuantize", "auto_quantize", "general/auto_quantize/nvfp4_fp8_at_5p4bits"),
}


def _refuse_recipe(path: Path, kind: RecipeKind) -> None:
    """Raise JobError unless it is a readable recipe of that kind."""
    what, section, example = _KINDS[kind]
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
        cause = f"The recipe {path} has no section {section!r}; only {what} recipes can be used."
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raw, cause = None, f"The recipe {path} cannot be read: {str(error).splitlines()[0]}."
    if not isinstance(raw, dict) or section not in raw:
        raise JobError("unsupported_quant_recipe", cause, f"See ModelOpt's own recipes, such as {example}.")


def resolve_recipe(value: str, kind: RecipeKind) -> FormatRef | None:
    """The recipe of that kind that `value` names; None where it names none. Raises JobError as `_refuse_recipe`."""
    plain = value.removesuffix(".yaml").removesuffix(".yml")
    if plain in builtin_recipes(kind):
        return FormatRef(kind="builtin_recipe", value=plain)
    path = expanded(value)
    if value and path.suffix in (".yaml", ".yml") and is_file(path):
        _refuse_recipe(path, kind)
        return FormatRef(kind="recipe_file", value=str(path))
    return None


def no_recipe(value: str, kind: RecipeKind) -> JobError:
    """What to say of a value that should name a recipe and names none."""
    cause = f"{value!r} is neither a file nor a recipe that comes with ModelOpt."
    return JobError("unsupported_quant_recipe", cause, _nearest(value.removesuffix(".yaml"), builtin_recipes(kind)))


def resolve_format(value: str) -> FormatRef:
    """What `value` names; needs neither torch nor an import of ModelOpt. Raises JobError `unsupported_quant_recipe`."""
    if value in FORMATS:
        return FormatRef(kind="format", value=value)
    config = f"{value.upper()}_CFG" if value.startswith("mamba_moe_") else value  # as NVIDIA's scripts write some
    if config in config_names():
        return FormatRef(kind="config", value=config)
    if recipe := resolve_recipe(value, "ptq"):
        return recipe
    if value.endswith((".yaml", ".yml")) or "/" in value:
        raise no_recipe(value, "ptq")
    cause = f"{value!r} is neither a format ({', '.join(FORMATS)}) nor a ModelOpt config name nor a recipe."
    remedy = _nearest(value, [*FORMATS, *config_names()])
    raise JobError("unsupported_quant_recipe", cause, remedy)


def format_error(value: str) -> str | None:
    """None when `value` can be used as a format, else one line that says why not and names the nearest."""
    try:
        resolve_format(value)
    except JobError as error:
        return f"{error.cause} {error.remedy}".strip()
    return None
