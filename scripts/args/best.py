"""Arguments of `best`: a search for the smallest recipe that passes, on a Transformers model."""

from dataclasses import dataclass, fields
from typing import Any, ClassVar

from scripts.args.meaning import doc
from scripts.args.quantize import MeasuredArgs
from scripts.args.serve import ServerName
from scripts.args.shared import written
from scripts.formats import MIXABLE


@dataclass(frozen=True, kw_only=True)
class BestArgs(MeasuredArgs):
    """What `best` does. Limits are those of a verdict: the winner is held to them by what it measures in the end."""

    TOOL: ClassVar[tuple[str, str] | None] = ("optuna", "search")

    max_kl: float | None = doc("divergence from the model that is allowed, nats a token", None, engine="hf", above=0)
    max_increase: float | None = doc(
        "increase of the perplexity that is allowed, as a share: 0.01", None, engine="hf", above=0
    )
    min_agreement: float | None = doc(
        "share of tokens whose likeliest next one must stay the same", None, engine="hf", above=0, most=1
    )
    target_size: float | None = doc(
        "bytes of the export that are allowed, as a share of the model's: 0.4", None, engine="hf", above=0, most=1
    )
    formats: list[str] | None = doc(
        f"formats to try and to mix: {', '.join(MIXABLE)}; null: those that fit the model and args.server loads",
        None,
        role="formats",
        engine="hf",
    )
    leave_layers: bool = doc("layers may also stay as they are", True, engine="hf")
    auto_quantize: bool = doc(
        "ModelOpt's AutoQuantize proposes mixtures too, by gradients of the loss, which takes a copy of the model",
        True,
        engine="hf",
    )
    server: ServerName | None = doc(
        "the server that is to load the export, which limits the formats; null: any, or none", None, engine="hf"
    )
    trials: int = doc(
        "configurations that are measured, at most; no fewer than formats, the better half of them again, and one",
        40,
        engine="hf",
        least=1,
    )
    minutes: float = doc("time for the search, at most, with what the winner will take", 60.0, engine="hf", above=0)
    seed: int = doc("of what Optuna draws", 0, engine="hf", least=0)
    eval_size: int = doc("samples that are scored", 64, engine="ours", role="eval_samples", least=1)
    export_dir: str | None = written("the winner as a deployable Hugging Face checkpoint", "checkpoint_hf", engine="hf")

    def makes(self) -> tuple[str, ...]:
        """All that can be mixed where none is named."""
        return tuple(dict.fromkeys(self.formats if self.formats is not None else MIXABLE))

    @property
    def limits(self) -> dict[str, float]:
        """As a verdict takes them."""
        asked = {name: getattr(self, name) for name in ("max_kl", "max_increase", "min_agreement")}
        return {name: value for name, value in {**asked, "max_size": self.target_size}.items() if value is not None}

    @property
    def asked(self) -> str:
        """What passes, and when the search ends, in a sentence."""
        limits = ", ".join(f"{name} {value:g}" for name, value in self.limits.items())
        return f"what keeps {limits} passes; at most {self.trials} trials and {self.minutes:g} minutes"

    def measured(self) -> dict[str, Any]:
        """What `quantize` takes of it."""
        return {one.name: getattr(self, one.name) for one in fields(MeasuredArgs)}

    def variant(self) -> str:
        return "best"

    def work(self) -> dict[str, Any]:
        """The search ends with its minutes, and the winner is quantized after that."""
        return {**super().work(), "minutes": self.minutes}
