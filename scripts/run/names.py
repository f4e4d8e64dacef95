"""The names that a failure can have, wherever it is found: configs/problems.yaml."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from configs import CONFIGS
from scripts.run.diagnosis import catalogue


@dataclass(frozen=True, kw_only=True)
class Name:
    """What one name means."""

    name: str
    meaning: str
    remedy: str
    found: tuple[Literal["submit", "node", "log"], ...]  # before a job is submitted, where it runs, in its logs


@functools.cache
def names() -> Mapping[str, Name]:
    """Every name, in the order of the file. A signature of diagnosis has its remedy in configs/diagnosis.yaml."""
    import yaml

    remedies = {signature.name: " ".join(signature.remedy.split()) for signature in catalogue().signatures}
    raw = yaml.safe_load((CONFIGS / "problems.yaml").read_text(encoding="utf-8"))
    return {
        name: Name(
            name=name, meaning=one["meaning"], remedy=one.get("remedy") or remedies[name], found=tuple(one["found"])
        )
        for name, one in raw.items()
    }
