"""Whether a quantization format suits a job: its model's widths on each rank, its exporter, its source."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

from recipes.experiment.job import Job
from recipes.models import ModelFacts
from recipes.models.architecture import PARTS, Side, Weight
from recipes.planner.layout import Layout, Size
from recipes.preflight.layout import divided
from scripts.args.meaning import AS_STORED, MEGATRON, Role, meanings
from scripts.checkpoints.causal import packed
from scripts.checkpoints.quantization import formats_in
from scripts.formats import (
    CACHES,
    CONFIG_NAMES,
    EXPORTABLE,
    FITS_ANY_WIDTH,
    FORMATS,
    Cache,
    Format,
    builtin_recipes,
    config_names,
    known_format,
)
from scripts.run.problems import Problem, nearest
from scripts.run.registry import check

#: Kinds of ModelOpt's recipes that no script here takes, and what does the same.
_OTHER_RECIPES = {
    "auto_quantize": " The recipe auto_quantize takes those of a search; mlm_quantize has args.auto_quantize_bits.",
    **dict.fromkeys(("distillation", "speculative_decoding", "qad"), ""),
}


def made_format(job: Job) -> tuple[str, str] | None:
    """The key and the name of the format that a job quantizes to; a ModelOpt recipe instead of one is not a name."""
    key, name = job.key("format"), job.get("format")
    made = job.algorithm == "quantize" and not job.get("format_recipe") and isinstance(name, str)
    return (key, name) if made and key else None


def made_formats(job: Job) -> Iterator[tuple[str, str]]:
    """The same of a job that may make several: each with the key."""
    if (key := job.key("formats")) and job.algorithm == "quantize":
        yield from ((key, name) for name in job.resolved.makes())
    elif made := made_format(job):
        yield made


def named_format(name: str) -> Format | None:
    """The format by its own name, by ModelOpt's, or by the one that a longer name is a variant of.

    Of several, as in W4A8_NVFP4_FP8_CFG, the one that needs the newest GPU.
    """
    if exact := known_format(name):
        return exact
    plain = name.lower()
    variants = [facts for name, facts in FORMATS.items() if f"_{name}_" in f"_{plain}_"]
    return max(variants, key=lambda facts: facts.native_sm, default=None)


def read_formats(job: Job) -> Iterator[tuple[str, Format]]:
    """The formats of the checkpoints that a job reads, as far as their facts say."""
    for field, facts in job.models.items():
        yield from ((f"args.{field}", found) for found in formats_in(facts.quantized))


def _quantizes_by_script(job: Job) -> bool:
    return job.engine in MEGATRON and made_format(job) is not None


@check(
    "format_does_not_fit",
    needs=("model.blocks", "model.hidden_size"),
    applies=lambda job: _quantizes_by_script(job) and divided(job),
)
def fits(job: Job) -> Iterator[Problem]:
    """Calibration fills a last block up with zeros (ModelOpt quantization.utils); the exporter refuses to."""
    made, layout, model = made_format(job), job.asked.layout, job.model
    facts = known_format(made[1]) if made else None
    if made is None or facts is None or model is None:
        return
    blocks: dict[Side, int] = {"inputs": facts.block[1], "outputs": facts.block[0]}
    packed = [row for part in PARTS if model.count_of(part) for row in model.architecture.of(part) if row.what]
    for side, row in ((side, row) for side in blocks for row in packed):
        width, block = _width(row, side, model, layout), blocks[side]
        if width is not None and width % block:
            exported = facts.megatron_export
            what = row.what if side == row.split else "the hidden width"
            yield Problem(
                key=made[0],
                value=made[1],
                cause=f"on each rank {what} has {width} {side}, no multiple of {block}, its block",
                remedy=_smaller(row, side, model, layout, block, job.asked.keys),
                severity="error" if exported else "warning",
                can_force=exported,
            )
            return


def _width(row: Weight, side: Side, model: ModelFacts, layout: Layout) -> int | None:
    """Of a weight on each rank; None where it is not known, not the model's own, or does not spread evenly, which is
    another check's."""
    width = row.width(side, layout.etp if row.experts else layout.tp)
    return width if side == row.split or width == model.hidden_size else None


def _smaller(row: Weight, side: Side, model: ModelFacts, layout: Layout, block: int, keys: Mapping[Size, str]) -> str:
    """The largest tensor parallelism with which the blocks stay whole; formats without blocks where there is none."""
    for size in ("tp", "etp"):
        for value in range(getattr(layout, size) - 1, 0, -1):
            smaller = replace(layout, **{size: value})
            width = _width(row, side, model, smaller)
            if size in keys and smaller.divides and width is not None and width % block == 0:
                return f"Try {keys[size]}={value}, or another format: {FITS_ANY_WIDTH}"
    return FITS_ANY_WIDTH


@check("unsupported_quant_recipe", can_force=True, applies=_quantizes_by_script)
def known_by_script(job: Job) -> Iterator[Problem]:
    """A name that ModelOpt does not have; a script with a list of its own says so itself."""
    formats = {name: FORMATS[name] for name in CONFIG_NAMES}
    asked_for: Mapping[Role, Mapping[str, Format | Cache]] = {"format": formats, "kv_format": CACHES}
    for role, own in asked_for.items():
        key, value = job.key(role), job.get(role)
        asked = isinstance(value, str) and value != "none" and not (role == "format" and job.get("format_recipe"))
        if key is None or not asked or job.addressed is None or value in CONFIG_NAMES:
            continue
        flag = job.addressed.interface.find(key.removeprefix("args."))
        configs = [facts.config for facts in own.values()]
        if value in (*own, *configs, *config_names()) or value.endswith("_CFG") or (flag and flag.choices):
            continue
        yield Problem(key=key, value=value, cause="ModelOpt has no format of that name", remedy=nearest(value, own))


@check("unsupported_quant_recipe", roles=("format_recipe",), engines=("script",))
def recipe_of_format(job: Job) -> Iterator[Problem]:
    """ModelOpt's recipes of other kinds lie beside those of post-training quantization."""
    key, value = job.key("format_recipe") or "", job.get("format_recipe")
    kind = next((part for part in _OTHER_RECIPES if part in value.split("/")), None)
    if kind is not None:
        cause = f"it is a recipe of {kind}, and the script takes those of post-training quantization"
        remedy = "Use one such as general/ptq/fp8_default-kv_fp8." + _OTHER_RECIPES[kind]
        yield Problem(key=key, value=value, cause=cause, remedy=remedy)
    elif builtin_recipes() and value.partition("/")[0] in ("general", "models", "huggingface"):
        plain = value.removesuffix(".yaml").removesuffix(".yml")
        if plain not in builtin_recipes():
            cause, remedy = "ModelOpt, as it is installed here, has no such recipe", nearest(plain, builtin_recipes())
            yield Problem(key=key, value=value, cause=cause, remedy=remedy, can_force=True)


@check("format_not_exportable", severity="warning", applies=_quantizes_by_script)
def exportable(job: Job) -> Iterator[Problem]:
    """The checkpoint itself is sound: it can be trained on and generate."""
    made = made_format(job)
    facts = known_format(made[1]) if made else None
    if made and facts and not facts.megatron_export:
        cause = "Megatron's exporter cannot write it: no Hugging Face checkpoint can be made of what this leaves"
        key, value = made
        yield Problem(key=key, value=value, cause=cause, remedy=EXPORTABLE)


@check("already_quantized", algorithms=("quantize", "prune", "distill"))
def already(job: Job) -> Iterator[Problem]:
    """What ModelOpt quantized is packed; other tools' checkpoints some loaders unpack."""
    sources = {field.name for field, meaning in meanings(job.args) if meaning.consumes == "checkpoint_hf"}
    for field in sorted(sources & job.models.keys()):
        found = job.models[field].quantized
        if found is not None:
            refusal = packed(found, loaded=not any(map(job.get, AS_STORED))) if job.engine == "hf" else None
            ours = bool(formats_in(found))
            whose = (
                "undone first, but what was lost is lost"
                if job.engine == "hf"
                else "whether that is undone is its loader's"
            )
            undone = "" if ours else f": {whose}"
            yield Problem(
                key=f"args.{field}",
                value=getattr(job.args, field),
                cause=refusal[1] if refusal else f"it is quantized already, in {found}{undone}",
                remedy="Name the model that it was made of." if ours else "Name a BF16 version, where there is one.",
                severity="error" if ours or refusal else "warning",
                can_force=ours and not refusal,
            )
