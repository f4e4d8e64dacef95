"""What ModelOpt's AutoQuantize says that each group of layers loses in each format: found once, for all sizes.

Its search is run on a copy of the model, and of its choice only what it is made by is kept: squared changes of a
layer's outputs by the gradients of the loss, summed over the samples.
"""

from contextlib import redirect_stdout
from io import StringIO
from typing import Any

from scripts.args.auto_quantize import SEARCHED, AutoQuantizeArgs
from scripts.args.best import BestArgs
from scripts.engines.hf.best.bench import Bench
from scripts.engines.hf.group import Group
from scripts.engines.hf.reference import quantized_linears
from scripts.engines.hf.search import Search
from scripts.processor import bf16_products
from scripts.run.record import Record


def sensitivities(
    args: BestArgs, bench: Bench, formats: list[str], samples: int, record: Record
) -> dict[str, list[float]]:
    """Of each unit, by format, calibrated and scored on so many samples. Raises JobError `search_failed`.

    Where ModelOpt scores more layers together than servers fuse, each has its part.
    """
    from modelopt.torch.opt.utils import named_hparams
    from modelopt.torch.quantization.algorithms import QuantRecipeHparam

    asked: Any = {**args.measured(), "export_kv_cache_quant": "none", "formats": formats, "method": "gradient"}
    asked |= {"effective_bits": max(SEARCHED[name] for name in formats), "score_size": samples}
    own = {layer for unit in bench.units for layer in unit.layers}
    left = sorted(quantized_linears(bench.model)[1].keys() - own)  # the head, too
    how, model = Search(args=AutoQuantizeArgs(**asked), left=left), bench.copy(bench.model, own)
    given: Any = {"ranks": Group(), "advance": lambda _: None, **bench.limits}
    with bf16_products(), redirect_stdout(StringIO()):
        how.quantize(model, bench.samples.calibration[:samples], record, **given)
    losses: dict[str, dict[str, float]] = {name: {} for name in formats}
    groups = [one for _, one in named_hparams(model, unique=True) if isinstance(one, QuantRecipeHparam)]
    for group, recipe in ((each, recipe) for each in groups for recipe in each.choices):
        if (one := how.candidates.get(recipe.checkpoint_signature)) is not None:
            part = group.get_score(recipe) / len(group.quant_module_names)
            losses[one.label] |= dict.fromkeys(group.quant_module_names, part)
    return {name: [sum(losses[name][layer] for layer in unit.layers) for unit in bench.units] for name in formats}
