"""One loaded model in which many mixtures are tried: what calibration finds of a layer does not depend on the others.

So each format is calibrated once, and a mixture is made of the layers of those models: ModelOpt's algorithms watch a
model that computes without quantizing, as `mixture.calibrate_mixed` does too. Weights that a format leaves as they
are, are shared.
"""

import copy
from collections.abc import Callable, Collection, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field, replace
from io import StringIO
from typing import TYPE_CHECKING, Any

from scripts.args.quantize import QuantizeArgs
from scripts.engines.hf import calibrate, evaluate, quantizers
from scripts.engines.hf.best.decisions import Unit
from scripts.engines.hf.samples import Samples
from scripts.formats import LEFT
from scripts.processor import bf16_products

if TYPE_CHECKING:
    from torch import nn

Advance = Callable[[int], None]


@dataclass(kw_only=True)
class Bench:
    """Measures mixtures of `units`. `limits`: how samples go through the model at a time."""

    model: "nn.Module"
    samples: Samples
    base: evaluate.Base
    units: Sequence[Unit]
    args: QuantizeArgs
    limits: dict[str, Any]
    calibrated: "dict[tuple[str, int], nn.Module]" = field(default_factory=dict)

    def calibrate(self, name: str, count: int, advance: Advance) -> None:
        """The whole model in a format, by the first `count` samples; those by other counts are dropped."""
        if (name, count) in self.calibrated:
            return
        for key in [one for one in self.calibrated if one[0] == name]:
            del self.calibrated[key]
        made = self.copy(self.model, own={layer for unit in self.units for layer in unit.layers})
        config = quantizers.build_config(replace(self.args, export_quant_cfg=name))
        algorithm, samples = quantizers.algorithm_name(config), self.samples.calibration[:count]
        loop = calibrate.calibration_loop(samples, advance=advance, algorithm=algorithm, **self.limits)
        with bf16_products(), redirect_stdout(StringIO()):
            quantizers.quantize(made, config, loop)
        self._share(made)
        self.calibrated[name, count] = made

    def scores(self, formats: Sequence[str], calibrated: int, scored: int) -> evaluate.Scores:
        """What a mixture loses, on the first `scored` samples."""
        return self._scores(self._mixed(formats, calibrated), scored)

    def noise(self, name: str, calibrated: int, scored: int, advance: Advance) -> list[float]:
        """What each unit adds to the divergence of the model in one format: what is gained where it alone is left."""
        whole = self.scores([name] * len(self.units), calibrated, scored).kl_divergence
        found = []
        for at in range(len(self.units)):
            formats = [LEFT if one == at else name for one in range(len(self.units))]
            found.append(max(0.0, whole - self.scores(formats, calibrated, scored).kl_divergence))
            advance(1)
        return found

    def copy(self, model: "nn.Module", own: Collection[str] = ()) -> "nn.Module":
        """The same modules anew, with the same weights; of the layers in `own` the weights are copied, too."""
        shared = [one for name, one in model.named_parameters() if name.rpartition(".")[0] not in own]
        return copy.deepcopy(model, {id(one): one for one in [*shared, *model.buffers()]})

    def _scores(self, model: "nn.Module", scored: int) -> evaluate.Scores:
        base = replace(self.base, samples=self.base.samples[:scored], hidden=self.base.hidden[:scored])
        with bf16_products():
            return evaluate.score(model, base, advance=lambda _: None, **self.limits)

    def _mixed(self, formats: Sequence[str], calibrated: int) -> "nn.Module":
        """A model whose layers are those of the calibrated ones, not copies of them."""
        names = [name for name in formats if name != LEFT]
        most = max(sorted(set(names)), key=names.count, default=LEFT)
        made = self.copy(self.model if most == LEFT else self.calibrated[most, calibrated])
        for unit, name in zip(self.units, formats, strict=True):
            holder = self.model if name == LEFT else self.calibrated[name, calibrated]
            for layer in unit.layers if name != most else ():
                parent, _, last = layer.rpartition(".")
                setattr(made.get_submodule(parent), last, holder.get_submodule(layer))
        return made

    def _share(self, made: "nn.Module") -> None:
        """Hold weights once that calibration left as they were."""
        import torch

        before = dict(self.model.named_parameters())
        for name, weight in made.named_parameters():
            if name in before and weight is not before[name] and torch.equal(weight, before[name]):
                weight.data = before[name].data
