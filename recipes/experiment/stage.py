"""What is asked for: stages, and how to submit them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import nemo_run as run


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A recipe inside an experiment: its name there, and the stages (or earlier runs) that must succeed first."""

    name: str
    partial: "run.Partial[Any]"
    executor: str | None = None  # None: the experiment's
    after: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to submit, whatever is submitted."""

    profiles: Path | None = None  # a file of executor profiles, instead of the user's own
    online: bool = True  # ask the hub about models that are not here
    force_squash: bool = False
    overrides: Mapping[str, str] = field(default_factory=dict)  # of the executor profile
    force: frozenset[str] = frozenset()  # Problems that do not stop the job, by name
