"""The models that configs/models/hub.yaml describes."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from configs import CONFIGS

SOURCE = "configs/models/hub.yaml"
_FILE = CONFIGS.parent / SOURCE


@dataclass(frozen=True, kw_only=True)
class Published:
    """What the file holds: configurations by hub name, and patterns of names whose repositories are gated or open."""

    configs: Mapping[str, Mapping[str, Any]]
    gated: tuple[str, ...]
    open: tuple[str, ...]


@functools.cache
def published() -> Published:
    """The file as it was installed."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    said = yaml.load(_FILE.read_text(encoding="utf-8"), Loader=loader)
    configs = {name: entry["config"] for entry in said["models"] for name in entry["names"]}
    return Published(configs=configs, gated=tuple(said["gated"]), open=tuple(said["open"]))


def is_gated(name: str) -> bool | None:
    """Whether the hub gives the model only to somebody who accepted its licence; None where that is not known."""
    for patterns, gated in ((published().gated, True), (published().open, False)):
        if any(fnmatchcase(name, pattern) for pattern in patterns):
            return gated
    return None
