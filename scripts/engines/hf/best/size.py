"""How large an export will be, before there is one: by what formats.yaml says of each format's tensors."""

import json
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from scripts.engines.hf.best.decisions import Unit
from scripts.engines.hf.mixture import fused
from scripts.formats import FORMATS, LEFT, Format

if TYPE_CHECKING:
    from torch import nn

#: Bytes of a number in a safetensors file, by its type there.
_BYTES = {"F32": 4, "BF16": 2, "F16": 2, "F8_E4M3": 1, "I8": 1, "U8": 1}
#: A file's own length and `{"__metadata__":{"format":"pt"}}`, and where its tensors lie: two numbers as text.
_FILE, _OFFSETS = 48, 16


def units_of(model: "nn.Module", layers: Sequence[str], formats: Sequence[str], dtype: str) -> list[Unit]:
    """The layers in groups of one format each, with the bytes of each group by format."""
    units = []
    for group in fused(layers):
        sizes = {}
        for name in (*formats, LEFT):
            each = (_of_layer(one, model.get_submodule(one), name, dtype, joined=len(group) > 1) for one in group)
            sizes[name] = sum(each)
        units.append(Unit(layers=tuple(group), sizes=sizes))
    return units


def bytes_of_the_rest(model: "nn.Module", layers: Sequence[str]) -> int:
    """What all other tensors take; those that share their numbers are stored once."""
    own = {f"{layer}.weight" for layer in layers}
    stored = {tensor.data_ptr(): (name, tensor) for name, tensor in model.state_dict().items() if name not in own}
    return _FILE + sum(_stored(name, tensor.element_size(), tuple(tensor.shape)) for name, tensor in stored.values())


def _of_layer(layer: str, module: Any, name: str, dtype: str, *, joined: bool) -> int:
    outputs, inputs = module.out_features, module.in_features
    if name == LEFT:
        return _stored(f"{layer}.weight", 4 if dtype == "float32" else 2, (outputs, inputs))
    return sum(
        _stored(f"{layer}.{part}", width, shape) for part, width, shape in _tensors(name, outputs, inputs, joined)
    )


def _tensors(name: str, outputs: int, inputs: int, joined: bool) -> Iterator[tuple[str, int, tuple[int, ...]]]:
    """The tensors of a layer: name, bytes of a number, shape. A norm before it takes up the scales of its inputs."""
    facts: Format = FORMATS[name]
    rows, columns = outputs // facts.block[0], inputs // facts.block[1]
    shapes = {
        "scalar": (),
        "per_output": (outputs,),
        "per_block": (rows, columns),
        "per_block_4d": (rows, 1, columns, 1),
    }
    packed = {"input": (outputs, inputs // 2), "output": (outputs // 2, inputs)}
    yield "weight", _BYTES[facts.weight_dtype], packed.get(facts.packed or "", (outputs, inputs))
    for suffix, (dtype, shape) in {**facts.scales, **facts.input_scales}.items():
        yield suffix, _BYTES[dtype], shapes[shape]
    for suffix, dtype in () if joined else facts.optional.items():
        yield suffix, _BYTES[dtype], (inputs,)


def _stored(name: str, width: int, shape: tuple[int, ...]) -> int:
    """A tensor and its entry in the header of its file."""
    entry = json.dumps({name: {"dtype": "F32", "shape": list(shape), "data_offsets": []}}, separators=(",", ":"))
    return math.prod(shape) * width + len(entry) - 1 + _OFFSETS
