"""ModelOpt's quantizer configurations, as nodes of a saved state: which named format they amount to."""

import fnmatch
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scripts.checkpoints.pickles import Pairs, mapping_of, pairs_of

if TYPE_CHECKING:
    from scripts.formats import Format

UNKNOWN = "quantized (format unknown)"
Number = int | tuple[int, ...] | None

_E4M3, _E2M1 = (4, 3), (2, 1)
#: Number types that a format's weights go through, as ModelOpt writes them; inputs are rounded to the last of them.
_NUMBERS: dict[str, tuple[Number, ...]] = {
    "fp8": (_E4M3,),
    "nvfp4": (_E2M1,),
    "int8_sq": (8,),
    "fp8_blockwise": (_E4M3,),
    "int4_awq": (4,),
    "w4a8_awq": (4, _E4M3),
}
#: Calibrations that leave more in a checkpoint than scales; a format's ModelOpt config is named after its own.
_METHODS = ("awq", "smoothquant", "svdquant")
_CACHE, _LONGEST_PATTERN = "_bmm_quantizer", 1000
_CACHES = {_E4M3: "fp8", _E2M1: "nvfp4"}


@dataclass(frozen=True, kw_only=True)
class Grid:
    """What one quantizer rounds to: number type, the axis that has scales of its own, block (outputs, inputs)."""

    numbers: Number
    axis: Number
    block: tuple[Number, Number] | None
    affine: bool
    rotated: bool

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
    from scripts.formats import FORMATS

    weights, inputs = _distinct(rules, "weight_quantizer"), _distinct(rules, "input_quantizer")
    enabled = [pattern for pattern, grids in rules if grids]
    if enabled and all(_CACHE in pattern for pattern in enabled):
        return None
    if len(weights) != 1 or len(inputs) > 1:
        return UNKNOWN
    (weight,) = weights
    methods = {method for method in _METHODS if any(method in word for word in calibrations)}
    for name, facts in FORMATS.items():
        if _is_format(facts, weight, next(iter(inputs), None), methods):
            return name
    return UNKNOWN


def cache_of(rules: Rules) -> str | None:
    """The kind of key/value cache, in the words of `export_kv_cache_quant`; None where it is not quantized."""
    keys, values = (_last(rules, f"attention.{part}{_CACHE}") for part in ("k", "v"))
    if not values:
        return None
    kind = _CACHES.get(values[0].numbers, UNKNOWN)  # type: ignore[arg-type]
    if values[0].affine:
        return f"{kind}_affine"
    return f"{kind}_rotate" if keys and keys[0].rotated else kind


def _is_format(facts: "Format", weight: tuple[Grid, ...], given: tuple[Grid, ...] | None, methods: set[str]) -> bool:
    numbers = tuple(grid.numbers for grid in weight)
    if numbers != _NUMBERS.get(facts.name):
        return False
    if (weight[0].block or (1, 1)) != facts.block or not facts.scales["weight_scale"][1].startswith(weight[0].scale):
        return False
    if given is not None and (not facts.quantizes_inputs or given[0].numbers != numbers[-1] or len(given) > 1):
        return False
    weight_only = given is None and facts.quantizes_inputs
    if weight_only and not facts.weight_only:
        return False
    config = (weight_only and facts.config_weight_only) or facts.config
    return methods == {method for method in _METHODS if method in config.lower()}


def _distinct(rules: Rules, quantizer: str) -> set[tuple[Grid, ...]]:
    """What the enabled rules for this kind of quantizer round to; a rule for all quantizers undoes those before it."""
    found: dict[str, tuple[Grid, ...]] = {}
    for pattern, grids in rules:
        if pattern == "*":
            found = {pattern: grids}
        elif pattern.endswith(quantizer):
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
    grids = []
    for facts in map(mapping_of, listed):
        if facts and facts.get("enable") is not False:
            grid = Grid(
                numbers=_number(facts.get("num_bits")),
                axis=_number(facts.get("axis")),
                block=_block(facts.get("block_sizes")),
                affine=facts.get("bias") is not None,
                rotated=bool(facts.get("rotate")),
            )
            grids.append(grid)
    return tuple(grids)


def _block(sizes: object) -> tuple[Number, Number] | None:
    """Block sizes along outputs (axis -2) and inputs (-1)."""
    along = {axis: _number(size) for axis, size in pairs_of(sizes) if isinstance(axis, int)}
    return (along.get(-2, 1), along.get(-1, 1)) if along else None


def _number(node: object) -> Number:
    """A number or a short tuple of them; anything else a pickle can hold is not compared."""
    if isinstance(node, (tuple, list)) and len(node) <= 4:
        numbers = tuple(part for part in node if isinstance(part, int))
        return numbers if len(numbers) == len(node) else None
    return node if isinstance(node, int) else None
