"""What can be wrong with a search for formats before anything is loaded; where it is submitted, and on the node."""

from collections.abc import Iterator
from typing import Any

from scripts.args.auto_quantize import PLAIN_BITS, SEARCHED, AutoQuantizeArgs
from scripts.formats import FORMATS, no_recipe, resolve_recipe
from scripts.run.problems import JobError, Problem, nearest
from scripts.run.registry import check

#: The remedy where a format of two roundings has a part in a search.
NOT_RESTORED = "Set args.modelopt_save_path=null, which leaves the export, or search other formats."


@check("unsupported_quant_recipe", "missing_value", args=AutoQuantizeArgs, where="both")
def searchable(job: Any) -> Iterator[Problem]:
    """Whether ModelOpt can give some layers each of the formats."""
    args: AutoQuantizeArgs = job.resolved
    if args.formats is not None and not args.formats:
        remedy = f"Name some of {', '.join(SEARCHED)}."
        yield Problem(name="missing_value", key="args.formats", value="[]", cause="it names no format", remedy=remedy)
    for name in args.makes():
        if name not in SEARCHED:
            known = name in FORMATS
            cause = (
                f"ModelOpt's search cannot give it to some of the layers: {name}" if known else f"no format: {name!r}"
            )
            yield Problem(key="args.formats", value=args.formats, cause=cause, remedy=nearest(name, SEARCHED))


@check("unsupported_quant_recipe", "contradiction", args=AutoQuantizeArgs, where="both")
def recipe_of_search(job: Any) -> Iterator[Problem]:
    """A recipe has formats of its own, and says itself which layers may stay as they are."""
    args: AutoQuantizeArgs = job.resolved
    named = {"args.formats": args.formats, "args.allow_no_quant": None if args.allow_no_quant else False}
    for key, value in named.items():
        if args.recipe and value is not None:
            cause, remedy = f"args.recipe={args.recipe} says that itself", "Leave one of them out."
            yield Problem(name="contradiction", key=key, value=value, cause=cause, remedy=remedy)
    if args.recipe:
        try:
            found = resolve_recipe(args.recipe, "auto_quantize")
        except JobError as error:
            yield error.as_problem("args.recipe", args.recipe)
        else:
            if found is None:
                yield no_recipe(args.recipe, "auto_quantize").as_problem("args.recipe", args.recipe)


@check("effective_bits_out_of_reach", "nothing_to_search", args=AutoQuantizeArgs, where="both")
def reach(job: Any) -> Iterator[Problem]:
    """Whether any mixture of the formats has as few bits; a recipe's formats are known on the node only."""
    args: AutoQuantizeArgs = job.resolved
    known = sorted({SEARCHED[name] for name in args.makes() if name in SEARCHED})
    bits = args.bits_asked
    if bits is not None and bits >= PLAIN_BITS:
        yield _out_of_reach(bits, "every layer may then stay as it is", known)
    elif known and bits is not None and 0 < bits < known[0]:
        smallest = ", ".join(name for name in args.makes() if SEARCHED.get(name) == known[0])
        yield _out_of_reach(bits, f"{smallest} takes {known[0]:g} bits, and none of args.formats fewer", known)
    if len(known) == 1 and len(args.makes()) == 1 and not args.allow_no_quant:
        cause = f"every layer gets {args.makes()[0]}, which leaves nothing to choose"
        remedy = "Name another format too, or use the recipe quantize."
        yield Problem(name="nothing_to_search", key="args.formats", value=args.formats, cause=cause, remedy=remedy)


def _out_of_reach(bits: float, cause: str, known: list[float]) -> Problem:
    """The range is what mixtures can be asked for."""
    remedy = f"Use a number from {known[0]:g} to below {PLAIN_BITS:g}." if known else f"Use one below {PLAIN_BITS:g}."
    return Problem(key="args.effective_bits", value=bits, cause=cause, remedy=remedy)


@check("format_not_restorable", args=AutoQuantizeArgs, where="both")
def restorable(job: Any) -> Iterator[Problem]:
    """ModelOpt 0.47 does not open a mixture again in which some layers have two quantizers one after the other."""
    args: AutoQuantizeArgs = job.resolved
    two = [name for name in args.makes() if name in SEARCHED and len(FORMATS[name].numbers) > 1]
    if two and args.modelopt_save_path:
        cause = f"ModelOpt cannot restore a checkpoint in which some layers are {two[0]} and others are not"
        yield Problem(key="args.formats", value=args.formats, cause=cause, remedy=NOT_RESTORED)
