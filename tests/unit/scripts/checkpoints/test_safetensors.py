"""Headers of safetensors: what loaders refuse is refused by name, and what they read is read."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from scripts.checkpoints.model import weights_problem
from scripts.checkpoints.safetensors import read_header, read_tensors
from scripts.run.problems import JobError


def one(dtype: Any = "BF16", shape: Any = (4, 2), begin: Any = 0, end: Any = 16) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def written(folder: Path, header: dict[str, Any], size: int = 16) -> Path:
    text = json.dumps(header).encode()
    path = folder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(size))
    return path


LIES: dict[str, tuple[dict[str, Any], int]] = {
    "fewer bytes than the shape": ({"a": one(shape=[4, 3])}, 16),
    "more bytes than the shape": ({"a": one(shape=[4, 1])}, 16),
    "overlapping": ({"a": one(), "b": one(begin=8, end=24)}, 24),
    "the same bytes": ({"a": one(), "b": one()}, 16),
    "a gap": ({"a": one(), "b": one(begin=24, end=40)}, 40),
    "not from the beginning": ({"a": one(begin=8, end=24)}, 24),
    "backwards": ({"a": one(begin=16, end=0)}, 16),
    "past the end": ({"a": one(shape=[1 << 40], end=1 << 41)}, 16),
    "bytes left over": ({"a": one()}, 17),
    "an unknown type": ({"a": one("Q9")}, 16),
    "a type that is none": ({"a": one(["BF16"])}, 16),
    "half a byte": ({"a": one("F4", [3], 0, 1)}, 1),
    "a broken offset": ({"a": one(end=16.0)}, 16),
    "three offsets": ({"a": one() | {"data_offsets": [0, 16, 32]}}, 16),
    "a negative side": ({"a": one(shape=[-4, -2])}, 16),
    "a shape that is none": ({"a": one(shape=8)}, 16),
    "an entry that is none": ({"a": 3}, 16),
    "metadata that is no text": ({"__metadata__": {"format": 3}, "a": one()}, 16),
    "metadata that is none": ({"__metadata__": 3, "a": one()}, 16),
}


@pytest.mark.parametrize("lie", LIES)
def test_headers_that_lie(lie: str, tmp_path: Path) -> None:
    path = written(tmp_path, *LIES[lie])
    with pytest.raises(JobError) as caught:
        read_header(path)
    assert caught.value.name == "unreadable_checkpoint"
    assert path.name in caught.value.cause
    trouble = weights_problem(tmp_path)
    assert trouble is not None
    assert trouble[0] == "damaged_weights"


@pytest.mark.parametrize(
    ("dtype", "bits"),
    [(f"{kind}{bits}", bits) for kind in "IUF" for bits in (16, 32, 64)]
    + [("BF16", 16), ("C64", 64), ("F4", 4), ("F6_E2M3", 6), ("F6_E3M2", 6)]
    + [(name, 8) for name in ("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ")],
)
def test_every_type_of_the_format(dtype: str, bits: int, tmp_path: Path) -> None:
    assert list(read_header(written(tmp_path, {"a": one(dtype, [8, 2], 0, 2 * bits)}, 2 * bits))) == ["a"]


def test_the_order_is_that_of_the_bytes(tmp_path: Path) -> None:
    """As is what else may be there: metadata, tensors without elements, a single number."""
    header = {"__metadata__": {"format": "pt"}, "last": one("F32", [], 16, 20), "none": one(shape=[0, 4], end=0)}
    found = read_tensors(written(tmp_path, header | {"first": one()}, 20))
    assert {each.name: (each.dtype, each.elements) for each in found} == {
        "last": ("float32", 1),
        "none": ("bfloat16", 0),
        "first": ("bfloat16", 8),
    }
    assert read_header(written(tmp_path, {}, 0)) == {}
