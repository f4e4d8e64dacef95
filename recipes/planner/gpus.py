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
#: Part of a GPU's memory that tensors can have: the rest is lost between an allocator's blocks, or taken for a moment.
_USABLE = 0.92
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

    @property
    def usable(self) -> int:
        """Bytes that a rank's tensors may fill."""
        return int(self.memory * _USABLE)


@cache
def gpus() -> MappingProxyType[str, dict[str, Any]]:
    """configs/gpus.yaml."""
    return MappingProxyType(parse_yaml((CONFIGS / "gpus.yaml").read_text(encoding="utf-8")))


def gpu_of(place: "Place", stated: str | None) -> Gpu | None:
    """The GPU of a place, else the one that the recipe is stated for; None where neither is known."""
    shape = _SHAPE.fullmatch(place.node_shape.lower())
    named = {"executor.gpu": place.profile.gpu}
    if place.profile.gpu is None:
        named = {"executor.resource_shape": shape and shape["name"], "the recipe's stated hardware": stated}
    for known_by, name in named.items():
        if name and (key := _named(name)) is not None:
            facts = gpus()[key]
            return Gpu(
                name=key,
                memory=facts["memory"] * _GIB,
                sm=facts["sm"],
                bf16_tflops=float(facts["bf16_tflops"]),
                bandwidth=float(facts["bandwidth"]),
                known_by=known_by,
                certain=known_by.startswith("executor."),
            )
    return None


def gpu_problems(name: str | None, key: str) -> list[Problem]:
    """A GPU that nobody knows, and the key that names it."""
    if name is None or _named(name) is not None:
        return []
    cause, remedy = "configs/gpus.yaml has no such GPU", nearest(name, gpus(), listed=30)
    return [Problem(name="unknown_gpu", key=key, value=name, cause=cause, remedy=remedy)]


def stated_problems(value: Any) -> list[Problem]:
    """What is wrong with the `hardware` section of an algorithm's YAML."""
    if isinstance(value, dict) and set(value) == {"gpu"} and isinstance(value["gpu"], str):
        return gpu_problems(value["gpu"], "hardware.gpu")
    cause = "names the GPU that the values are made for: {gpu: h100-80gb}"
    return [Problem(name="wrong_value", key="hardware", value=value, cause=cause)]


def gpus_per_node(place: "Place") -> int | None:
    """How many GPUs a machine of the place has, as far as its profile says."""
    if place.gpus is not None and place.gpus > 0:
        return place.gpus
    shape = _SHAPE.fullmatch(place.node_shape.lower())
    return int(shape["count"] or 1) if shape else None


def _named(name: str) -> str | None:
    """The table's name for `H100`, `nvidia-h100-80gb-hbm3`, `a100_80gb`; None for what it does not have."""
    plain = re.sub(r"^nvidia-", "", re.sub(r"[\s_]+", "-", name.strip().lower()))
    if plain in gpus():
        return plain
    starts = [key for key in gpus() if plain.startswith(f"{key}-") or key.startswith(f"{plain}-")]
    longest = max(starts, key=len, default=None)
    return longest if longest and (plain.startswith(longest) or len(starts) == 1) else None
