"""A format of its own for each layer: ModelOpt's AutoQuantize, asked by arguments or by a recipe of ModelOpt's kind.

Each format is calibrated for every layer, each layer is scored in each of them, and the mixture with the least loss
that keeps the bits asked for is chosen (mtq.auto_quantize). Layers that a runtime computes as one get one format.
"""

import copy
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cached_property
from itertools import accumulate
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from scripts.args.auto_quantize import PLAIN_BITS, SCORED, AutoQuantizeArgs
from scripts.args.meaning import ScriptSpec
from scripts.checkpoints.pickles import Pairs
from scripts.checkpoints.quantization import UNKNOWN, format_of, rules_of
from scripts.engines.choice import SEARCH, refuse_ranks
from scripts.engines.hf import calibrate, load, packing, quantizers, search_checks
from scripts.engines.hf.group import Group
from scripts.engines.hf.load import first_line
from scripts.engines.hf.nvfp4 import cpu_kernels
from scripts.engines.hf.one_format import Advance, refuse_misfits
from scripts.engines.hf.packing import Tokens, replaced
from scripts.engines.hf.reference import quantized_linears
from scripts.formats import FORMATS, Format, resolve_recipe
from scripts.run.problems import JobError
from scripts.run.record import Record
from scripts.run.registry import refuse

if TYPE_CHECKING:
    import torch
    from torch import nn

Config = dict[str, Any]
#: Methods that take maxima of what goes in, and whatever else they do of weights alone.
_MAXIMA = {None, "max", "mse", "smoothquant", "awq_lite"}
_BY_SCORES = "Set args.method=kl_div, which needs no gradients; a model may also be quantized in one format."


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """A search in ModelOpt's words. `formats` are for every layer that none of the `spaces` names."""

    formats: list[Config]
    spaces: list[dict[str, Any]]
    others: Config | None  # what layers get that no space is for; then there are no `formats`
    bits: float
    cost_model: str
    ratio: float | None  # of the experts that a token visits
    method: str
    score_size: int
    disabled: list[str]
    not_counted: list[str]
    cache: Config | None  # of keys and values

    @property
    def configs(self) -> list[Config]:
        """Every one, those of all spaces too."""
        named = [one for space in self.spaces for one in space["quantization_formats"]]
        return [*self.formats, *named, *([] if self.others is None else [self.others])]


@dataclass(frozen=True, kw_only=True)
class _Candidate:
    """A format of the search: what it is called, and what an export of it holds, where that is known."""

    label: str
    bits: float
    facts: Format | None
    steps: int  # roundings of a weight, one after the other


@dataclass(frozen=True, kw_only=True)
class Search:
    """The search that the arguments ask for; it has the parts of OneFormat."""

    args: AutoQuantizeArgs
    #: Layers that no format takes: found by `rehearse`.
    left: list[str] = field(default_factory=list)

    compress = settled = False

    @property
    def title(self) -> str:
        """What may be chosen from, and the bits."""
        args = self.args
        of = PurePath(args.recipe).stem if args.recipe else "+".join(args.makes())
        cache = "" if args.export_kv_cache_quant == "none" else f", key/value cache {args.export_kv_cache_quant}"
        return f"{of} at {self.asked.bits:g} bits{cache}"

    @property
    def takes_head(self) -> bool:
        """Recipes may name the output head; the named formats leave it as it is."""
        return bool(self.args.recipe)

    @property
    def depends_on(self) -> dict[str, Any]:
        """What the choice depends on, besides the text and the model."""
        return vars(self.asked)

    @cached_property
    def asked(self) -> _Asked:
        """The arguments over the recipe, where there is one. Raises JobError `unsupported_quant_recipe`."""
        args, cache = self.args, self.args.export_kv_cache_quant
        by_recipe = _of_recipe(args.recipe) if args.recipe else _of_formats(args)
        given: dict[str, Any] = {
            "bits": args.bits_asked,
            "cost_model": args.cost_model,
            "ratio": args.active_moe_expert_ratio,
            "method": args.method,
            "score_size": args.score_size,
            "disabled": args.disabled_layers,
            "cache": None if cache == "none" else quantizers.cache_config(cache),
        }
        return replace(by_recipe, **{name: value for name, value in given.items() if value is not None})

    @cached_property
    def candidates(self) -> "dict[str, _Candidate]":
        """Each format by ModelOpt's own mark of it."""
        from modelopt.torch.quantization.algorithms import QuantRecipe

        found: dict[str, _Candidate] = {}
        for config in self.asked.configs:
            recipe = QuantRecipe(copy.deepcopy(config), name="candidate")
            facts, steps = _facts(recipe.config.model_dump())
            label = facts.name if facts else f"format {len(found) + 1} of the recipe"
            if any(one.label == label for mark, one in found.items() if mark != recipe.checkpoint_signature):
                label = f"{label} ({len(found) + 1})"
            bits = round(recipe.compression * PLAIN_BITS, 4)
            found[recipe.checkpoint_signature] = _Candidate(label=label, bits=bits, facts=facts, steps=steps)
        return found

    def refuse(self) -> None:
        """Raise JobError for what cannot be, before anything is loaded."""
        refuse_ranks(f"{SEARCH}: it")
        refuse(self.args, ScriptSpec(), search_checks)
        if self.args.modelopt_save_path and any(one.steps > 1 for one in self.candidates.values()):
            cause = "ModelOpt cannot restore a checkpoint in which some layers round weights twice, and others once."
            raise JobError("format_not_restorable", cause, search_checks.NOT_RESTORED)

    def rehearse(self, build: "Callable[[], Any]") -> None:
        """Raise JobError for what the model, which `build` builds without weights, cannot be made to."""
        refuse_misfits(self.args.makes(), build())
        on_cpu, taken = load.pick_device(self.args.device).type == "cpu", set[str]()
        for config in self.asked.configs:
            bare = build()
            linears = [name for group in quantized_linears(bare) for name in group]
            head = bare.get_output_embeddings()
            tied = head is not None and head.weight is bare.get_input_embeddings().weight
            own = [name for name, module in bare.named_modules() if module is head and tied]
            quantizers.rehearse(bare, config, exported=bool(self.args.export_dir), on_cpu=on_cpu)
            taken |= quantized_linears(bare)[0].keys()
        for pattern in self.args.disabled_layers or []:
            if not any(fnmatchcase(name, pattern) for name in linears):
                cause = f"args.disabled_layers: {pattern!r} matches no layer, of which one is {linears[0]}."
                raise JobError("matches_nothing", cause, "Write patterns of whole names, such as '*.layers.0.*'.")
        self.left[:] = own if self.args.recipe else sorted({*linears} - taken)

    def quantize(
        self,
        model: "nn.Module",
        samples: Sequence[Tokens],
        record: Record,
        *,
        ranks: Group,
        advance: Advance,
        **limits: int,
    ) -> dict[str, Any]:
        """Search, and give each layer its format in place; returns what a report tells of the choice.

        Raises JobError: effective_bits_out_of_reach, search_failed, nothing_quantized.
        """
        asked = self.asked
        at_once = limits["batch_size"] if asked.method == "gradient" else 1  # the logits of a pass are compared whole
        plan = packing.plan([*map(len, samples)], **{**limits, "batch_size": at_once}, mixed=False)
        groups = [[samples[index] for index in group] for group in plan]
        scored = 1 + sum(count < asked.score_size for count in accumulate(map(len, groups[:-1])))
        loop = self._calibration(samples, advance, limits)
        state = self._searched(model, _Steps(record=record, calibrate=loop), groups, scored)
        choice = [mark for mark in map(_mark, state["best"]["recipe"].values()) if mark in self.candidates]
        if not choice:
            cause = f"With {asked.bits:g} bits on average every layer may stay as it is."
            raise JobError("nothing_quantized", cause, "Lower args.effective_bits.")
        quantizers.settle(model)
        if asked.cache is not None:
            _quantize_cache(model, asked.cache, samples, advance, limits)
        return {"search": self._told(state, sum(map(len, groups[:scored])))}

    def _calibration(
        self, samples: Sequence[Tokens], advance: Advance, limits: dict[str, Any]
    ) -> "Callable[[nn.Module], None]":
        """What calibrates a candidate: the passes that `quantize` takes for it, so that scales are the same."""
        methods = {quantizers.algorithm_name(config) for config in self.asked.configs}

        def loop(model: "nn.Module") -> None:
            maxima = "max" if methods <= _MAXIMA else None
            method = "awq_lite" if any(hasattr(module, "awq_lite") for module in model.modules()) else maxima
            calibrate.calibration_loop(samples, advance=advance, algorithm=method, **limits)(model)

        return loop

    def _searched(self, model: Any, steps: "_Steps", groups: list[list[Tokens]], scored: int) -> dict[str, Any]:
        """ModelOpt's state of the search; the model has its formats."""
        import modelopt.torch.quantization as mtq
        from modelopt.torch.quantization import algorithms, model_calib
        from torch.nn import functional

        asked = self.asked
        cost: dict[str, Any] = {} if asked.ratio is None else {"active_moe_expert_ratio": asked.ratio}
        cost |= {"excluded_module_name_patterns": [*asked.not_counted, *self._not_counted]}
        constraints = {"effective_bits": asked.bits, "cost_model": asked.cost_model, "cost": cost}
        scores = {"forward_backward_step": _backward} if asked.method == "gradient" else {}
        exact = replaced([algorithms.AutoQuantizeKLDivSearcher], "run_search_with_stats", _least_threshold)
        base = algorithms._AutoQuantizeBaseSearcher
        own = replaced([base], "initialize_candidate_stats", _with_own_scores(base.initialize_candidate_stats))
        try:
            with (
                warnings.catch_warnings(),
                cpu_kernels(),
                replaced([functional], "linear", functional.linear),  # see quantizers.quantize
                replaced([algorithms], "tqdm", steps),
                # ModelOpt switches it off while it searches; a search that fails leaves it so for what comes after.
                replaced([model_calib], "_ENABLE_FOLDING_PQS_TO_WEIGHTS", True),
                exact,
                own,
            ):
                warnings.simplefilter("ignore")
                _, state = mtq.auto_quantize(
                    model,
                    constraints,
                    copy.deepcopy(asked.formats) if asked.others is None else None,
                    groups,
                    steps.forward,
                    **scores,
                    disabled_layers=[*asked.disabled, *self.left],
                    num_calib_steps=1,
                    num_score_steps=scored,
                    method=asked.method,
                    module_search_spaces=copy.deepcopy(asked.spaces),
                    fixed_quantization_config=copy.deepcopy(asked.others),
                )
        except JobError:
            raise
        except Exception as error:  # of ModelOpt, of torch's autograd, of each architecture
            if "out of memory" in str(error):
                raise
            if "infeasible" in str(error) or "cannot be lower than" in str(error):
                cause, remedy = first_line(error), "Raise args.effective_bits, or leave fewer layers out."
                raise JobError("effective_bits_out_of_reach", cause, remedy) from error
            cause = f"ModelOpt's search fails on this model: {first_line(error)}"
            raise JobError("search_failed", cause, _BY_SCORES) from error
        finally:
            model.eval()  # gradients are computed in training mode, with checkpoints
            if getattr(model, "is_gradient_checkpointing", False):
                model.gradient_checkpointing_disable()
        if not state["best"]["is_satisfied"] or state["best"]["constraints"]["effective_bits"] > asked.bits + 1e-6:
            cause = f"ModelOpt found no mixture of at most {asked.bits:g} bits."
            raise JobError("search_failed", cause, "Raise args.effective_bits.")
        return dict(state)

    @property
    def _not_counted(self) -> list[str]:
        """What is left as it is by the arguments has no part in the average that they ask for."""
        return [*self.left, *(self.args.disabled_layers or [])]

    def _told(self, state: Mapping[str, Any], scored: int) -> dict[str, Any]:
        """Of plain data: the report's section `search`."""
        best, layers = state["best"], []
        for name, stats in state["candidate_stats"].items():
            chosen = self.candidates.get(_mark(best["recipe"][name]))
            told = zip(stats["formats"], stats["scores"], strict=True)
            known = [(self.candidates.get(_mark(recipe)), float(score)) for recipe, score in told]
            scores = {one.label: score for one, score in known if one}
            if scores and not all(map(math.isfinite, scores.values())):
                cause = f"{stats['module_names'][0]} has a score that is no number."
                raise JobError("search_failed", cause, "Set args.dtype=float32, or args.method=kl_div.")
            layers.append(
                {
                    "modules": list(stats["module_names"]),
                    "format": chosen and chosen.label,
                    "bits": chosen.bits if chosen else PLAIN_BITS,
                    "weights": stats["uncompressed_cost"],
                    "scores": scores,
                }
            )
        return {
            "method": self.asked.method,
            "cost_model": self.asked.cost_model,
            "effective_bits": {"asked": self.asked.bits, "reached": best["constraints"]["effective_bits"]},
            "samples_scored": scored,
            "candidates": {one.label: one.bits for one in self.candidates.values()},
            "layers": layers,
        }

    def formats(self, results: Mapping[str, Any], layers: Iterable[str]) -> Mapping[str, Format]:
        """Of each layer by its name, as far as the format is one of configs/formats.yaml."""
        facts = {one.label: one.facts for one in self.candidates.values()}
        chosen = (
            (module, facts.get(row["format"])) for row in results["search"]["layers"] for module in row["modules"]
        )
        return {module: found for module, found in chosen if found is not None}

    def verified(self) -> dict[str, Any]:
        """What an export is held against besides: arguments of `verify.verify_export`."""
        cache = self.args.export_kv_cache_quant
        return {"facts": None, "kv_cache": None if self.args.recipe and cache == "none" else cache}


def _of_formats(args: AutoQuantizeArgs) -> _Asked:
    import modelopt.torch.quantization as mtq

    configs = [copy.deepcopy(getattr(mtq, FORMATS[name].config)) for name in args.makes()]
    every = {"module_name_patterns": ["*"], "quantization_formats": configs, "allow_no_quant": False}
    return _Asked(
        formats=configs,
        spaces=[] if args.allow_no_quant else [every],
        others=None,
        bits=args.bits_asked or PLAIN_BITS,
        cost_model="weight",
        ratio=None,
        method="gradient",
        score_size=SCORED,
        disabled=[],
        not_counted=[],
        cache=None,
    )


def _of_recipe(name: str) -> _Asked:
    """Raises JobError `unsupported_quant_recipe` where ModelOpt refuses it."""
    from modelopt.recipe import load_recipe
    from pydantic import ValidationError

    ref = resolve_recipe(name, "auto_quantize")
    try:
        recipe: Any = load_recipe(ref.value if ref else name)
    except (ValidationError, ValueError, KeyError, TypeError, OSError) as error:
        cause = f"ModelOpt refuses the recipe {name}: " + str(error).strip().replace("\n", " ")[:300]
        raise JobError("unsupported_quant_recipe", cause, "Correct the file.") from error
    if (said := getattr(recipe, "auto_quantize", None)) is None:
        cause = f"{name} is a {type(recipe).__name__}, not a recipe of AutoQuantize."
        raise JobError("unsupported_quant_recipe", cause, "Take one from general/auto_quantize.")
    cost = said.constraints.cost
    spaces = [
        {
            "module_name_patterns": list(space.module_name_patterns),
            "quantization_formats": [dict(one.model_dump()) for one in space.candidate_formats],
            "allow_no_quant": space.allow_no_quant,
        }
        for space in said.module_search_spaces
    ]
    return _Asked(
        formats=[dict(one.model_dump()) for one in said.candidate_formats],
        spaces=spaces,
        others=None if recipe.quantize is None else dict(recipe.quantize.model_dump()),
        bits=said.constraints.effective_bits,
        cost_model=said.constraints.cost_model,
        ratio=cost.active_moe_expert_ratio if cost else None,
        method=said.auto_quantize_method,
        score_size=said.score_size,
        disabled=list(said.disabled_layers),
        not_counted=list(said.cost_excluded_layers),
        cache=None if said.kv_cache is None else dict(said.kv_cache.model_dump()),
    )


def _facts(config: Config) -> tuple[Format | None, int]:
    """What is known of the format that ModelOpt's configuration amounts to, and how many steps its weights take."""
    rules = rules_of(_as_read(config["quant_cfg"]))
    steps = max((len(grids) for _, grids in rules), default=0)
    found = FORMATS.get(format_of(rules, [quantizers.algorithm_name(config) or ""]) or UNKNOWN)
    inputs = any(pattern.endswith("input_quantizer") and grids for pattern, grids in rules)
    if found is None or inputs or not found.input_scales:
        return found, steps
    if not found.quant_algo_weight_only:
        return None, steps
    alone: dict[str, Any] = {"name": f"{found.name} weight-only", "quant_algo": found.quant_algo_weight_only}
    return replace(found, **alone, input_scales={}, optional={}), steps


def _as_read(value: Any) -> Any:
    """As a checkpoint's state has it, where dictionaries are pairs."""
    if isinstance(value, dict):
        return Pairs((key, _as_read(one)) for key, one in value.items())
    return [_as_read(one) for one in value] if isinstance(value, list) else value


def _mark(recipe: Any) -> str:
    return str(recipe.checkpoint_signature)


def _logits(model: "nn.Module", group: list[Tokens]) -> "torch.Tensor":
    logits: torch.Tensor = packing.run(model, model, group, next(model.parameters()).device).logits
    return logits


def _backward(model: "nn.Module", group: list[Tokens]) -> None:
    """The gradients of each sample by itself, whose logits are all that is in memory."""
    import torch
    from torch.nn.functional import cross_entropy

    for sample in group:
        logits = _logits(model, [sample])[0]
        targets = torch.tensor(sample[1:], device=logits.device)
        torch.autograd.backward(cross_entropy(logits[:-1].float(), targets))


@dataclass(frozen=True, kw_only=True)
class _Steps:
    """In the place of ModelOpt's progress bars, which tell what their steps are for: one step calibrates a format."""

    record: Record
    calibrate: "Callable[[nn.Module], None]"

    def __call__(self, steps: Iterable[Any], desc: str = "", total: int | None = None) -> Iterable[Any]:
        if desc.startswith("Calibrating"):
            return [(0, None)]  # number and data, as ModelOpt takes them
        return steps if total is None else self._counted(steps, total)  # None: inside another's step

    def _counted(self, steps: Iterable[Any], total: int) -> Iterable[Any]:
        for done, step in enumerate(steps, 1):
            yield step
            self.record.progress(done, total, "passes to score layers")

    def forward(self, model: "nn.Module", group: list[Tokens] | None) -> "torch.Tensor | None":
        """The logits of a group; of None nothing, but every sample has been through the model."""
        if group is not None:
            return _logits(model, group)
        self.calibrate(model)
        return None


def _with_own_scores(initialize: Callable[[Any], None]) -> Callable[[Any], None]:
    """Each format is chosen by its own score.

    ModelOpt 0.47 lowers one to the least of those with as many bits or fewer, so that any of FP8, INT8 and FP8 blocks
    would do.
    """

    def initialized(searcher: Any) -> None:
        from modelopt.torch.opt.utils import named_hparams

        initialize(searcher)
        for name, group in named_hparams(searcher.model, unique=True):
            if (stats := searcher.candidate_stats.get(name)) is not None:
                stats["scores"] = [group.get_score(recipe) for recipe in stats["formats"]]

    return initialized


def _least_threshold(searcher: Any, max_weight_size: float, verbose: bool = False) -> tuple[dict[str, Any], bool]:
    """The first format of each layer that loses no more than a threshold, which is the least that keeps the size.

    ModelOpt 0.47 halves an interval until rounding ends on either side of that threshold: half of its searches end
    with too many bits. The threshold is one of the scores.
    """

    def chosen(threshold: float) -> dict[str, Any]:
        best = {}
        for name, stats in searcher.candidate_stats.items():
            at = next((at for at, score in enumerate(stats["scores"]) if score <= threshold), 0)
            best[name] = {key: stats[of][at] for key, of in (("format", "formats"), ("costs",) * 2, ("scores",) * 2)}
        return best

    scores = sorted({float(score) for stats in searcher.candidate_stats.values() for score in stats["scores"]})
    for threshold in scores:
        best = chosen(threshold)
        if sum(one["costs"] for one in best.values()) <= max_weight_size * (1 + 1e-12):
            return best, True
    return (chosen(scores[-1]) if scores else {}), False


def _quantize_cache(
    model: "nn.Module", config: Config, samples: Sequence[Tokens], advance: Advance, limits: dict[str, Any]
) -> None:
    """Keys and values in one format, as ModelOpt's own script does it after a search; layers keep what they have."""
    import modelopt.torch.quantization as mtq
    from modelopt.torch.quantization.conversion import set_quantizer_by_cfg, set_quantizer_by_cfg_context

    rules = [rule for rule in config["quant_cfg"] if "bmm_quantizer" in str(rule["quantizer_name"])]
    loop = calibrate.calibration_loop(samples, advance=advance, **limits)
    set_quantizer_by_cfg(model, copy.deepcopy(rules))
    alone = [{"quantizer_name": "*", "enable": False}, *copy.deepcopy(rules)]
    with cpu_kernels(), set_quantizer_by_cfg_context(model, alone):
        mtq.calibrate(model, algorithm="max", forward_loop=loop)
