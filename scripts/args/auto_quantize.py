"""Arguments of `auto_quantize`: ModelOpt's search for the format of each layer, on a Transformers model."""

from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Literal

from scripts.args.meaning import doc
from scripts.args.quantize import MeasuredArgs
from scripts.formats import FORMATS

#: The formats that a search can choose from, with the bits of a weight that it counts of each.
SEARCHED: dict[str, float] = {name: facts.search_bits for name, facts in FORMATS.items() if facts.search_bits}
#: What is searched where neither an argument nor a recipe says so: as ModelOpt's own first recipe.
CANDIDATES, EFFECTIVE_BITS, SCORED = ("nvfp4", "fp8"), 5.4, 128
#: Bits of a weight that stays as it is, as a search counts them.
PLAIN_BITS = 16.0
#: Passes over the samples: AWQ tries scales; what gradients cost besides each format; and the groups of a layer that
#: get one format (attention's inputs, its output, the MLP's inputs, its output).
_AWQ_PASSES, _GRADIENT_PASSES, _GROUPS = 12, 3, 4


@dataclass(frozen=True, kw_only=True)
class AutoQuantizeArgs(MeasuredArgs):
    """What `auto_quantize` does. Null leaves it to the recipe, where one is named."""

    effective_bits: float | None = doc(
        f"bits of a weight, at most, on average over the layers that are searched; null: the recipe's, else "
        f"{EFFECTIVE_BITS}",
        None,
        role="effective_bits",
        above=0,
        most=PLAIN_BITS,
        engine="hf",
    )
    formats: list[str] | None = doc(
        f"formats that a layer may get: {', '.join(SEARCHED)}; null: the recipe's, else {' and '.join(CANDIDATES)}",
        None,
        role="formats",
        engine="hf",
    )
    allow_no_quant: bool = doc("a layer may also stay as it is; a recipe says so itself", True, engine="hf")
    recipe: str | None = doc(
        "an AutoQuantize recipe of ModelOpt instead of formats (general/auto_quantize/nvfp4_fp8_at_5p4bits), or a file",
        None,
        role="format_recipe",
        engine="hf",
    )
    method: Literal["gradient", "kl_div"] | None = doc(
        "what tells a layer's loss: gradients, or the divergence of the logits (kl_div), which takes a pass for each "
        "layer and format; null: the recipe's, else gradient",
        None,
        engine="hf",
    )
    score_size: int | None = doc(
        f"calibration samples that layers are scored on; null: the recipe's, else {SCORED}", None, engine="hf", least=1
    )
    cost_model: Literal["weight", "active_moe"] | None = doc(
        "which weights count: all alike, or those of experts by how many of them a token visits; null: the recipe's, "
        "else weight",
        None,
        engine="hf",
    )
    active_moe_expert_ratio: float | None = doc(
        "part of the experts that a token visits, for active_moe; null: the recipe's, else the model's own",
        None,
        engine="hf",
        above=0,
        most=1,
    )
    disabled_layers: list[str] | None = doc(
        "patterns of layers that stay as they are and do not count, such as '*.layers.0.*', besides those that no "
        "format takes; null: the recipe's",
        None,
        engine="hf",
    )

    def makes(self) -> tuple[str, ...]:
        """None of a recipe, which has formats of its own."""
        return tuple(dict.fromkeys(self.formats or (() if self.recipe else CANDIDATES)))

    @property
    def bits_asked(self) -> float | None:
        """None: those of the recipe."""
        return self.effective_bits if self.effective_bits is not None or self.recipe else EFFECTIVE_BITS

    def variant(self) -> str:
        bits = "" if self.bits_asked is None else f"{self.bits_asked:g}bits"
        of = PurePath(self.recipe).stem if self.recipe else "-".join(self.makes())
        return "-".join(part for part in (of, bits) if part)

    def work(self) -> dict[str, Any]:
        """How often samples go through: each format is calibrated, then layers are scored."""
        formats = self.makes() or CANDIDATES
        by_gradient = self.method != "kl_div"
        return {
            "rounds": sum(_AWQ_PASSES if "awq" in name else 1 for name in formats),
            "scored": self.score_size or SCORED,
            "passes_scored": len(formats) + _GRADIENT_PASSES if by_gradient else 1,
            "passes_of_layer": 0 if by_gradient else _GROUPS * len(formats),
            "searched": False,
        }
