"""What an attempt found, kept until the run's checkpoints stand: in the run folder what calibration found, for a later
attempt to go on from, and beside their places checkpoints that are whole and were not verified.

ModelOpt's state, which is read with weights_only=True, and what the quantizers hold, as safetensors: some MB of any
model. Weights that SmoothQuant and AWQ rescale are rescaled again from the source, by the factors that are kept.
"""

import glob
import hashlib
import re
import shutil
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.engines.hf.group import Group
from scripts.engines.hf.packing import replaced
from scripts.engines.hf.samples import Tokens
from scripts.run import schema
from scripts.run.content import content_of
from scripts.run.files import is_folder, staged, stamp_of, write_json
from scripts.run.problems import JobError
from scripts.run.provenance import versions
from scripts.run.record import Record

if TYPE_CHECKING:
    import torch
    from torch import nn

FOLDER = "calibrated"
_MODULUS = 10**18 - 11  # the largest prime that run folders may hold: a change of any one bit shows
_FACTS, _STATE, _VALUES = "calibration.json", "modelopt_state.pth", "quantizers.safetensors"
#: `of`: what scales depend on. `weights`: a sum over the bits of each weight that calibration rescaled. `found`: what
#: else a report tells of it.
_SCHEMA = {"of": dict, "seconds": float, "weights": dict, "files": {_STATE: str, _VALUES: str}, "found": dict}


def depends_on(config: dict[str, Any], samples: list[Tokens], **facts: str) -> dict[str, str]:
    """What scales follow from, as digests and words: those that were kept are of use where all of it is the same."""
    given = {"format": config, "samples": samples}
    found = {name: hashlib.sha256(repr(value).encode()).hexdigest() for name, value in given.items()}
    used = {name: str(versions().get(name)) for name in ("torch", "transformers", "nvidia-modelopt")}
    return {**found, **facts, **used}


@dataclass(frozen=True, kw_only=True)
class Rescaling:
    """What calibration does to weights: their sums before it, and the layers with the factors, in order."""

    before: dict[str, int]
    factors: "list[tuple[nn.Module, torch.Tensor]]" = field(default_factory=list)


@contextmanager
def rescaling(model: "nn.Module") -> Iterator[Rescaling]:
    """Note what ModelOpt does to weights while the block runs."""
    from modelopt.torch.quantization import model_calib

    rescale, noted = model_calib._apply_weight_pre_quant_scale, Rescaling(before=_sums(model))

    def note(linear: "nn.Module", factor: "torch.Tensor") -> None:
        if model_calib._ENABLE_FOLDING_PQS_TO_WEIGHTS:  # a search holds factors apart until it has chosen
            noted.factors.append((linear, factor.detach().clone()))
        rescale(linear, factor)

    with replaced([model_calib], "_apply_weight_pre_quant_scale", note):
        yield noted


def _sums(model: "nn.Module") -> dict[str, int]:
    return {name: bit_sum(weight) for name, weight in model.named_parameters()}


def bit_sum(weight: "torch.Tensor") -> int:
    """Over the bits, as integers: one that was rounded otherwise shows.

    Of eight bytes at a time, which torch adds up twenty times faster than it widens two (0.02 s for 0.4 s of 100 MB).
    """
    import torch

    bits = weight.detach().contiguous().view(-1).view(torch.uint8)
    if bits.storage_offset() % 8:
        bits = bits.clone()
    whole = len(bits) // 8 * 8
    return (int(bits[:whole].view(torch.int64).sum()) + int(bits[whole:].sum())) % _MODULUS


def _rescaled(weight: "torch.Tensor", factor: "torch.Tensor") -> "torch.Tensor":
    """As ModelOpt does it."""
    return (weight * factor.to(weight.device).squeeze()[None, :]).to(weight.dtype)


def keep(
    record: Record, model: "nn.Module", of: dict[str, str], noted: Rescaling, seconds: float, found: dict[str, Any]
) -> None:
    """Write down what calibration found; where that cannot be, the log says so and the run goes on."""
    import modelopt.torch.opt as mto
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    changed = {name: now for name, now in _sums(model).items() if noted.before.get(name) != now}
    names = {module: name for name, module in model.named_modules()}
    rescaled = [(f"{names.get(layer)}.weight", factor) for layer, factor in noted.factors]
    if other := changed.keys() - dict(rescaled).keys():
        record.line(f"what was calibrated is not kept: ModelOpt changed {min(other)}, too")
        return
    factors = {f"{number:06} {name}": factor for number, (name, factor) in enumerate(rescaled)}
    alone: Any = {"memory_format": torch.contiguous_format}  # SVDQuant's factors are not
    tensors = {name: value.detach().cpu().clone(**alone) for name, value in {**_held(model), **factors}.items()}
    try:
        with staged(record.dir / FOLDER) as folder:
            torch.save(mto.modelopt_state(model), folder / _STATE)
            save_file(tensors, folder / _VALUES)
            files = {name: content_of(folder / name).digest for name in (_STATE, _VALUES)}
            facts = {"of": of, "seconds": seconds, "weights": changed, "files": files, "found": found}
            write_json(folder / _FACTS, facts)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch's writer raises RuntimeError on a full disk
        record.line(f"what was calibrated is not kept: {error}")


def _held(model: "nn.Module") -> "dict[str, torch.Tensor]":
    """What quantizers hold, by its name in the model."""
    from modelopt.torch.quantization.nn import TensorQuantizer

    quantizers = ((name, module) for name, module in model.named_modules() if isinstance(module, TensorQuantizer))
    return {f"{name}.{key}": value for name, module in quantizers for key, value in module.state_dict().items()}


def refuse_unequal(model: "nn.Module", ranks: Group) -> None:
    """Raise JobError `ranks_disagree` where the quantizers of the ranks are not the same to the last bit.

    ModelOpt warns, and goes on, where a device cannot take a maximum over the ranks.
    """
    if ranks.world == 1:
        return
    import torch

    tensors = ((name, value.detach().cpu().contiguous().flatten()) for name, value in sorted(_held(model).items()))
    digest = hashlib.sha256()
    for name, value in tensors:
        digest.update(name.encode() + value.view(torch.uint8).numpy().tobytes())
    every = ranks.gathered(digest.hexdigest())
    if others := [rank for rank, one in enumerate(every) if one != every[0]]:
        cause = f"The scales of ranks {others} are not those of rank 0."
        raise JobError("ranks_disagree", cause, "Are their GPUs, and what is installed there, the same?")


def take_up(record: Record, model: "nn.Module", of: dict[str, str]) -> tuple[float, dict[str, Any]] | None:
    """Give `model` what an ended attempt of this run calibrated; returns the seconds of that and what else it found,
    None where nothing fits.

    What is of other values, or damaged, is told in the log and left alone.
    """
    for left in (place / FOLDER for place in record.earlier if is_folder(str(place / FOLDER))):
        try:
            facts = schema.read(left / _FACTS, _SCHEMA)
            state, values = _read(left, facts)
        except (OSError, ValueError) as error:
            record.line(f"{left} cannot be gone on from: {error}")
            continue
        others = [name for name in of if facts["of"].get(name) != of[name]]
        others = others or _rescale(model, values, facts["weights"])
        if others:
            record.line(f"{left} is of other values ({', '.join(others)}): calibrating anew")
            continue
        record.line(f"calibrated by an earlier attempt: {left}")
        left.rename(record.dir / FOLDER)
        _give(model, state, values)
        return float(facts["seconds"]), facts["found"]
    return None


def take_over(record: Record, model: "nn.Module") -> None:
    """Give `model` what the first rank has taken up. Raises OSError or ValueError."""
    left = record.dir / FOLDER
    facts = schema.read(left / _FACTS, _SCHEMA)
    state, values = _read(left, facts)
    if others := _rescale(model, values, facts["weights"]):
        raise ValueError(f"{left} is of other values here: {', '.join(others)}")
    _give(model, state, values)


def _give(model: "nn.Module", state: Any, values: "dict[str, torch.Tensor]") -> None:
    import modelopt.torch.opt as mto

    place = next(model.parameters()).device
    mto.restore_from_modelopt_state(model, state)
    model.load_state_dict(values, strict=False)
    model.to(place)  # ModelOpt makes buffers of quantizers without weights on the CPU


def _read(folder: Path, facts: dict[str, Any]) -> "tuple[Any, dict[str, torch.Tensor]]":
    import torch
    from safetensors.torch import load_file

    for name, digest in facts["files"].items():
        if content_of(folder / name).digest != digest:
            raise ValueError(f"{name} is not as it was written")
    return torch.load(folder / _STATE, weights_only=True), load_file(folder / _VALUES)


def _rescale(model: "nn.Module", values: "dict[str, torch.Tensor]", sums: dict[str, int]) -> list[str]:
    """Rescale weights by the factors among `values`, if all come out as they were; returns those that do not."""
    weights, factors = dict(model.named_parameters()), defaultdict(list)
    for key in sorted(key for key in values if " " in key):
        factors[key.partition(" ")[2]].append(values.pop(key))

    def made(name: str) -> "torch.Tensor":
        return reduce(_rescaled, factors[name], weights[name].detach())

    wrong = [name for name, expected in sums.items() if name not in weights or bit_sum(made(name)) != expected]
    for name in [] if wrong else sums:
        weights[name].data.copy_(made(name))
    return wrong


@contextmanager
def rescued(record: Record) -> Iterator[dict[Path, Path]]:
    """What is whole when the block fails stays as PLACE.unverified, and the error tells where: hours may be in it.

    Yields the folders that are whole, with the places that they are meant for.
    """
    whole: dict[Path, Path] = {}
    try:
        yield whole
    except Exception as error:
        kept = [partial.rename(_free(place)) for partial, place in whole.items()]
        told = f"What was calibrated is kept, unverified: {', '.join(map(str, kept))}."
        with suppress(OSError):  # a full disk, which may be the error itself: then it stays for good
            left = [{"path": str(path), "stamp": stamp_of(path)} for path in kept]
            record.update(unverified=[*record.values.get("unverified", []), *left])
        if kept and isinstance(error, JobError):
            raise JobError(error.name, f"{error.cause} {told}", error.remedy) from error
        if kept:
            error.add_note(told)
        raise


def _free(place: Path) -> Path:
    names = (f"{place.name}.unverified{number}" for number in ("", *(f"-{count}" for count in range(2, 1000))))
    return next(path for name in names if not (path := place.with_name(name)).exists())


def forget(record: Record, places: Sequence[Path]) -> None:
    """Remove what is of no more use: the checkpoints stand at `places`."""
    for attempt in (record.dir, *record.earlier):
        shutil.rmtree(attempt / FOLDER, ignore_errors=True)
    stamps = {one["stamp"] for one in record.values.get("unverified", [])}
    for place in places if stamps else ():
        with suppress(OSError):  # where it cannot be looked at it stays
            for path in _unverified(record, place):
                # Of the same name there may be another run's, or what somebody has worked on since.
                if stamp_of(path) in stamps:
                    shutil.rmtree(path, ignore_errors=True)
                    record.line(f"removed, as what was verified is in its place: {path}")
                else:
                    record.line(f"left alone, as this run has not left it like that: {path}")


def _unverified(record: Record, place: Path) -> list[Path]:
    """Folders that have the names of what attempts left for `place`, which may have gone aside with them."""
    beside, own = [place.parent], re.compile(re.escape(place.name) + r"\.unverified(-\d+)?")
    if place.is_relative_to(record.dir):
        beside += [attempt / place.parent.relative_to(record.dir) for attempt in record.earlier]
    found = (path for folder in beside for path in folder.glob(f"{glob.escape(place.name)}.unverified*"))
    return sorted(path for path in found if own.fullmatch(path.name) and path.is_dir() and not path.is_symlink())
