"""Whether a quantization format suits a job: its model's widths on each rank, its exporter, its source."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Literal

from recipes.experiment.job import Job
from recipes.models import ModelFacts
from recipes.models.model import Part
from recipes.planner.layout import Layout
from recipes.preflight.layout import asked, ranked
from scripts.args.meaning import meanings
from scripts.formats import EXPORTABLE, FITS_ANY_WIDTH, FORMATS, Format
from scripts.run.problems import Problem
from scripts.run.registry import Check

_KEYS = ("export_quant_cfg", "quant_cfg")
Side = Literal["input", "output"]
Width = Callable[[ModelFacts, Layout], int | None]


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """One side of a kind of weight matrix, as each rank holds it."""

    what: str
    side: Side
    part: Part
    width: Width  # of a rank; None where a fact is not known


def _per(rank: Literal["tp", "etp"], *names: str) -> Width:
    """The product of facts, spread over ranks; None where they do not spread evenly, which is another check's."""

    def width(facts: ModelFacts, layout: Layout) -> int | None:
        values = [getattr(facts, name) for name in names]
        if None in values:
            return None
        each, over = divmod(prod(values), getattr(layout, rank))
        return None if over else int(each)

    return width


def _whole(facts: ModelFacts, _: Layout) -> int | None:
    return facts.hidden_size


#: Column-parallel matrices are split by their outputs, row-parallel ones by their inputs (arXiv:1909.08053). Heads with
#: latent attention have widths of their own and are left to ModelOpt.
_MATRICES: tuple[Matrix, ...] = (
    Matrix(what="the hidden width", side="input", part="attention", width=_whole),
    Matrix(what="the hidden width", side="input", part="mlp", width=_whole),
    Matrix(what="the hidden width", side="output", part="mlp", width=_whole),
    Matrix(what="the heads", side="input", part="attention", width=_per("tp", "heads", "head_dim")),
    Matrix(what="the MLP", side="input", part="mlp", width=_per("tp", "ffn_hidden_size")),
    Matrix(what="the MLP", side="output", part="mlp", width=_per("tp", "ffn_hidden_size")),
    Matrix(what="an expert", side="input", part="experts", width=_per("etp", "expert_ffn_size")),
    Matrix(what="an expert", side="output", part="experts", width=_per("etp", "expert_ffn_size")),
    Matrix(what="the shared experts", side="input", part="experts", width=_per("tp", "shared_expert_ffn_size")),
    Matrix(what="Mamba's heads", side="input", part="mamba", width=_per("tp", "mamba_heads", "mamba_head_dim")),
)


def made_format(job: Job) -> tuple[str, str] | None:
    """The key and the name of the format that a job quantizes to; a ModelOpt recipe instead of one is not a name."""
    if job.algorithm != "quantize" or getattr(job.args, "recipe", None):
        return None
    for name in _KEYS:
        value = getattr(job.resolved, name, None)
        if isinstance(value, str):
            return f"args.{name}", value
    return None


def named_format(name: str) -> Format | None:
    """The format by its own name, by ModelOpt's, or by the one that a longer name is a variant of.

    Of several, as in W4A8_NVFP4_FP8_CFG, the one that needs the newest GPU.
    """
    exact = exact_format(name)
    if exact is not None:
        return exact
    plain = name.lower()
    variants = [facts for name, facts in FORMATS.items() if f"_{name}_" in f"_{plain}_"]
    return max(variants, key=lambda facts: facts.native_sm, default=None)


def exact_format(name: str) -> Format | None:
    """The format by its own name or by ModelOpt's."""
    by_config = {facts.config: facts for facts in FORMATS.values()}
    return FORMATS.get(name) or by_config.get(name)


def read_formats(job: Job) -> Iterator[tuple[str, Format]]:
    """The formats of the checkpoints that a job reads, as far as their facts say."""
    for field, facts in job.models.items():
        found = FORMATS.get(facts.quantized or "")
        if found is not None:
            yield f"args.{field}", found


def _fits(job: Job) -> Iterator[Problem]:
    """Calibration fills a last block up with zeros (ModelOpt quantization.utils); the exporter refuses to."""
    made = made_format(job)
    facts = exact_format(made[1]) if made else None
    if made is None or facts is None:
        return
    want, model = asked(job), job.model
    assert model is not None
    sides: dict[Side, int] = {"output": facts.block[0], "input": facts.block[1]}
    for matrix in _MATRICES:
        width, block = matrix.width(model, want.layout), sides[matrix.side]
        if width is None or not model.count_of(matrix.part) or (model.latent and matrix.part == "attention"):
            continue
        if width % block:
            exported = facts.megatron_export
            yield Problem(
                name="format_does_not_fit",
                key=made[0],
                value=made[1],
                cause=f"on each rank {matrix.what} has {width} {matrix.side}s, no multiple of {block}, its block",
                remedy=_smaller(matrix, model, want.layout, block, want.keys),
                severity="error" if exported else "warning",
                can_force=exported,
            )
            return


def _smaller(matrix: Matrix, model: ModelFacts, layout: Layout, block: int, keys: Mapping[str, str]) -> str:
    """The largest tensor parallelism with which the blocks stay whole; formats without blocks where there is none."""
    for size in ("tp", "etp"):
        for value in range(getattr(layout, size) - 1, 0, -1):
            smaller = replace(layout, **{size: value})
            width = matrix.width(model, smaller)
            if size in keys and smaller.divides and width is not None and width % block == 0:
                return f"Try {keys[size]}={value}, or another format: {FITS_ANY_WIDTH}"
    return FITS_ANY_WIDTH


def _exportable(job: Job) -> Iterator[Problem]:
    """The checkpoint itself is sound: it can be trained on and generate."""
    made = made_format(job)
    facts = exact_format(made[1]) if made else None
    if made and facts and not facts.megatron_export:
        cause = "Megatron's exporter cannot write it: no Hugging Face checkpoint can be made of what this leaves"
        key, value = made
        yield Problem(
            name="format_not_exportable", key=key, value=value, cause=cause, remedy=EXPORTABLE, severity="warning"
        )


def _already(job: Job) -> Iterator[Problem]:
    """What ModelOpt quantized is packed; other tools' checkpoints some loaders unpack."""
    sources = {field.name for field, meaning in meanings(job.args) if meaning.consumes == "checkpoint_hf"}
    for field in sorted(sources & job.models.keys()):
        found = job.models[field].quantized
        if found is not None:
            ours = found in FORMATS
            cause = f"it is quantized already, in {found}" + (
                "" if ours else ": whether that is undone is its loader's"
            )
            yield Problem(
                name="already_quantized",
                key=f"args.{field}",
                value=getattr(job.args, field),
                cause=cause,
                remedy="Name the model that it was made of." if ours else "Name a BF16 version, where there is one.",
                severity="error" if ours else "warning",
                can_force=ours,
            )


def _quantizes_by_script(job: Job) -> bool:
    return job.engine == "script" and made_format(job) is not None


CHECKS: tuple[Check, ...] = (
    Check(
        name="format_does_not_fit",
        run=_fits,
        needs=("model.blocks", "model.hidden_size"),
        applies=lambda job: _quantizes_by_script(job) and ranked(job) and asked(job).layout.divides,
    ),
    Check(name="format_not_exportable", run=_exportable, applies=_quantizes_by_script),
    Check(
        name="already_quantized",
        run=_already,
        applies=lambda job: job.algorithm in ("quantize", "prune", "distill"),
    ),
)
