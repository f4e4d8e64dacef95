"""Quantize a model layer by layer, whose weights are more than memory holds: `args.memory`.

One walk over the decoder layers: the weights of a layer are mapped from their files, ModelOpt calibrates it on what the
layer before it made of the calibration text, the text that is scored goes through it as it was and quantized, its noise
is measured, and it is exported and dropped. What it leaves is kept in the run folder, so that a killed job goes on at
the layer where it was. What is exported is what ModelOpt exports of the whole model, bit for bit: where an algorithm
goes through the text several times, a layer is given each time what those before it made of it that time.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from dataclasses import asdict, dataclass, field
from io import StringIO
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from scripts.args.quantize import QuantizeArgs
from scripts.args.sizes import bytes_of
from scripts.checkpoints.causal import HESSIAN_EXPERTS
from scripts.engines.hf import calibrate, evaluate, experts, from_files, load, packing, quantizers, report, sqnr
from scripts.engines.hf.kept import depends_on
from scripts.engines.hf.layer_export import LayerFiles
from scripts.engines.hf.nvfp4 import cpu_kernels
from scripts.engines.hf.one_format import OneFormat, refuse_misfits
from scripts.engines.hf.packing import Tokens
from scripts.engines.hf.samples import Samples, choose_samples
from scripts.engines.hf.streamed import States, Streamed, open_streamed
from scripts.engines.hf.weights import select
from scripts.engines.inputs import of_model
from scripts.formats import EXPORTED, FORMATS, resolve_format
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
#: `done`: layers that are. `sums`: over the states that the next one is given. `files`: their stamps. `unreached`: as
#: reports have it.
_SCHEMA: dict[str, Any] = {
    "of": dict,
    "done": int,
    "packs": [bool],
    "sums": dict,
    "files": dict,
    "noise": dict,
    "unreached": dict,
    "seconds": float,
    "digest": str,
}
#: The three sorts of text that go through a layer, the first once for each pass that the algorithm makes over it.
_CALIBRATION, _BEFORE, _AFTER = "calibration", "before", "after"


@dataclass(kw_only=True)
class _Found:
    """What the layers that are done have left, as it is written down after each."""

    of: dict[str, str]
    done: int = 0
    packs: list[bool] = field(default_factory=list)
    sums: dict[str, int] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    noise: dict[str, dict[str, float | None]] = field(default_factory=dict)
    unreached: dict[str, list[int]] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class _Walk:
    """Text on its way through the layers. `scored`: indices of the samples of each group that is scored. `chosen`:
    whether the noise of a layer of this name is measured."""

    args: QuantizeArgs
    record: Record
    config: dict[str, Any]
    streamed: Streamed
    files: LayerFiles
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
        refuse_misfits(args.makes(), streamed.model)
        samples = choose_samples(args, tokenizer, len(streamed.model.get_input_embeddings().weight))
        content = content_of(folder)
        of: Any = {"facts": content.facts, "digest": content.digest, "text": samples.calibration_source}
        record.update(inputs=of_model(args.hf_model_id, folder, **of), device=str(device))
        _insert_quantizers(streamed, config)
        record.update(quantizers=quantizers.summary(kind for _, kind in quantizers.placed(streamed.model)))
        if args.force_all_expert_routing:
            experts.refuse_none(streamed.model)
    with bf16_products(), cpu_kernels(), torch.no_grad():
        walk = _begun(args, record, config, streamed, samples, content.digest)
        with record.phase("calibrate"):
            for index in range(walk.found.done, len(streamed.layers)):
                _through_layer(walk, index)
                record.progress(index + 1, len(streamed.layers), "layers")
            shards = dict.fromkeys(walk.files.finish(), "")
        with record.phase("score after"):
            scores = _scores(walk, samples)
    figures, expected = _figures(args, samples, walk.found, scores), walk.files.expected(args.dtype)
    figures["warnings"] += [one["cause"] for one in record.values.get("warnings", []) if one["key"] == "args.memory"]
    del streamed, walk
    from_files.publish(args, record, source, selection, shards, figures, expected)
    for attempt in (record.dir, *record.earlier):
        shutil.rmtree(attempt / FOLDER, ignore_errors=True)


_OTHERS = f"Use {', '.join(EXPORTED)}, or args.memory=null."


def troubles(args: QuantizeArgs) -> Iterator[Problem]:
    """What cannot be had layer by layer, as far as the arguments tell."""
    ref = resolve_format(args.export_quant_cfg)
    try:
        bytes_of(args.memory)
    except ValueError as error:
        yield Problem(
            name="wrong_value", key="args.memory", value=args.memory, cause=str(error), remedy="Write 16GiB, or auto."
        )
    rows = (
        (
            "from_files",
            args.from_files,
            "it reads weights alone, and args.memory calibrates on text",
            "Use one of them.",
        ),
        (
            "export_quant_cfg",
            ref.kind == "format" and not FORMATS[ref.value].exported,
            f"{quantizers.UNPACKED}, and args.memory writes the export alone",
            _OTHERS,
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
    )
    yield from from_files.troubles_of(args, "args.memory", "layerwise_unsupported", rows)


def _refuse_small(args: QuantizeArgs, streamed: Streamed) -> None:
    """Raise JobError('does_not_fit') where one layer with the embeddings is more than the job may take."""
    room = bytes_of(args.memory)
    if room is None:
        return
    sizes = {name: streamed.size(name) for name in streamed.names}
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
    from modelopt.torch.export.quant_utils import get_quantization_format

    method, model = quantizers.algorithm_name(config), streamed.model
    mtq.quantize(model, {**config, "algorithm": None})
    enabled = (name for name, kind in quantizers.placed(model) if kind)
    of_a_linear = re.compile(
        rf"{re.escape(streamed.prefix)}\..*[._](input|weight)_quantizers?(\.\d+)*"
    )  # or of experts
    strange = next((name for name in enabled if not of_a_linear.fullmatch(name)), None)
    kinds = sorted({kind for layer in streamed.layers if (kind := get_quantization_format(layer)) is not None})
    for wrong, cause in (
        (method is not None and method not in calibrate.PASSES, f"{method} is done of the whole model alone"),
        (bool(streamed.joined) and method == "local_hessian", HESSIAN_EXPERTS),
        (_hands_on_before(config), "GPTQ that hands on what a layer makes unquantized was not tried"),
        (strange is not None, f"{strange} belongs to no linear layer of a decoder layer"),
        (len(kinds) > 1, f"ModelOpt's exporter goes by the format of the first layer, and there are {kinds}"),
    ):
        if wrong:
            raise JobError("layerwise_unsupported", f"{cause}.", _OTHERS)


def _hands_on_before(config: dict[str, Any]) -> bool:
    """Whether an algorithm that goes layer by layer itself computes the next one's inputs before it calibrates one."""
    algorithm = config.get("algorithm")
    layerwise = algorithm.get("layerwise") if isinstance(algorithm, dict) else None
    return isinstance(layerwise, dict) and layerwise.get("get_qdq_activations_from_prev_layer") is False


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
    facts["every_expert"] = str(args.force_all_expert_routing)
    of = depends_on(config, samples.calibration, model=digest, scored=looked, **facts)
    place = record.dir / FOLDER
    passes = _passes(streamed, config)
    packed = [samples.calibration if "mixed" in passes else [], samples.held_out]
    found = _taken_up(record, of, place) or _Found(of=of, packs=_packs(streamed, packed))
    place.mkdir(exist_ok=True)
    limits: Any = {"batch_size": args.calib_batch_size, "max_tokens": packing.MAX_TOKENS}
    compared = packing.plan([len(text) for text in scored], mixed=found.packs[1], **limits)
    groups = {_BEFORE: [[scored[one] for one in group] for group in compared]}
    groups[_AFTER] = groups[_BEFORE]
    lengths = [len(text) for text in samples.calibration]
    for number, sharing in enumerate(passes):
        own: calibrate.Sharing = "equal" if sharing == "mixed" and not found.packs[0] else sharing
        planned = calibrate.groups_of(own, lengths, **limits)
        groups[f"{_CALIBRATION}{number}"] = [[samples.calibration[one] for one in group] for group in planned]
    left_out = {
        _BEFORE: not samples.held_out,
        _AFTER: not samples.held_out and args.layer_noise == "none",
    }
    how: Any = {"width": streamed.model.get_output_embeddings().weight.shape[1], "dtype": streamed.dtype}
    states = {
        name: States(place=place, name=name, groups=given, **how)
        for name, given in groups.items()
        if not left_out.get(name)
    }
    files = LayerFiles(place=place, streamed=streamed, settled=OneFormat(args=args).settled)
    if (found.sums and found.sums != _sums(states, found.done)) or not files.stand(found.files):
        record.line(f"{place} cannot be gone on from: its files are not as they were written")
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
        files=files,
        found=found,
        states=states,
        scored=compared if samples.held_out else [],
        chosen=sqnr.chosen_layers(streamed.model, args.layer_noise),
    )


def _passes(streamed: Streamed, config: dict[str, Any]) -> Sequence[calibrate.Sharing]:
    """Those of the algorithm over the calibration text; none where nothing follows from it."""
    from modelopt.torch.quantization.model_calib import _needs_activation_forward_for_max_calib

    method = quantizers.algorithm_name(config)
    if method is None or (method == "max" and not _needs_activation_forward_for_max_calib(streamed.model)):
        return ()
    return calibrate.PASSES[method]


def _packs(streamed: Streamed, every: Sequence[Sequence[Tokens]]) -> list[bool]:
    """Whether samples of several lengths share a pass, of each of several texts."""
    found = []
    with streamed.whole(), streamed.unquantized(streamed.model):
        for texts in every:
            several = len({len(text) for text in texts}) > 1
            found.append(several and packing.can_pack(streamed.model, streamed.backbone, texts, streamed.device))
    return found


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
    streamed, found, begin = walk.streamed, walk.found, monotonic()
    name = f"{streamed.prefix}.{index}"
    with streamed.loaded(index) as layer:
        if _BEFORE in walk.states:
            with streamed.unquantized(layer):
                _send(walk, _BEFORE, index)
        _calibrate(walk, index)
        if _AFTER in walk.states:
            watched: AbstractContextManager[dict[str, sqnr.LayerNoise]] = nullcontext({})
            with sqnr.watched(layer, "all") if walk.chosen(name) else watched as noise:
                _send(walk, _AFTER, index)
            found.noise |= {f"{name}.{part}": asdict(each) for part, each in noise.items()}
        found.files |= walk.files.write(index)
    found.done, found.sums = index + 1, _sums(walk.states, index + 1)
    found.seconds += monotonic() - begin
    write_json(walk.record.dir / FOLDER / _FACTS, vars(found) | {"digest": _digest(vars(found))})


def _calibrate(walk: _Walk, index: int) -> None:
    """Let ModelOpt calibrate a layer that is loaded, and send the calibration text through it. Raises JobError."""
    import modelopt.torch.quantization as mtq

    layer, algorithm = walk.streamed.layers[index], walk.config.get("algorithm")
    passes = [one for one in walk.states if one.startswith(_CALIBRATION)]
    if algorithm is None:
        return
    # One that goes layer by layer itself takes the same inputs in each pass, and hands on what the layer makes at last.
    by_itself = str(quantizers.algorithm_name(walk.config)).endswith("+layerwise")
    left, every, name = list(passes), walk.args.force_all_expert_routing, f"{walk.streamed.prefix}.{index}"

    def loop(calibrated: "nn.Module") -> None:
        with calibrate.weights_paused(calibrated), experts.watched(calibrated, every=every) as reached:
            _send(walk, passes[0] if by_itself else left.pop(0), index)
        missed = {f"{name}.{part}": numbers for part, numbers in experts.unreached(reached).items()}
        walk.found.unreached.update(missed)

    with redirect_stdout(StringIO()):
        plain = {**algorithm, "layerwise": {"enable": False}} if by_itself else algorithm
        mtq.calibrate(layer, plain, loop if passes else None)
    quantizers.scale_zeros(layer)
    # Passes are left over by a layer of whose inputs nothing is asked.
    with nullcontext() if by_itself else walk.streamed.unquantized(layer, calibrating=True):
        for one in left:
            _send(walk, one, index)


def _send(walk: _Walk, name: str, index: int) -> None:
    """One sort of text through a layer. Raises JobError: weights_not_finite, layerwise_unsupported."""
    states = walk.states[name]
    for number, group in enumerate(states.groups):
        with calibrate.counted_as(walk.streamed.layers[index], len(group)):
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
    return report.of_export(args, samples, found.seconds) | {
        "layerwise": True,
        "evaluation": report.evaluation_figures(scores, samples),
        "layers": [{"name": name, **each} for name, each in found.noise.items()],
        "warnings": [*report.warnings(args, samples), *experts.told(found.unreached), *unsaid],
        **({"unreached": found.unreached} if found.unreached else {}),
    }
