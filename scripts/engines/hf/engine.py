"""Quantize on the hf engine, from a model's folder to verified checkpoints and a report.

The order is fixed by what ModelOpt does to a model: score it while it is whole, quantize, score
again, save, then export, which spends it. Nothing is published before it was reopened and checked.
Of several ranks each calibrates and scores a share of the samples (group.py); the first does the rest, alone.
"""

import functools
import gc
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from scripts.args.auto_quantize import AutoQuantizeArgs
from scripts.args.quantize import MeasuredArgs, QuantizeArgs
from scripts.engines.card import write_card
from scripts.engines.choice import refuse_ranks
from scripts.engines.hf import (
    baseline,
    evaluate,
    experts,
    kept,
    load,
    packing,
    quantizers,
    reference,
    report,
    save,
    sqnr,
    verify,
)
from scripts.engines.hf.from_files import quantize_files
from scripts.engines.hf.group import Group, joined
from scripts.engines.hf.layerwise import quantize_layers
from scripts.engines.hf.nvfp4 import cpu_kernels
from scripts.engines.hf.one_format import OneFormat
from scripts.engines.hf.samples import Samples, choose_samples
from scripts.engines.hf.search import Search
from scripts.engines.hf.sharded import quantize_sharded
from scripts.engines.inputs import of_model
from scripts.processor import bf16_products
from scripts.run.content import content_of
from scripts.run.files import refuse_existing, staged
from scripts.run.problems import JobError
from scripts.run.record import Record

if TYPE_CHECKING:
    import torch

_PROBE_TOKENS = 64
_NEW_TOKENS = 32


@dataclass(kw_only=True)
class _State:
    """What the phases hand on."""

    args: MeasuredArgs
    how: "OneFormat | Search"
    record: Record
    source: Path
    loaded: load.LoadedModel
    samples: Samples
    ranks: Group = field(default_factory=Group)

    @property
    def model(self) -> Any:
        return self.loaded.model


def quantize_checkpoint(args: MeasuredArgs, record: Record, told: Mapping[str, Any] = MappingProxyType({})) -> None:
    """Run every phase; outputs and figures go into `record`. Raises JobError for what is understood.

    `told` goes into the report: what led to these arguments.
    """
    refuse_existing(args.modelopt_save_path, args.export_dir)
    assert isinstance(args, QuantizeArgs | AutoQuantizeArgs)
    how = OneFormat(args=args) if isinstance(args, QuantizeArgs) else Search(args=args)
    how.refuse()
    _silence_bars()
    if isinstance(args, QuantizeArgs) and args.memory is not None:
        refuse_ranks("args.memory, which goes layer by layer,")
        return quantize_layers(args, record, load.source_folder(args.hf_model_id, record))
    if isinstance(args, QuantizeArgs) and args.from_files:
        refuse_ranks("args.from_files, which reads weights alone,")
        return quantize_files(args, record, load.source_folder(args.hf_model_id, record))
    if isinstance(args, QuantizeArgs) and args.fsdp:
        return quantize_sharded(args, record, load.source_folder(args.hf_model_id, record))
    with joined(args.device, record) as ranks:
        state = _loaded(args, how, record, ranks)
        measured = _measure_and_quantize(state)
    if ranks.leads:
        _publish(state, {**_results(state, measured), **told})


def _loaded(args: MeasuredArgs, how: OneFormat | Search, record: Record, ranks: Group) -> _State:
    """The model, on each rank, and the samples of all of them, after everything was refused that can be."""
    source = load.source_folder(args.hf_model_id, record)
    how.rehearse(functools.partial(load.without_weights, str(source), args.trust_remote_code))
    with record.phase("load"):
        loaded = load.load_model(
            str(source), dtype=args.dtype, device=args.device, trust_remote_code=args.trust_remote_code
        )
        vocabulary = len(loaded.model.get_input_embeddings().weight)
        samples = ranks.same(choose_samples(args, loaded.tokenizer, vocabulary) if ranks.leads else None)
        assert samples is not None
        if ranks.leads:
            content = content_of(source)
            of: Any = {"facts": content.facts, "digest": content.digest, "text": samples.calibration_source}
            record.update(inputs=of_model(args.hf_model_id, source, **of), device=str(loaded.device))
    return _State(args=args, how=how, record=record, source=source, loaded=loaded, samples=samples, ranks=ranks)


@dataclass(frozen=True, kw_only=True)
class _Measured:
    """What was found of the model, by all ranks together."""

    prompts: list[str]
    before: list[str]
    seconds: float
    scores: evaluate.Scores | None
    noise: dict[str, sqnr.LayerNoise]
    others: dict[str, Any]  # what the report has of the way the format was found


def _measure_and_quantize(state: _State) -> _Measured:
    """What the ranks do together: score, calibrate, score again."""
    args, record, samples, ranks = state.args, state.record, state.samples, state.ranks
    limits: Any = {"batch_size": args.calib_batch_size, "max_tokens": packing.MAX_TOKENS}
    _require_numbers(state)
    prompts = [prompt for prompt in args.prompts.split("|") if prompt]
    before, base, entry = _before(state, prompts, limits)
    of: dict[str, str] = {}
    if ranks.leads:
        facts = {"device": str(state.loaded.device), "model": record.values["inputs"][0]["digest"]}
        facts |= {"batch_size": str(args.calib_batch_size), "dtype": args.dtype}
        of = kept.depends_on(state.how.depends_on, samples.calibration, **facts)
    with record.phase("calibrate"), bf16_products(), kept.rescaling(state.model) as noted:
        earlier = ranks.same(kept.take_up(record, state.model, of) if ranks.leads else None)
        if earlier is not None and not ranks.leads:
            kept.take_over(record, state.model)
        if earlier is None:
            advance = ranks.counter(record, len(samples.calibration))
            shared: Any = {"ranks": ranks, "advance": advance, **limits}
            found = state.how.quantize(state.model, samples.calibration, record, **shared)
            kept.refuse_unequal(state.model, ranks)
        left = quantizers.leave_unreached(state.model)
        if left:
            record.line(f"left alone, as no text goes through them: {len(left)} layers, such as {left[0]}")
        record.update(quantizers=quantizers.summary(kind for _, kind in quantizers.placed(state.model)))
    if earlier is None:
        seconds = record.values["timings"]["calibrate"]
        if ranks.leads:
            kept.keep(record, state.model, of, noted, seconds, found)
    else:
        seconds, found = earlier
    scores, looked_at = None, args.layer_noise if ranks.leads else "none"  # in the first pass, which is rank 0's
    if base is None:
        with record.phase("layer noise"), bf16_products():
            noise = sqnr.layer_noise(state.model, samples.calibration[0], looked_at)
    else:
        with record.phase("score after"), bf16_products(), sqnr.watched(state.model, looked_at) as noise:
            advance = ranks.counter(record, len(samples.held_out))
            sums = evaluate.compared(state.model, base, advance=advance, ranks=ranks, **limits)
        scores = evaluate.scores_of(sums)
        if entry:
            baseline.keep_losses(record, entry, sums)
    others: Any = {"scores": scores, "noise": noise, "others": found}
    return _Measured(prompts=prompts, before=before, seconds=seconds, **others)


def _results(state: _State, found: _Measured) -> dict[str, Any]:
    """The report without sizes and verification."""
    args, record, samples = state.args, state.record, state.samples
    with record.phase("generate after"):
        after = _generate(state, found.prompts)
    rows = zip(found.prompts, found.before, after, strict=True)
    return {
        "schema": report.SCHEMA,
        "model": args.hf_model_id,
        "format": state.how.title,
        "calibration": report.calibration_figures(samples, found.seconds),
        "evaluation": report.evaluation_figures(found.scores, samples),
        "baseline": record.values.get("baseline"),
        "layers": [{"name": name, **asdict(each)} for name, each in found.noise.items()],
        "generations": [{"prompt": prompt, "before": old, "after": new} for prompt, old, new in rows],
        "warnings": [*report.warnings(args, samples), *experts.told(found.others.get("unreached", {}))],
        **found.others,
    }


def _before(
    state: _State, prompts: list[str], limits: dict[str, Any]
) -> tuple[list[str], evaluate.Base | None, baseline.Entry | None]:
    """What the model said and how it scored, measured now or by an earlier run, and where that is kept.

    The first rank looks for it, and says whether the others are to measure their share, or what there is.
    """
    args, record, model, scored, ranks = state.args, state.record, state.model, state.samples.held_out, state.ranks
    asked = False

    def share() -> "list[torch.Tensor | None]":
        with record.phase("score before"), bf16_products():
            advance = ranks.counter(record, len(scored))
            return evaluate.last_states(model, scored, advance=advance, ranks=ranks, **limits)

    def measure(texts: list[str] | None) -> baseline.Measured:
        nonlocal asked
        if texts is None:
            with record.phase("generate before"):
                texts = _generate(state, prompts)
        if not scored:
            return baseline.Measured(texts=texts, states=None)
        asked = ranks.same(True)
        every = ranks.collected(share())
        states = [next(part for part in parts if part is not None) for parts in zip(*every, strict=True)]
        return baseline.Measured(texts=texts, states=states)

    if not ranks.leads:
        if not scored:
            return [], None, None
        if ranks.same(False):
            ranks.collected(states := share())
        else:
            states = ranks.same(list[Any]())
        return [], evaluate.remember(model, scored, states, head_changes=state.how.takes_head), None
    if not (prompts or scored):
        return [], None, None
    facts = {"model": str(record.values["inputs"][0]["digest"]), "dtype": args.dtype, "passes": repr(limits)}
    entry = baseline.depends_on(model, scored, prompts, state.loaded.device, **facts)
    width = model.get_output_embeddings().weight.shape[1] if scored else 0
    found = baseline.obtain(record, entry, [(len(sample), width) for sample in scored], measure)
    if scored and not asked:
        ranks.same(False)
        ranks.same(found.states)
    changes = state.how.takes_head
    base = evaluate.remember(model, scored, found.states, head_changes=changes) if found.states else None
    return found.texts, base, entry


def _publish(state: _State, results: dict[str, Any]) -> None:
    """Write both checkpoints beside their places, reopen and check them, then rename and record them."""
    args, record = state.args, state.record
    expected = reference.reference(state.model, state.source, settled=state.how.settled)
    if state.how.compress:
        with record.phase("compress"):
            quantizers.compress(state.model)
    probe, logits = _probe(state)
    verified: list[tuple[str, str]] = []
    with ExitStack() as stack:
        restorable, exported = (
            stack.enter_context(staged(Path(path))) if path else None
            for path in (args.modelopt_save_path, args.export_dir)
        )
        whole = stack.enter_context(kept.rescued(record))
        if restorable:
            with record.phase("save"):
                save.save_restorable(state.model, state.loaded.tokenizer, restorable)
                save.keep_source_files(state.source, restorable)
            whole[restorable] = Path(args.modelopt_save_path or "")
        if exported:
            with record.phase("export"):
                save.export_hf(state.model, state.loaded.tokenizer, exported, args.dtype)
                save.exclude_left(exported, expected)
                save.keep_source_files(state.source, exported)
                sized = results | {"size": report.sizes(state.source, exported)}
                write_card(exported, args, record.values, sized)
        state.loaded = replace(state.loaded, model=None)
        gc.collect()  # its parts refer to each other, and it would be there beside what is reopened
        with record.phase("verify"):
            if exported:
                expected = replace(expected, formats=state.how.formats(results, expected.modules))
                verified += verify.verify_export(exported, reference=expected, **state.how.verified())
                whole[exported] = Path(args.export_dir or "")
            if restorable:
                how: Any = {"device": state.loaded.device, "trust_remote_code": args.trust_remote_code}
                reopen = functools.partial(verify.open_restorable, dtype=args.dtype, **how)
                verified += verify.verify_restorable(restorable, logits, probe, reopen)
    export = Path(args.export_dir) if args.export_dir else None
    results |= {"size": report.sizes(state.source, export), "verified": verified}
    _record_results(state, results)


def _record_results(state: _State, results: dict[str, Any]) -> None:
    args, record = state.args, state.record
    with record.phase("report"):
        report.record_figures(record, results)
        report.write_report(record.dir / "report", results)
        made_of = {"parents": [record.values["inputs"][0]["digest"]], "format": results["format"]}
        if args.modelopt_save_path:
            record.artifact("checkpoint_modelopt", Path(args.modelopt_save_path), **made_of)
        if args.export_dir:
            record.artifact("checkpoint_hf", Path(args.export_dir), **made_of)
        record.artifact("eval_results", record.dir / "report")
        kept.forget(record, [Path(path) for path in (args.modelopt_save_path, args.export_dir) if path])
        record.line(report.as_text(results))


def _probe(state: _State) -> "tuple[torch.Tensor, torch.Tensor]":
    import torch

    sample = max(state.samples.calibration, key=len)[:_PROBE_TOKENS]
    probe = torch.tensor([sample], device=state.loaded.device)
    with torch.no_grad(), cpu_kernels():
        return probe, state.model(input_ids=probe, use_cache=False).logits.cpu()


def _require_numbers(state: _State) -> None:
    """What is not finite would become scales. Raises JobError: weights_not_finite, unsupported_model."""
    try:
        logits = _probe(state)[1]
    except Exception as error:  # each architecture has errors of its own
        if "out of memory" in str(error):
            raise
        cause = f"transformers cannot compute it in {state.args.dtype} on {state.loaded.device}: "
        remedy = "Set another args.dtype or args.device; another release of transformers may compute it."
        raise JobError("unsupported_model", f"{cause}{load.first_line(error)}", remedy) from error
    load.refuse_numbers(logits, state.args.dtype)


def _generate(state: _State, prompts: list[str]) -> list[str]:
    """Greedy continuations, so that before and after differ by the quantization alone."""
    import torch

    texts = []
    tokenizer = state.loaded.tokenizer
    with _quiet(), torch.no_grad(), cpu_kernels():
        for prompt in prompts:
            inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False).to(state.loaded.device)
            tokens = state.model.generate(
                **inputs, max_new_tokens=_NEW_TOKENS, do_sample=False, pad_token_id=tokenizer.pad_token_id
            )
            new = tokens[0, inputs["input_ids"].shape[1] :]
            texts.append(tokenizer.decode(new, skip_special_tokens=True))
    return texts


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Transformers' remarks on sampling options that greedy decoding does not use."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _silence_bars() -> None:
    """Progress is ours to show; the libraries' own bars would fill the log."""
    import datasets
    from huggingface_hub.utils import disable_progress_bars
    from transformers.utils import logging

    datasets.disable_progress_bars()
    disable_progress_bars()
    logging.disable_progress_bar()
