"""What a model's folder says about it, read from its files without loading anything."""

from pathlib import Path
from typing import Any

from scripts.checkpoints.safetensors import read_header
from scripts.run.problems import JobError


def linear_shapes(folder: Path) -> dict[str, tuple[int, int]]:
    """Weight matrices by tensor name as (out, in), from the safetensors headers; embeddings and heads left out."""
    shapes = {}
    for file in sorted(folder.glob("*.safetensors")):
        header = _header(file)
        for name, entry in (header or {}).items():
            if not name.endswith(".weight") or len(entry["shape"]) != 2:
                continue
            if any(part in name for part in ("embed", "lm_head", "wte", "wpe", "router", ".gate.weight")):
                continue
            rows, columns = entry["shape"]
            shapes[name.removesuffix(".weight")] = (rows, columns)
    return shapes


def _header(file: Path) -> dict[str, Any] | None:
    """What a safetensors file says of its tensors; None if it is damaged or cut short."""
    try:
        return read_header(file)
    except JobError:
        return None
