"""The GPUs of a place: what its profile says, what its node shape is called, or what a recipe is stated for."""

import re
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from configs import CONFIGS
from scripts.args.typed import parse_yaml
from scripts.run.problems import Problem, nearest

if TYPE_CHECKING:
    from executors.base import Place

_GIB = 1 << 30
#: A node shape of Lepton: gpu.8xh100-80gb, gpu.h200.
_SHAPE = re.compile(r"gpu\.(?:(?P<count>\d+)x)?(?P<name>.+)")


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One kind of GPU. `known_by` says who named it; not `certain` is what the recipe is made for, and no more."""

    name: str
    memory: int  # bytes
    sm: int  # compute capability: 90 is Hopper, 100 and above Blackwell
    bf16_tflops: float
    bandwidth: float  # TB/s
    known_by: str = ""
    certain: bool = True


@cache
def gpus() -> MappingProxyType[str, dict[str, Any]]:
    """configs/gpus.yaml."""
    return MappingProxyType(parse_yaml((CONFIGS / "gpus.yaml").read_text(encoding="utf-8")))


def gpu_of(place: "Place", stated: str | None) -> Gpu | None:
    """The GPU of a place, else the one that the recipe is stated for; None where neither is known."""
    if place.profile.gpu is not None:
        return _gpu(place.profile.gpu, "executor.gpu", certain=True)
    shape = _SHAPE.fullmatch(place.node_shape.lower())
    if shape and (found := _gpu(shape["name"], "executor.resource_shape", certain=True)):
        return found
    return _gpu(stated, "the recipe's stated hardware", certain=False) if stated else None


def gpu_problems(place: "Place") -> list[Problem]:
    """A profile's GPU that nobody knows."""
    return _unknown("executor.gpu", place.profile.gpu) if place.profile.gpu is not None else []


def stated_problems(value: Any) -> list[Problem]:
    """What is wrong with the `hardware` section of an algorithm's YAML."""
    if isinstance(value, dict) and set(value) == {"gpu"} and isinstance(value["gpu"], str):
        return _unknown("hardware.gpu", value["gpu"])
    cause = "names the GPU that the values are made for: {gpu: h100-80gb}"
    return [Problem(name="wrong_value", key="hardware", value=value, cause=cause)]


def _unknown(key: str, name: str) -> list[Problem]:
    if _named(name) is not None:
        return []
    cause, remedy = "configs/gpus.yaml has no such GPU", nearest(name, gpus(), listed=30)
    return [Problem(name="unknown_gpu", key=key, value=name, cause=cause, remedy=remedy)]


def gpus_per_node(place: "Place") -> int | None:
    """How many GPUs a machine of the place has, as far as its profile says."""
    if place.gpus is not None and place.gpus > 0:
        return place.gpus
    shape = _SHAPE.fullmatch(place.node_shape.lower())
    return int(shape["count"] or 1) if shape else None


def _gpu(name: str, known_by: str, *, certain: bool) -> Gpu | None:
    key = _named(name)
    if key is None:
        return None
    facts = gpus()[key]
    return Gpu(
        name=key,
        memory=facts["memory"] * _GIB,
        sm=facts["sm"],
        bf16_tflops=float(facts["bf16_tflops"]),
        bandwidth=float(facts["bandwidth"]),
        known_by=known_by,
        certain=certain,
    )


def _named(name: str) -> str | None:
    """The table's name for `H100`, `nvidia-h100-80gb-hbm3`, `a100_80gb`; None for what it does not have."""
    plain = re.sub(r"^nvidia-", "", re.sub(r"[\s_]+", "-", name.strip().lower()))
    if plain in gpus():
        return plain
    starts = [key for key in gpus() if plain.startswith(f"{key}-") or key.startswith(f"{plain}-")]
    longest = max(starts, key=len, default=None)
    return longest if longest and (plain.startswith(longest) or len(starts) == 1) else None
