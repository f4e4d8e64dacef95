"""How a checkpoint is quantized: what an export's JSON says, or what the state that ModelOpt saved was asked to do.

The latter is the quantizers' configuration, as nodes of that state: which named format it amounts to.
"""

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from scripts.checkpoints.pickles import Pairs, mapping_of, pairs_of
from scripts.formats import CACHES, FORMATS, Format

UNKNOWN = "quantized (format unknown)"
#: What exporters say of a model whose layers have several formats.
MIXED = "MIXED_PRECISION"
Number = int | tuple[int, ...] | None

#: Calibrations that leave more in a checkpoint than scales; a format's ModelOpt config is named after its own.
_METHODS = ("awq", "smoothquant", "svdquant")
_SIXES_AND_FOURS = "four_over_six"
#: Follows another tool's word that is a format of ours too.
THEIRS = " (not ModelOpt's)"
_CACHE, _LONGEST_PATTERN = "_bmm_quantizer", 1000
#: What ModelOpt did to a model, in order: mode and its configuration.
Modes = list[tuple[str, dict[str, object]]]

#: The mode of a search, which gives each layer a format of its own.
SEARCHED = "auto_quantize"
_QUANTIZE_MODES = ("quantize", SEARCHED, "real_quantize")
#: A mode that changes nothing that a checkpoint would have to restore.
_EMPTY_MODES = ("kd_loss",)


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """Format of the weights and of the key/value cache, in the words that Checkpoint explains; None: not quantized."""

    format: str | None = None
    kv_cache: str | None = None
    by_modelopt: bool = False
    algorithm: str | None = field(default=None, compare=False)  # the exporter's own word for `format`


def of_export(config: Mapping[str, Any], sidecar: Mapping[str, Any] | None) -> Quantization:
    """What config.json and, where it is there, hf_quant_config.json say.

    Raises ValueError where they are not what exporters write.
    """
    if sidecar is not None:
        said = sidecar.get("quantization")
        if not isinstance(said, dict):
            raise ValueError("it has no section quantization")
        found = _of_words(said.get("quant_algo"), said.get("kv_cache_quant_algo"))
        layers = said.get("quantized_layers")
        named = (
            [one.get("quant_algo") for one in layers.values() if isinstance(one, dict)]
            if isinstance(layers, dict)
            else []
        )
        words = [_named(word) for word in named if isinstance(word, str)]
        return replace(found, format=mixture(words)) if found.format == MIXED and words else found
    said = config.get("quantization_config")
    if said is None:
        return Quantization()
    if not isinstance(said, dict):
        raise ValueError("its quantization_config is no object")
    method = said.get("quant_method")
    if method == "modelopt" or "quant_algo" in said:
        return _of_words(said.get("quant_algo"), cache_of_scheme(said))
    if not isinstance(method, str):
        return Quantization(format=UNKNOWN)
    # Another tool's word, told apart from a format of ours that has the same name.
    return Quantization(format=f"{method}{THEIRS}" if method in FORMATS else method)


def cache_of_scheme(said: Mapping[str, Any]) -> object:
    """`kv_cache_quant_algo`, or what `kv_cache_scheme` says in its place in a config.json: a word, or FP8 described."""
    scheme = said.get("kv_cache_scheme")
    if isinstance(scheme, Mapping):
        scheme = "FP8" if (scheme.get("num_bits"), scheme.get("type")) == (8, "float") else str(dict(scheme))
    return said.get("kv_cache_quant_algo") or scheme


def _of_words(algo: object, cache: object) -> Quantization:
    if not isinstance(algo, (str, type(None))) or not isinstance(cache, (str, type(None))):
        raise ValueError("an algorithm's name is no text")
    named = _named(algo) if algo else None
    return Quantization(format=named, kv_cache=cache and cache.lower(), by_modelopt=True, algorithm=algo)


def _named(algo: str) -> str:
    """The format of configs/formats.yaml whose export says `algo`; else the word itself.

    Of several that export the same, the first.
    """
    others = ("quant_algo_weight_only", "quant_algo_compressed")
    for key in ("quant_algo", *others):
        for name, facts in FORMATS.items():
            if facts.exported and algo.lower() == (getattr(facts, key) or "").lower():
                return name
    return algo


def modes_of(state: Mapping[str, object]) -> Modes:
    """What the state that ModelOpt saved says it did to the model. Raises ValueError where it is no such state."""
    listed = state.get("modelopt_state_dict")
    if not isinstance(listed, list):
        raise ValueError("it is not the state that ModelOpt saves")
    modes: Modes = []
    states: object = None  # of every quantizer, after the last mode
    for entry in listed:
        if not isinstance(entry, tuple) or len(entry) != 2 or not isinstance(entry[0], str):
            raise ValueError("it is not the state that ModelOpt saves")
        parts = mapping_of(entry[1])
        states = mapping_of(parts.get("metadata")).get("quantizer_state", states)
        modes.append((entry[0], mapping_of(parts.get("config"))))
    # The configuration of a search is that of no layer.
    return [(mode, {"quantizer_state": states} if mode == SEARCHED else config) for mode, config in modes]


def restores_something(modes: Modes) -> bool:
    """Whether loading these modes changes the model."""
    return any(mode not in _EMPTY_MODES for mode, _ in modes)


def of_modes(modes: Modes) -> Quantization:
    """What the last quantization asked for; where its configuration is not there, the format is unknown."""
    if not any(mode in _QUANTIZE_MODES for mode, _ in modes):
        return Quantization()
    chosen = [found for mode, config in modes if mode == SEARCHED and (found := _chosen(config)) is not None]
    if chosen:
        return chosen[-1]
    asked = [config for _, config in modes if "quant_cfg" in config]
    if not asked:
        return Quantization(format=UNKNOWN, by_modelopt=True)
    rules = rules_of(asked[-1]["quant_cfg"])
    algorithm = asked[-1].get("algorithm")  # a word, or a dictionary that holds it
    word = mapping_of(algorithm).get("method", algorithm)
    calibrations = [mode for mode, _ in modes] + ([word] if isinstance(word, str) else [])
    return Quantization(format=format_of(rules, calibrations), kv_cache=cache_of(rules), by_modelopt=True)


def _chosen(config: Mapping[str, object]) -> Quantization | None:
    """What each layer got in a search, by the state of its quantizers; None where that is not there."""
    states = pairs_of(config.get("quantizer_state"))
    told = {name: {key.removeprefix("_"): value for key, value in mapping_of(one).items()} for name, one in states}
    rules = {str(name): () if facts.get("disabled") else _grid_of(facts) for name, facts in told.items()}
    layers = {
        name.removesuffix("weight_quantizer") for name, grids in rules.items() if name.endswith("weight_quantizer")
    }
    names = []
    for layer in sorted(one for one in layers if rules[f"{one}weight_quantizer"]):
        weight, given = rules[f"{layer}weight_quantizer"], rules.get(f"{layer}input_quantizer") or None
        ours = (name for name, facts in FORMATS.items() if _is_format(facts, weight, given, _methods_of(facts, given)))
        names.append(next(ours, UNKNOWN))
    cache = tuple((f"attention.{name.rpartition('.')[2]}", grids) for name, grids in rules.items() if _CACHE in name)
    return Quantization(format=mixture(names), kv_cache=cache_of(cache), by_modelopt=True) if names else None


def _methods_of(facts: Format, given: object) -> set[str]:
    """State does not say how it was calibrated: as the format is."""
    alone = given is None and facts.input_scales
    return {method for method in _METHODS if method in ((alone and facts.config_weight_only) or facts.config).lower()}


def mixture(names: Sequence[str]) -> str:
    """The formats of layers in words: that of all, or which there are."""
    several = sorted(set(names))
    return several[0] if len(several) == 1 else f"{MIXED} ({', '.join(several)})"


def formats_in(said: str | None) -> list[Format]:
    """The named formats of a checkpoint, one or those of a mixture."""
    text = said or ""
    inner = text.removeprefix(f"{MIXED} (").removesuffix(")") if text.startswith(f"{MIXED} (") else text
    return [FORMATS[name] for name in inner.split(", ") if name in FORMATS]


@dataclass(frozen=True, kw_only=True)
class Grid:
    """What one quantizer rounds to: number type, the axis that has scales of its own, block (outputs, inputs)."""

    numbers: Number
    axis: Number
    block: tuple[Number, Number] | None
    affine: bool
    rotated: bool
    constant: bool = False
    power: bool = False  # its scales are powers of two
    sixes_and_fours: bool = False

    @property
    def scale(self) -> str:
        """The shape of its scales, as configs/formats.yaml names them."""
        if self.block is not None:
            return "per_block"
        return {None: "scalar", 0: "per_output"}.get(self.axis, "other")  # type: ignore[arg-type]


#: Quantizer pattern and what it rounds to, one after the other; nothing where it is disabled.
Rules = tuple[tuple[str, tuple[Grid, ...]], ...]


def rules_of(quant_cfg: object) -> Rules:
    """The rules of a `quant_cfg`: a list of rules, or in older releases of ModelOpt a dictionary by pattern."""
    return tuple(_by_pattern(quant_cfg) if isinstance(quant_cfg, Pairs) else _listed(quant_cfg))


def format_of(rules: Rules, calibrations: Sequence[str]) -> str | None:
    """The format of configs/formats.yaml that weights and inputs amount to.

    None only where the rules are for the key/value cache and for nothing else.
    """
    weights, inputs = _distinct(rules, "weight_quantizer"), _distinct(rules, "input_quantizer")
    enabled = [pattern for pattern, grids in rules if grids]
    if enabled and all(_CACHE in pattern for pattern in enabled):
        return None
    if len(weights) != 1 or len(inputs) > 1:
        return UNKNOWN
    (weight,) = weights
    methods = {method for method in _METHODS if any(method in word for word in calibrations)}
    found = [facts for facts in FORMATS.values() if _is_format(facts, weight, next(iter(inputs), None), methods)]

    def by_method(facts: Format) -> bool:
        return any(word.startswith(facts.method) for word in calibrations)

    # Of those of one layout, the one that was calibrated so.
    fitting = [facts for facts in found if by_method(facts) or not facts.settled]
    fitting.sort(key=lambda facts: (not by_method(facts), bool(facts.inputs) != bool(inputs)))
    return fitting[0].name if fitting else UNKNOWN


def cache_of(rules: Rules) -> str | None:
    """The kind of key/value cache, in the words of `export_kv_cache_quant`; None where it is not quantized."""
    keys, values = (_last(rules, f"attention.{part}{_CACHE}") for part in ("k", "v"))
    if not values:
        return None
    affine = values[0].affine
    said = (values[0].numbers, affine, bool(keys) and keys[0].rotated and not affine, values[0].constant)
    known: dict[object, str] = {(one.numbers, one.affine, one.rotate, one.cast): name for name, one in CACHES.items()}
    return known.get(said, UNKNOWN)


def _is_format(facts: Format, weight: tuple[Grid, ...], given: tuple[Grid, ...] | None, methods: set[str]) -> bool:
    numbers = tuple(grid.numbers for grid in weight)
    if numbers != facts.numbers:
        return False
    shape, power = facts.scales["weight_scale"][1], facts.scales["weight_scale"][0] == "U8"
    if (weight[0].block or (1, 1)) != facts.block or not shape.startswith(weight[0].scale) or weight[0].power != power:
        return False
    if given is not None and (given[0].numbers != facts.inputs or len(given) > 1):
        return False
    weight_only = given is None and facts.inputs is not None
    if weight_only and not facts.weight_only:
        return False
    config = (weight_only and facts.config_weight_only) or facts.config
    if weight[0].sixes_and_fours != (_SIXES_AND_FOURS in config.lower()):
        return False
    return methods == {method for method in _METHODS if method in config.lower()}


def _distinct(rules: Rules, quantizer: str) -> set[tuple[Grid, ...]]:
    """What the enabled rules for this kind of quantizer round to; a rule for all of them undoes those before it."""
    found: dict[str, tuple[Grid, ...]] = {}
    for pattern, grids in rules:
        if pattern.strip("*") in ("", quantizer):
            found = {pattern: grids}
        elif pattern.rstrip("*").endswith(quantizer):
            found[pattern] = grids
    return {grids for grids in found.values() if grids}


def _last(rules: Rules, name: str) -> tuple[Grid, ...]:
    """What the last rule for this quantizer says."""
    short = [(pattern, grids) for pattern, grids in rules if len(pattern) <= _LONGEST_PATTERN]
    return next((grids for pattern, grids in reversed(short) if fnmatch.fnmatchcase(name, pattern)), ())


def _listed(rules: object) -> Iterator[tuple[str, tuple[Grid, ...]]]:
    for rule in map(mapping_of, rules if isinstance(rules, list) else []):
        pattern = rule.get("quantizer_name")
        if isinstance(pattern, str) and rule.get("parent_class") is None:
            yield pattern, _grids(rule.get("cfg")) if rule.get("enable") else ()


def _by_pattern(rules: Pairs) -> Iterator[tuple[str, tuple[Grid, ...]]]:
    """Each rule in order; the one for what no pattern names, wherever it stands, before them."""
    by_pattern = mapping_of(rules)
    yield "*", _grids(by_pattern.pop("default", None))
    for pattern, config in by_pattern.items():
        yield pattern, _grids(config)


def _grids(config: object) -> tuple[Grid, ...]:
    """One grid, or several that a value passes one after the other."""
    listed = config if isinstance(config, list) and not isinstance(config, Pairs) else [config]
    grids: list[Grid] = []
    for facts in map(mapping_of, listed):
        if facts and facts.get("enable") is not False:
            grids += _grid_of(facts)
    return tuple(grids)


def _grid_of(facts: Mapping[str, object]) -> tuple[Grid, ...]:
    sizes = pairs_of(facts.get("block_sizes"))
    along = {axis: _number(size) for axis, size in sizes if isinstance(axis, int)}
    grid = Grid(
        numbers=_number(facts.get("num_bits")),
        axis=_number(facts.get("axis")),
        block=(along.get(-2, 1), along.get(-1, 1)) if along else None,
        affine=facts.get("bias") is not None,
        rotated=bool(facts.get("rotate")),
        constant=bool(facts.get("use_constant_amax")),
        sixes_and_fours=bool(dict(sizes).get(_SIXES_AND_FOURS)),
        power=_number(dict(sizes).get("scale_bits")) == (8, 0),
    )
    return (grid,)


def _number(node: object) -> Number:
    """A number or a short tuple of them; anything else a pickle can hold is not compared."""
    if isinstance(node, (tuple, list)) and len(node) <= 4:
        numbers = tuple(part for part in node if isinstance(part, int))
        return numbers if len(numbers) == len(node) else None
    return node if isinstance(node, int) else None
