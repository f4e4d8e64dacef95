"""What failures look like in a log: configs/diagnosis.yaml, read once."""

import functools
import re
from dataclasses import dataclass
from typing import Any

from configs import CONFIGS

_FILE = CONFIGS / "diagnosis.yaml"


@dataclass(frozen=True, kw_only=True)
class Signature:
    """One kind of failure; the fields are explained in configs/diagnosis.yaml."""

    name: str
    patterns: tuple[re.Pattern[str], ...]
    frames: re.Pattern[str] | None
    phases: tuple[str, ...]
    scheduler: tuple[str, ...]
    consequence: bool
    remedy: str
    source: str

    def applies(self, traceback: str, phase: str | None) -> bool:
        """Whether it happened where this signature says; one that says nothing applies everywhere."""
        if self.frames is None and not self.phases:
            return True
        return phase in self.phases or (self.frames is not None and self.frames.search(traceback) is not None)


@dataclass(frozen=True, kw_only=True)
class Catalogue:
    """Every signature in order, and the errors that need one."""

    signatures: tuple[Signature, ...]
    vague: frozenset[str]

    def of_scheduler(self, word: str | None) -> Signature | None:
        """The signature that a scheduler's word alone stands for."""
        return next((signature for signature in self.signatures if word in signature.scheduler), None)


@functools.cache
def catalogue() -> Catalogue:
    """The shipped catalogue."""
    import yaml

    raw = yaml.safe_load(_FILE.read_text(encoding="utf-8"))
    return Catalogue(signatures=tuple(map(_read, raw["signatures"])), vague=frozenset(raw["vague"]))


def _read(raw: dict[str, Any]) -> Signature:
    frames = raw.get("frames")
    return Signature(
        name=raw["name"],
        patterns=tuple(re.compile(pattern, re.MULTILINE) for pattern in raw["patterns"]),
        frames=re.compile("|".join(frames)) if frames else None,
        phases=tuple(raw.get("phases", ())),
        scheduler=tuple(raw.get("scheduler", ())),
        consequence=raw.get("consequence", False),
        remedy=raw["remedy"],
        source=raw["source"],
    )
