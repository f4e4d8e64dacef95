"""One format for every layer that it matches: what `quantize` does to a model. `search` has the same parts."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from scripts.args.quantize import QuantizeArgs
from scripts.engines.hf import calibrate, experts, load, quantizers, report
from scripts.engines.hf.group import Group
from scripts.engines.hf.mixture import refuse_layers
from scripts.engines.hf.reference import quantized_experts
from scripts.engines.hf.samples import Tokens
from scripts.formats import FITS_ANY_WIDTH, FORMATS, LEFT, Format, format_problems, known_format
from scripts.run.problems import JobError
from scripts.run.record import Record

if TYPE_CHECKING:
    from torch import nn

#: Takes the number of samples of each pass.
Advance = Callable[[int], None]


def refuse_misfits(formats: Sequence[str], bare: "nn.Module", format_of: Callable[[str], str] | None = None) -> None:
    """Raise JobError `format_does_not_fit` where widths of a model are no multiples of a named format's blocks.

    `format_of` tells the one that a layer gets; else each layer may get any.
    """
    shapes = load.linear_shapes(bare)
    for name in (name for name in formats if name in FORMATS):
        given = {one: shape for one, shape in shapes.items() if format_of is None or format_of(one) == name}
        if misfits := format_problems(name, given):
            raise JobError("format_does_not_fit", " ".join(misfits), FITS_ANY_WIDTH)


@dataclass(frozen=True, kw_only=True)
class OneFormat:
    """The format of the arguments."""

    args: QuantizeArgs
    #: Experts that share a tensor and get a format, by that tensor: found by `rehearse`.
    experts: list[str] = field(default_factory=list)

    #: Whether the output head may get a format.
    takes_head = False

    @property
    def title(self) -> str:
        """What is made of the model, in words."""
        return report.format_name(self.args)

    @property
    def compress(self) -> bool:
        """Whether the weights are packed in memory, too."""
        return self.args.compress

    @cached_property
    def config(self) -> dict[str, Any]:
        """ModelOpt's configuration."""
        return quantizers.build_config(self.args)

    @property
    def depends_on(self) -> dict[str, Any]:
        """What scales depend on, besides the text and the model."""
        return {**self.config, "every_expert": self.args.force_all_expert_routing}

    @property
    def settled(self) -> bool:
        """Whether calibration settles on weights that are not the source's."""
        facts = known_format(self.args.export_quant_cfg)
        return bool(facts and facts.settled)

    def refuse(self) -> None:
        """Raise JobError for what cannot be, before anything is loaded."""
        quantizers.refuse_weight_only(self.args)
        if self.args.compress:
            quantizers.refuse_compress(self.args)
        if not self.args.from_files:
            calibrate.refuse_split(quantizers.algorithm_name(self.config))

    def rehearse(self, build: "Callable[[], Any]") -> None:
        """Raise JobError for what the model, which `build` builds without weights, cannot be made to."""
        args, bare = self.args, build()
        left = [one for one in load.linear_shapes(bare) if args.format_of(one) == LEFT]
        on_cpu = load.pick_device(self.args.device).type == "cpu"
        quantizers.rehearse(bare, self.config, exported=bool(self.args.export_dir), on_cpu=on_cpu)
        if self.args.force_all_expert_routing:
            experts.refuse_none(bare)
        self.experts[:] = quantized_experts(bare)
        named = list(dict.fromkeys([*load.linear_shapes(bare), *left]))
        refuse_layers(named, args.export_quant_cfg, args.layer_formats)
        refuse_misfits(self.args.makes(), bare, self.args.format_of)

    def quantize(
        self,
        model: "nn.Module",
        samples: Sequence[Tokens],
        record: Record,
        *,
        ranks: Group,
        advance: Advance,
        batch_size: int,
        max_tokens: int,
    ) -> dict[str, Any]:
        """Insert and calibrate quantizers in place; returns what a report tells of it besides: experts, by their
        layer, that no sample was sent to."""
        unreached: dict[str, list[int]] = {}
        how: Any = {"ranks": ranks, "advance": advance, "batch_size": batch_size, "max_tokens": max_tokens}
        how |= {"unreached": unreached, "every_expert": self.args.force_all_expert_routing}
        loop_of = partial(calibrate.calibration_loop, samples, **how)
        loop = loop_of(algorithm=quantizers.algorithm_name(self.config))
        quantizers.quantize(model, self.config, loop, lambda name: loop_of(algorithm=name))
        left = {name: numbers for name, numbers in unreached.items() if numbers}
        return {"unreached": left} if left else {}

    def formats(self, results: Mapping[str, Any], layers: Iterable[str]) -> Mapping[str, Format]:
        """Of each layer by its name, where they are not all the same."""
        every = [*layers, *self.experts] if self.args.layer_formats else []
        return {one: FORMATS[self.args.format_of(one)] for one in every}

    def verified(self) -> dict[str, Any]:
        """What an export is held against besides: arguments of `verify.verify_export`."""
        args, facts = self.args, known_format(self.args.export_quant_cfg)
        cache = args.export_kv_cache_quant if facts else None
        facts = None if args.layer_formats else facts
        return {"facts": facts, "kv_cache": cache, "weight_only": args.weight_only, "compressed": args.compress}
