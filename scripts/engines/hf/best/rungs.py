"""The search itself, in one process with one loaded model: rung by rung, then the winner is quantized as ever."""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from scripts.args.best import BestArgs
from scripts.args.meaning import ScriptSpec
from scripts.args.quantize import QuantizeArgs
from scripts.args.typed import dump_yaml
from scripts.engines.choice import SEARCH, refuse_ranks
from scripts.engines.hf import evaluate, load, quantizers
from scripts.engines.hf.best import decisions, preflight, size
from scripts.engines.hf.best.bench import Bench
from scripts.engines.hf.best.decisions import Space, Stage, Trial
from scripts.engines.hf.best.page import page_of_none, title_of
from scripts.engines.hf.best.sensitivity import sensitivities
from scripts.engines.hf.best.trials import Tried, taken_up
from scripts.engines.hf.engine import quantize_checkpoint
from scripts.engines.hf.packing import MAX_TOKENS
from scripts.engines.hf.reference import quantized_linears
from scripts.engines.hf.samples import choose_samples
from scripts.evaluation.gate import keep_gate
from scripts.evaluation.verdict import Limits
from scripts.formats import FORMATS, LEFT, format_problems
from scripts.processor import bf16_products
from scripts.run import page
from scripts.run.content import content_of
from scripts.run.drawing import size_text
from scripts.run.files import refuse_existing, staged, weight_bytes, write_json, write_text
from scripts.run.problems import JobError
from scripts.run.provenance import versions
from scripts.run.record import Record
from scripts.run.registry import refuse as refuse_by

#: Samples of the first rung, as a share of all, and at least.
_FEW, _LEAST = 8, 8
#: Of proposals that were tried before, so many in a row end the search.
_MOST_REPEATS = 24


@dataclass(kw_only=True)
class Search:
    """What the rungs share."""

    args: BestArgs
    record: Record
    bench: Bench
    tried: Tried
    limits: Limits
    fixed: int
    base_bytes: int
    formats: list[str]
    began: float
    opened: float  # seconds that loading and scoring the model took
    earlier: float  # seconds that the trials of earlier attempts took
    number: int = 0  # trials so far
    unscored: str = ""  # why AutoQuantize proposes nothing

    @property
    def few(self) -> tuple[int, int]:
        """Samples that are calibrated on and scored, of the first rung."""
        whole = self.whole
        return max(_LEAST, whole[0] // _FEW), max(_LEAST, whole[1] // _FEW)

    @property
    def whole(self) -> tuple[int, int]:
        return len(self.bench.samples.calibration), len(self.bench.samples.held_out)

    def size(self, formats: Sequence[str]) -> int:
        """Bytes of an export, as computed."""
        return self.fixed + sum(unit.sizes[name] for unit, name in zip(self.bench.units, formats, strict=True))

    def seconds(self) -> float:
        """Of this attempt, and those that earlier ones spent on what is taken up."""
        return time.monotonic() - self.began + self.earlier

    def measure(self, stage: Stage, formats: tuple[str, ...], counts: tuple[int, int], asked: Any = None) -> Trial:
        """Measure a mixture, or take what an earlier attempt measured; one line of the log."""
        self.number += 1
        if (known := self.tried.find(stage, formats)) is not None:
            return known
        began = time.monotonic()
        for name in dict.fromkeys(one for one in formats if one != LEFT):
            self.bench.calibrate(name, counts[0], lambda _: None)
        scores = self.bench.scores(formats, *counts)
        trial = Trial(
            number=len(self.tried.trials) + 1,
            stage=stage,
            formats=formats,
            size=self.size(formats),
            calibrated=counts[0],
            scored=min(counts[1], self.whole[1]),
            kl=scores.kl_divergence,
            increase=scores.perplexity_quantized / scores.perplexity_base - 1,
            agreement=scores.top1_agreement,
            seconds=round(time.monotonic() - began, 3),
            asked=asked or {},
        )
        self.tried.add(trial)
        good = "passes" if decisions.passes(trial, self.limits, self.base_bytes) else ""
        share = trial.size / self.base_bytes
        told = f"{size_text(trial.size)} ({share:.1%})  KL {trial.kl:.5f}  {trial.seconds:.1f}s  {good}"
        self.record.line(f"trial {trial.number} {stage}: {title_of(formats)}  {told}".rstrip())
        self.record.progress(min(self.number, self.args.trials), self.args.trials, "trials")
        return trial


def find_best(args: BestArgs, record: Record) -> None:
    """Search, and quantize what won; raises JobError `nothing_passes`, and those of a quantization."""
    refuse_ranks(f"{SEARCH}: it")
    refuse_by(args, ScriptSpec(), preflight)
    refuse_existing(args.modelopt_save_path, args.export_dir)
    record.line(args.asked)
    began = time.monotonic()
    search = _opened(args, record, began)
    with record.phase("search"):
        _run(search)
    report = _report(search)
    best = decisions.winner(search.tried.trials, search.limits, search.base_bytes)
    if best is None:
        raise _nothing_passes(search, report)
    chosen = _quantize_args(args, best, search.bench)
    _keep_recipe(record, chosen, best)
    record.line(f"trial {best.number} won: {title_of(best.formats)}, {size_text(best.size)}, KL {best.kl:.5f}")
    del search  # its models
    quantize_checkpoint(chosen, record, told={"tried": report})
    keep_gate(args.limits, record)


def _opened(args: BestArgs, record: Record, began: float) -> Search:
    """The model, its units, and what it said before; raises JobError where formats, or every mixture, cannot be."""
    source = load.source_folder(args.hf_model_id, record)
    quantize = QuantizeArgs(**args.measured())
    bare = load.without_weights(str(source), args.trust_remote_code)
    formats = _fitting(args, record, load.linear_shapes(bare))
    quantizers.rehearse(bare, quantizers.build_config(replace(quantize, export_quant_cfg=formats[0])), exported=True)
    layers = list(quantized_linears(bare)[0])
    if any("_weight_quantizer" in name for name, _ in bare.named_modules()):
        cause = "Experts of this model share a tensor, and a search cannot give them a format of their own."
        raise JobError("unsupported_model", cause, "Use auto_quantize, or quantize with a format.")
    del bare
    with record.phase("load"):
        loaded = load.load_model(
            str(source), dtype=args.dtype, device=args.device, trust_remote_code=args.trust_remote_code
        )
        samples = choose_samples(quantize, loaded.tokenizer, len(loaded.model.get_input_embeddings().weight))
    units = size.units_of(loaded.model, layers, formats, args.dtype)
    fixed, base_bytes = size.bytes_of_the_rest(loaded.model, layers), weight_bytes(source)
    if args.target_size is not None:
        least = fixed + sum(min(unit.sizes.values()) for unit in units)
        if least > args.target_size * base_bytes:
            cause = f"The smallest of all mixtures is {least / base_bytes:.1%} of the model's bytes."
            remedy = f"Set args.target_size to {least / base_bytes:.3f} or more, or name smaller formats."
            raise JobError("nothing_passes", f"args.target_size={args.target_size:g}: {cause}", remedy)
    passes: Any = {"batch_size": args.calib_batch_size, "max_tokens": MAX_TOKENS}
    with record.phase("score the model"), bf16_products():
        hidden = evaluate.last_states(loaded.model, samples.held_out, advance=lambda _: None, **passes)
    base = evaluate.remember(loaded.model, samples.held_out, hidden)
    bench = Bench(model=loaded.model, samples=samples, base=base, units=units, args=quantize, limits=passes)
    model = content_of(source).facts["digest"]
    tried = taken_up(record, _depends_on(quantize, bench, formats, str(model), str(loaded.device)))
    return Search(
        args=args,
        record=record,
        bench=bench,
        tried=tried,
        limits=Limits.of(args.limits),
        fixed=fixed,
        base_bytes=base_bytes,
        formats=formats,
        began=began,
        opened=time.monotonic() - began,
        earlier=sum(one.seconds for one in tried.trials),
    )


def _fitting(args: BestArgs, record: Record, shapes: dict[str, tuple[int, int]]) -> list[str]:
    """The formats that fit; one that was named and does not is refused."""
    wrong = {name: problems for name in preflight.tried(args) if (problems := format_problems(name, shapes))}
    for name, problems in wrong.items():
        if args.formats is not None:
            raise JobError("format_does_not_fit", f"{name}: {problems[0]}", "Leave it out of args.formats.")
        record.line(f"{name} is left out: {problems[0]}")
    found = [name for name in preflight.tried(args) if name not in wrong]
    if not found:
        raise JobError("format_does_not_fit", "No format fits this model.", "")
    return found


def _depends_on(args: QuantizeArgs, bench: Bench, formats: list[str], model: str, device: str) -> dict[str, str]:
    """What figures follow from, as digests and words."""
    samples = repr((bench.samples.calibration, bench.samples.held_out)).encode()
    packages = {name: str(versions().get(name)) for name in ("torch", "transformers", "nvidia-modelopt")}
    facts = {"model": model, "device": device, "dtype": args.dtype, "formats": ",".join(formats)}
    facts |= {"samples": hashlib.sha256(samples).hexdigest(), "kv": args.export_kv_cache_quant}
    return facts | {"batch_size": str(args.calib_batch_size)} | packages


def _run(search: Search) -> None:
    """Every rung, within trials and minutes."""
    args, bench, record = search.args, search.bench, search.record
    count = len(bench.units)
    alone = [search.measure("formats", (name,) * count, search.few) for name in search.formats]
    kept = decisions.halved(alone)
    record.line(f"the better half: {', '.join(kept)}")
    for name in (name for name in search.formats if name not in kept):
        bench.calibrated.pop((name, search.few[0]), None)
    whole = [search.measure("halved", (name,) * count, search.whole) for name in kept]
    if not preflight.may_mix(args):
        record.line(f"{args.server} does not load several formats in one checkpoint: no mixtures")
        return
    for name in (name for name in kept if name not in search.tried.noise):
        bench.calibrate(name, search.whole[0], lambda _: None)
        record.line(f"noise of {count} groups of layers in {name}")
        search.tried.noise[name] = bench.noise(name, search.whole[0], _LEAST, lambda _: None)
        search.tried.write()
    most = decisions.room(whole, search.limits, search.base_bytes)
    options = (*kept, LEFT) if args.leave_layers else tuple(kept)
    if len(options) < 2:
        return
    given: Any = {"noise": search.tried.noise, "scores": _scores(search, kept), "options": options}
    _mix(search, Space(units=tuple(bench.units), fixed=search.fixed, most=most, **given), whole)


def _scores(search: Search, kept: list[str]) -> dict[str, list[float]]:
    """AutoQuantize's; empty where it is not wanted, or cannot be on this model, which the log and the page tell."""
    if not search.args.auto_quantize or search.tried.sensitivities:
        return search.tried.sensitivities
    search.record.line(f"AutoQuantize scores {len(search.bench.units)} groups of layers in {', '.join(kept)}")
    try:
        found = sensitivities(search.args, search.bench, kept, search.few[0], search.record)
    except JobError as error:
        if error.name != "search_failed":
            raise
        search.unscored = f"AutoQuantize proposes nothing: {error.cause}"
        search.record.line(search.unscored)
        return {}
    search.tried.sensitivities = found
    search.tried.write()
    return found


def _mix(search: Search, space: Space, whole: Sequence[Trial]) -> None:
    """Mixtures as Optuna proposes them, until trials or minutes are used up, but for what the winner takes."""
    args, history, repeats = search.args, list[Trial](), 0
    winner_takes = search.opened + sum(one.seconds for one in whole)
    while search.number < args.trials and repeats < _MOST_REPEATS:
        longest = max((one.seconds for one in history), default=0.0)
        if history and search.seconds() + winner_takes + longest > args.minutes * 60:
            search.record.line(f"{args.minutes:g} minutes are used up, with what the winner will take")
            return
        asked = decisions.proposal(history, space, search.limits, search.base_bytes, args.seed)
        formats = space.formats(asked)
        known = next((one for one in [*whole, *history] if one.formats == formats), None)
        repeats = 0 if known is None else repeats + 1
        trial = known or search.measure(asked["by"], formats, search.whole, asked)
        history.append(replace(trial, asked=asked))


def _report(search: Search) -> dict[str, Any]:
    """`search` of report.json."""
    trials = search.tried.trials
    best = decisions.winner(trials, search.limits, search.base_bytes)
    rows = [
        {**row, "passes": decisions.passes(one, search.limits, search.base_bytes)}
        for one, row in zip(trials, search.tried.as_data()["trials"], strict=True)
    ]
    whole = [one for one in trials if one.stage != "formats"]
    return {
        **{"trials": rows, "front": [one.number for one in decisions.front(whole)]},
        **{"winner": best.number if best else None, "limits": search.args.limits, "base_bytes": search.base_bytes},
        **{"units": [list(unit.layers) for unit in search.bench.units], "noise": search.tried.noise},
        **{"sensitivities": search.tried.sensitivities, "unscored": search.unscored},
        **{"formats": search.formats, "seconds": round(search.seconds(), 1)},
    }


def _nothing_passes(search: Search, report: dict[str, Any]) -> JobError:
    """The page of what was tried stays, and the nearest is named."""
    whole = [one for one in search.tried.trials if one.stage != "formats"]
    near = decisions.nearest(whole, search.limits, search.base_bytes)
    broken = decisions.over(near, search.limits, search.base_bytes)
    said = ", ".join(f"{name} by {value:.1%}" for name, value in broken.items() if value > 0)
    share = near.size / search.base_bytes
    why = f"None of {len(report['trials'])} trials passes. The nearest is {title_of(near.formats)}: "
    why += f"{share:.1%} of the size, KL {near.kl:.5f}, perplexity {near.increase:+.2%}; above {said}."
    record = search.record
    with staged(record.dir / "report") as folder:
        write_json(folder / "report.json", {"schema": 1, "model": search.args.hf_model_id, "tried": report})
        write_text(folder / "index.html", page_of_none(search.args.hf_model_id, report, page.about(record.dir), why))
    record.artifact("eval_results", record.dir / "report")
    return JobError("nothing_passes", why, "The page in report/ shows all of them. Allow more, or name other formats.")


def _quantize_args(args: BestArgs, best: Trial, bench: Bench) -> QuantizeArgs:
    """The winner as `quantize` takes it: the format of most layers, and those that have another."""
    layers = {
        name: sum(len(u.layers) for u, one in zip(bench.units, best.formats, strict=True) if one == name)
        for name in FORMATS
    }
    base = max(layers, key=lambda name: layers[name])
    others: dict[str, list[str]] = {}
    for unit, name in zip(bench.units, best.formats, strict=True):
        if name != base:
            others.setdefault(name, []).extend(unit.layers)
    return replace(bench.args, export_quant_cfg=base, layer_formats=others)


def _keep_recipe(record: Record, chosen: QuantizeArgs, best: Trial) -> None:
    """A file that makes the winner again."""
    text = "calib_dataset calib_text_key calib_size calib_seq_length calib_batch_size eval_dataset eval_size"
    names = ["hf_model_id", "export_quant_cfg", "layer_formats", "export_kv_cache_quant", "dtype", *text.split()]
    values = {"args": {name: getattr(chosen, name) for name in names}}
    head = [f"# What won the search {record.values.get('id') or record.dir.name}: {title_of(best.formats)}."]
    head += ["# nemo experiment run quantize --config THIS_FILE", ""]
    with staged(record.dir / "recipe") as folder:
        write_text(folder / "recipe.yaml", "\n".join([*head, dump_yaml(values)]))
    record.artifact("recipe", record.dir / "recipe")
