"""Quantize a model layer by layer, whose weights are more than memory holds: `args.memory`.

One walk over the decoder layers: the weights of a layer are mapped from their files, ModelOpt calibrates it on what the
layer before it made of the calibration text, the text that is scored goes through it as it was and quantized, its noise
is measured, and it is dropped. What it leaves is kept in the run folder, so that a killed job goes on at the layer
where it was. Then the files are quantized as by args.from_files, with what the walk has found of inputs: what is
exported is what ModelOpt exports of the whole model, bit for bit.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from dataclasses import asdict, dataclass, field
from io import StringIO
from math import prod
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from scripts.args.quantize import QuantizeArgs
from scripts.args.sizes import bytes_of
from scripts.engines.hf import calibrate, evaluate, from_files, load, packing, quantizers, report, sqnr
from scripts.engines.hf.kept import depends_on
from scripts.engines.hf.nvfp4 import cpu_kernels
from scripts.engines.hf.packing import Tokens
from scripts.engines.hf.reference import quantized_linears
from scripts.engines.hf.samples import Samples, choose_samples
from scripts.engines.hf.streamed import States, Streamed, open_streamed
from scripts.engines.hf.weights import select
from scripts.engines.inputs import made_by, with_commits
from scripts.formats import FORMATS, LAYER_BY_LAYER, resolve_format
from scripts.processor import bf16_products, give_memory_back
from scripts.run import schema
from scripts.run.content import content_of
from scripts.run.files import is_folder, write_json
from scripts.run.problems import JobError, Problem
from scripts.run.record import Record

if TYPE_CHECKING:
    import torch
    from torch import nn

#: Where hidden states and what layers left wait, in the run folder.
FOLDER = "layers"
_FACTS = "walk.json"
#: `done`: layers that are. `sums`: over the states that the next one is given. `inputs`: type and largest magnitude.
_SCHEMA: dict[str, Any] = {
    "of": dict,
    "done": int,
    "packs": [bool],
    "sums": dict,
    "inputs": dict,
    "noise": dict,
    "seconds": float,
    "digest": str,
}
#: The three sorts of text that go through a layer.
_CALIBRATION, _BEFORE, _AFTER = "calibration", "before", "after"


@dataclass(kw_only=True)
class _Found:
    """What the layers that are done have left, as it is written down after each."""

    of: dict[str, str]
    done: int = 0
    packs: list[bool] = field(default_factory=list)
    sums: dict[str, int] = field(default_factory=dict)
    inputs: dict[str, list[Any]] = field(default_factory=dict)
    noise: dict[str, dict[str, float | None]] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class _Walk:
    """Text on its way through the layers. `scored`: indices of the samples of each group that is scored. `chosen`:
    whether the noise of a layer of this name is measured."""

    args: QuantizeArgs
    record: Record
    config: dict[str, Any]
    streamed: Streamed
    found: _Found
    states: Mapping[str, States]
    scored: Sequence[Sequence[int]]
    chosen: Callable[[str], bool]


def quantize_layers(args: QuantizeArgs, record: Record, folder: Path) -> None:
    """Calibrate, score, quantize and export the model in `folder`. Raises JobError for what is understood."""
    import torch

    for problem in troubles(args):
        raise problem.as_error()
    give_memory_back()
    source, config, device = (
        from_files.open_source(args, folder),
        quantizers.build_config(args),
        load.pick_device(args.device),
    )
    with record.phase("load"):
        selection = select(source, config, args.trust_remote_code, calibrated=True)
        tokenizer = load.load_tokenizer(str(folder), args.trust_remote_code)
        how: Any = {"device": device, "trust_remote_code": args.trust_remote_code}
        streamed = open_streamed(source, selection, dtype=getattr(torch, args.dtype), **how)
        _refuse_small(args, streamed)
        samples = choose_samples(args, tokenizer, len(streamed.model.get_input_embeddings().weight))
        content = content_of(folder)
        model = {"type": "checkpoint_hf", "name": args.hf_model_id, "path": str(folder), **content.facts}
        text = {"type": "calibration_text", "name": samples.calibration_source}
        inputs = with_commits([model | made_by(folder, content.digest), text])
        record.update(inputs=inputs, device=str(device))
        _insert_quantizers(streamed, config)
    with bf16_products(), cpu_kernels(), torch.no_grad():
        walk = _begun(args, record, config, streamed, samples, content.digest)
        with record.phase("calibrate"):
            for index in range(walk.found.done, len(streamed.layers)):
                _through_layer(walk, index)
                record.progress(index + 1, len(streamed.layers), "layers")
        with record.phase("score after"):
            scores = _scores(walk, samples)
    record.update(quantizers=quantizers.summary(kind for _, kind in quantizers.placed(streamed.model)))
    figures = _figures(args, samples, walk.found, scores)
    figures["warnings"] += [one["cause"] for one in record.values.get("warnings", []) if one["key"] == "args.memory"]
    scales = {
        name: torch.tensor(value, dtype=getattr(torch, kind)) for name, (kind, value) in walk.found.inputs.items()
    }
    del streamed, walk
    with record.phase("quantize"):
        shards = from_files.make_shards(args, record, source, selection, scales)
    from_files.publish(args, record, source, selection, shards, figures)
    for attempt in (record.dir, *record.earlier):
        shutil.rmtree(attempt / FOLDER, ignore_errors=True)


def troubles(args: QuantizeArgs) -> Iterator[Problem]:
    """What cannot be had layer by layer, as far as the arguments tell."""
    ref, others = resolve_format(args.export_quant_cfg), f"Use {', '.join(LAYER_BY_LAYER)}, or args.memory=null."
    try:
        bytes_of(args.memory)
    except ValueError as error:
        yield Problem(
            name="wrong_value", key="args.memory", value=args.memory, cause=str(error), remedy="Write 16GiB, or auto."
        )
    for key, wrong, cause, remedy in (
        (
            "from_files",
            args.from_files,
            "it reads weights alone, and args.memory calibrates on text",
            "Use one of them.",
        ),
        (
            "export_quant_cfg",
            ref.kind == "format" and not FORMATS[ref.value].of_maxima(args.weight_only),
            "it rescales weights, which is done with the whole model in memory alone",
            others,
        ),
        (
            "export_kv_cache_quant",
            args.export_kv_cache_quant != "none",
            "the key/value cache is calibrated with the whole model in memory alone",
            "Use args.export_kv_cache_quant=none, or args.memory=null.",
        ),
        (
            "layer_formats",
            bool(args.layer_formats),
            "several formats were not tried layer by layer",
            "Use one format, or args.memory=null.",
        ),
        (
            "compress",
            args.compress,
            "args.memory writes the export alone, which is packed anyway",
            "Use args.compress=false.",
        ),
    ):
        if wrong:
            value = getattr(args, key)
            yield Problem(name="layerwise_unsupported", key=f"args.{key}", value=value, cause=cause, remedy=remedy)
    if not args.export_dir:
        cause = "args.memory writes nothing else"
        yield Problem(name="no_output", key="args.export_dir", value=None, cause=cause, remedy="Name a folder.")


def _refuse_small(args: QuantizeArgs, streamed: Streamed) -> None:
    """Raise JobError('does_not_fit') where one layer with the embeddings is more than the job may take."""
    room = bytes_of(args.memory)
    if room is None:
        return
    sizes = {
        name: prod(streamed.source.shapes[stored]) * streamed.dtype.itemsize for name, stored in streamed.names.items()
    }
    of_layers = [
        sum(size for name, size in sizes.items() if name.startswith(f"{streamed.prefix}.{index}."))
        for index in range(len(streamed.layers))
    ]
    if (needed := sum(sizes.values()) - sum(of_layers) + max(of_layers)) > room:
        cause = f"Its embeddings, head and largest layer take {needed / (1 << 30):.2f} GiB; args.memory={args.memory}."
        raise JobError("does_not_fit", cause, "Give it more args.memory.")


def _insert_quantizers(streamed: Streamed, config: dict[str, Any]) -> None:
    """As mtq.quantize does. Raises JobError('layerwise_unsupported') for those that are not of a layer alone."""
    import modelopt.torch.quantization as mtq
    from modelopt.torch.quantization.nn import SequentialQuantizer

    method, model = quantizers.algorithm_name(config), streamed.model
    mtq.quantize(model, {**config, "algorithm": None})
    strange = next(
        (
            name
            for name, kind in quantizers.placed(model)
            if kind
            and not (
                name.startswith(f"{streamed.prefix}.") and name.endswith((".input_quantizer", ".weight_quantizer"))
            )
        ),
        None,
    )
    two_steps = any(isinstance(module, SequentialQuantizer) for module in model.modules())
    for wrong, cause in (
        (method not in (None, "max"), f"{method} is done of the whole model alone"),
        (strange is not None, f"{strange} belongs to no linear layer of a decoder layer"),
        (two_steps, "a quantizer of several steps is calibrated with the whole model alone"),
    ):
        if wrong:
            remedy = f"Use {', '.join(LAYER_BY_LAYER)}, or args.memory=null."
            raise JobError("layerwise_unsupported", f"{cause}.", remedy)


def _begun(
    args: QuantizeArgs,
    record: Record,
    config: dict[str, Any],
    streamed: Streamed,
    samples: Samples,
    digest: str,
) -> _Walk:
    """A walk from the first layer, or from where an ended attempt of this run was."""
    scored = samples.held_out or samples.calibration[:1]  # the latter for the noise of layers alone
    looked = hashlib.sha256(repr((scored, args.layer_noise)).encode()).hexdigest()
    facts = {"dtype": args.dtype, "device": streamed.device.type, "batch_size": str(args.calib_batch_size)}
    of = depends_on(config, samples.calibration, model=digest, scored=looked, **facts)
    place = record.dir / FOLDER
    found = _taken_up(record, of, place) or _Found(of=of, packs=_packs(streamed, samples))
    place.mkdir(exist_ok=True)
    limits: Any = {"batch_size": args.calib_batch_size, "max_tokens": packing.MAX_TOKENS}
    calibrated, compared = (
        packing.plan([len(text) for text in texts], mixed=mixed, **limits)
        for texts, mixed in zip((samples.calibration, scored), found.packs, strict=True)
    )
    groups = {
        _CALIBRATION: [[samples.calibration[one] for one in group] for group in calibrated],
        _BEFORE: [[scored[one] for one in group] for group in compared],
    }
    groups[_AFTER] = groups[_BEFORE]
    left_out = {
        _CALIBRATION: not _needs_activation_forward(streamed.model),
        _BEFORE: not samples.held_out,
        _AFTER: not samples.held_out and args.layer_noise == "none",
    }
    how: Any = {"width": streamed.model.get_output_embeddings().weight.shape[1], "dtype": streamed.dtype}
    states = {
        name: States(place=place, name=name, groups=given, **how)
        for name, given in groups.items()
        if not left_out[name]
    }
    if found.sums and found.sums != _sums(states, found.done):
        record.line(f"{place} cannot be gone on from: its hidden states are not as they were written")
        found = _Found(of=of, packs=found.packs)
    elif found.done:
        record.line(f"calibrated by an earlier attempt: {found.done} of {len(streamed.layers)} layers")
    if not found.done and samples.held_out:
        _check_head(streamed, min(samples.held_out, key=len))
    return _Walk(
        args=args,
        record=record,
        config=config,
        streamed=streamed,
        found=found,
        states=states,
        scored=compared if samples.held_out else [],
        chosen=sqnr.chosen_layers(streamed.model, args.layer_noise),
    )


def _needs_activation_forward(model: "nn.Module") -> bool:
    from modelopt.torch.quantization.model_calib import _needs_activation_forward_for_max_calib

    return bool(_needs_activation_forward_for_max_calib(model))


def _packs(streamed: Streamed, samples: Samples) -> list[bool]:
    """Whether samples of several lengths share a pass: those that are calibrated on, and those that are scored."""
    found = []
    with streamed.whole(), _unquantized(streamed.model):
        for texts in (samples.calibration, samples.held_out):
            several = len({len(text) for text in texts}) > 1
            found.append(several and packing.can_pack(streamed.model, streamed.backbone, texts, streamed.device))
    return found


def _unquantized(model: "nn.Module") -> Any:
    """The model computes as it was while the block runs."""
    from modelopt.torch.quantization import set_quantizer_by_cfg_context

    return set_quantizer_by_cfg_context(model, [{"quantizer_name": "*", "enable": False}])


def _check_head(streamed: Streamed, sample: Tokens) -> None:
    """Raise JobError('evaluation_unsupported') before hours of work: logits follow from any last states."""
    with streamed.ending_with(None):
        states = packing.run(streamed.model, streamed.backbone, [sample], streamed.device)[0][0]
        head = streamed.model.get_output_embeddings().weight
        evaluate.check_head(streamed.model, evaluate.remember(streamed.model, [sample], [states.to(head.dtype)]))


def _taken_up(record: Record, of: dict[str, str], place: Path) -> _Found | None:
    """What an ended attempt of this run has left, moved to `place`; None where nothing fits, as the log says."""
    for left in (attempt / FOLDER for attempt in record.earlier if is_folder(str(attempt / FOLDER))):
        try:
            facts = schema.read(left / _FACTS, _SCHEMA)
            if facts.pop("digest") != _digest(facts):
                raise ValueError(f"{_FACTS} is not as it was written")
            found = _Found(**facts)
        except (OSError, ValueError) as error:
            record.line(f"{left} cannot be gone on from: {error}")
            continue
        if others := [name for name in of if found.of.get(name) != of[name]]:
            record.line(f"{left} is of other values ({', '.join(others)}): calibrating anew")
            continue
        left.rename(place)
        return found
    return None


def _digest(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _sums(states: Mapping[str, States], index: int) -> dict[str, int]:
    return {name: each.sum(index) for name, each in states.items()}


def _through_layer(walk: _Walk, index: int) -> None:
    """Calibrate a layer, send all text through it, and note what it leaves. Raises JobError."""
    import modelopt.torch.quantization as mtq

    streamed, found, begin = walk.streamed, walk.found, monotonic()
    name, algorithm = f"{streamed.prefix}.{index}", walk.config.get("algorithm")
    with streamed.loaded(index) as layer:
        if _BEFORE in walk.states:
            with _unquantized(layer):
                _send(walk, _BEFORE, index)
        if algorithm is not None:

            def loop(calibrated: "nn.Module") -> None:
                with calibrate.weights_paused(calibrated):
                    _send(walk, _CALIBRATION, index)

            with redirect_stdout(StringIO()):
                mtq.calibrate(layer, algorithm, loop if _CALIBRATION in walk.states else None)
            quantizers.scale_zeros(layer)
        if _AFTER in walk.states:
            watched: AbstractContextManager[dict[str, sqnr.LayerNoise]] = nullcontext({})
            with sqnr.watched(layer, "all") if walk.chosen(name) else watched as noise:
                _send(walk, _AFTER, index)
            found.noise |= {f"{name}.{part}": asdict(each) for part, each in noise.items()}
        for part, linear in quantized_linears(layer)[0].items():
            linear.weight_quantizer.reset_amax()  # it follows from the weights
            if (amax := linear.input_quantizer.amax) is not None:
                kind = str(amax.dtype).removeprefix("torch.")
                found.inputs[f"{name}.{part}"] = [kind, float(amax)]
    found.done, found.sums = index + 1, _sums(walk.states, index + 1)
    found.seconds += monotonic() - begin
    write_json(walk.record.dir / FOLDER / _FACTS, vars(found) | {"digest": _digest(vars(found))})


def _send(walk: _Walk, name: str, index: int) -> None:
    """One sort of text through a layer. Raises JobError: weights_not_finite, layerwise_unsupported."""
    states = walk.states[name]
    for number, group in enumerate(states.groups):
        made = walk.streamed.through(index, group, states.read(index, number))
        if name != _AFTER and not load.is_finite(made):
            cause = f"Layer {index} computes NaN or infinity in {walk.args.dtype}, from weights that are finite."
            raise JobError("weights_not_finite", cause, "Set args.dtype=bfloat16 or float32, whose range is wider.")
        states.write(index, number, made)


def _scores(walk: _Walk, samples: Samples) -> evaluate.Scores | None:
    """What the whole model would score: the last states of both, by its norm and head."""
    import torch

    if not walk.scored:
        return None
    model, count = walk.streamed.model, len(walk.streamed.layers)
    kept, hidden = walk.states[_BEFORE], dict[int, Any]()
    for number, states in enumerate(_last_states(walk, _BEFORE)):
        kept.write(count, number, states)
        rows = kept.read(count + 1, number)
        assert rows is not None
        parts = torch.split(rows, [len(sample) for sample in kept.groups[number]])
        hidden.update(zip(walk.scored[number], parts, strict=True))
    base = evaluate.remember(model, samples.held_out, [hidden[index] for index in range(len(samples.held_out))])
    batches = zip(map(list, walk.scored), _last_states(walk, _AFTER), strict=True)
    return evaluate.scores_of(evaluate.summed(model, base, batches, lambda count: None))


def _last_states(walk: _Walk, name: str) -> "Iterator[torch.Tensor]":
    """Of each group what the head is given, [tokens, hidden size]."""
    streamed, states = walk.streamed, walk.states[name]
    head = streamed.model.get_output_embeddings().weight
    for number, group in enumerate(states.groups):
        with streamed.ending_with(states.read(len(streamed.layers), number)):
            made = packing.run(streamed.model, streamed.backbone, group, streamed.device)[0]
        yield made.reshape(-1, made.shape[-1]).to(head.dtype)


def _figures(args: QuantizeArgs, samples: Samples, found: _Found, scores: evaluate.Scores | None) -> dict[str, Any]:
    """The report, without sizes and verification."""
    unsaid = ["No prompt was continued: one layer at a time is in memory."] if args.prompts else []
    return {
        "schema": report.SCHEMA,
        "model": args.hf_model_id,
        "format": report.format_name(args),
        "layerwise": True,
        "calibration": report.calibration_figures(samples, found.seconds),
        "evaluation": report.evaluation_figures(scores, samples),
        "layers": [{"name": name, **each} for name, each in found.noise.items()],
        "generations": [],
        "warnings": [*report.warnings(args, samples), *unsaid],
    }
